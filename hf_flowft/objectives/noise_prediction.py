"""Noise prediction: a diffusion model with diffusers' noise schedule, the baseline flows are compared with (Ho et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ..batch import Batch
from ..conventions import Prediction, output_from_velocity, sigma_from_timestep, t_from_sigma
from ..couplings import Shard
from ..velocity import Velocity
from .base import Logs, Objective, ObjectiveContext, Paper, mean_square


class NoisePredictionObjective(Objective):
    """L = E || eps - net(sqrt(a_k) x_1 + sqrt(1 - a_k) eps, k, c) ||^2 with k uniform over the timesteps of a noise schedule.

    Args: `scheduler`: a diffusers scheduler with `add_noise`; its timesteps 0 .. num_train_timesteps - 1 are given to the network as they are.
    """

    name = "noise_prediction"
    title = "noise prediction (DDPM)"
    predicts: Prediction = "noise"
    paper = Paper(
        "Denoising Diffusion Probabilistic Models",
        "2006.11239",
        "@inproceedings{ho2020denoising, title={Denoising Diffusion Probabilistic Models}, author={Ho, Jonathan and Jain, Ajay and Abbeel, Pieter}, "
        "booktitle={NeurIPS}, year={2020}}",
    )

    def __init__(self, scheduler: Any):
        super().__init__()
        self.scheduler = scheduler

    def draw(self, batch: Batch, generator: torch.Generator, shard: Shard) -> Batch:
        """Noise, timesteps and noisy data; `t` is the timestep in the time of the velocity."""
        size = len(batch) * shard.world_size
        noise = shard.rows(torch.randn(size, *batch.x_1.shape[1:], generator=generator))
        steps = self.scheduler.config.num_train_timesteps
        timestep = shard.rows(torch.randint(steps, (size,), generator=generator))
        x_t = self.scheduler.add_noise(batch.x_1, noise, timestep)
        return replace(batch, x_0=noise, x_t=x_t, t=t_from_sigma(sigma_from_timestep(timestep.float())))

    def forward(self, velocity: Velocity, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """The squared error of the predicted noise."""
        predicted = output_from_velocity(velocity(batch.x_t, batch.t, **batch.condition))
        return mean_square(predicted - batch.x_0).mean(), {}


@dataclass(frozen=True)
class NoisePredictionConfig:
    """Noise prediction with the cosine schedule, as Diffusion Policy (arXiv 2303.04137). A baseline: sampled with DDIM, DDPM or DPM-Solver++."""

    num_train_timesteps: int = 100
    """Noise levels, and steps of DDPM; a fine-tune keeps the schedule of its base."""

    coupling: ClassVar[str] = "independent"

    def __post_init__(self) -> None:
        if not 2 <= self.num_train_timesteps <= 1000:
            raise ValueError(f"objective.num_train_timesteps must be 2 to 1000, got {self.num_train_timesteps}.")

    def build(self, context: ObjectiveContext) -> NoisePredictionObjective:
        """The objective: what is predicted of the data is clipped to where they are, as the last noise levels need it."""
        if context.base_scheduler is not None:
            return NoisePredictionObjective(DDPMScheduler.from_config(context.base_scheduler.config))
        scheduler = DDPMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="epsilon",
            clip_sample_range=context.extent,
        )
        return NoisePredictionObjective(scheduler)

    def describe(self, context: ObjectiveContext) -> str:
        """The noise schedule, and what is regressed."""
        known = context.base_scheduler.config if context.base_scheduler is not None else {}
        steps = known.get("num_train_timesteps", self.num_train_timesteps)
        schedule = known.get("beta_schedule", "squaredcos_cap_v2")
        return f"Noise prediction: a diffusion model with {steps} noise levels (`{schedule}`), whose network regresses to the noise in the data."
