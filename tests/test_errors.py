"""What a user gets wrong is refused by a ValueError that names the value, what is accepted and what to do; nothing is lost by it."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import SMALL_RUN, network, pretrained, toy, tree

from hf_flowft import (
    EvalConfig,
    FlowMatchingObjective,
    FlowTrainer,
    PairsConfig,
    Run,
    TrainConfig,
    load_config,
)
from hf_flowft.data import FlowData, from_tensors
from hf_flowft.objectives import ReconstructionObjective
from hf_flowft.times import TemperatureSchedule
from hf_flowft.velocity import Velocity

EVAL = EvalConfig(every=2, num_repeats=2, select_num_steps=[2], max_samples=16)


def trainer(data=None, model=None, folder=None, objective=None, evaluation=EVAL, **train):
    data = toy() if data is None else data
    config = TrainConfig(**{"num_steps": 4, "batch_size": 8, "checkpoint_every": 2, **train})
    objective = objective or FlowMatchingObjective()
    return FlowTrainer(model or network(data), data, objective, config, evaluation, folder)


class Pair(torch.nn.Linear):
    """A network that returns two things."""

    def forward(self, x, t):
        """(v, v)"""
        return (v := super().forward(x)), v


def flow_data(rows, shape=(2,), **columns):
    """A table of the given rows as every split."""
    table = Dataset.from_dict({"sample": rows, **columns})
    condition = {"class_labels": "label"} if "label" in columns else {}
    return FlowData("table", {"train": table, "validation": table}, shape, condition_columns=condition)


GOOD = [[0.1 * i, 0.2 * i] for i in range(16)]


# Data


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flow_data([]), "split 'train' of 'table' is empty: check the data source"),
        (
            lambda: FlowData("t", {"train": Dataset.from_dict({"x": [1]})}, (1,)),
            "no column 'sample'; its columns are x",
        ),
        (lambda: flow_data([[1.0, 2.0, 3.0]] * 16).rows("train"), r"row 0 of .* has shape \(3,\), expected \(2,\)"),
        (lambda: flow_data(np.zeros((16, 3, 4, 4)).tolist(), (1, 4, 4)).rows("train"), r"expected \(1, 4, 4\)"),
        (lambda: trainer(flow_data([*GOOD[:9], [1.0, float("nan")], *GOOD[10:]])), "row 9 of split 'train'.*NaN"),
        (lambda: trainer(flow_data([*GOOD[:9], [1.0, float("inf")], *GOOD[10:]])), "row 9 of .*infinite"),
        (
            lambda: flow_data(GOOD, label=["a"] * 16).rows("train"),
            "'label' must hold numbers.*encode labels as integers",
        ),
        (lambda: flow_data(GOOD, label=[-1] * 16).num_classes, "holds -1: labels are numbered from 0"),
        (lambda: flow_data(GOOD, label=[0.5] * 16).num_classes, "one whole number a row"),
        (lambda: toy().rows("holdout"), "no split 'holdout'; it has train, validation, test"),
        (lambda: trainer(flow_data(GOOD[:5])).train(), "5 samples, fewer than the effective batch of 8"),
        (
            lambda: trainer(from_tensors("t", torch.zeros(9, 2), torch.zeros(1, 2), torch.zeros(9, 2))),
            "gives 1 rows.*needs two",
        ),
        (
            lambda: trainer(torch.zeros(9, 2), Pair(2, 2)),
            "FlowTrainer takes a FlowData, got a Tensor: from_tensors makes one",
        ),
        (lambda: trainer(toy(), objective="fm"), "FlowTrainer takes a Objective, got a str: build it first"),
        (lambda: trainer(toy(), model=Pair(2, 2)).train(), "one tensor, but the model returns a tuple"),
        (
            lambda: trainer(toy(), evaluation=dataclasses.replace(EVAL, forgetting_limit=1.1)),
            "eval.forgetting_limit 1.1 limits what is lost of the base's data, but 'five_gaussians' names none",
        ),
    ],
    ids=lambda value: None if callable(value) else value[:30],
)
def test_data_that_cannot_be_used(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Numbers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReconstructionObjective(0), "at least 1, got 0"),
        (lambda: ReconstructionObjective([4, -1]), "at least 1, got -1"),
        (lambda: ReconstructionObjective([]), "at least one number of steps"),
        (lambda: PairsConfig(num_steps=0), r"pairs.num_steps must be at least 1, got 0"),
        (lambda: TemperatureSchedule(initial_temperature=-1.0), "a negative temperature has no meaning"),
        (lambda: TemperatureSchedule(final_temperature=-0.5), "must be a number >= 0, got -0.5"),
        (lambda: TrainConfig(batch_size=0), r"train.batch_size must be at least 1, got 0"),
        (lambda: TrainConfig(learning_rate=float("inf")), "must be positive, got inf"),
        (lambda: trainer(condition_dropout=1.5), "must be a probability below 1, got 1.5"),
        (lambda: TrainConfig(ema_decay=1.0), r"train.ema_decay must be in \[0, 1\), where 0 turns it off, got 1"),
        (
            lambda: EvalConfig(metric="fid"),
            "must be one of auto, energy, frechet, kid, held_out_loss, energy_score, reconstruction, got 'fid'",
        ),
    ],
    ids=lambda value: None if callable(value) else value[:30],
)
def test_numbers_that_mean_nothing(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Models


class TwoHeads(torch.nn.Module):
    """Predicts a variance as well."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 4)

    def forward(self, x, t):
        """Twice the channels."""
        return self.layer(x)


def test_a_model_of_another_shape():
    with pytest.raises(ValueError, match=r"maps \(3, 2\) to \(3, 4\); check its output channels"):
        Velocity(TwoHeads())(torch.zeros(3, 2), 0.5)
    with pytest.raises(ValueError, match="check its output channels"):
        trainer(model=TwoHeads()).train()


# Runs


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Pretrained pipelines of toys, of digits, and of digits 0 to 3 alone."""
    folder = tmp_path_factory.mktemp("bases")
    pretrained("toy").save_pretrained(folder / "toy")
    pretrained("digits").save_pretrained(folder / "digits")
    few = pretrained("digits", num_classes=4)
    few.conditions = {"class_labels": torch.arange(4)}
    few.save_pretrained(folder / "four")
    return folder


def settings(folder, *words, data="toy", model="mlp", objective="fm"):
    choice = {"data": {"name": data}, "model": {"name": model}, "objective": {"name": objective}}
    small = ["--data.train_size=20", *(["--data.eval_size=24"] if data == "toy" else [])]
    small += ["--model.hidden_dim=8", "--model.num_layers=1"] if model == "mlp" else []
    return load_config(None, [*SMALL_RUN, *small, f"--output_dir={folder}", *words], choice)


@pytest.mark.parametrize(
    ("base", "words", "kind", "message"),
    [
        (
            "four",
            ["--data.labels=[3,7]"],
            "digits",
            "knows the labels 0 to 3, but the data have 3 to 7: choose data.labels",
        ),
        ("digits", [], "toy", r"makes samples of shape \(1, 8, 8\), but the data have shape \(2,\)"),
        ("toy", [], "digits", r"makes samples of shape \(2,\)"),
        (
            "digits",
            ["--data.conditional=false"],
            "digits",
            r"conditioned on \['class_labels'\], but the data give no conditions",
        ),
        ("none", [], "toy", "is no folder here"),
        ("", [], "toy", r"model.path must name the pretrained pipeline"),
    ],
)
def test_a_base_that_does_not_fit(bases, tmp_path, base, words, kind, message):
    """Said when the run is assembled; no folder is made."""
    path = f"--model.path={bases / base if base else ''}"
    with pytest.raises(ValueError, match=message):
        Run(settings(tmp_path / "run", path, *words, data=kind, model="pretrained"))
    assert not (tmp_path / "run").exists()


def test_labels_within_the_model_are_accepted(bases, tmp_path):
    """Few labels of many names are no more than the model knows; the null label is the model's own, not the data's."""
    words = [f"--model.path={bases / 'four'}", "--data.labels=[1,3]", "--train.condition_dropout=0.5"]
    run = Run(settings(tmp_path / "run", *words, data="digits", model="pretrained"), progress=False)
    assert run.null_condition == {"class_labels": 4.0}
    result = run.execute()
    assert result.pipeline(class_labels=3, num_inference_steps=1, output_type="pt").samples.isfinite().all()


@pytest.mark.parametrize(
    ("objective", "words", "message"),
    [
        ("gft", [], "gft fine-tunes a pretrained model: set model.name to pretrained"),
        ("mle", [], "makes its pairs with a pretrained base"),
        ("mle", ["--objective.num_steps=[0]"], "at least 1, got 0"),
        ("fm", ["--train.gradient_checkpointing=true"], "cannot recompute"),
        ("fm", ["--eval.metric=frechet"], "needs features"),
    ],
)
def test_a_run_that_cannot_be_assembled_leaves_its_folder_free(tmp_path, objective, words, message):
    """The corrected run may use the same folder."""
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        Run(settings(folder, *words, objective=objective))
    assert not folder.exists() or not any(folder.iterdir())
    Run(settings(folder))


def test_a_folder_that_is_taken(tmp_path):
    """Another run's, or any that holds something; what is in it stays as it is."""
    folder = tmp_path / "run"
    Run(settings(folder), progress=False).execute()
    before = tree(folder)
    with pytest.raises(ValueError, match="is not empty: choose another output_dir, resume with"):
        Run(settings(folder))
    words = ["--train.resume_from_checkpoint=latest", "--train.learning_rate=0.5"]
    with pytest.raises(ValueError, match=r"other settings \(train.learning_rate: 0.0003 -> 0.5\)"):
        Run(settings(folder, *words))
    assert tree(folder) == before
    Run(settings(folder, words[0]), progress=False).execute()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"cannot make the output folder .* choose another output_dir"):
            Run(settings(folder))
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot make the output folder"):
        Run(settings(tmp_path / "run"))


def test_every_configuration_is_frozen():
    """Settings cannot change under a run."""
    for config in (TrainConfig(), EvalConfig(), PairsConfig(), settings("x")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, dataclasses.fields(config)[0].name, 1)
