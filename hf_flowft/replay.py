"""The base's own samples, kept so that fine-tuning does not forget them: the replay measure of gradual fine-tuning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .batch import Batch
from .conventions import time_grid
from .couplings import Shard, may_be_independent
from .paths import LINEAR
from .sampling import draw_rows, generate
from .times import TimeDensity
from .velocity import FrozenVelocity

ReplayStates = Literal["auto", "interpolant", "trajectory"]
Keep = Callable[[str, Callable[[], Tensor]], Tensor]
"""keep(key, make): what `make()` gives, or gave under this key before."""


def made_anew(key: str, make: Callable[[], Tensor]) -> Tensor:
    """Keeps nothing."""
    return make()


@dataclass(frozen=True)
class ReplayBank:
    """Samples z_1 of the frozen base under its own conditions, and how states between noise and sample are drawn from them.

        interpolant  z_t = (1 - t) z_0 + t z_1 with fresh noise z_0: right for a base trained with the INDEPENDENT coupling, whose law at
                     time t is that of the interpolant; the base's velocity there is computed at every step
        trajectory   z_t on the base's own solver trajectories: right for every base; velocities are cached with the states

    `z_1`: (n, *event); `condition`: (n, ...) tensors; `states`, `velocities`: (K, n, *event) at the `times` of the grid (trajectory).
    """

    reference: FrozenVelocity
    z_1: Tensor
    condition: dict[str, Tensor]
    times: tuple[float, ...] = ()
    states: Tensor | None = None
    velocities: Tensor | None = None

    def draw(self, num_rows: int, density: TimeDensity, generator: torch.Generator, shard: Shard) -> Batch:
        """This process's rows of a random replay batch of `num_rows * shard.world_size` rows; times follow `density`."""
        size = num_rows * shard.world_size
        index = shard.rows(torch.randint(self.z_1.shape[0], (size,), generator=generator))
        t = shard.rows(density.sample(size, generator))
        condition = {key: value[index] for key, value in self.condition.items()}
        if self.states is None:
            noise = shard.rows(torch.randn(size, *self.z_1.shape[1:], generator=generator))
            x_t, _, t = LINEAR.sample(noise, self.z_1[index], t)
            return Batch(self.z_1[index], condition, x_0=noise, x_t=x_t, t=t)
        grid = torch.tensor(self.times, dtype=torch.float32)
        node = torch.searchsorted(grid, t, right=True) - 1  # the last node at or before t, also on a shifted grid
        return Batch(
            self.z_1[index], condition, x_t=self.states[node, index], v_t=self.velocities[node, index], t=grid[node]
        )

    def with_velocity(self, batch: Batch, reference: FrozenVelocity) -> Batch:
        """The batch with the base's velocity as `v_t`, computed where it was not cached, by the `reference` that is where the batch is."""
        if batch.v_t is not None:
            return batch
        return replace(batch, v_t=reference(batch.x_t, batch.t, **batch.condition))


def build_replay(
    reference: FrozenVelocity,
    conditions: dict[str, Tensor],
    event_shape: Sequence[int],
    generator: torch.Generator,
    *,
    states: ReplayStates = "auto",
    base_coupling: str = "unknown",
    num_samples: int = 2048,
    num_steps: int = 32,
    solver: str = "heun",
    shift: float = 1.0,
    batch_size: int = 1024,
    progress: bool = False,
    keep: Keep = made_anew,
) -> ReplayBank:
    """Draw the bank once: `num_samples` samples of the base for conditions drawn from `conditions`.

    Args: `conditions`: rows of the base's own conditions (empty for an unconditional base); `event_shape`: of one sample;
    `base_coupling`: the coupling the base was trained with, which `states="auto"` goes by; `keep`: may hold samples of this base for the next time.
    Raises: ValueError when fewer than one sample is asked for, or `interpolant` for a base whose coupling is known to be dependent.
    """
    if num_samples < 1:
        raise ValueError(f"a replay bank needs at least one sample, got num_samples = {num_samples}.")
    if states not in get_args(ReplayStates):
        raise ValueError(f"unknown replay states {states!r}; choose one of {', '.join(get_args(ReplayStates))}.")
    if states == "auto":
        states = "interpolant" if base_coupling == "independent" else "trajectory"
    elif states == "interpolant" and not may_be_independent(base_coupling):
        raise ValueError(
            f"replay_states 'interpolant' is biased for a base trained with the {base_coupling!r} coupling: use 'trajectory'."
        )
    x_0 = torch.randn(num_samples, *event_shape, generator=generator)
    condition = draw_rows(conditions, num_samples, generator)
    times = time_grid(num_steps, shift)
    title = "replay: samples of the base" if progress else None
    if states == "interpolant":
        key = hashlib.sha256(repr((times, solver)).encode())
        for tensor in (x_0, *condition.values()):
            key.update(tensor.contiguous().numpy().tobytes())
        z_1 = keep(
            key.hexdigest(),
            lambda: generate(reference, x_0, condition, times, solver, batch_size=batch_size, progress=title),
        )
        return ReplayBank(reference, z_1, condition)
    path = generate(reference, x_0, condition, times, solver, batch_size=batch_size, progress=title, trajectory=True)
    velocities = [
        _velocity_at(reference, x, t, condition, batch_size) for x, t in zip(path[:-1], times[:-1], strict=True)
    ]
    return ReplayBank(reference, path[-1], condition, tuple(times[:-1]), path[:-1], torch.stack(velocities))


def _velocity_at(
    reference: FrozenVelocity, x: Tensor, t: float, condition: dict[str, Tensor], batch_size: int
) -> Tensor:
    """v(x, t | condition) on the CPU, in batches on the device of the reference."""
    device = reference.device
    parts = []
    for start in range(0, x.shape[0], batch_size):
        rows = slice(start, start + batch_size)
        parts.append(
            reference(x[rows].to(device), t, **{key: value[rows].to(device) for key, value in condition.items()}).cpu()
        )
    return torch.cat(parts)
