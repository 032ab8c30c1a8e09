"""When a flow is trained: densities of the training time t, and temperature schedules of gradual fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .choices import Choices
from .conventions import shift_t

TimeDensityName = Literal["uniform", "logit_normal", "beta"]
TemperatureName = Literal["linear", "cosine", "exponential", "alpha_linear", "alpha_cosine", "step"]


@dataclass(frozen=True)
class TimeDensity(Choices):
    """The density of the training time, in the papers' direction (t = 0 noise, t = 1 data), then shifted as in sampling."""

    name: TimeDensityName = "uniform"
    """uniform; logit_normal: sigmoid(mean + std z) (Esser et al. 2024); beta: Beta(a, b) (pi0 uses Beta(1, 1.5) near the noise)."""
    mean: float = 0.0
    """logit_normal: mean of the logit."""
    std: float = 1.0
    """logit_normal: standard deviation of the logit."""
    a: float = 1.0
    """beta: first parameter; a > b leans to the data."""
    b: float = 1.0
    """beta: second parameter."""
    shift: float = 1.0
    """The shift, as a scheduler applies it to its grid; 1 does nothing, 0 takes the scheduler's own, at the resolution of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (all(value > 0 for value in (self.std, self.a, self.b)) and self.shift >= 0):
            raise ValueError(
                f"std, a and b of a time density must be positive, and its shift not negative, got {self}."
            )

    def on(self, scheduler_shift: float) -> TimeDensity:
        """The density for a scheduler of this shift: training and sampling agree where no shift of one's own is set."""
        return self if self.shift else replace(self, shift=scheduler_shift)

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """(batch,) float32 times in [0, 1].  Raises: ValueError for the shift of a scheduler that was not named (see `on`)."""
        if not self.shift:
            raise ValueError("a shift of 0 stands for the scheduler's: call on(scheduler_shift) first.")
        if self.name == "logit_normal":
            t = torch.sigmoid(self.mean + self.std * torch.randn(batch, generator=generator))
        else:
            t = torch.rand(batch, generator=generator)
            if self.name == "beta":
                from scipy.special import betaincinv

                t = torch.from_numpy(betaincinv(self.a, self.b, t.double().numpy())).float()
        return t if self.shift == 1 else shift_t(t, self.shift)


@dataclass(frozen=True)
class TemperatureSchedule(Choices):
    """tau(s) over the progress s in [0, 1] of training, and alpha(s) = 1 / (1 + tau(s)): 0 is the base, 1 is the target.

    Every schedule starts at `initial_temperature` and is exactly `final_temperature` from s = `end` on; a final temperature above zero
    stops on purpose between the base and the target (the bias left is known: theory of Gradual Fine-Tuning, arXiv 2601.22495).
    """

    name: TemperatureName = "alpha_linear"
    """Which quantity moves how: tau linearly / by a cosine / exponentially, alpha linearly / by a cosine, or tau in equal steps."""
    initial_temperature: float = 19.0
    """tau at the start; alpha there is 1 / (1 + tau), which must be above zero: at alpha = 0 nothing is learned."""
    final_temperature: float = 0.0
    """tau at the end, reached exactly; 0 is the pure target."""
    end: float = 0.8
    """The fraction of training after which the temperature stays at its final value."""
    num_stages: int = field(default=5)
    """step: number of constant stages."""
    exponential_floor: float = 1e-2
    """exponential: the temperature from which it drops to a final temperature of zero, which an exponential never reaches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final_temperature < 0 or not math.isfinite(self.final_temperature):
            raise ValueError(f"final_temperature must be a number >= 0, got {self.final_temperature}.")
        if not (self.final_temperature <= self.initial_temperature and math.isfinite(self.initial_temperature)):
            raise ValueError(
                f"initial_temperature must be finite and at least final_temperature, got {self.initial_temperature} and "
                f"{self.final_temperature}; a negative temperature has no meaning."
            )
        if not (0 < self.end <= 1 and self.num_stages >= 2 and self.exponential_floor > 0):
            raise ValueError(f"need 0 < end <= 1, num_stages >= 2 and exponential_floor > 0, got {self}.")

    def temperature(self, progress: float) -> float:
        """tau at `progress` in [0, 1]."""
        r = progress / self.end
        if r >= 1:
            return self.final_temperature
        if r <= 0:
            return self.initial_temperature
        return self._between(r)

    def _between(self, r: float) -> float:
        start, final = self.initial_temperature, self.final_temperature
        bell = (1 + math.cos(math.pi * r)) / 2
        if self.name == "linear":
            return final + (start - final) * (1 - r)
        if self.name == "cosine":
            return final + (start - final) * bell
        if self.name == "exponential":
            last = final if final > 0 else min(self.exponential_floor, start)
            return start * (last / start) ** r if start > 0 else final
        if self.name == "step":
            stage = min(int(r * self.num_stages), self.num_stages - 1)
            return final + (start - final) * (1 - stage / (self.num_stages - 1))
        alpha_start, alpha_final = 1 / (1 + start), 1 / (1 + final)
        weight = r if self.name == "alpha_linear" else 1 - bell
        return 1 / (alpha_start + (alpha_final - alpha_start) * weight) - 1

    def alpha(self, progress: float) -> float:
        """alpha = 1 / (1 + tau): the weight of the target; 1 - alpha is that of the base."""
        return 1 / (1 + self.temperature(progress))
