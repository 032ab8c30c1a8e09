"""Fixed-step ODE solvers as a diffusers scheduler: Euler, midpoint, Heun and Runge-Kutta 4."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ..conventions import NUM_TRAIN_TIMESTEPS, velocity_from_output
from ..solvers import ADAPTIVE_METHODS, add_slopes, tableau
from .common import FlowScheduler, working_precision


class FlowODEScheduler(FlowScheduler, SchedulerMixin, ConfigMixin):
    """
    Integrates the velocity of a flow model with a fixed-step Runge-Kutta method.

    `timesteps` has one entry per evaluation of the model: `num_inference_steps` x 1 (euler), 2 (midpoint, heun) or 4 (rk4). The loop is
    that of any diffusers scheduler; it gives bit for bit what `hf_flowft.solvers.integrate` gives on the same grid. Between the
    evaluations of one step the scheduler keeps the state at its start, and `prev_sample` is where the model is to be asked next.

    Args:
        num_train_timesteps (`int`, defaults to 1000):
            The timestep of pure noise; no other value is accepted.
        solver (`str`, defaults to `"euler"`):
            `euler`, `midpoint`, `heun` or `rk4`.
        shift (`float`, defaults to 1.0):
            Shift of the default grid, sigma' = s sigma / (1 + (s - 1) sigma); above 1 spends more steps near the noise.
        use_dynamic_shifting (`bool`, defaults to `False`):
            Shift by exp(mu), with `mu` given to `set_timesteps`, in place of `shift`.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
        solver: str = "euler",
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
    ):
        if solver in ADAPTIVE_METHODS:
            raise ValueError(
                f"{solver!r} chooses its own steps, which a loop over given timesteps cannot follow; "
                f"call FlowPipeline(..., solver={solver!r}) instead, or choose a fixed-step solver here."
            )
        self._tableau = tableau(solver)
        self._slopes: list[Tensor] = []
        self._begin(self._tableau.c)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """
        One evaluation further along the flow.

        Args:
            model_output (`torch.Tensor`): what the model predicts, noise - data.
            timestep (`float` or `torch.Tensor`): the entry of `timesteps` the model was given. Going back to an earlier one restarts there.
            sample (`torch.Tensor`): what the model was given. At the later evaluations of a step the state kept at its start counts.
            generator (`torch.Generator`, *optional*): not used.
            return_dict (`bool`, defaults to `True`): return a `SchedulerOutput` or a tuple.

        Returns:
            `SchedulerOutput` with `prev_sample`, the model's next input, in the dtype of `sample`; computed in at least float32.
        """
        index = self._locate(timestep, model_output, sample)
        interval, stage = divmod(index, self.order)
        if stage == 0:
            self._start, self._slopes = working_precision(sample), []
        self._slopes.append(velocity_from_output(model_output).to(self._start.dtype))
        last = stage == self.order - 1
        weights = self._tableau.b if last else self._tableau.a[stage + 1]
        h = self._times[interval + 1] - self._times[interval]
        prev_sample = add_slopes(self._start, h, weights, self._slopes).to(sample.dtype)
        if last:  # keep no tensor, nor its graph, alive after the step
            del self._start
            self._slopes = []
        self._step_index = index + 1
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)
