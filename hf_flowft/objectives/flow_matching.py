"""Flow matching: regress to the conditional velocity of a probability path (Lipman et al. 2023; Liu et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..batch import Batch
from ..choices import Choices
from ..couplings import Coupling, IndependentCoupling, Shard, couple, may_be_independent
from ..paths import LINEAR, Path
from ..solvers import NoiseSchedule
from ..times import TimeDensity
from ..velocity import Velocity
from .base import Logs, Objective, ObjectiveContext, Paper, mean_square
from .words import path_words

Weighting = Literal["one", "kl"]
WEIGHTED_TIMES = (1e-6, 1 - 1e-3)


def draw_path_batch(
    batch: Batch, path: Path, coupling: Coupling, times: TimeDensity, generator: torch.Generator, shard: Shard
) -> Batch:
    """Noise, times and the points on the path for the rows of one process.

    A batch that brings its own `x_0` (a bank of pairs) keeps it.  Returns: the batch with `x_0`, `x_t`, `v_t`, `t` set.
    """
    size = len(batch) * shard.world_size
    x_0 = batch.x_0
    noise = torch.randn(size, *batch.x_1.shape[1:], generator=generator)
    t = shard.rows(times.sample(size, generator))
    if x_0 is None:
        x_0 = couple(coupling, noise, batch.x_1, batch.condition, shard)
    bridge_noise = shard.rows(torch.randn(noise.shape, generator=generator)) if path.is_stochastic else None
    x_t, v_t, _ = path.sample(x_0, batch.x_1, t, bridge_noise)
    return replace(batch, x_0=x_0, x_t=x_t, v_t=v_t, t=t)


def velocity_weight(t: Tensor, weighting: Weighting, schedule: NoiseSchedule = NoiseSchedule()) -> Tensor:
    """lambda_t of the squared velocity error: 1, or the Girsanov weight that makes the loss the path KL of an SDE.

        lambda_t = c_t^2 / (2 g^2),   c_t = 1 + t k_t,   g^2 = 2 (1 - t) k_t,   k_t = `schedule.half_rate`

    which is (1 + kappa t)^2 / (4 kappa (1 - t)) for `sqrt`, and t / (1 - t), the smallest, for `memoryless`. `t`: (batch,), clipped
    to [1e-6, 1 - 1e-3]: the conditional constant diverges at the end.  Raises: ValueError for an unknown weighting, or no noise.
    """
    if weighting == "one":
        return torch.ones_like(t)
    if weighting != "kl" or (schedule.name != "memoryless" and not schedule.scale > 0):
        raise ValueError(
            f"weighting must be 'one', or 'kl' with a schedule that has noise, got {weighting!r} and {schedule}."
        )
    s = t.clamp(*WEIGHTED_TIMES)
    k = schedule.half_rate(s, 0.0)
    return (1 + s * k) ** 2 / (4 * (1 - s) * k)


class FlowMatchingObjective(Objective):
    """L = E w_t || v(x_t, t, c) - v_t ||^2, the mean over coordinates; the minimiser is E[v_t | x_t].

    Args: `path`, `coupling`, `times`: any; `weighting`: `one` or `kl` (see `velocity_weight`).
    """

    name = "fm"
    title = "flow matching"
    paper = Paper(
        "Flow Matching for Generative Modeling",
        "2210.02747",
        "@inproceedings{lipman2023flow, title={Flow Matching for Generative Modeling}, author={Lipman, Yaron and Chen, Ricky T. Q. and "
        "Ben-Hamu, Heli and Nickel, Maximilian and Le, Matt}, booktitle={ICLR}, year={2023}}",
    )

    def __init__(
        self,
        path: Path = LINEAR,
        coupling: Coupling = IndependentCoupling(),
        times: TimeDensity = TimeDensity(),
        weighting: Weighting = "one",
    ):
        super().__init__()
        self.path, self.coupling, self.times, self.weighting = path, coupling, times, weighting
        self.prefetch, self.lowers_loss = coupling.expensive, may_be_independent(coupling.name)

    def draw(self, batch: Batch, generator: torch.Generator, shard: Shard) -> Batch:
        """Noise, times and path points; see `draw_path_batch`."""
        return draw_path_batch(batch, self.path, self.coupling, self.times, generator, shard)

    def target(self, batch: Batch, step: int) -> Tensor:
        """The velocity to regress to: (batch, *event)."""
        return batch.v_t

    def regression(self, v: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """The weighted mean square of v - target: a scalar."""
        error = mean_square(v - target)
        return (error if self.weighting == "one" else error * velocity_weight(t, self.weighting)).mean()

    def forward(self, velocity: Velocity, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """The weighted squared error of the velocity."""
        target = self.target(batch, step)  # first: a reference then works in the memory that the activations will fill
        return self.regression(velocity(batch.x_t, batch.t, **batch.condition), target, batch.t), {}


@dataclass(frozen=True)
class FlowMatchingConfig(Choices):
    """Plain flow matching: pretraining and plain fine-tuning."""

    coupling: Literal["independent", "ot", "sinkhorn"] = "independent"
    """How noise and data of a batch are paired; OT respects conditions."""
    times: TimeDensity = field(default_factory=TimeDensity)
    """Density of the training time."""
    weighting: Weighting = "one"
    """one, or kl: the weight of the path KL."""

    def build(self, context: ObjectiveContext) -> FlowMatchingObjective:
        """The objective."""
        times = self.times.on(context.shift)
        return FlowMatchingObjective(coupling=context.coupling(self.coupling), times=times, weighting=self.weighting)

    def describe(self, context: ObjectiveContext) -> str:
        """Plain regression, and how noise, data and times meet."""
        how = path_words(self.coupling, self.times.on(context.shift), self.weighting)
        return f"Flow matching on straight paths from noise to data: the network regresses to x_1 - x_0. {how}"
