"""Configurations for pipelines of billions of weights: each trains two steps on a small pipeline of the same kind, through the command line."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from tiny import SMALL_RUN
from tiny_latents import PIPELINES, captioned, saved, settings

from hf_flowft import Run, load_config
from hf_flowft.cli import main

FOLDER = Path(__file__).parents[1] / "configs" / "gpu"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
METHODS = {"fm": "plain", "gft": "gft", "mle": "mle"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images, and a saved pipeline of each family with an adapter to go on from."""
    folder = tmp_path_factory.mktemp("gpu")
    captioned(folder / "images")
    (folder / "prompts.txt").write_text("a white circle\na red ground\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        for name in ("sd3", "flux"):
            saved(folder / name, PIPELINES[name])
        words = settings(folder, output_dir=folder / "start", **{"model.path": folder / "sd3"})
        Run(load_config(None, words), progress=False).execute()
        yield folder


@pytest.fixture
def half_precision():
    """Accelerate keeps the precision of a process; it is given back afterwards."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains(path, home, tmp_path):
    """What it names is found in small here: the family, the images, the adapter it goes on from; everything else is as it stands."""
    config = load_config(path)
    assert path.read_text().startswith("# ")
    assert "not run by us" in path.read_text().splitlines()[0]
    assert config.output_dir == f"runs/{path.stem}"
    small = {
        "output_dir": tmp_path / "run",
        "data.path": home / "images",
        "data.resolution": 16,
        "data.base_samples": 2,
    }
    small |= {"model.path": home / path.stem.split("_")[0], "data.base_prompts": home / "prompts.txt", "model.rank": 2}
    small |= {"objective.replay_samples": 8} if config.objective.__class__.__name__ == "GradualConfig" else {}
    small |= {"pairs.num_pairs": 16, "pairs.num_steps": 4} if config.model.start else {}
    small |= {"model.start": home / "start" / "pipeline"} if config.model.start else {}
    method = METHODS[config.as_dict()["objective"]["name"]]
    words = [*SMALL_RUN, *(f"--{key}={value}" for key, value in small.items())]
    assert main(["finetune", method, "--config", str(path), *words]) == 0
    assert (tmp_path / "run" / "pipeline" / "pytorch_lora_weights.safetensors").is_file()
    assert "base_domain/held_out_loss" in (tmp_path / "run" / "README.md").read_text()
