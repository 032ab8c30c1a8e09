"""Time and memory as ratios measured in one run: our steps against bare loops, against each other, and against other packages.

Each ratio is the median over alternating pairs of blocks (A B, B A, A B ...) after a warm-up, with the smallest and the largest;
training steps are those of the real trainer, with everything a user's step pays. One torch thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from ..couplings import OTCoupling
from ..gradients import GradientMode
from ..models import VelocityMLP
from ..objectives import (
    FlowMatchingObjective,
    GradualObjective,
    Objective,
    ReconstructionObjective,
    ReplayObjective,
)
from ..pipelines import FlowPipeline
from ..replay import ReplayStates, build_replay
from ..results import environment, write_json
from ..schedulers import FlowODEScheduler
from ..times import TemperatureSchedule
from ..velocity import FrozenVelocity
from .bench_latents import latent_rows
from .bench_memory import peak_memory, reconstruction_gradient
from .bench_peers import peer_rows
from .bench_processes import processes_rows
from .bench_tools import (
    ENDLESS,
    BareLoop,
    CallLoop,
    Row,
    TrainerLoop,
    compare,
    quiet,
    render,
    small_unet,
)

IMAGES, VECTORS = (1, 16, 16), (64,)
PIPELINE_STEPS = 16
MEMORY_STEPS = (4, 64)


def main(out: Path, quick: bool = False) -> None:
    """Measure every row and write `benchmark.json` and `benchmark.md` to `out`; `quick` uses tiny networks, to see that it runs."""
    out.mkdir(parents=True, exist_ok=True)
    load = f"{os.getloadavg()[0]:.1f}"
    before, threads = torch.get_num_threads(), int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    rows: list[Row] = []
    try:
        for section in SECTIONS:
            for row in section(quick):
                rows.append(row)
                print(f"{row.name}: {'-' if row.value is None else format(row.value, '.4g')} {row.note}", flush=True)
    finally:
        torch.set_num_threads(before)
    facts = {**environment(), "threads": str(threads), "load_at_start": load}
    write_json(out / "benchmark.json", {"quick": quick, "environment": facts, "rows": [row.as_dict() for row in rows]})
    (out / "benchmark.md").write_text(_page(rows, facts, quick))
    print(f"Written to {out}: benchmark.json, benchmark.md.")


def _page(rows: list[Row], facts: dict[str, str], quick: bool) -> str:
    about = (
        f"{facts['machine']}, {facts['threads']} torch thread(s), load {facts['load_at_start']} at the start, torch {facts['torch']}. "
        "Medians of alternating pairs; `ms` is a block of each side; lower is better; `theory` is what the arithmetic of forward and "
        "backward passes allows when a backward costs two forwards."
    )
    warning = "\n\n**A quick run on tiny networks: the numbers mean nothing.**" if quick else ""
    return f"# Benchmark\n\n{about}{warning}\n\n{render(rows)}\n"


def _pairs(quick: bool, repetitions: int) -> int:
    return 2 if quick else repetitions


def _steps(quick: bool, block: int) -> int:
    return min(block, 2) if quick else block


def _samples(shape: tuple[int, ...], count: int = 512) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def _mlp(quick: bool, hidden_dim: int) -> VelocityMLP:
    return VelocityMLP(list(VECTORS), hidden_dim=16 if quick else hidden_dim)


def _on_images(quick: bool, objective: Objective, block: int, x_0: Tensor | None = None) -> TrainerLoop:
    """A run of the small U-Net on images, batch 16."""
    return TrainerLoop(small_unet(quick), objective, _samples(IMAGES), 16, block, x_0)


# ----------------------------------------------------------------------------------------------------------------- training
def plain_rows(quick: bool) -> Iterator[Row]:
    """The trainer against a loop written by hand."""
    cases: list[tuple[str, Callable[[], nn.Module], Tensor, int, int, int, float]] = [
        ("plain step / bare loop, U-Net", lambda: small_unet(quick), _samples(IMAGES), 16, 5, 41, 1.03),
        ("plain step / bare loop, MLP", lambda: _mlp(quick, 256), _samples(VECTORS, 2048), 128, 20, 41, 1.10),
    ]
    for name, model, data, batch_size, block, repetitions, goal in cases:
        steps = _steps(quick, block)
        with quiet():
            ours = TrainerLoop(model(), FlowMatchingObjective(), data, batch_size, steps)
            bare = BareLoop(model(), data, batch_size, steps)
            yield compare(name, ours, bare, _pairs(quick, repetitions), limit=1.0, goal=goal)


def gradual_rows(quick: bool) -> Iterator[Row]:
    """Gradual fine-tuning against plain: the reference adds forwards, the replay batch doubles the pass."""
    reference = FrozenVelocity(small_unet(quick))
    generator = torch.Generator().manual_seed(0)

    def replay(states: ReplayStates) -> ReplayObjective:
        bank = build_replay(
            reference, {}, IMAGES, generator, states=states, num_samples=64, num_steps=4, solver="euler"
        )
        return ReplayObjective(bank)

    schedule = TemperatureSchedule(end=1.0)
    cases: list[tuple[str, Objective, float, float]] = [
        ("GFT step, target measure / plain", GradualObjective(reference, schedule, ENDLESS), 4 / 3, 1.36),
        ("GFT step, replay of cached trajectories / plain", replay("trajectory"), 2.0, 2.06),
        ("GFT step, replay of interpolants / plain", replay("interpolant"), 7 / 3, 2.40),
    ]
    for name, objective, limit, goal in cases:
        steps = _steps(quick, 5)
        with quiet():
            ours, plain = (_on_images(quick, o, steps) for o in (objective, FlowMatchingObjective()))
            yield compare(name, ours, plain, _pairs(quick, 21), limit=limit, goal=goal)


def reconstruction_rows(quick: bool) -> Iterator[Row]:
    """Reconstruction through N solver steps against N plain steps, and the other ways to differentiate a solve."""
    noise = _samples(IMAGES).flip(0)
    for count in (4, 8):
        with quiet():
            ours = _on_images(quick, ReconstructionObjective(count), 1, noise)
            plain = _on_images(quick, FlowMatchingObjective(), count)
            name = f"MLE step, N = {count}, direct / {count} plain steps"
            yield compare(name, ours, plain, _pairs(quick, 21), limit=1.0, goal=1.05)
    modes: list[tuple[GradientMode, float | None, float | None]] = [
        ("checkpointed", 1.37, 1e-5),
        ("adjoint", None, None),
    ]
    for mode, goal, _ in modes:
        with quiet():
            other = _on_images(quick, ReconstructionObjective(8, gradient=mode), 1, noise)
            direct = _on_images(quick, ReconstructionObjective(8), 1, noise)
            name = f"MLE step, N = 8, {mode} / direct"
            yield compare(name, other, direct, _pairs(quick, 15), limit=4 / 3, goal=goal)
    model, x_0 = small_unet(quick), noise[:16]
    exact = reconstruction_gradient(model, x_0, 8, "direct")
    for mode, _, goal in modes:
        error = (reconstruction_gradient(model, x_0, 8, mode) - exact).norm() / exact.norm()
        yield Row(f"error of the gradient, N = 8, {mode} / its norm", float(error), limit=0.0, goal=goal)


def memory_rows(quick: bool) -> Iterator[Row]:
    """Peak memory of a gradient through many steps over that through few, each mode in a process of its own."""
    counts = (1, 4) if quick else MEMORY_STEPS
    cases: list[tuple[GradientMode, float, float | None, int]] = [
        ("checkpointed", 1.0, 1.15, 3),
        ("direct", 16.0, None, 1),
    ]
    for mode, limit, goal, repetitions in cases:
        name = f"peak memory, N = {MEMORY_STEPS[1]} / N = {MEMORY_STEPS[0]}, {mode}"
        peaks = [_peaks(mode, counts, quick) for _ in range(1 if quick else repetitions)]
        if None in peaks:
            yield Row(name, note="this system does not tell the peak", limit=limit, goal=goal)
            continue
        few, many = (statistics.median(pair[side] for pair in peaks) for side in (0, 1))
        ratios = [pair[1] / pair[0] for pair in peaks]
        yield Row(
            name,
            statistics.median(ratios),
            min(ratios),
            max(ratios),
            len(ratios),
            limit=limit,
            goal=goal,
            note=f"{many:.0f} MB / {few:.0f} MB over the start",
        )


def _peaks(mode: GradientMode, counts: tuple[int, int], quick: bool) -> list[float] | None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_memory, mode, counts, quick).result()


def coupling_rows(quick: bool) -> Iterator[Row]:
    """What optimal transport adds to a step longer than the assignment, where a second core is free."""
    batch_size = 32 if quick else 256
    for prefetch, repetitions, goal in ((True, 21, 1.05), (False, 11, None)):
        steps = _steps(quick, 40)
        transport, independent = (
            FlowMatchingObjective(coupling=OTCoupling()),
            FlowMatchingObjective(),
        )
        transport.prefetch = prefetch
        with quiet():
            ours, plain = (
                TrainerLoop(_mlp(quick, 256), o, _samples(VECTORS, 4096), batch_size, steps)
                for o in (transport, independent)
            )
            name = f"step with OT coupling, {'prefetched' if prefetch else 'not prefetched'} / independent"
            yield compare(
                name, ours, plain, _pairs(quick, repetitions), limit=1.0, goal=goal, note=f"batch {batch_size}"
            )


# ----------------------------------------------------------------------------------------------------------------- sampling
def pipeline_rows(quick: bool) -> Iterator[Row]:
    """The pipeline against as many forward passes of its network."""
    model, latents = small_unet(quick).eval(), _samples(IMAGES, 16)
    pipeline, timestep = FlowPipeline(model, FlowODEScheduler()), torch.full((16,), 500.0)

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(PIPELINE_STEPS):
            model(latents, timestep, return_dict=False)

    def sample() -> None:
        pipeline(16, num_inference_steps=PIPELINE_STEPS, latents=latents, output_type="np")

    with quiet():
        name = f"pipeline, {PIPELINE_STEPS} steps / {PIPELINE_STEPS} forwards"
        yield compare(name, CallLoop(sample), CallLoop(forwards), _pairs(quick, 21), limit=1.0, goal=1.03)


SECTIONS: tuple[Callable[[bool], Iterator[Row] | list[Row]], ...] = (
    plain_rows,
    gradual_rows,
    reconstruction_rows,
    memory_rows,
    latent_rows,
    coupling_rows,
    processes_rows,
    pipeline_rows,
    peer_rows,
)
