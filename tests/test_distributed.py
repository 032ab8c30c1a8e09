"""Two processes, or two micro-steps, are one process with the same effective batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("distributed_run.py")


def run(folder, case, processes=1, accumulation=1):
    """Train the case in a number of processes; returns its tensors and facts."""
    folder.mkdir()
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launch, str(SCRIPT), str(folder), case, str(accumulation)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "tensors.safetensors"), json.loads((folder / "facts.json").read_text())


def assert_close(one, other):
    """Same pairs, losses, learning rates, scores and weights, to float tolerance."""
    (tensors, facts), (tensors_2, facts_2) = one, other
    assert tensors.keys() == tensors_2.keys()
    for name, value in tensors.items():
        atol = (
            0 if name == "pairs" else 1e-4
        )  # Adam turns the rounding of tiny gradients into steps of up to the learning rate, 1e-2
        torch.testing.assert_close(value, tensors_2[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    for a, b in zip(facts["history"], facts_2["history"], strict=True):
        assert a["lr"] == b["lr"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for a, b in zip(facts["scores"]["scores"], facts_2["scores"]["scores"], strict=True):
        assert a["target"] == pytest.approx(b["target"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["fm", "ot", "gft", "mle"])
def test_two_processes_are_one(tmp_path, case):
    """lr, one global OT assignment, loss, weights, EMA and evaluation of 2 processes equal those of 1; logs are written once."""
    one = run(tmp_path / "one", case)
    two = run(tmp_path / "two", case, processes=2)
    assert (one[1]["processes"], two[1]["processes"]) == (1, 2)
    assert_close(one, two)
    assert len(list((tmp_path / "two" / "checkpoints").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ot", "mle"])
def test_two_micro_steps_are_one_batch(tmp_path, case):
    """Gradient accumulation changes the memory, not the draws, the pairs or the weights."""
    assert_close(run(tmp_path / "one", case), run(tmp_path / "two", case, accumulation=2))
