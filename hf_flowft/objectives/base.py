"""What an objective is: it draws what its batches need, and turns a velocity and a batch into a loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..couplings import Shard
from ..velocity import Velocity

Logs = dict[str, "float | Tensor"]
"""Numbers to log beside the loss; tensors are detached scalars, read only when they are shown."""


class Paper(NamedTuple):
    """Where a method comes from, for the card."""

    title: str
    arxiv: str
    bibtex: str


class Objective(nn.Module):
    """A training loss with its fixed parts (path, coupling, reference, schedule ...) inside.

    A new method is a subclass in a file of its own, here or in a user's code: `forward` is the loss; `draw` has a default for losses that
    need nothing but the data. Parameters of the objective that require gradients are trained and saved with the model.
    """

    name: str = "objective"
    paper: Paper | None = None
    prefetch: bool = False
    """Whether `draw` is slow enough to be worth running in the background."""

    def draw(self, batch: Batch, generator: torch.Generator, shard: Shard) -> Batch:
        """Everything random or expensive about one effective batch that does not need the trained network: noise, times, pairs.

        Args: `batch`: this process's rows of the effective batch, on the CPU; `generator`: keyed by the step, the same on every
        process: draw for the GLOBAL batch (`len(batch) * shard.world_size` rows) and keep `shard.rows(...)`, so that the result
        does not depend on how the batch is divided. May run ahead in a thread (in a single process).
        """
        return batch

    def forward(self, velocity: Velocity, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """The loss of one micro-batch and numbers to log.

        Args: `velocity`: the trained field; `batch`: as `draw` returned it, on the device; `step`: the optimiser step;
        `generator`: keyed by the step, the same for every micro-batch and process.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(velocity, batch, step, generator).")


def mean_square(x: Tensor) -> Tensor:
    """The mean over everything but the batch: (batch, *event) -> (batch,)."""
    return x.float().square().flatten(1).mean(dim=1)
