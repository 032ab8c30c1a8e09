"""What an objective is: it draws what its batches need, and turns a velocity and a batch into a loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..conventions import Prediction
from ..couplings import COUPLINGS, Coupling, Shard
from ..pairs import PairsConfig
from ..replay import Keep, made_anew
from ..times import TemperatureSchedule
from ..velocity import FrozenVelocity, Velocity

Logs = dict[str, "float | Tensor"]
"""Numbers to log beside the loss; tensors are detached scalars, read only when they are shown."""


MIN_CANDIDATES = 1.5
"""Rows of a batch with equal labels, on average, from which on an assignment within them changes anything worth its name."""


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
    title: str = ""
    """The method's name in words, for the card; empty for `name`."""
    paper: Paper | None = None
    predicts: Prediction = "velocity"
    """What a network trained with it has learned: how it is sampled, judged and saved."""
    scheduler: Any = None
    """The noise schedule it was trained with, as diffusers' scheduler; None for a flow, which has none."""
    lowers_loss: bool = True
    """Whether a better model has a lower flow-matching loss of independent pairs too: not where the ends of paths are trained, which may become
    other paths, nor with OT pairs, whose velocity is another one."""
    drops_conditions: bool = True
    """Whether a condition may be dropped from what was drawn (`train.condition_dropout`): not where data were made under it."""
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


@dataclass(frozen=True)
class ObjectiveContext:
    """What a run knows when it builds its objective from settings.

    `reference`: the frozen base, None when training starts from nothing, or from what is no flow (`base_predicts`); `conditions`: rows of the base's
    own conditions, None for what looks at images, which are not kept; `base_coupling`: the coupling it was trained with; `base_scheduler`: its noise schedule, of a base that predicts noise;
    `event_shape`, `num_steps`, `temperature`, `shift`, `seed`: of the run; `variance`: (*event) of the training data, `extent`: their largest
    magnitude, where an objective needs them; `candidates`: counts among how many rows of a batch, on average, an assignment can choose;
    `batch_size`: samples of the base drawn at once, and `keep`: what may hold them for the next run.
    """

    event_shape: tuple[int, ...]
    num_steps: int
    reference: FrozenVelocity = None
    conditions: dict[str, Tensor] = field(default_factory=dict)
    base_coupling: str = "unknown"
    temperature: TemperatureSchedule = field(default_factory=TemperatureSchedule)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    shift: float = 1.0
    seed: int = 0
    variance: Tensor = None
    progress: bool = True
    base_predicts: Prediction = "velocity"
    base_scheduler: Any = None
    extent: float = 1.0
    batch_size: int = 1024
    keep: Keep = made_anew
    candidates: Callable[[], float] = lambda: math.inf

    def coupling(self, name: str) -> Coupling:
        """The coupling of that name.  Raises: ValueError when labels leave its assignment next to nothing to choose from."""
        coupling = COUPLINGS[name]()
        if coupling.expensive and (choice := self.candidates()) < MIN_CANDIDATES:
            raise ValueError(
                f"the coupling {name!r} pairs noise and data within equal conditions, and in a batch only {choice:.1f} rows share theirs on average "
                "(prompts, pictures and labels count): it would change nothing. Use independent noise (MLE: pairs of best_of_k or self), or a larger train.batch_size."
            )
        return coupling

    def require_reference(self, method: str) -> FrozenVelocity:
        """The frozen base.  Raises: ValueError when the run has none, or one that is no flow."""
        if self.base_predicts != "velocity":
            raise ValueError(f"{method} fine-tunes a flow, but the base predicts the {self.base_predicts}.")
        if self.reference is None:
            raise ValueError(
                f"{method} fine-tunes a pretrained model: set model.name to pretrained and model.path to its pipeline."
            )
        return self.reference

    def require_conditions(self, method: str) -> dict[str, Tensor]:
        """The base's own conditions.  Raises: ValueError when they are not known."""
        if self.conditions is None:
            raise ValueError(
                f"{method} draws samples of the base under its own observations, but images are not kept with a policy: use objective.measure target "
                "or flow matching, or train a policy of states."
            )
        return self.conditions


class ObjectiveConfig(Protocol):
    """The settings of one objective: a frozen dataclass that builds it."""

    def build(self, context: ObjectiveContext) -> Objective:
        """The objective."""

    def describe(self, context: ObjectiveContext) -> str:
        """What is done under these settings, in a sentence or two: the card tells it."""


def mean_square(x: Tensor) -> Tensor:
    """The mean over everything but the batch: (batch, *event) -> (batch,)."""
    return x.float().square().flatten(1).mean(dim=1)
