"""Samples of a velocity field, in batches: what banks, metrics and studies draw with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from .models.looking import look
from .solvers import integrate
from .velocity import Velocity


@torch.no_grad()
def in_batches(
    velocity: Velocity,
    x_0: Tensor,
    condition: dict[str, Tensor],
    solve: Callable[[Tensor, dict[str, Tensor]], Tensor],
    *,
    batch_size: int = 1024,
    progress: str | None = None,
    dim: int = 0,
) -> Tensor:
    """`solve(x_0, condition)` batch by batch on the field's device, in eval mode, images encoded once; every module gets its mode back.

    Args: `x_0`: (n, *event); `condition`: (n, ...) tensors; `progress`: a title for a progress bar; `dim`: of the samples in what `solve` returns.
    Returns: the results, put together, on the CPU.
    """
    device = velocity.device
    training = [module for module in velocity.modules() if module.training]
    velocity.eval()
    parts = []
    for start in tqdm(range(0, x_0.shape[0], batch_size), desc=progress, disable=progress is None, leave=False):
        rows = slice(start, start + batch_size)
        given = look(velocity.model, {key: value[rows].to(device) for key, value in condition.items()})
        parts.append(solve(x_0[rows].to(device), given).cpu())
    for module in training:
        module.training = True
    return torch.cat(parts, dim=dim)


def generate(
    velocity: Velocity,
    x_0: Tensor,
    condition: dict[str, Tensor],
    times: Sequence[float],
    method: str = "euler",
    *,
    batch_size: int = 1024,
    progress: str | None = None,
    trajectory: bool = False,
) -> Tensor:
    """Integrate a field from `x_0`, as `in_batches`.

    Args: `times`, `method`: as `solvers.integrate`; the others as `in_batches`.
    Returns: (n, *event) on the CPU, or (len(times), n, *event) with `trajectory`.
    """

    def solve(x: Tensor, given: dict[str, Tensor]) -> Tensor:
        solution = integrate(velocity.field(given), x, times, method, trajectory=trajectory)
        end = velocity.without_padding(solution.x, given)
        return torch.cat([solution.trajectory[:-1], end[None]]) if trajectory else end

    dim = 1 if trajectory else 0
    return in_batches(velocity, x_0, condition, solve, batch_size=batch_size, progress=progress, dim=dim)


def regress(velocity: Velocity, like: Tensor, condition: dict[str, Tensor]) -> Tensor:
    """What a network that predicts the mean says: one Euler step from zeros of the shape and dtype of `like`, (batch, *event)."""
    return velocity(torch.zeros_like(like), 0.0, **condition)


def draw_rows(tensors: dict[str, Tensor], num_rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """`num_rows` rows of a table of conditions: whole shuffled passes over it, so that every row is used equally often (+- 1)."""
    if not tensors:
        return {}
    size = len(next(iter(tensors.values())))
    passes = [torch.randperm(size, generator=generator) for _ in range(-(-num_rows // size))]
    index = torch.cat(passes)[:num_rows]
    return {key: value[index] for key, value in tensors.items()}
