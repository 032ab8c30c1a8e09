"""Euler-Maruyama on an SDE with the marginals of the flow, as a diffusers scheduler."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..conventions import NUM_TRAIN_TIMESTEPS, velocity_from_output
from ..solvers import NoiseSchedule, sde_step
from .common import FlowScheduler, working_precision


class FlowSDEScheduler(FlowScheduler, SchedulerMixin, ConfigMixin):
    """
    Samples an SDE that has, at every time, the same distribution of samples as the flow: dx = b dt + g dW with
    b = v + (g^2 / 2) score and score = (t v - x) / (1 - t).

    The score is read off the velocity, which is right only for a model trained with the independent coupling of noise and data. For a
    model trained on optimal-transport or reconstruction pairs the distribution is not preserved: use `FlowODEScheduler`.

    Args:
        num_train_timesteps (`int`, defaults to 1000):
            The timestep of pure noise; no other value is accepted.
        noise_schedule (`str`, defaults to `"sqrt"`):
            g^2 at time t: `sqrt` 2 kappa (1 - t), nowhere singular; `constant` kappa^2; `memoryless` 2 (1 - t) / t, clamped at the start
            (noise and data become independent; Domingo-Enrich et al. 2025).
        noise_scale (`float`, defaults to 1.0):
            kappa; 0 gives the ODE. `memoryless` has no scale.
        shift (`float`, defaults to 1.0):
            Shift of the default grid, sigma' = s sigma / (1 + (s - 1) sigma); above 1 spends more steps near the noise.
        use_dynamic_shifting (`bool`, defaults to `False`):
            Shift by exp(mu), with `mu` given to `set_timesteps`, in place of `shift`.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
        noise_schedule: Literal["sqrt", "constant", "memoryless"] = "sqrt",
        noise_scale: float = 1.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
    ):
        self._noise = NoiseSchedule(noise_schedule, noise_scale)
        self._begin((0.0,))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """
        One step of the SDE; the last one adds no noise.

        Args:
            model_output (`torch.Tensor`): what the model predicts, noise - data.
            timestep (`float` or `torch.Tensor`): the entry of `timesteps` the model was given. Going back to an earlier one restarts there.
            sample (`torch.Tensor`): what the model was given.
            generator (`torch.Generator` or a list of them, *optional*): with one per sample, a sample does not depend on its batch.
            return_dict (`bool`, defaults to `True`): return a `SchedulerOutput` or a tuple.

        Returns:
            `SchedulerOutput` with `prev_sample`, in the dtype of `sample`; computed in at least float32.
        """
        index = self._locate(timestep, model_output, sample)
        if isinstance(generator, list) and len(generator) != sample.shape[0]:
            raise ValueError(
                f"give one generator, or one per sample: got {len(generator)} for {sample.shape[0]} samples."
            )
        x = working_precision(sample)
        v = velocity_from_output(model_output).to(x.dtype)
        noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        prev_sample = sde_step(x, v, self._times[index], self._times[index + 1], self._noise, noise).to(sample.dtype)
        self._step_index = index + 1
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)
