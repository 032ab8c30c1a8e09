"""Gradual fine-tuning (GFT): regress to a mixture of the target velocity and the frozen base's (arXiv 2601.22495)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..batch import Batch
from ..choices import Choices
from ..couplings import Coupling, IndependentCoupling, Shard
from ..paths import LINEAR, Path
from ..randomness import keyed_generator
from ..replay import ReplayBank, ReplayStates, build_replay
from ..times import TemperatureSchedule, TimeDensity
from ..velocity import FrozenVelocity, Velocity
from .base import Logs, Objective, ObjectiveContext, Paper, mean_square
from .flow_matching import FlowMatchingObjective, Weighting
from .words import path_words, temperature_words

PAPER = Paper(
    "Gradual Fine-Tuning for Flow Matching Models",
    "2601.22495",
    "@article{thorkelsdottir2026gradual, title={Gradual Fine-Tuning for Flow Matching Models}, author={Thorkelsdottir, Gudrun and Banerjee, Arindam}, "
    "journal={arXiv preprint arXiv:2601.22495}, year={2026}}",
)


class GradualObjective(FlowMatchingObjective):
    """GFT on the target's path (`measure: target`): the temperature falls and the target moves from the base to the data.

        L = E w_t || v(x_t, t, c) - y ||^2,   y = alpha v_t + (1 - alpha) v_ref(x_t, t, c),   alpha = 1 / (1 + tau(step / num_steps))

    At the base's own weights the gradient is alpha times that of flow matching; at alpha = 1 the loss IS flow matching. Any
    coupling is allowed. Annealed to temperature 0 it ends where plain fine-tuning ends, and forgets as much: stop above zero, or
    use `ReplayObjective`.

    Args: `reference`: the frozen base; `schedule`: tau over the run; `num_steps`: optimiser steps of the run;
    the rest as `FlowMatchingObjective`.
    """

    name = "gft"
    title = "gradual fine-tuning (GFT) on the target measure"
    paper = PAPER

    def __init__(
        self,
        reference: FrozenVelocity,
        schedule: TemperatureSchedule = TemperatureSchedule(),
        num_steps: int = 1000,
        path: Path = LINEAR,
        coupling: Coupling = IndependentCoupling(),
        times: TimeDensity = TimeDensity(),
        weighting: Weighting = "one",
    ):
        super().__init__(path, coupling, times, weighting)
        self.reference, self.schedule, self.num_steps = reference, schedule, num_steps

    def alpha(self, step: int) -> float:
        """The weight of the target at an optimiser step."""
        return self.schedule.alpha(step / self.num_steps)

    def target(self, batch: Batch, step: int) -> Tensor:
        """y = alpha v_t + (1 - alpha) v_ref; the reference is not called at alpha = 1."""
        alpha = self.alpha(step)
        if alpha == 1:
            return batch.v_t
        return alpha * batch.v_t + (1 - alpha) * self.reference(batch.x_t, batch.t, **batch.condition)

    def forward(self, velocity: Velocity, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """The loss against the moving target; logs alpha."""
        loss, logs = super().forward(velocity, batch, step, generator)
        return loss, {**logs, "alpha": self.alpha(step)}


class ReplayObjective(FlowMatchingObjective):
    """GFT on the replay measure (`measure: replay`): learn the target, keep the base where the base lives.

        L = E w_t || v(x_t, t, c) - v_t ||^2  +  weight E || v(z_t, t, c_base) - v_ref(z_t, t, c_base) ||^2

    z_t are states of the base's own samples under its own conditions (see `ReplayBank`); the weight stays constant: annealing it away
    forgets. With disjoint conditions the two terms do not compete. Both go through the network in one pass.

    Args: `replay`: the bank; `weight`: the temperature of the replay term; the rest as `FlowMatchingObjective`.
    """

    name = "gft_replay"
    title = "gradual fine-tuning (GFT) on the replay measure"
    paper = PAPER

    def __init__(
        self,
        replay: ReplayBank,
        weight: float = 1.0,
        path: Path = LINEAR,
        coupling: Coupling = IndependentCoupling(),
        times: TimeDensity = TimeDensity(),
        weighting: Weighting = "one",
    ):
        if not weight >= 0:
            raise ValueError(f"the replay weight is a temperature and must be >= 0, got {weight}.")
        super().__init__(path, coupling, times, weighting)
        self.replay, self.weight = replay, weight
        self.reference = replay.reference  # registered, so that it goes to the objective's device

    def draw(self, batch: Batch, generator: torch.Generator, shard: Shard) -> Batch:
        """The target batch as in flow matching, and beside it a replay batch of the same size."""
        drawn = super().draw(batch, generator, shard)
        return replace(drawn, replay=self.replay.draw(len(batch), self.times, generator, shard))

    def kept(self, replay: Batch) -> Batch:
        """The replay batch with the velocity to be kept: the base's."""
        return self.replay.with_velocity(replay, self.reference)

    def forward(self, velocity: Velocity, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """The two terms from one forward pass; logs both."""
        old = self.kept(batch.replay)
        if set(old.condition) != set(batch.condition):
            raise ValueError(
                f"the replay conditions {sorted(old.condition)} are not those of the data, {sorted(batch.condition)}."
            )
        condition = {
            key: torch.cat([value, old.condition[key].to(value.dtype)]) for key, value in batch.condition.items()
        }
        v = velocity(torch.cat([batch.x_t, old.x_t]), torch.cat([batch.t, old.t]), **condition)
        target_loss = self.regression(v[: len(batch)], batch.v_t, batch.t)
        replay_loss = mean_square(v[len(batch) :] - old.v_t).mean()
        return target_loss + self.weight * replay_loss, {
            "target_loss": target_loss.detach(),
            "replay_loss": replay_loss.detach(),
        }


@dataclass(frozen=True)
class GradualConfig(Choices):
    """Gradual fine-tuning; the temperature is `train.temperature`."""

    measure: Literal["target", "replay"] = "replay"
    """replay: learn without forgetting (the base's own samples stand beside the data); target: anneal from the base to the data."""
    coupling: Literal["independent", "ot", "sinkhorn"] = "independent"
    """How noise and data of a batch are paired."""
    times: TimeDensity = field(default_factory=TimeDensity)
    """Density of the training time."""
    weighting: Weighting = "one"
    """one, or kl: the weight of the path KL."""
    replay_weight: float = 1.0
    """replay: the constant temperature of the replay term."""
    replay_samples: int = 2048
    """replay: samples of the base in the bank."""
    replay_states: ReplayStates = "auto"
    """replay: interpolant (a base trained with the independent coupling), trajectory (any base), or auto, by the base's recorded coupling."""

    def build(self, context: ObjectiveContext) -> Objective:
        """The objective; the replay bank is drawn here."""
        reference = context.require_reference("gft")
        times = self.times.on(context.shift)
        common: dict[str, Any] = {
            "coupling": context.coupling(self.coupling),
            "times": times,
            "weighting": self.weighting,
        }
        if self.measure == "target":
            return GradualObjective(reference, context.temperature, context.num_steps, **common)
        bank = build_replay(
            reference,
            context.require_conditions("gft with replay"),
            context.event_shape,
            keyed_generator(context.seed, "replay"),
            states=self.replay_states,
            base_coupling=context.base_coupling,
            num_samples=self.replay_samples,
            shift=context.shift,
            batch_size=context.batch_size,
            progress=context.progress,
            keep=context.keep,
        )
        return ReplayObjective(bank, self.replay_weight, **common)

    def describe(self, context: ObjectiveContext) -> str:
        """What the frozen base is for: a moving target, or a second term on its own samples."""
        how = path_words(self.coupling, self.times.on(context.shift), self.weighting)
        if self.measure == "target":
            moving = temperature_words(context.temperature)
            return f"GFT on the target measure: on the new data the target of the regression moves from the frozen base's velocity to the data's {moving}. {how}"
        return (
            f"GFT on the replay measure: flow matching on the new data and, with the constant weight {self.replay_weight:g}, regression to the frozen "
            f"base's velocity at states of {self.replay_samples} samples the base has drawn itself (`replay_states: {self.replay_states}`), so that it "
            f"is kept where it lives. {how}"
        )
