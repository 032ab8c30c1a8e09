"""What a velocity field costs and how far it has moved: the shape of its paths, evaluations, reconstruction, forgetting, held-out loss.

Everything runs in batches, in eval mode, without gradients. Squared errors are means over coordinates, as in the training losses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..batch import Batch
from ..conventions import time_grid
from ..couplings import Coupling, IndependentCoupling, Shard
from ..objectives.flow_matching import draw_path_batch
from ..paths import LINEAR, Path
from ..sampling import generate
from ..solvers import integrate_adaptive, uniform_times
from ..times import TimeDensity
from ..velocity import Velocity

Condition = dict[str, Tensor]


class PathGeometry(NamedTuple):
    """The shape of the sampling paths X_t from noise to sample, averaged over samples; all are lower is better.

    `path_length`: E int ||v|| dt, in data units.
    `excess_path_length`: E length / E ||X_1 - X_0||, without unit; 1 is a straight line.
    `straightness`: E int ||(X_1 - X_0) - v||^2 dt, in squared data units; 0 is straight AND of constant speed, so one Euler step is exact.
    `curvature`: E int ||x''|| dt, the mean over times too, in data units / time^2; Euler's error is proportional to it.
    """

    path_length: float
    excess_path_length: float
    straightness: float
    curvature: float


def path_geometry(
    velocity: Velocity,
    x_0: Tensor,
    condition: Condition | None = None,
    *,
    num_steps: int = 64,
    method: str = "rk4",
    batch_size: int = 256,
) -> PathGeometry:
    """Length, straightness and curvature of the paths of a field, lower is better (see `PathGeometry` for formulas and units).

    Lengths are sums of chords; straightness is a trapezoidal sum of v at the nodes; x'' is the difference of v over a step.

    Args: `x_0`: (n, *event); `num_steps`: equal steps of `method`, on which the integrals are taken.
    """
    times = uniform_times(num_steps)
    parts = []
    for rows, c in _blocks(x_0, condition, batch_size):
        x = generate(velocity, x_0[rows], c, times, method, batch_size=batch_size, trajectory=True)
        v = torch.stack(
            [evaluate(velocity, state, t, c, batch_size=batch_size) for state, t in zip(x, times, strict=True)]
        )
        parts.append(_geometry(x.cpu().double().flatten(2), v.cpu().double().flatten(2)))
    length, displacement, straightness, curvature = (
        _finite(mean) for mean in torch.cat(parts, dim=1).mean(dim=1).tolist()
    )
    return PathGeometry(length, length / displacement if displacement else math.inf, straightness, curvature)


def _geometry(x: Tensor, v: Tensor) -> Tensor:
    """Length, displacement, straightness and curvature of each path on K equal steps: (K + 1, n, d) twice -> (4, n)."""
    h = 1 / (x.shape[0] - 1)
    deviation = (x[-1] - x[0] - v).square().sum(dim=2)
    return torch.stack(
        [
            x.diff(dim=0).norm(dim=2).sum(dim=0),
            (x[-1] - x[0]).norm(dim=1),
            torch.trapezoid(deviation, dx=h, dim=0),
            v.diff(dim=0).norm(dim=2).sum(dim=0),
        ]
    )


def adaptive_evaluations(
    velocity: Velocity,
    x_0: Tensor,
    condition: Condition | None = None,
    *,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    batch_size: int = 256,
) -> float:
    """Evaluations of the field (NFE) an adaptive solver needs from t = 0 to 1, a count; lower is better.

    A batch shares its step sizes, so the count belongs to its `batch_size`; it is averaged over the batches, by their rows.

    Args: `x_0`: (n, *event); `rtol`, `atol`: local error tolerances.
    """
    total = 0
    with evaluation_mode(velocity), torch.no_grad():
        for rows, c in _blocks(x_0, condition, batch_size):
            x = x_0[rows].to(velocity.device)
            field = velocity.field({key: value.to(x.device) for key, value in c.items()})
            total += x.shape[0] * integrate_adaptive(field, x, method=method, rtol=rtol, atol=atol).num_evaluations
    return total / x_0.shape[0]


def reconstruction_errors(
    velocity: Velocity,
    pairs: Batch,
    num_steps: Sequence[int] = (1, 2, 4, 8, 16, 100),
    *,
    method: str = "euler",
    shift: float = 1.0,
    batch_size: int = 1024,
) -> dict[int, float]:
    """E ||x_1 - phi_N(x_0, c)||^2 / d for each number of steps N, in squared data units; lower is better.

    Args: `pairs`: `x_0`, `x_1` and `condition` of held-out pairs; `method`, `shift`: of the sampler that will be deployed.
    Raises: ValueError when the pairs carry no noise.
    """
    if pairs.x_0 is None:
        raise ValueError("reconstruction needs pairs with noise: x_0 is None (build a bank with PairBuilder).")

    def error(samples: Tensor) -> float:
        return _mean_square(samples - pairs.x_1.cpu())

    return few_step_curve(
        error, velocity, pairs.x_0, pairs.condition, num_steps, method=method, shift=shift, batch_size=batch_size
    )


def few_step_curve(
    metric: Callable[[Tensor], float],
    velocity: Velocity,
    x_0: Tensor,
    condition: Condition | None = None,
    num_steps: Sequence[int] = (1, 2, 4, 8, 16, 100),
    *,
    method: str = "euler",
    shift: float = 1.0,
    batch_size: int = 1024,
) -> dict[int, float]:
    """A metric of the samples at several numbers of steps N, all from the same noise; unit and direction are those of the metric.

    Args: `metric`: (n, *event) on the CPU -> a number (one that draws should make its generator anew at every call);
    `x_0`: (n, *event); `method`, `shift`: of the sampler that will be deployed.
    """
    curve = {}
    for n in num_steps:
        curve[n] = metric(generate(velocity, x_0, condition or {}, time_grid(n, shift), method, batch_size=batch_size))
    return curve


def velocity_drift(
    velocity: Velocity,
    reference: Velocity,
    x_t: Tensor,
    t: float | Tensor,
    condition: Condition | None = None,
    *,
    batch_size: int = 1024,
) -> float:
    """E ||v - v_base||^2 / d on given states, in squared data units / time^2; lower is better where the base is to be kept.

    Args: `x_t`: (n, *event), states of the base under its OWN conditions measure forgetting; `t`: a number or (n,).
    """
    v, base = (evaluate(field, x_t, t, condition, batch_size=batch_size) for field in (velocity, reference))
    return _mean_square(v - base)


def held_out_losses(
    velocity: Velocity,
    x_1: Tensor,
    condition: Condition | None = None,
    *,
    generator: torch.Generator,
    path: Path = LINEAR,
    coupling: Coupling = IndependentCoupling(),
    times: TimeDensity = TimeDensity(),
    batch_size: int = 1024,
) -> Tensor:
    """The flow-matching loss of each held-out row at noise and times fixed by the generator, in squared data units; lower is better.

    A generator with the same key gives every model the same noise and times, so that differences are of the models. The loss contains the
    variance of the target, so it does not go to 0; it compares models trained with the same coupling only.

    Args: `x_1`: (n, *event); `generator`: on the CPU, e.g. `keyed_generator(seed, "held out")`.  Returns: (n,) float64.
    """
    batch = draw_path_batch(Batch(x_1.cpu(), _cpu(condition)), path, coupling, times, generator, Shard())
    v = evaluate(velocity, batch.x_t, batch.t, batch.condition, batch_size=batch_size)
    return (v - batch.v_t).double().square().flatten(1).mean(dim=1)


def held_out_loss(velocity: Velocity, x_1: Tensor, condition: Condition | None = None, **options: Any) -> float:
    """The mean of `held_out_losses`, whose options it takes, in squared data units; lower is better.

    Raises: ValueError for a field that is not finite there.
    """
    return _finite(held_out_losses(velocity, x_1, condition, **options).mean().item())


@torch.no_grad()
def evaluate(
    velocity: Velocity, x: Tensor, t: float | Tensor, condition: Condition | None = None, *, batch_size: int = 1024
) -> Tensor:
    """v(x, t | c) in batches, in eval mode.

    Args: `x`: (n, *event); `t`: a number or (n,).  Returns: (n, *event) on the CPU.
    """
    device = velocity.device
    parts = []
    with evaluation_mode(velocity):
        for rows, c in _blocks(x, condition, batch_size):
            time = t[rows].to(device) if isinstance(t, Tensor) and t.ndim else t
            parts.append(
                velocity(x[rows].to(device), time, **{key: value.to(device) for key, value in c.items()}).cpu()
            )
    return torch.cat(parts)


def _blocks(x: Tensor, condition: Condition | None, batch_size: int) -> Iterator[tuple[slice, Condition]]:
    """The rows of each batch, with their conditions.  Raises: ValueError when there are none."""
    if x.shape[0] == 0:
        raise ValueError("a metric of a field needs at least one state, got none.")
    for start, stop in itertools.pairwise([*range(0, x.shape[0], batch_size), x.shape[0]]):
        rows = slice(start, stop)
        yield rows, {key: value[rows] for key, value in (condition or {}).items()}


def _mean_square(error: Tensor) -> float:
    return _finite(error.cpu().double().square().mean().item())


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the field gives NaN or infinite values on these states.")
    return value


def _cpu(condition: Condition | None) -> Condition:
    return {key: value.cpu() for key, value in (condition or {}).items()}


@contextmanager
def evaluation_mode(velocity: Velocity) -> Iterator[None]:
    """Eval mode inside; every module gets its own mode back."""
    training = [module for module in velocity.modules() if module.training]
    velocity.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
