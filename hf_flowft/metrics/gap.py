"""How far N Euler steps of a trained field are from the true flow, measured and bounded: Theorem 3.1 of arXiv 2510.02081.

True flow x' = u(x, t); model x_(n+1) = x_n + tau_n v(x_n, t_n); e_n the distance of the two. In root mean square over samples,

    e_(n+1) <= (1 + tau_n L) e_n + tau_n eps + M tau_n^2 / 2        M = sup_t rms ||x''|| of the true paths

    version A   L = Lipschitz constant of u, eps = sup rms ||v - u|| at the MODEL's states
    version B   L = Lipschitz constant of v, eps = sup rms ||v - u|| on the TRUE paths: what flow matching bounds

Without a known u the model's own exact flow stands for the true one: eps = 0 and the gap is the error of the few steps alone. For
networks L, nu and M are maxima over points, so estimates from BELOW: a bound that is exceeded is a warning, not a contradiction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..jacobians import expansion_rate, lipschitz
from ..paths import LINEAR, broadcast_time
from ..solvers import Field, FixedMethod, integrate, uniform_times
from ..velocity import FrozenVelocity, Velocity
from .flow import Condition, evaluate, evaluation_mode

Version = Literal["A", "B"]
ROUNDING = 1e-5


class GapConstants(NamedTuple):
    """What the bounds are made of: `epsilon`, the velocity error, in data units / time; `lipschitz`: L >= ||dv/dx||, in 1 / time;
    `acceleration`: M >= ||x''||, in data units / time^2; `log_norm`: nu >= lambda_max(sym dv/dx), in 1 / time, at most L.
    """

    epsilon: float
    lipschitz: float
    acceleration: float
    log_norm: float


class GapRow(NamedTuple):
    """The gap at `num_steps` Euler steps and its bounds, root mean squares in data units; `violated`: a bound estimated from below
    is exceeded, so that the constants have been sampled too sparsely.
    """

    num_steps: int
    measured: float
    bound_discrete: float
    bound_uniform: float
    bound_variable: float
    bound_lognorm: float
    violated: bool


class GapTable(NamedTuple):
    """`rows`, one a number of steps; `constants` (version A: epsilon of the last row); L over the points: its 99 % quantile and mean."""

    rows: list[GapRow]
    constants: GapConstants
    lipschitz_quantile: float
    lipschitz_mean: float


class VelocityError(NamedTuple):
    """At time `t`: `epsilon` = rms ||v - v*|| and `upper` = rms ||v - (x_1 - x_0)|| >= epsilon, in data units / time."""

    t: float
    epsilon: float
    upper: float


def _steps(times: Sequence[float]) -> list[float]:
    steps = [b - a for a, b in itertools.pairwise(times)]
    if not steps or min(steps) <= 0 or times[0] != 0 or times[-1] != 1:
        raise ValueError(f"the bounds are for a grid that increases from 0 to 1, got {list(times)}.")
    return steps


def _recursion(constants: GapConstants, steps: Sequence[float], factors: Sequence[float]) -> float:
    error = 0.0
    for tau, factor in zip(steps, factors, strict=True):
        error = factor * error + tau * constants.epsilon + constants.acceleration * tau**2 / 2
    return error


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def discrete_bound(constants: GapConstants, times: Sequence[float]) -> float:
    """sum_n (tau_n eps + M tau_n^2 / 2) prod_(k > n) (1 + tau_k L), in data units; lower is better. Sharpest for a given L."""
    steps = _steps(times)
    return _recursion(constants, steps, [1 + tau * constants.lipschitz for tau in steps])


def log_norm_bound(constants: GapConstants, times: Sequence[float]) -> float:
    """The discrete bound with rho = sqrt(max(0, 1 + 2 tau nu + tau^2 L^2)) for 1 + tau L, in data units; lower is better.

    Where the field contracts (nu < 0, tau < 2 |nu| / L^2) rho < 1 and errors die out, which the other bounds cannot see.
    """
    steps, (_, lip, _, nu) = _steps(times), constants
    return _recursion(constants, steps, [math.sqrt(max(0.0, 1 + 2 * tau * nu + (tau * lip) ** 2)) for tau in steps])


def uniform_bound(constants: GapConstants, times: Sequence[float]) -> float:
    """((e^L - 1) / L) (eps + M tau / 2) with tau the largest step (1 / N on a uniform grid), in data units; lower is better."""
    lip = constants.lipschitz
    growth = (math.expm1(lip) if lip < 700 else math.inf) / lip if lip else 1.0
    return growth * (constants.epsilon + constants.acceleration * max(_steps(times)) / 2)


def variable_bound(constants: GapConstants, times: Sequence[float]) -> float:
    """e^L (eps + M tau / 2) with tau the largest step: the form for any grid, in data units; lower is better."""
    return _exp(constants.lipschitz) * (constants.epsilon + constants.acceleration * max(_steps(times)) / 2)


def empirical_field(data: Tensor) -> Field:
    """The exact marginal velocity of a data set on the linear path, independent coupling: what a perfect fit to the training set learns.

        v*(x, t) = sum_i w_i (x_1i - x) / (1 - t),   w = softmax_i( -||x - t x_1i||^2 / (2 (1 - t)^2) )

    Args: `data`: (m, *event).  Returns: a field; it raises ValueError at t = 1, where v* is singular (`midpoint` never goes there).
    """
    points = data.detach().double().flatten(1)
    half_squares = points.square().sum(dim=1) / 2

    def field(x: Tensor, t: float | Tensor) -> Tensor:
        rows = x.double().flatten(1)
        s = broadcast_time(torch.as_tensor(t, dtype=rows.dtype, device=rows.device), rows)
        if bool((s >= 1).any()):
            raise ValueError(
                "the velocity of a data set is singular at t = 1: integrate it with `midpoint`, which stops short of it."
            )
        logits = (s * (rows @ points.to(rows).T) - s**2 * half_squares.to(rows)) / (1 - s) ** 2
        mean = torch.softmax(logits, dim=1) @ points.to(rows)
        return ((mean - rows) / (1 - s)).reshape(x.shape).to(x.dtype)

    return field


def velocity_error(
    velocity: Velocity,
    x_1: Tensor,
    times: Sequence[float],
    condition: Condition | None = None,
    *,
    oracle: Field | None = None,
    generator: torch.Generator,
) -> list[VelocityError]:
    """eps(t) on the path (version B) with its upper end, in data units / time; lower is better.

        E||v - u||^2 = eps^2 + V,   u = x_1 - x_0,   V = E Var(u | x_t)        so the loss alone bounds eps from above

    Args: `x_1`: (n, *event); `times`: in [0, 1); `oracle`: v*, by default that of `x_1` itself as the training set (unconditional models).
    Raises: ValueError when a condition is given without an oracle.
    """
    if condition and oracle is None:
        raise ValueError("with conditions the exact velocity depends on them: give an oracle.")
    exact = oracle or empirical_field(x_1)
    errors = []
    for t in times:
        x_0 = torch.randn(x_1.shape, generator=generator, dtype=x_1.dtype).to(x_1.device)
        x_t, u, _ = LINEAR.sample(x_0, x_1, torch.full((x_1.shape[0],), t, dtype=x_1.dtype, device=x_1.device))
        v = evaluate(velocity, x_t, t, condition)
        errors.append(VelocityError(t, _rms(v - exact(x_t, t).cpu()), _rms(v - u.cpu())))
    return errors


def gap_table(
    velocity: Velocity,
    x_0: Tensor,
    condition: Condition | None = None,
    *,
    oracle: Field | None = None,
    version: Version = "B",
    num_steps: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    num_times: int = 16,
    reference_steps: int = 512,
    reference_method: FixedMethod = "rk4",
    generator: torch.Generator,
) -> GapTable:
    """The gap between N Euler steps and the true flow, measured and bounded, for each N, in data units; lower is better.

    Args: `x_0`: (n, *event), one batch; `oracle`: the true field u, by default the model itself; `version`: `A` or `B` (see the module);
    `num_times`: times at which L and nu are sampled on the reference paths; `reference_method`: `midpoint` for an `empirical_field`;
    `generator`: of the Lanczos iterations that stand for the exact L and nu above 64 dimensions.
    """
    _check(x_0, version)
    live = Velocity(velocity.model, velocity.convention) if type(velocity) is FrozenVelocity else velocity
    with evaluation_mode(live), torch.no_grad():
        x_0 = x_0.to(live.device)
        model = live.field({key: value.to(x_0.device) for key, value in (condition or {}).items()})
        true = oracle or model
        times = uniform_times(reference_steps)
        paths = integrate(true, x_0, times, reference_method, trajectory=True).trajectory
        error_on_paths, acceleration = _along(paths, times, true, model)
        lip, nu = _growth(true if version == "A" else model, paths, times, num_times, generator)
        rows = []
        for n in num_steps:
            states = integrate(model, x_0, uniform_times(n), trajectory=True).trajectory
            epsilon = _error_at(states, true, model) if version == "A" and oracle else error_on_paths
            constants = GapConstants(epsilon, lip.max().item(), acceleration, nu.max().item())
            rows.append(_row(constants, n, _rms(states[-1] - paths[-1]), ROUNDING * _rms(paths[-1])))
    return GapTable(rows, constants, lip.double().quantile(0.99).item(), lip.mean().item())


def _check(x_0: Tensor, version: str) -> None:
    if version not in ("A", "B"):
        raise ValueError(f"version must be A or B, got {version!r}.")
    if x_0.shape[0] == 0 or not x_0.isfinite().all():
        raise ValueError(f"the gap needs at least one finite starting point, got x_0 of shape {tuple(x_0.shape)}.")


def _row(constants: GapConstants, num_steps: int, measured: float, rounding: float) -> GapRow:
    grid = uniform_times(num_steps)
    discrete, uniform, variable, lognorm = (
        f(constants, grid) for f in (discrete_bound, uniform_bound, variable_bound, log_norm_bound)
    )
    violated = measured > min(discrete, uniform, variable, lognorm) + rounding
    return GapRow(num_steps, measured, discrete, uniform, variable, lognorm, violated)


def _along(paths: Tensor, times: Sequence[float], true: Field, model: Field) -> tuple[float, float]:
    """sup over the nodes before t = 1 of rms ||v - u||, and of rms ||x''|| by differences of u."""
    epsilon, acceleration, previous = 0.0, 0.0, None
    for k, (x, t) in enumerate(zip(paths[:-1], times[:-1], strict=True)):
        u = true(x, t)
        if model is not true:
            epsilon = max(epsilon, _rms(model(x, t) - u))
        if previous is not None:
            acceleration = max(acceleration, _rms(u - previous) / (t - times[k - 1]))
        previous = u
    return epsilon, acceleration


def _error_at(states: Tensor, true: Field, model: Field) -> float:
    """sup over the steps of rms ||v - u|| at the model's own states: (N + 1, n, *event) on a uniform grid."""
    grid = uniform_times(states.shape[0] - 1)
    return max(_rms(model(x, t) - true(x, t)) for x, t in zip(states[:-1], grid[:-1], strict=True))


def _growth(
    field: Field, paths: Tensor, times: Sequence[float], num_times: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """||J|| and lambda_max(sym J) at every point of some nodes before t = 1: (nodes * n,) each."""
    nodes = range(0, len(times) - 1, max(1, (len(times) - 1) // num_times))
    lip = torch.cat([lipschitz(field, paths[k], times[k], generator=generator) for k in nodes])
    return lip, torch.cat([expansion_rate(field, paths[k], times[k], generator=generator) for k in nodes])


def _rms(x: Tensor) -> float:
    """The root of the mean over samples of the squared norm."""
    return math.sqrt(x.double().square().flatten(1).sum(dim=1).mean().item())
