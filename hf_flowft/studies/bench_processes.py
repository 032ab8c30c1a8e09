"""Row of the benchmark that needs a launch: the same effective batch by two processes and by one.

This file is also what the launch runs: `torchrun --nproc_per_node 2 -m hf_flowft.studies.bench_processes OUT.json SIZE`.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from time import perf_counter

import torch

from ..data import from_tensors
from ..objectives import FlowMatchingObjective
from ..training import Callback, EvalConfig, FlowTrainer, TrainConfig
from .bench_tools import Row, small_unet

BATCH, BLOCKS = 32, 6
NAME = f"step of 2 processes / of 1, U-Net, batch {BATCH} in all"


class _Clock(Callback):
    """The moments of the log entries."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_log(self, trainer: FlowTrainer, step: int, logs: dict[str, float]) -> None:
        """A block is done."""
        self.moments.append(perf_counter())


def step_seconds(quick: bool) -> float | None:
    """Seconds of an optimiser step on this process and those launched with it: the median over blocks, without the first.

    None on other processes than the main one.
    """
    block, clock = 2 if quick else 10, _Clock()
    data = torch.randn(256, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    steps = block * ((2 if quick else BLOCKS) + 1)
    trainer = FlowTrainer(
        small_unet(quick),
        from_tensors("benchmark", data, data[:2], data[:2]),
        FlowMatchingObjective(),
        TrainConfig(num_steps=steps, batch_size=BATCH, log_every=block),
        EvalConfig(metric="held_out_loss", every=steps, num_repeats=1),
        callbacks=[clock],
    )
    trainer.train()
    pairs = zip(clock.moments, clock.moments[1:], strict=False)
    return statistics.median(b - a for a, b in pairs) / block if trainer.processes.is_main else None


def processes_rows(quick: bool) -> Iterator[Row]:
    """Two processes against one, each with one thread: on two GPUs where there are two, else on two cores."""
    on_gpus = torch.cuda.device_count() > 1
    if not on_gpus and (os.cpu_count() or 1) < 2:
        yield Row(NAME, note="one core only", limit=0.5)
        return
    pairs = []
    for _ in range(1 if quick else 3):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            pairs.append((_launched(quick, on_gpus), step_seconds(quick)))
    ratios = [two / one for two, one in pairs]
    two, one = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    yield Row(
        NAME,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        len(pairs),
        limit=0.5,
        milliseconds=(1e3 * two, 1e3 * one),
        note=f"{BATCH / two:.0f} / {BATCH / one:.0f} samples a second",
    )


def _launched(quick: bool, on_gpus: bool) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    if not on_gpus:
        environment["ACCELERATE_USE_CPU"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launch, "-m", "hf_flowft.studies.bench_processes", str(out), "quick" if quick else "full"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return float(json.loads(out.read_text()))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    seconds = step_seconds(sys.argv[2] == "quick")
    if seconds is not None:
        Path(sys.argv[1]).write_text(json.dumps(seconds))
