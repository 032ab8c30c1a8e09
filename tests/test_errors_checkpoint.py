"""A checkpoint that is broken, of another run or malicious is refused by name, and stays as it is."""

import hashlib
import json
import pickle

import pytest
from tiny import network, toy, tree

from hf_flowft import EvalConfig, FlowMatchingObjective, FlowTrainer, TrainConfig
from hf_flowft.training.checkpoint import CheckpointError, list_checkpoints


def trainer(folder, **train):
    config = TrainConfig(**{"num_steps": 4, "batch_size": 8, "checkpoint_every": 2, **train})
    evaluation = EvalConfig(every=2, num_repeats=2, select_num_steps=[2], max_samples=16)
    return FlowTrainer(network(toy()), toy(), FlowMatchingObjective(), config, evaluation, folder)


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with the checkpoints 2 and 4, of which 4 is to be spoilt."""
    trainer(tmp_path).train()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


SPOILS = {
    "truncated weights": (lambda c: truncate(c / "weights.safetensors"), "weights.safetensors is damaged"),
    "truncated optimiser": (lambda c: truncate(c / "optimizer.pt"), "optimizer.pt is damaged"),
    "truncated state": (lambda c: truncate(c / "state.json"), "state.json is broken"),
    "missing weights": (lambda c: (c / "weights.safetensors").unlink(), "lacks weights.safetensors"),
    "missing averages": (lambda c: (c / "ema.safetensors").unlink(), "lacks ema.safetensors"),
    "missing state": (lambda c: (c / "state.json").unlink(), "no state.json"),
    "another format": (lambda c: (c / "state.json").write_text('{"format_version": 9}'), "format version 9"),
    "no object": (lambda c: (c / "state.json").write_text("[]"), "format version None"),
    "nothing said": (lambda c: (c / "state.json").write_text('{"format_version": 1}'), "says nothing of step"),
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


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=r"no usable checkpoint .* start without resume_from_checkpoint"):
        trainer(tmp_path, resume_from_checkpoint="latest").train()
    with pytest.raises(CheckpointError, match="nowhere is not a checkpoint"):
        trainer(tmp_path, resume_from_checkpoint=str(tmp_path / "nowhere")).train()


def test_a_checkpoint_of_another_run(run_folder):
    """Every setting that differs is named, old and new; those that change nothing may differ."""
    before = tree(run_folder)
    with pytest.raises(CheckpointError, match=r"train.batch_size: 8 -> 4.*start a new run from its pipeline"):
        trainer(run_folder, resume_from_checkpoint="latest", batch_size=4).train()
    assert tree(run_folder) == before
    harmless = {"num_steps": 5, "log_every": 3, "checkpoint_every": 0, "gradient_accumulation_steps": 2}
    trainer(run_folder, resume_from_checkpoint="latest", **harmless).train()


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
