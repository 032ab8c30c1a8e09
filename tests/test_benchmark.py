"""The benchmark runs and reports every row; no time is asserted, because no time is the same twice."""

import json

import pytest
import torch

from hf_flowft.studies import bench_peers, benchmark
from hf_flowft.studies.bench_tools import BareLoop, CallLoop, Row, TrainerLoop, compare, render, small_unet

ROWS = [
    "plain step / bare loop, U-Net",
    "plain step / bare loop, MLP",
    "GFT step, target measure / plain",
    "GFT step, replay of cached trajectories / plain",
    "GFT step, replay of interpolants / plain",
    "MLE step, N = 4, direct / 4 plain steps",
    "MLE step, N = 8, direct / 8 plain steps",
    "MLE step, N = 8, checkpointed / direct",
    "MLE step, N = 8, adjoint / direct",
    "error of the gradient, N = 8, checkpointed / its norm",
    "error of the gradient, N = 8, adjoint / its norm",
    "peak memory, N = 64 / N = 4, checkpointed",
    "peak memory, N = 64 / N = 4, direct",
    "LoRA step, plain / bare loop",
    "LoRA step, GFT on the target measure / plain",
    "LoRA memory, GFT on the target measure / plain",
    "LoRA memory, MLE, 8 steps checkpointed / plain",
    "step with OT coupling, prefetched / independent",
    "step with OT coupling, not prefetched / independent",
    "step of 2 processes / of 1, U-Net, batch 32 in all",
    "pipeline, 16 steps / 16 forwards",
    "exact OT of 256 x 64 / torchcfm's sampler",
    "exact OT of 512 x 2 / torchcfm's sampler",
    "16 Euler steps / torchdiffeq's odeint",
    "dopri5 / torchdiffeq's odeint",
    "16 Euler steps / flow_matching's ODESolver",
]


@pytest.mark.slow
def test_the_benchmark_reports_every_row(tmp_path, capsys):
    """Quick mode writes both files with all rows, and where it was measured; what is missing says why."""
    benchmark.main(tmp_path / "out", quick=True)
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [row["name"] for row in content["rows"]] == ROWS
    assert {"machine", "torch", "threads", "load_at_start"} <= set(content["environment"])
    for row in content["rows"]:
        assert row["note"] if row["value"] is None else row["value"] >= 0
        assert row["repetitions"] == 0 or row["low"] <= row["value"] <= row["high"]
    page = (tmp_path / "out" / "benchmark.md").read_text()
    assert all(f"| {name} " in page for name in ROWS)
    assert "quick run" in page
    assert "the numbers mean nothing" in page


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    """The row stays, without a number."""

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(bench_peers.importlib, "import_module", absent)
    rows = bench_peers.peer_rows(quick=True)
    assert [row.value for row in rows] == [None] * 5
    assert all(row.note.endswith("is not installed") for row in rows)


def test_contestants_take_turns():
    """Pairs alternate who begins, the first pair is warm-up, and a ratio is that of one pair."""
    calls = []
    row = compare("a / b", CallLoop(lambda: calls.append("a")), CallLoop(lambda: calls.append("b")), 3, goal=2.0)
    assert "".join(calls) == "ab" + "ba" + "ab" + "ba"
    assert row.repetitions == 3
    assert row.low <= row.value <= row.high


def test_an_error_in_a_contestant_is_raised_where_it_is_waited_for():
    """A run that fails in its thread does not hang the benchmark."""
    with pytest.raises(ZeroDivisionError):
        CallLoop(lambda: 1 / 0).advance()


def test_the_bare_loop_and_the_trainer_do_the_same_work():
    """One block moves the weights of both, and only then."""
    data = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    models = [small_unet(quick=True), small_unet(quick=True)]
    before = [p.detach().clone() for p in models[0].parameters()]
    loops = [
        BareLoop(models[0], data, 4, 2),
        TrainerLoop(models[1], benchmark.FlowMatchingObjective(), data, 4, 2),
    ]
    for model, loop in zip(models, loops, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        loop.advance()
        moved = max((a - b).abs().max() for a, b in zip(before, model.parameters(), strict=True))
        assert 0 < moved <= 2.1 * 3e-4  # two steps of Adam
        loop.close()


@pytest.mark.parametrize(("value", "goal", "answer"), [(1.0, 1.05, "yes"), (1.1, 1.05, "NO"), (1.1, None, "")])
def test_the_table_says_whether_a_goal_is_met(value, goal, answer):
    """On both sides of the goal, and without one."""
    cells = [cell.strip() for cell in render([Row("row", value, goal=goal)]).splitlines()[-1].split("|")]
    assert cells[8] == answer
