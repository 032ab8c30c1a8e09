"""Probability paths between noise x_0 (t = 0) and data x_1 (t = 1), and what can be read off a velocity on them.

Rule at the ends: everything that follows from a velocity without a division is exact on the whole of [0, 1]. Where a formula
divides by something that vanishes at an end (sigma(1) = 0 in the score and in x_1 -> velocity, alpha(0) = 0 in x_0 -> velocity),
the divisor is clamped at `END_CLAMP`, so results are finite, and equal to the formula everywhere further than that from the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

END_CLAMP = 1e-5


class PathSample(NamedTuple):
    """A point on a path: `x_t`, `v_t`: (batch, *event), the conditional velocity; `t`: (batch,)."""

    x_t: Tensor
    v_t: Tensor
    t: Tensor


def broadcast_time(t: Tensor, x: Tensor) -> Tensor:
    """`t`: (batch,) or scalar, shaped to multiply `x`: (batch, *event). The only place where time is broadcast.

    Raises: ValueError when `t` is neither a scalar nor one number a sample (a (batch, 1) time would broadcast wrongly and silently).
    """
    if t.ndim == 0:
        return t
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"t must have shape () or ({x.shape[0]},) for x of shape {tuple(x.shape)}, got {tuple(t.shape)}."
        )
    return t.reshape(-1, *[1] * (x.ndim - 1))


def _same_shape(**tensors: Tensor) -> None:
    if len({x.shape for x in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} of {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"{' and '.join(tensors)} must have the same shape, got {shapes}.")


def _clamp_divisor(divisor: Tensor) -> Tensor:
    """Everything divided by is positive inside (0, 1); rounding may leave it a little below zero at an end (cos(pi / 2) in float32)."""
    return divisor.clamp(min=END_CLAMP)


@dataclass(frozen=True)
class AffinePath:
    """x_t = alpha(t) x_1 + sigma(t) x_0, with x_t = x_0 at t = 0 and x_1 at t = 1 (Lipman et al. 2023, eq. 10).

    The four functions map a time tensor to a tensor of the same shape; `d_alpha` and `d_sigma` are derivatives in t.
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    d_alpha: Callable[[Tensor], Tensor]
    d_sigma: Callable[[Tensor], Tensor]

    @property
    def is_stochastic(self) -> bool:
        """Whether `sample` needs noise of its own."""
        return False

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor, noise: Tensor | None = None) -> PathSample:
        """The point on the path at time t, and the velocity there.

            x_t = alpha(t) x_1 + sigma(t) x_0        v_t = alpha'(t) x_1 + sigma'(t) x_0

        Args: `x_0`, `x_1`: (batch, *event); `t`: (batch,), in [0, 1]; `noise`: unused here, see `BrownianBridgePath`.
        Raises: ValueError when the shapes differ.
        """
        _same_shape(x_0=x_0, x_1=x_1)
        s = broadcast_time(t, x_1)
        return PathSample(self.alpha(s) * x_1 + self.sigma(s) * x_0, self.d_alpha(s) * x_1 + self.d_sigma(s) * x_0, t)

    def _wronskian(self, s: Tensor) -> Tensor:
        """alpha' sigma - alpha sigma', which is 1 on the linear path and positive inside every sensible one."""
        return _clamp_divisor(self.d_alpha(s) * self.sigma(s) - self.alpha(s) * self.d_sigma(s))

    def x_1_from_velocity(self, v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_1 | x_t] = (sigma v - sigma' x_t) / (alpha' sigma - alpha sigma').  Shapes (batch, *event); `t`: (batch,)."""
        s = broadcast_time(t, x_t)
        return (self.sigma(s) * v - self.d_sigma(s) * x_t) / self._wronskian(s)

    def x_0_from_velocity(self, v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t] = (alpha' x_t - alpha v) / (alpha' sigma - alpha sigma').  Shapes (batch, *event); `t`: (batch,)."""
        s = broadcast_time(t, x_t)
        return (self.d_alpha(s) * x_t - self.alpha(s) * v) / self._wronskian(s)

    def velocity_from_x_1(self, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """v = alpha' x_1 + sigma' (x_t - alpha x_1) / sigma, with the divisor clamped near t = 1 (see the module)."""
        s = broadcast_time(t, x_t)
        return self.d_alpha(s) * x_1 + self.d_sigma(s) * (x_t - self.alpha(s) * x_1) / _clamp_divisor(self.sigma(s))

    def velocity_from_x_0(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """v = alpha' (x_t - sigma x_0) / alpha + sigma' x_0, with the divisor clamped near t = 0 (see the module)."""
        s = broadcast_time(t, x_t)
        return self.d_alpha(s) * (x_t - self.sigma(s) * x_0) / _clamp_divisor(self.alpha(s)) + self.d_sigma(s) * x_0

    def score_from_velocity(self, v: Tensor, x_t: Tensor, t: Tensor, *, coupling: str) -> Tensor:
        """grad log p_t(x_t) = -E[x_0 | x_t] / sigma(t) by Tweedie's formula; on the linear path (t v - x_t) / (1 - t).

        `coupling` names the coupling the velocity was trained with: the formula needs Gaussian noise INDEPENDENT of the data.
        Raises: ValueError for any other coupling (x_0 given x_1 is then not Gaussian and the formula is false).
        """
        if coupling != "independent":
            raise ValueError(
                f"the score follows from the velocity only for the 'independent' coupling, not for {coupling!r}: with a dependent "
                "coupling the noise given the data is not Gaussian. Train with a BrownianBridgePath, whose score is known."
            )
        return -self.x_0_from_velocity(v, x_t, t) / _clamp_divisor(self.sigma(broadcast_time(t, x_t)))

    def velocity_from_score(self, score: Tensor, x_t: Tensor, t: Tensor, *, coupling: str) -> Tensor:
        """The inverse of `score_from_velocity`: x_0 = -sigma score, then `velocity_from_x_0`.  Raises: the same ValueError."""
        if coupling != "independent":
            raise ValueError(f"a score gives the velocity only for the 'independent' coupling, not for {coupling!r}.")
        return self.velocity_from_x_0(-self.sigma(broadcast_time(t, x_t)) * score, x_t, t)


LINEAR = AffinePath(lambda t: t, lambda t: 1 - t, torch.ones_like, lambda t: -torch.ones_like(t))
"""The rectified-flow path x_t = t x_1 + (1 - t) x_0, v_t = x_1 - x_0: the path of diffusers' flow models."""

_QUARTER = math.pi / 2
COSINE = AffinePath(
    lambda t: torch.sin(_QUARTER * t),
    lambda t: torch.cos(_QUARTER * t),
    lambda t: _QUARTER * torch.cos(_QUARTER * t),
    lambda t: -_QUARTER * torch.sin(_QUARTER * t),
)
"""The variance-preserving trigonometric path x_t = sin(pi t / 2) x_1 + cos(pi t / 2) x_0 (Albergo & Vanden-Eijnden 2023)."""


class BridgeSample(NamedTuple):
    """A point on a Brownian bridge: as `PathSample`, with the drift of the SDE and the score of the bridge there."""

    x_t: Tensor
    v_t: Tensor
    t: Tensor
    drift: Tensor
    score: Tensor


@dataclass(frozen=True)
class BrownianBridgePath:
    """x_t = (1 - t) x_0 + t x_1 + sigma_b sqrt(t (1 - t)) z: real stochasticity for ANY coupling (Tong et al. 2024, Prop. 3.4).

    `sigma_b` > 0 is the constant diffusion g of the bridge SDE. Raises: ValueError when sigma_b <= 0 (use LINEAR then).
    """

    sigma_b: float

    def __post_init__(self) -> None:
        if not self.sigma_b > 0:
            raise ValueError(f"sigma_b must be positive, got {self.sigma_b}; the path without noise is `LINEAR`.")

    @property
    def is_stochastic(self) -> bool:
        """Whether `sample` needs noise of its own."""
        return True

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor, noise: Tensor | None = None) -> PathSample:
        """The point and the conditional ODE velocity there; see `bridge_sample` for the drift and the score."""
        if noise is None:
            raise ValueError("a Brownian bridge needs `noise`: standard normal numbers in the shape of x_1.")
        return PathSample(*self.bridge_sample(x_0, x_1, t, noise)[:3])

    def bridge_sample(self, x_0: Tensor, x_1: Tensor, t: Tensor, noise: Tensor) -> BridgeSample:
        """The point of the bridge that belongs to a standard normal `noise` z, and its conditional velocity, drift and score.

            m = (1 - t) x_0 + t x_1,  n = t (1 - t)      x_t = m + sigma_b sqrt(n) z
            v = x_1 - x_0 + (1 - 2 t) (x_t - m) / (2 n)  score = -(x_t - m) / (sigma_b^2 n)  drift = v + (sigma_b^2 / 2) score

        Args: `x_0`, `x_1`, `noise`: (batch, *event); `t`: (batch,).  `n` is clamped at `END_CLAMP` where it divides.
        Raises: ValueError when the shapes differ.
        """
        _same_shape(x_0=x_0, x_1=x_1, noise=noise)
        s = broadcast_time(t, x_1)
        n = s * (1 - s)
        deviation = self.sigma_b * n.sqrt() * noise
        velocity = x_1 - x_0 + (1 - 2 * s) * deviation / (2 * _clamp_divisor(n))
        score = -deviation / (self.sigma_b**2 * _clamp_divisor(n))
        return BridgeSample(
            (1 - s) * x_0 + s * x_1 + deviation, velocity, t, velocity + self.sigma_b**2 / 2 * score, score
        )


Path = AffinePath | BrownianBridgePath
