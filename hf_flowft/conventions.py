"""The two conventions of flow matching, and the only place that converts between them.

| | time | data at | network predicts |
|---|---|---|---|
| the papers (all mathematics here) | t | t = 1 | velocity v = dx/dt = data - noise |
| diffusers (all models and schedulers here) | sigma = 1 - t, timestep = 1000 sigma | sigma = 0 | dx/dsigma = noise - data |

Scalars stay Python floats (double precision), so that `1 - t` is exact for every float32 sigma.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000

Prediction = Literal["velocity", "noise", "mean"]
"""What a network has learned, and so how it is sampled. velocity: a flow, by any flow scheduler; noise: a diffusion model, whose output is the
noise in its input (epsilon), by the schedulers of its noise schedule; mean: a regression, whose one Euler step from zeros is E[data | condition].
"""

Time = TypeVar("Time", float, Tensor, float | Tensor)


def sigma_from_t(t: Time) -> Time:
    """sigma = 1 - t."""
    return 1 - t


def t_from_sigma(sigma: Time) -> Time:
    """t = 1 - sigma."""
    return 1 - sigma


def timestep_from_sigma(sigma: Time) -> Time:
    """timestep = 1000 sigma."""
    return NUM_TRAIN_TIMESTEPS * sigma


def sigma_from_timestep(timestep: Time) -> Time:
    """sigma = timestep / 1000."""
    return timestep / NUM_TRAIN_TIMESTEPS


def velocity_from_output(output: Tensor) -> Tensor:
    """v = dx/dt from what a diffusers model predicts, dx/dsigma."""
    return -output


def output_from_velocity(velocity: Tensor) -> Tensor:
    """What a diffusers model predicts, dx/dsigma, from v = dx/dt."""
    return -velocity


def shift_sigma(sigma: Time, shift: float) -> Time:
    """sigma' = s sigma / (1 + (s - 1) sigma): s > 1 spends more time near the noise (Esser et al. 2024, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shift_t(t: Time, shift: float) -> Time:
    """The same shift in the papers' time: t' = t / (s - (s - 1) t)."""
    return t / (shift - (shift - 1) * t)


def sigma_grid(num_steps: int, shift: float = 1.0) -> Tensor:
    """The sampling grid: `num_steps` equal steps from sigma = 1 to sigma = 0, shifted once.

    Returns: (num_steps + 1,) float32, first 1 and last 0 exactly.  Raises: ValueError when num_steps < 1 or shift <= 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    if not shift > 0:
        raise ValueError(f"shift must be positive (1 does nothing), got {shift}.")
    return shift_sigma(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).float()


def time_grid(num_steps: int, shift: float = 1.0) -> list[float]:
    """`sigma_grid` in the papers' time: Python floats from 0 to 1, exact complements of the float32 sigmas."""
    return [t_from_sigma(sigma) for sigma in sigma_grid(num_steps, shift).tolist()]
