"""Writing a Space: a folder that is complete for `upload_folder(repo_type="space")` and for `python app.py` here."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..cards.merge import assemble
from ..data import ToyConfig, load_toy
from ..pipelines import FlowPipeline
from ..results import published, read_results, write_json
from .comparison import DATA_FILE

GRADIO_VERSION = "6.31.0"
"""The version the page is tested with; the Space asks for it."""
CLOUD_SIZE = 1500
APP = '''"""The page of this Space. `python app.py` opens it on your machine; change it as you like."""

from pathlib import Path

from hf_flowft.space import build_page, launch

FOLDER = Path(__file__).resolve().parent
demo = build_page(FOLDER{base})

# Components of your own go below the page:  with demo: gradio.Markdown("...")

if __name__ == "__main__":
    launch(demo)
'''
SUMMARY = """**{verdict}**

This page draws samples of {models} with any solver and number of steps, and shows what was measured on held-out data."""
USE = """## Run it

It runs on a CPU, without a network once the requirements and the models are there:

```bash
pip install -r requirements.txt
python app.py
```

Where pip finds no `{package}`, put `hf_flowft @ ADDRESS` in its place in requirements.txt: of a wheel, or `git+https://...` of the source. The Hub
installs that file too.

{pipelines} with `hf_flowft.FlowPipeline.from_pretrained`. Numbers (n, 2) in a file `data.npy` are drawn behind two-dimensional samples."""


@dataclass(frozen=True)
class Base:
    """The base of a run; `hub_id` and `commit` say where everybody finds it, and are empty when it is copied."""

    pipeline: FlowPipeline
    hub_id: str = ""
    commit: str = ""


def write_space(run_folder: Path, out: Path) -> None:
    """Write the Space of a run: app.py, requirements.txt, README.md, results.json, the pipelines `result/` and `base/`.

    A base on the Hub is referred to by its id and commit instead of being copied. Points of a generated toy distribution are written to data.npy;
    data of any other kind never leave the machine. The folder appears when it is complete.

    Args: `run_folder`: as a run leaves it; `out`: a new or empty folder.
    Raises: ValueError when the run is not complete, its base cannot be found, or `out` holds something.
    """
    run_folder, out = Path(run_folder), Path(out)
    results, config = read_results(run_folder / "results.json"), _read_config(run_folder / "config.yaml")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another, or delete it.")
    result = FlowPipeline.from_pretrained(run_folder / "pipeline")
    if result.predicts != "velocity":
        raise ValueError(f"the page draws flows, but the model of this run predicts the {result.predicts}.")
    base = _load_base(run_folder, results, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        result.save_pretrained(folder / "result")
        if base is not None and not base.hub_id:
            base.pipeline.save_pretrained(folder / "base")
        write_json(folder / "results.json", published(results))
        _write_cloud(folder / DATA_FILE, config, result)
        _write_text(folder, results, config["hub"]["licence"], base)
        folder.chmod(0o755)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the settings {path}: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold settings by name, got {type(config).__name__}.")
    return config


def _load_base(run_folder: Path, results: dict[str, Any], config: dict[str, Any]) -> Base | None:
    """The base of a run; None of a model trained from scratch.  Raises: ValueError when it is not where it was."""
    known = results["base_model"]
    if known is None:
        return None
    if known["source"] == "hub" and known["revision"]:
        pipeline = FlowPipeline.from_pretrained(known["id"], revision=known["revision"])
        return Base(pipeline, known["id"], known["revision"])
    path, revision = config["model"]["path"], config["model"].get("revision") or None
    local = next((place for place in _places(path, config["output_dir"], run_folder) if place.is_dir()), None)
    return Base(FlowPipeline.from_pretrained(local or path, revision=revision))


def _places(path: str, output_dir: str, run_folder: Path) -> list[Path]:
    """Where a base's path in the settings can lead: from the current folder, or from the one the run was started in."""
    places = [Path(path)]
    run, written = run_folder.resolve().parts, Path(output_dir).parts
    if run[len(run) - len(written) :] == written:
        places.append(Path(*run[: len(run) - len(written)], path))
    return places


def _write_cloud(path: Path, config: dict[str, Any], result: FlowPipeline) -> None:
    """Points of the toy distributions, which are generated; other data are somebody's."""
    options = dict(config["data"])
    if options.pop("name") != "toy" or result.event_shape != (2,):
        return
    data = load_toy(ToyConfig(**options))
    points = data.normalisation.undo(data.rows("test").x_1)
    np.save(path, points[:CLOUD_SIZE].numpy())


def _write_text(folder: Path, results: dict[str, Any], licence: str, base: Base | None) -> None:
    """app.py, requirements.txt and README.md."""
    if base is None:
        argument, models, pipelines = "", "the model", "`result/` loads"
    elif base.hub_id:
        argument = f", base={base.hub_id!r}, base_revision={base.commit!r}"
        pipelines = f"`result/`, and the base `{base.hub_id}` at `{base.commit}`, load"
    else:
        argument, pipelines = ', base=FOLDER / "base"', "`result/` and `base/` load"
    if base is not None:
        models = "the base and of the fine-tune, from the same noise,"
    package = f"hf_flowft=={importlib.metadata.version('hf_flowft')}"
    sections = {
        "title": f"# {results['name']}",
        "summary": SUMMARY.format(verdict=results["selection"]["verdict"], models=models),
        "use": USE.format(pipelines=pipelines, package=package),
    }
    (folder / "app.py").write_text(APP.format(base=argument), encoding="utf-8")
    (folder / "README.md").write_text(assemble(_metadata(results["name"], licence, base), sections), encoding="utf-8")
    requirements = [
        "--extra-index-url https://download.pytorch.org/whl/cpu",
        f"torch=={importlib.metadata.version('torch').split('+')[0]}",
        package,
        f"gradio=={GRADIO_VERSION}",
    ]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")


def _metadata(name: str, licence: str, base: Base | None) -> dict[str, Any]:
    """The head of a Space's README."""
    return {
        "title": name,
        "emoji": "🌊",
        "colorFrom": "blue",
        "colorTo": "red",
        "sdk": "gradio",
        "sdk_version": GRADIO_VERSION,
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "pinned": False,
        "license": licence,
        "tags": ["flow-matching", "hf_flowft"],
        **({"models": [base.hub_id]} if base is not None and base.hub_id else {}),
    }
