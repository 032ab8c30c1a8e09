"""Which scheduler samples which network, and the one loop over a scheduler's timesteps."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from ..conventions import Prediction, output_from_velocity, sigma_from_timestep, t_from_sigma
from ..schedulers import FlowODEScheduler, FlowSDEScheduler
from ..velocity import Velocity

SCHEDULERS: dict[str, Prediction] = {
    "ode": "velocity",
    "sde": "velocity",
    "ddpm": "noise",
    "ddim": "noise",
    "dpm": "noise",
}
"""The names of `named_scheduler`, and what each samples."""
PREDICTION_TYPES: dict[str, Prediction] = {"flow_prediction": "velocity", "epsilon": "noise"}
"""What diffusers' schedulers call it; a scheduler without the option is for flows."""
DPM_LAMBDA_MIN = -3.0
"""DPM-Solver++ begins where log(alpha / sigma) is at least this. It does not clip what it predicts of the data, and an error of the predicted noise
is one of the data 1 / alpha times as large: beyond, the cosine schedule has levels that throw it far off.
"""

Generators = torch.Generator | list[torch.Generator] | None


def check_scheduler(scheduler: Any, predicts: Prediction) -> None:
    """Raises: ValueError when a scheduler is not for what a network predicts (a mean needs none)."""
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if predicts != "mean" and PREDICTION_TYPES.get(kind) != predicts:
        names = ", ".join(name for name, known in SCHEDULERS.items() if known == predicts)
        raise ValueError(
            f"{type(scheduler).__name__} (prediction_type {kind}) is no scheduler for a network that predicts the {predicts}; choose one of {names}."
        )


def named_scheduler(text: str, current: Any, predicts: Prediction, coupling: str = "unknown") -> Any:
    """A scheduler by its name, on the grid or noise schedule of the `current` one.

        ode, ode:heun    the flow's ODE, by Euler's method or another fixed-step one
        sde, sde:0.5     the SDE with the flow's distribution, of noise scale 1 or another
        ddpm, ddim, dpm  for a network that predicts noise: ancestral sampling, DDIM, DPM-Solver++ of order 2

    Args: `coupling`: the network was trained with: without independent noise an SDE does not have the distribution of the flow.
    Raises: ValueError for an unknown name, or one that does not sample what the network predicts.
    """
    name, _, option = text.partition(":")
    if SCHEDULERS.get(name) != predicts:
        names = ", ".join(known for known, kind in SCHEDULERS.items() if kind == predicts) or "none"
        raise ValueError(f"the schedulers of a network that predicts the {predicts} are {names}; got {text!r}.")
    if predicts == "noise":
        if option:
            raise ValueError(f"the scheduler {name!r} has no options, got {text!r}.")
        return _of_noise(name, current)
    shift = float(current.config.get("shift", 1.0))
    if name == "ode":
        return FlowODEScheduler(solver=option or "euler", shift=shift)
    scale = _number(option or "1", text)
    if coupling != "independent":
        warnings.warn(
            f"the coupling of this model is {coupling!r}: the samples of an SDE have the distribution of the flow only for 'independent'.",
            stacklevel=3,
        )
    return FlowSDEScheduler(noise_scale=scale, shift=shift)


def _of_noise(name: str, current: Any) -> Any:
    begin = {"timestep_spacing": "trailing"}  # at the last level, where the noise that sampling begins with is
    if name == "dpm":
        return DPMSolverMultistepScheduler.from_config(current.config, lambda_min_clipped=DPM_LAMBDA_MIN, **begin)
    return (DDPMScheduler if name == "ddpm" else DDIMScheduler).from_config(current.config, **begin)


def _number(option: str, text: str) -> float:
    try:
        return float(option)
    except ValueError:
        raise ValueError(f"the scheduler {text!r} needs a number after the colon, as in sde:0.5.") from None


def denoise(
    network: Velocity,
    scheduler: Any,
    x: Tensor,
    condition: dict[str, Tensor],
    generator: Generators = None,
    after_step: Callable[[int, Tensor, Tensor], Tensor] = lambda index, timestep, x: x,
) -> Tensor:
    """The scheduler's loop: one evaluation of the network for each of its timesteps, which must be set.

    Args: `network`: whatever it predicts, behind the door of `Velocity`; `x`: (batch, *event) noise; `after_step`: (index, timestep, x) -> x.
    Returns: (batch, *event).
    """
    stochastic = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for index, timestep in enumerate(scheduler.timesteps):
        v = network(x, t_from_sigma(sigma_from_timestep(float(timestep))), **condition)
        x = scheduler.step(output_from_velocity(v), timestep, x, **stochastic, return_dict=False)[0]
        x = after_step(index, timestep, x)
    return x
