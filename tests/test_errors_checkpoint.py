"""A checkpoint that is broken, of another run or malicious is refused by name, and stays as it is."""

import hashlib
import json
import pickle
import re
import warnings

import pytest
import torch
from tiny import network, toy, tree

from hf_flowft import (
    EvalConfig,
    FlowMatchingObjective,
    FlowTrainer,
    FrozenVelocity,
    GradualObjective,
    TrainConfig,
    ViscousFlowModel,
)
from hf_flowft.couplings import OTCoupling
from hf_flowft.objectives import ReconstructionObjective
from hf_flowft.training.checkpoint import CheckpointError, list_checkpoints
from hf_flowft.velocity import ParkedVelocity


def trainer(folder, model=None, objective=None, data=None, **train):
    config = TrainConfig(**{"num_steps": 4, "batch_size": 8, "checkpoint_every": 2, **train})
    evaluation = EvalConfig(every=2, num_repeats=2, select_num_steps=[2], max_samples=16)
    data, model = data or toy(), model or network(toy())
    return FlowTrainer(model, data, objective or FlowMatchingObjective(), config, evaluation, folder)


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with the checkpoints 2 and 4, of which 4 is to be spoilt."""
    trainer(tmp_path).train()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def rewrite(folder, **changed):
    """state.json with values replaced."""
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **changed}))


SPOILS = {
    "truncated weights": (lambda c: truncate(c / "weights.safetensors"), "weights.safetensors is damaged"),
    "truncated optimiser": (lambda c: truncate(c / "optimizer.pt"), "optimizer.pt is damaged"),
    "truncated state": (lambda c: truncate(c / "state.json"), "state.json is broken"),
    "missing weights": (lambda c: (c / "weights.safetensors").unlink(), "lacks weights.safetensors"),
    "missing averages": (lambda c: (c / "ema.safetensors").unlink(), "lacks ema.safetensors"),
    "missing state": (lambda c: (c / "state.json").unlink(), "no state.json"),
    "another format": (lambda c: (c / "state.json").write_text('{"format_version": 9}'), "format version 9"),
    "no object": (lambda c: (c / "state.json").write_text("[]"), "format version None"),
    "nothing said": (lambda c: (c / "state.json").write_text('{"format_version": 2}'), "says nothing of step"),
    "nonsense said": (lambda c: rewrite(c, history="none"), "says nothing of history"),
    "endless nesting": (lambda c: (c / "state.json").write_text("[" * 100_000), "state.json is broken"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_broken_checkpoint(run_folder, spoil):
    """Named, it is refused and stays; with `latest` the one before is used, and says why."""
    action, message = SPOILS[spoil]
    broken = run_folder / "checkpoints" / "checkpoint-4"
    action(broken)
    before = tree(run_folder)
    with pytest.raises(CheckpointError, match=message):
        trainer(run_folder, resume_from_checkpoint=str(broken)).train()
    assert tree(run_folder) == before
    again = trainer(run_folder, resume_from_checkpoint="latest")
    with pytest.warns(UserWarning, match="skipping a broken checkpoint"):
        again.train()
    assert again.step == 4


def test_no_checkpoint_yet(tmp_path, capsys):
    """`latest` starts from the beginning and says so: a scheduler repeats one command. A path that is not a checkpoint is an error."""
    run = trainer(tmp_path, resume_from_checkpoint="latest")
    run.train()
    assert run.step == 4
    assert f"no checkpoint in {tmp_path} yet: training starts from the beginning" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="nowhere is not a checkpoint"):
        trainer(tmp_path, resume_from_checkpoint=str(tmp_path / "nowhere")).train()


def test_no_whole_checkpoint_is_left(run_folder):
    """When all are broken the run does not start again over them: each is named."""
    for folder in list_checkpoints(run_folder):
        truncate(folder / "ema.safetensors")
    before = tree(run_folder)
    with pytest.raises(CheckpointError, match=r"no usable checkpoint.*checkpoint-4/ema.*damaged.*checkpoint-2/ema"):
        trainer(run_folder, resume_from_checkpoint="latest").train()
    assert tree(run_folder) == before


def test_a_new_run_does_not_mix_with_an_old_one(run_folder):
    with pytest.raises(CheckpointError, match=r"holds checkpoints of an earlier run: resume it .* choose another"):
        trainer(run_folder).train()


def test_a_checkpoint_of_another_run(run_folder, capsys):
    """Every setting that differs is named, old and new; those that change nothing may differ, and are told."""
    before = tree(run_folder)
    with pytest.raises(CheckpointError, match=r"train.batch_size: 8 -> 4.*start a new run from its pipeline"):
        trainer(run_folder, resume_from_checkpoint="latest", batch_size=4).train()
    assert tree(run_folder) == before
    harmless = {"num_steps": 5, "log_every": 3, "checkpoint_every": 0, "gradient_accumulation_steps": 2}
    trainer(run_folder, resume_from_checkpoint="latest", **harmless).train()
    told = capsys.readouterr().out
    assert f"Going on after step 4, from {run_folder / 'checkpoints' / 'checkpoint-4'}" in told
    for change in (
        "num_steps: 4 -> 5",
        "log_every: 20 -> 3",
        "checkpoint_every: 2 -> 0",
        "accumulation_steps: 1 -> 2",
    ):
        assert change in told
    assert "resume_from" not in told


def test_processes_that_see_different_checkpoints(run_folder):
    """One that finds none, on a disk of its own, would begin while the others go on: all refuse."""
    run = trainer(run_folder, resume_from_checkpoint="latest")
    run.processes.numbers = lambda value: torch.tensor([value, -1.0])
    with pytest.raises(CheckpointError, match=r"see different checkpoints .* where all of them can read it"):
        run.train()


def test_fewer_steps_than_were_done(run_folder):
    with pytest.raises(CheckpointError, match=r"past the end: train.num_steps is 3, give at least 4"):
        trainer(run_folder, resume_from_checkpoint="latest", num_steps=3).train()


def test_another_metric(run_folder, monkeypatch):
    """What is left to the package and has become another since: scores of two metrics are not compared."""
    run = trainer(run_folder, resume_from_checkpoint="latest", num_steps=5)
    monkeypatch.setattr(run.evaluator, "metric_name", "energy_score")
    with pytest.raises(CheckpointError, match=r"was selected by energy, and this run would be by energy_score: name"):
        run.train()


def test_other_data(run_folder):
    """Rows that were added or taken away since."""
    with pytest.raises(CheckpointError, match=r"the data are .*'train': 60.*, but .* was written with .*'train': 64"):
        trainer(run_folder, data=toy(train_size=60), resume_from_checkpoint="latest").train()


@pytest.mark.parametrize("frozen", ["reference", "parked", "base"])
def test_another_base(tmp_path, frozen):
    """A frozen network that is not the one the checkpoint was trained on, as a reference or under a residual, is noticed."""

    def run(seed, **train):
        base = network(toy(), seed=seed)
        if frozen == "base":
            return trainer(tmp_path, model=ViscousFlowModel.from_base(base, hidden_dim=8), **train)
        copy = FrozenVelocity(base) if frozen == "reference" else ParkedVelocity(base)
        return trainer(tmp_path, objective=GradualObjective(copy, num_steps=4), **train)

    run(1).train()
    run(1, resume_from_checkpoint="latest").train()
    with pytest.raises(CheckpointError, match="the base has changed"):
        run(2, resume_from_checkpoint="latest").train()


@pytest.mark.parametrize(
    ("schedule", "objective", "said"),
    [
        ("constant", "fm", None),
        ("cosine", "fm", r"the learning rate \(cosine\) follow"),
        ("constant", "gft", "the temperature follow"),
        ("constant", "anchored", "the temperature follow"),
    ],
)
def test_more_steps_than_planned(tmp_path, schedule, objective, said):
    """What is spread over the whole run moves to the new length, and this is said."""

    def run(**train):
        gradual = GradualObjective(FrozenVelocity(network(toy())), num_steps=train["num_steps"])
        anchored = ReconstructionObjective(1, coupling=OTCoupling(), mixture=gradual, mixture_weight=1.0)
        built = {"fm": FlowMatchingObjective(), "gft": gradual, "anchored": anchored}[objective]
        return trainer(tmp_path, objective=built, lr_schedule=schedule, **train)

    run(num_steps=2).train()
    longer = run(num_steps=4, resume_from_checkpoint="latest")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        longer.train()
    told = [str(w.message) for w in told if "num_steps has changed" in str(w.message)]
    assert len(told) == (said is not None)
    assert said is None or re.search(said, told[0])
    assert longer.step == 4


def test_an_optimiser_that_is_a_pickle_of_code(run_folder):
    """Even with a digest that matches, nothing but tensors and plain containers is loaded."""

    class Evil:
        def __reduce__(self):
            """Would leave a file."""
            return (open, (str(run_folder / "trapped"), "w"))

    folder = run_folder / "checkpoints" / "checkpoint-4"
    (folder / "optimizer.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    state = json.loads((folder / "state.json").read_text())
    state["files"]["optimizer.pt"] = hashlib.sha256((folder / "optimizer.pt").read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        trainer(run_folder, resume_from_checkpoint=str(folder)).train()
    assert not (run_folder / "trapped").exists()
