"""Behaviour cloning: regress the data on the condition, the baseline that a policy without noise is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..batch import Batch
from ..conventions import Prediction
from ..sampling import regress
from ..velocity import Velocity
from .base import Logs, Objective, ObjectiveContext, mean_square


class BehaviourCloningObjective(Objective):
    """L = E || x_1 - phi(0, c) ||^2, phi one Euler step from zeros; the minimiser is E[x_1 | c], whatever the modes of x_1 are.

    The networks are those of the flows, at x = 0 and t = 0, so that nothing but the loss differs.
    """

    name = "bc"
    title = "behaviour cloning (squared error)"
    predicts: Prediction = "mean"

    def forward(self, velocity: Velocity, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """The squared error of the one answer to each condition."""
        return mean_square(batch.x_1 - regress(velocity, batch.x_1, batch.condition)).mean(), {}


@dataclass(frozen=True)
class BehaviourCloningConfig:
    """Behaviour cloning: squared error of the one answer to each condition, without noise. A baseline."""

    coupling: ClassVar[str] = "none"

    def build(self, context: ObjectiveContext) -> BehaviourCloningObjective:
        """The objective."""
        return BehaviourCloningObjective()

    def describe(self, context: ObjectiveContext) -> str:
        """Regression without noise."""
        return (
            "Behaviour cloning: the network, at zeros in place of noise and at the time of noise, is fitted to the data under each condition by squared "
            "error. It gives one answer to a condition, the mean of what it has seen there, in one evaluation."
        )
