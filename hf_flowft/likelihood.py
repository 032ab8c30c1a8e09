"""Log-likelihood of data under a flow, by the instantaneous change of variables (Chen et al. 2018, Theorem 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .solvers import ADAPTIVE_METHODS, Field, integrate, integrate_adaptive


def standard_normal_log_prob(x: Tensor) -> Tensor:
    """log N(x; 0, I), in nats: (batch, *event) -> (batch,)."""
    return -0.5 * (x.flatten(1) ** 2 + math.log(2 * math.pi)).sum(dim=1)


def divergence(field: Field, x: Tensor, t: float | Tensor, probe: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The field and its divergence at x: exact trace (one backward a dimension), or Hutchinson's p^T J p when `probe` is given.

    Args: `x`, `probe`: (batch, *event).  Returns: `v`: (batch, *event), `div`: (batch,); neither carries gradients.
    Raises: ValueError when the field cannot be differentiated with respect to x.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        v = field(x, t)
        if not v.requires_grad:
            raise ValueError(
                "the likelihood needs the derivative of the field in x, but its output carries no gradient: "
                "a FrozenVelocity turns gradients off, use Velocity(frozen.model, frozen.convention) instead."
            )
        if probe is not None:
            product = torch.autograd.grad(v, x, probe, materialize_grads=True)[0]
            return v.detach(), (product * probe).flatten(1).sum(dim=1)
        trace = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
        flat = v.flatten(1)
        for i in range(flat.shape[1]):
            keep = i + 1 < flat.shape[1]
            row = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=keep, materialize_grads=True)[0]
            trace = trace + row.flatten(1)[:, i]
        return v.detach(), trace


def log_likelihood(
    field: Field,
    x_1: Tensor,
    times: Sequence[float],
    method: str = "rk4",
    *,
    num_probes: int = 0,
    generator: torch.Generator | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """log p_1(x_1) = log N(x_0; 0, I) - integral over [0, 1] of div v along the trajectory that ends in x_1, in nats.

    Args: `x_1`: (batch, *event); `times`: increasing from 0 to 1 (adaptive methods use the ends only); `method`: any solver;
    `num_probes`: 0 for the exact trace (d backward passes an evaluation), k for Hutchinson's estimate with k Rademacher
    probes, fixed along each trajectory (unbiased; its spread falls as 1 / sqrt(k)).
    Returns: (batch,).  Raises: ValueError when `times` does not go from 0 to 1, or num_probes < 0.
    """
    if times[0] != 0 or times[-1] != 1:
        raise ValueError(f"a likelihood is integrated over times from 0 to 1, got {times[0]} to {times[-1]}.")
    if num_probes < 0:
        raise ValueError(f"num_probes must be 0 (exact trace) or more (Hutchinson), got {num_probes}.")
    shape, size = x_1.shape, x_1[0].numel()
    signs = [torch.randint(0, 2, shape, generator=generator) * 2 - 1 for _ in range(num_probes)]
    probes: list[Tensor | None] = [s.to(x_1) for s in signs] or [None]

    def augmented(state: Tensor, t: float | Tensor) -> Tensor:
        x = state[:, :size].reshape(shape)
        results = [divergence(field, x, t, probe) for probe in probes]
        trace = torch.stack([trace for _, trace in results]).mean(dim=0)
        return torch.cat([results[0][0].flatten(1), trace[:, None]], dim=1)

    state = torch.cat([x_1.flatten(1), x_1.new_zeros(shape[0], 1)], dim=1)
    backwards = list(times)[::-1]
    if method in ADAPTIVE_METHODS:
        end = integrate_adaptive(augmented, state, (backwards[0], backwards[-1]), method, rtol=rtol, atol=atol).x
    else:
        end = integrate(augmented, state, backwards, method).x
    return standard_normal_log_prob(end[:, :size].reshape(shape)) + end[:, size]
