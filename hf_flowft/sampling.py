"""Samples of a velocity field, in batches: what banks, metrics and studies draw with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from .solvers import integrate
from .velocity import Velocity


@torch.no_grad()
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
    """Integrate a field from `x_0`, batch by batch on the field's device, in eval mode; every module gets its mode back.

    Args: `x_0`: (n, *event); `condition`: (n, ...) tensors; `times`, `method`: as `solvers.integrate`;
    `progress`: a title for a progress bar.
    Returns: (n, *event) on the CPU, or (len(times), n, *event) with `trajectory`.
    """
    device = next((p.device for p in velocity.parameters()), torch.device("cpu"))
    training = [module for module in velocity.modules() if module.training]
    velocity.eval()
    parts = []
    for start in tqdm(range(0, x_0.shape[0], batch_size), desc=progress, disable=progress is None, leave=False):
        rows = slice(start, start + batch_size)
        field = velocity.field({key: value[rows].to(device) for key, value in condition.items()})
        solution = integrate(field, x_0[rows].to(device), times, method, trajectory=trajectory)
        parts.append((solution.trajectory if trajectory else solution.x).cpu())
    for module in training:
        module.training = True
    return torch.cat(parts, dim=1 if trajectory else 0)


def draw_rows(tensors: dict[str, Tensor], num_rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """`num_rows` rows of a table of conditions: whole shuffled passes over it, so that every row is used equally often (+- 1)."""
    if not tensors:
        return {}
    size = len(next(iter(tensors.values())))
    passes = [torch.randperm(size, generator=generator) for _ in range(-(-num_rows // size))]
    index = torch.cat(passes)[:num_rows]
    return {key: value[index] for key, value in tensors.items()}
