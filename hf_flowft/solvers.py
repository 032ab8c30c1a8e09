"""Integration of a velocity field: Runge-Kutta methods as data, adaptive methods through torchdiffeq, and SDEs with the same marginals.

A field is any callable `field(x, t) -> dx/dt` with `x`: (batch, *event) and `t` a Python float (adaptive methods: a 0-dim tensor).
The step functions are shared with the schedulers, so a pipeline and a training loss integrate bit for bit alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .choices import Choices
from .conventions import Time

Field = Callable[[Tensor, Any], Tensor]


class Solution(NamedTuple):
    """`x`: (batch, *event) at the last time; `num_evaluations` of the field; `trajectory`: (len(times), batch, *event) if asked for."""

    x: Tensor
    num_evaluations: int
    trajectory: Tensor | None


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: k_i = f(x + h sum_j a_ij k_j, t + c_i h), x' = x + h sum_i b_i k_i (Butcher 1963)."""

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    @property
    def num_stages(self) -> int:
        return len(self.b)


TABLEAUX = {
    "euler": Tableau(1, ((),), (1.0,), (0.0,)),
    "midpoint": Tableau(2, ((), (0.5,)), (0.0, 1.0), (0.0, 0.5)),
    "heun": Tableau(2, ((), (1.0,)), (0.5, 0.5), (0.0, 1.0)),
    "rk4": Tableau(4, ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0)),
}
ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FixedMethod = Literal["euler", "midpoint", "heun", "rk4"]


def tableau(method: str) -> Tableau:
    """The tableau of a fixed-step method.  Raises: ValueError naming the known ones."""
    if method not in TABLEAUX:
        raise ValueError(f"unknown fixed-step solver {method!r}; choose one of {', '.join(TABLEAUX)}.")
    return TABLEAUX[method]


def uniform_times(num_steps: int, start: float = 0.0, end: float = 1.0) -> list[float]:
    """num_steps + 1 equally spaced times; `start` > `end` integrates backwards.  Raises: ValueError when num_steps < 1."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    return [start + (end - start) * k / num_steps for k in range(num_steps)] + [end]


def add_slopes(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h sum_i weights_i slopes_i, skipping zero weights: every stage and every step is this one line."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = x + (h * weight) * slope
    return x


def runge_kutta_step(field: Field, x: Tensor, t: float, t_next: float, method: Tableau) -> Tensor:
    """One step from t to t_next."""
    h = t_next - t
    slopes: list[Tensor] = []
    for a, c in zip(method.a, method.c, strict=True):
        slopes.append(field(add_slopes(x, h, a, slopes), stage_time(t, t_next, c)))
    return add_slopes(x, h, method.b, slopes)


def stage_time(t: float, t_next: float, c: float) -> float:
    """t + c (t_next - t), exact at both ends."""
    return t_next if c == 1 else t + c * (t_next - t)


def integrate(
    field: Field, x: Tensor, times: Sequence[float], method: str = "euler", *, trajectory: bool = False
) -> Solution:
    """Integrate dx/dt = field(x, t) over a grid of times, forwards or backwards.

    Args: `x`: (batch, *event) at times[0]; `times`: at least two; `method`: a key of TABLEAUX; `trajectory`: keep the states.
    Raises: ValueError for an unknown method or a grid of fewer than two times.
    """
    scheme = tableau(method)
    if len(times) < 2:
        raise ValueError(f"a time grid needs at least two times, got {list(times)}.")
    states = [x]
    for t, t_next in itertools.pairwise(times):
        x = runge_kutta_step(field, x, t, t_next, scheme)
        if trajectory:
            states.append(x)
    evaluations = (len(times) - 1) * scheme.num_stages
    return Solution(x, evaluations, torch.stack(states) if trajectory else None)


class UnsolvableError(ValueError):
    """An adaptive solver does not get through a field."""


def integrate_adaptive(
    field: Field,
    x: Tensor,
    times: Sequence[float] = (0.0, 1.0),
    method: str = "dopri5",
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trajectory: bool = False,
) -> Solution:
    """Integrate with step-size control (torchdiffeq); the field then gets `t` as a 0-dim tensor.

    Steps end on the given times: torchdiffeq would step past the end and interpolate, at the price of accuracy and of times outside
    the model's range.

    Args: as `integrate`; `times` says where states are wanted; `rtol`, `atol`: local error tolerances.
    Raises: ValueError for an unknown method or a tolerance that is not positive; UnsolvableError when no step is small enough.
    """
    if method not in ADAPTIVE_METHODS:
        raise ValueError(f"unknown adaptive solver {method!r}; choose one of {', '.join(ADAPTIVE_METHODS)}.")
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be positive, got {rtol} and {atol}.")
    from torchdiffeq import odeint

    evaluations, (low, high) = 0, sorted((times[0], times[-1]))

    def counted(t: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return field(state, t.clamp(low, high))  # the probe for the first step size may lie outside

    grid = torch.tensor(
        list(times), dtype=torch.float32 if x.dtype != torch.float64 else torch.float64, device=x.device
    )
    try:
        states = odeint(counted, x, grid, rtol=rtol, atol=atol, method=method, options={"step_t": grid})
    except AssertionError as error:  # torchdiffeq's way to say that no step is small enough
        raise UnsolvableError(
            f"{method} finds no step that is small enough ({error}): the field is not finite, or as good as discontinuous. Fixed steps may do."
        ) from error
    return Solution(states[-1], evaluations, states if trajectory else None)


@dataclass(frozen=True)
class NoiseSchedule(Choices):
    """The diffusion g^2(t) of an SDE that has the marginals of the flow; `scale` is kappa (sqrt) or g (constant).

    name        g^2(t)               drift c_t v - k_t x, c_t = 1 + g^2 t / (2 (1 - t)), k_t = g^2 / (2 (1 - t))
    sqrt        2 kappa (1 - t)      (1 + kappa t) v - kappa x: regular everywhere
    constant    g^2                  singular at t = 1, which no step evaluates
    memoryless  2 (1 - t) / (t + h)  noise and data become independent (Domingo-Enrich et al. 2025); h is the step, and the drift
                                     is derived from the SAME clamped g^2

    All follow from b = v + (g^2 / 2) score with score = (t v - x) / (1 - t): valid for the independent coupling only.
    """

    name: Literal["sqrt", "constant", "memoryless"] = "sqrt"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 0 or not math.isfinite(self.scale):
            raise ValueError(f"the scale of a noise schedule must be a number >= 0, got {self.scale}.")

    def half_rate(self, t: Time, h: float) -> Time | float:
        """k_t = g^2 / (2 (1 - t)); c_t = 1 + t k_t."""
        if self.name == "sqrt":
            return self.scale
        if self.name == "constant":
            return self.scale**2 / (2 * (1 - t))
        return 1 / (t + h)

    def variance(self, t: float, t_next: float) -> float:
        """The integral of g^2 over the step (memoryless: g^2(t) h, which is what its clamp is made for)."""
        if self.name == "sqrt":
            return self.scale * ((1 - t) ** 2 - (1 - t_next) ** 2)
        h = t_next - t
        return self.scale**2 * h if self.name == "constant" else 2 * (1 - t) / (t + h) * h


def sde_step(x: Tensor, v: Tensor, t: float, t_next: float, schedule: NoiseSchedule, noise: Tensor) -> Tensor:
    """One Euler-Maruyama step x + h (c_t v - k_t x) + sqrt(integral of g^2) noise; no noise on the step that ends at t = 1."""
    h = t_next - t
    k = schedule.half_rate(t, h)
    x = x + h * ((1 + t * k) * v - k * x)
    return x if t_next >= 1 else x + math.sqrt(schedule.variance(t, t_next)) * noise


def integrate_sde(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    schedule: NoiseSchedule,
    *,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
) -> Solution:
    """Sample the SDE that shares the flow's marginals (independent coupling); `times` must increase within [0, 1].

    Raises: ValueError when there are fewer than two times, they do not increase, or they leave [0, 1].
    """
    increasing = len(times) >= 2 and all(a < b for a, b in itertools.pairwise(times))
    if not (increasing and times[0] >= 0 and times[-1] <= 1):
        raise ValueError(
            f"an SDE is sampled forwards, on at least two increasing times within [0, 1]; got {list(times)}."
        )
    states = [x]
    for t, t_next in itertools.pairwise(times):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        x = sde_step(x, field(x, t), t, t_next, schedule, noise)
        if trajectory:
            states.append(x)
    return Solution(x, len(times) - 1, torch.stack(states) if trajectory else None)
