"""Every shipped configuration loads, trains two steps on small stand-ins, and leaves a whole run folder."""

import functools
import json
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image
from tiny import SMALL_RUN, kind_of, pretrained
from tiny_policies import stand_in, untrained

from hf_flowft import Callback, FlowODEScheduler, FlowPipeline, FlowPolicyPipeline, FourierUNet2DModel, Run, load_config

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
SMALLER = {
    "toy": ["--data.train_size=32", "--data.eval_size=24"],
    "digits": ["--data.train_size=20"],
    "images": ["--data.train_size=20", "--data.resolution=8"],
    "vectors": ["--data.train_size=20"],
    "robot": ["--eval.episodes=1", "--eval.num_repeats=1", "--eval.report_num_steps=[1]", "--data.train_size=0"],
    "mlp": ["--model.hidden_dim=16", "--model.num_layers=1"],
    "unet2d": ["--model.channels=[8,8]", "--model.layers_per_block=1", "--model.norm_groups=4"],
    "unet1d": ["--model.channels=[8,16]", "--model.groups=4", "--model.embedding_dim=8", "--model.image_widths=[8,16]"],
    "viscosity": ["--model.hidden_dim=8"],
    "gft": ["--objective.replay_samples=16"],
    "mle": ["--pairs.num_pairs=16", "--pairs.repeats=1", "--pairs.num_steps=2"],
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A pretrained pipeline for each kind of data, saved once."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("toy", "digits"):
        pretrained(kind).save_pretrained(folder / kind)
    rows = {"image": [Image.new("L", (8, 8), 9 * i) for i in range(28)] * 10, "label": [i % 10 for i in range(280)]}
    features = Features({"image": ImageColumn(), "label": ClassLabel(num_classes=10)})
    (folder / "pictures").mkdir()
    Dataset.from_dict(rows, features).to_parquet(folder / "pictures" / "train.parquet")
    network = FourierUNet2DModel([1, 8, 8], channels=[2, 4], layers_per_block=1, time_dim=4, label_dim=2)
    description = {"event_shape": [1, 8, 8], "normalisation": {"mean": 127.5, "std": 127.5}, "is_image": True}
    labels = {"class_labels": torch.arange(10)}
    FlowPipeline(network, FlowODEScheduler(), description, labels).save_pretrained(folder / "images")
    return folder


def policy_words(path, bases):
    """Settings that train a policy on small stand-ins: demonstrations as its config expects them, and the base of its base's config."""
    config = loaded(path)
    if config.eval.environment:
        pytest.importorskip("gym_pusht", reason="the simulators of hf_flowft[policy] are not installed")
    base = getattr(config.model, "path", "")
    start = FOLDER / f"{Path(base).parts[1]}.yaml" if base else path
    folder, smaller = bases / start.stem, smaller_words(start)
    if not folder.is_dir():
        users = [other.data for other in map(loaded, CONFIGS) if getattr(other.data, "path", "") == config.data.path]
        tasks = dict.fromkeys(task for data in users for task in data.tasks) or ["push"]
        stand_in(folder, list(tasks), config.data.cameras)
        made_by = load_config(start, [*SMALL_RUN, *smaller, f"--data.path={folder}", f"--output_dir={folder}"])
        untrained(made_by).save_pretrained(folder / "pipeline")
    return [f"--data.path={folder}", *([f"--model.path={folder / 'pipeline'}"] if base else [])]


def smaller_words(path):
    """What makes the data and models of a config small."""
    return [word for name in names(loaded(path)) for word in SMALLER.get(name, [])]


loaded = functools.cache(load_config)


def names(config):
    """The names of data, model and objective."""
    return [config.as_dict()[section]["name"] for section in ("data", "model", "objective")]


def test_there_are_configs():
    assert len(CONFIGS) >= 10


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_says_what_it_is_and_where_its_base_comes_from(path):
    """The first line says what it gives, the run folder bears its name, and its base is the run of another one over such data."""
    config = loaded(path)
    assert path.read_text().startswith("# ")
    assert config.output_dir == f"runs/{path.stem}"
    base = getattr(config.model, "path", "")
    if base.startswith("runs/"):
        made_by = loaded(FOLDER / f"{Path(base).parts[1]}.yaml")
        assert base == f"{made_by.output_dir}/pipeline"
        assert kind_of(made_by) == kind_of(config)
    elif base:
        assert base.startswith("checkpoints/")
        assert "scripts/convert_" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains_and_writes_everything(path, bases, tmp_path):
    """Two steps; then pipeline, results, settings, card and figures are there and agree with each other."""
    config = loaded(path)
    smaller = smaller_words(path)
    if kind_of(config) == "robot":
        smaller += policy_words(path, bases)
    elif getattr(config.model, "path", ""):
        smaller.append(f"--model.path={bases / kind_of(config)}")
        if kind_of(config) == "images":
            smaller.append(f"--data.path={bases / 'pictures'}")
    folder = tmp_path / "run"
    config = load_config(path, [*SMALL_RUN, *smaller, f"--output_dir={folder}"])
    watch = Watch()
    result = Run(config, (watch,), progress=False).execute()
    assert watch.moved == [1, 2]
    assert result.folder == folder
    check_run_folder(folder, config)


class Watch(Callback):
    """Notes the steps after which the weights are others than before."""

    def __init__(self):
        self.moved, self.before = [], None

    def on_evaluate(self, trainer, score, is_best):
        """The start."""
        self.before = self.before or self._weights(trainer)

    def on_log(self, trainer, step, logs):
        """Every step."""
        now = self._weights(trainer)
        if any(not torch.equal(now[name], old) for name, old in self.before.items()):
            self.moved.append(step)
        self.before = now

    @staticmethod
    def _weights(trainer):
        return {name: p.detach().clone() for name, p in trainer.trained.items()}


def check_run_folder(folder, config):
    """The pipeline samples, the settings read back, and every figure named is there and on the card."""
    results = json.loads((folder / "results.json").read_text())
    card = (folder / "README.md").read_text()
    assert load_config(folder / "config.yaml") == config
    assert results["train"]["steps"] == 2
    assert {entry["step"] for entry in results["train"]["history"]} == {1, 2}
    assert [score["step"] for score in results["selection"]["scores"]] == [0, 2]
    assert set(results["metrics"]) == ({"base", "result"} if results["base"] else {"result"})
    assert sorted(results["figures"]) == sorted(f"figures/{p.name}" for p in (folder / "figures").iterdir())
    assert all((folder / name).stat().st_size > 1000 and name in card for name in results["figures"])
    assert results["selection"]["verdict"] in card
    pipeline = FlowPipeline.from_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    if isinstance(pipeline, FlowPolicyPipeline):
        seen = {
            k: torch.zeros(2, 2, len(v["mean"])) for k, v in pipeline.description["observation_normalisation"].items()
        }
        seen |= {key: torch.zeros(2, 2, 96, 96, 3, dtype=torch.uint8) for key in pipeline.policy["cameras"].values()}
        samples = torch.tensor(pipeline(seen, 0 if pipeline.policy["num_tasks"] else None).chunk)
    else:
        given = {key: value[:2] for key, value in pipeline.conditions.items()} or {"batch_size": 2}
        samples = pipeline(**given, num_inference_steps=1, output_type="pt").samples
    assert samples.shape == (2, *results["data"]["event_shape"])
    assert samples.isfinite().all()
