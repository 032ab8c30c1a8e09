"""How what is trained is sampled while it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..conventions import Prediction, time_grid
from ..pipelines.denoising import denoise, named_scheduler
from ..sampling import generate, in_batches, regress
from ..velocity import Velocity
from .settings import EvalConfig


@dataclass(frozen=True)
class Sampler:
    """Samples from given noise, a function of that noise alone: a velocity by the solver of the evaluation, noise by DDIM, a mean in one step.

    Args: `config`: solver and batch size; `shift`: of the solver's grid; `scheduler`: the noise schedule of a network that predicts noise.
    """

    config: EvalConfig
    shift: float = 1.0
    predicts: Prediction = "velocity"
    scheduler: Any = None

    @property
    def solver(self) -> str:
        """What samples, for the report."""
        return {"velocity": self.config.solver, "noise": "ddim", "mean": "one step from zeros"}[self.predicts]

    def steps(self, numbers: list[int]) -> list[int]:
        """The numbers of steps that make a difference: for a mean, one."""
        return [1] if self.predicts == "mean" else numbers

    def __call__(self, velocity: Velocity, x_0: Tensor, condition: dict[str, Tensor], num_steps: int) -> Tensor:
        """`x_0`: (n, *event) noise, `condition`: (n, ...) -> samples (n, *event) on the CPU."""
        size = self.config.batch_size
        if self.predicts == "velocity":
            times = time_grid(num_steps, self.shift)
            return generate(velocity, x_0, condition, times, self.config.solver, batch_size=size)
        if self.predicts == "mean":
            return in_batches(velocity, x_0, condition, lambda x, c: regress(velocity, x, c), batch_size=size)
        ddim = named_scheduler("ddim", self.scheduler, "noise")

        def solve(x: Tensor, given: dict[str, Tensor]) -> Tensor:
            ddim.set_timesteps(num_steps, device=x.device)
            return denoise(velocity, ddim, x, given)

        return in_batches(velocity, x_0, condition, solve, batch_size=size)
