"""Does a flow contract? Measured on states, rollouts and pairs; lower always means more contraction.

What is sampled is evidence, not proof: proofs come from `ViscousFlowModel.certificate`. A rate means something only
together with a fixed metric and the overshoot sqrt(cond P), since every smooth flow on [0, 1] contracts in some
metric that varies with time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..jacobians import expansion_rate, jacobian, lipschitz, log_norm, log_norm_l1
from ..solvers import Field, integrate

Norm = Callable[[Tensor], Tensor]


def expansion(
    field: Field, x: Tensor, t: float, *, metric: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """The logarithmic norm of J = df/dx at every state: how fast two neighbours part, at worst.

    Unit: 1 / time; lower is better, negative contracts.

        plain           lam_max(sym J)
        metric = P      lam_max(sym(P^1/2 J P^-1/2))
        weights = eta   max over columns k of J_kk + sum_(i != k) (eta_i / eta_k) |J_ik|

    Exact up to 64 dimensions and in any metric; a plain lam_max beyond is a Lanczos estimate from below.
    Args: `x`: (batch, *event); `metric`: (d, d), symmetric positive definite; `weights`: (d,).  Returns: (batch,).
    Raises: ValueError when both a metric and weights are given, or either is not positive.
    """
    if metric is not None and weights is not None:
        raise ValueError("give a metric or l1 weights, not both.")
    if metric is not None:
        return log_norm(jacobian(field, x, t), metric)
    if weights is not None:
        return log_norm_l1(jacobian(field, x, t), weights)
    return expansion_rate(field, x, t)


class RolloutExpansion(NamedTuple):
    """`expansion` along rollouts; lower is better.

    `rates`: (len(times), batch), in 1 / time; `bound`: (batch,), in nats, the integral of the rate along each rollout
    (trapezoid): an infinitesimal neighbour ends at most exp(bound) times as far away as it began.
    """

    rates: Tensor
    bound: Tensor


def rollout_expansion(
    field: Field,
    x_0: Tensor,
    times: Sequence[float],
    method: str = "euler",
    *,
    metric: Tensor | None = None,
    weights: Tensor | None = None,
) -> RolloutExpansion:
    """`expansion` at every state of the rollouts from `x_0`: (batch, *event), and its integral over time."""
    with torch.no_grad():
        states = integrate(field, x_0, times, method, trajectory=True).trajectory
    pairs = zip(states, times, strict=True)
    rates = torch.stack([expansion(field, x, t, metric=metric, weights=weights) for x, t in pairs])
    return RolloutExpansion(rates, torch.trapezoid(rates, rates.new_tensor(list(times)), dim=0))


def flow_expansion(
    field: Field,
    x_0: Tensor,
    times: Sequence[float],
    method: str = "euler",
    *,
    num_iterations: int = 24,
    generator: torch.Generator | None = None,
) -> Tensor:
    """log sigma_max(d x_N / d x_0), the finite-time Lyapunov exponent times the duration.

    Unit: nats; lower is better, negative contracts. It is what neighbours really do over the whole flow, solver included;
    exact up to 64 dimensions, a Lanczos estimate from below beyond.
    Args: `x_0`: (batch, *event).  Returns: (batch,).
    """

    def flow(x: Tensor, _: float) -> Tensor:
        return integrate(field, x, times, method).x

    return lipschitz(flow, x_0, times[0], num_iterations=num_iterations, generator=generator).log()


class PairTest(NamedTuple):
    """How far two bundles are apart, and how fast that grew; lower is better.

    `distances`: (len(times), batch), in the unit of the norm; `growth`: (batch,), the largest factor by which
    exp(rate t) |x - x'| grew in one step, no unit: at most 1 when the rate holds.
    """

    distances: Tensor
    growth: Tensor


@torch.no_grad()
def pair_test(
    field: Field,
    x_0: Tensor,
    other: Tensor,
    times: Sequence[float],
    method: str = "rk4",
    *,
    rate: float = 0.0,
    norm: Norm | None = None,
) -> PairTest:
    """Two bundles of trajectories under the same field: is |x(t) - x'(t)| exp(rate t) non-increasing?

    Args: `x_0`, `other`: (batch, *event); `rate`: the claimed rate, 1 / time; `norm`: (batch, d) -> (batch,),
    Euclidean by default.
    Raises: ValueError when the shapes differ.
    """
    if x_0.shape != other.shape:
        raise ValueError(f"a pair has one shape, got {tuple(x_0.shape)} and {tuple(other.shape)}.")
    measure = norm or (lambda difference: difference.norm(dim=1))
    first, second = (integrate(field, x, times, method, trajectory=True).trajectory for x in (x_0, other))
    distances = torch.stack([measure((a - b).flatten(1)) for a, b in zip(first, second, strict=True)])
    steps = [math.exp(rate * (t_next - t)) for t, t_next in itertools.pairwise(times)]
    factors = distances[1:] / distances[:-1] * distances.new_tensor(steps)[:, None]
    return PairTest(distances, torch.where(distances[:-1] > 0, factors, 0).amax(dim=0))


def slope_box_expansion(matrices: Tensor, slopes: Tensor) -> float:
    """A proven bound of lam_max(sym sum_j A_j E_j) over ALL diagonal E_j with entries in [0, slopes_j].

    Unit: 1 / time; lower is better.

        sum_j max{ mu_2(A_j E) : E = diag(slopes_j b), b in {0, 1}^d }

    mu_2 = lam_max(sym .) is convex, so the vertices of the box suffice, and subadditive, so the terms may be bounded one
    by one. With slopes_j = diag W_j and 0 <= f' <= 1, the field -delta x + sum_j A_j f(W_j x) contracts at rate
    delta - bound if that is positive: a proof for one set of parameters where their structure gives none.
    Args: `matrices`: (terms, d, d); `slopes`: (terms, d), >= 0.  Raises: ValueError for d > 12 (2^d vertices).
    """
    size = matrices.shape[-1]
    if size > 12:
        raise ValueError(f"the box of slopes has 2^d vertices, so d must be at most 12, got {size}.")
    bits = (torch.arange(2**size, device=matrices.device)[:, None] >> torch.arange(size, device=matrices.device)) & 1
    terms = zip(matrices, slopes, strict=True)
    return sum(float(log_norm(matrix * (bits * slope)[:, None, :]).amax()) for matrix, slope in terms)
