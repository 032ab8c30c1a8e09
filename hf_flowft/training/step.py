"""One loss as one module, and what a run returns or fails with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..objectives import Logs, Objective
from ..velocity import Velocity
from .selection import Selection


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradient became NaN or infinite; the last good state has been saved.

    `result`: the best until then, which the model carries when this is raised.
    """

    def __init__(self, message: str, result: TrainResult):
        super().__init__(message)
        self.result = result


class TrainStep(nn.Module):
    """Velocity and objective as one module whose forward is the loss, so that DDP and autocast see one forward a backward."""

    def __init__(self, velocity: Velocity, objective: Objective):
        super().__init__()
        self.velocity, self.objective = velocity, objective

    def forward(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """The loss of one micro-batch."""
        return self.objective(self.velocity, batch, step, generator)

    def changing(self) -> dict[str, Tensor]:
        """What training changes: trained parameters and buffers, by name."""
        state = self.state_dict()
        named = self.named_parameters(remove_duplicate=False)  # tied weights under each of their names
        frozen = {name for name, p in named if not p.requires_grad}
        return {k: x for k, x in state.items() if k not in frozen and not k.startswith("objective.reference")}


@dataclass
class TrainResult:
    """What a run returns: `model` carries the best weights (the base's, when nothing beat it); `seconds`: of all its parts."""

    model: nn.Module
    step: int
    improved: bool
    verdict: str
    selection: Selection
    history: list[dict[str, float]]
    stopped: bool
    seconds: float
