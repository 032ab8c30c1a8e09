"""Maximum likelihood of reconstructions (MLE): solve inside the loss and fit the end to the paired data point (arXiv 2510.02081)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..choices import Choices
from ..conventions import time_grid
from ..couplings import COUPLINGS, Coupling, IndependentCoupling, Shard, couple
from ..gradients import GradientMode, solve
from ..solvers import FixedMethod, tableau
from ..times import TimeDensity
from ..velocity import Velocity
from .base import Logs, Objective, ObjectiveContext, Paper
from .flow_matching import FlowMatchingObjective
from .gradual import GradualObjective
from .words import pairs_words, temperature_words

Covariance = Literal["scalar", "diagonal", "learned"]
Distance = Literal["squared", "huber"]
VARIANCE_FLOOR = 1e-6
RELATIVE_FLOOR = 1e-2
"""A fixed variance is at least this part of the median one: pixels that hardly change would outweigh all others."""
HUBER = 0.00054
"""c of the pseudo-Huber distance for each coordinate (Song and Dhariwal 2023, section 3.3: 0.00054 sqrt(d) for all)."""


class ReconstructionObjective(Objective):
    """L = E || x_1 - phi(x_0, c) ||^2 under a Gaussian error model, phi the N-step solver of the trained field.

        scalar    mean over coordinates of e_i^2                            e = x_1 - phi(x_0, c)
        diagonal  mean of e_i^2 / s_i^2 with a fixed `variance` s^2, raised to 1/100 of the median one where it is less
        learned   mean of (e_i^2 / s_i^2 + log s_i^2) / 2, s_i^2 > 1e-6 trained with the model

    Distance `huber` takes (mean of e_i^2 + c^2)^(1/2) - c of each sample instead, c = 0.00054: it counts a sample by how far off it is rather than by
    the square of that (Song and Dhariwal 2023, arXiv 2310.14189, divided by sqrt(d)).

    Batches bring their own `x_0` from a bank of pairs (see `pairs`); a `coupling` instead pairs fresh noise in every batch, which harms on
    multi-modal data; the independent coupling is refused unless `allow_independent`, because E[x_1 | x_0, c] is then the mean.

    Args: `num_steps`: N, or several of which one is drawn at every step (a model trained at one N is bad at the others);
    `solver`: a fixed-step method; `shift`: the scheduler's, so that training and sampling use one grid;
    `distance`: squared, or huber (scalar covariance only); `gradient`, `last_steps`: see `gradients.solve`; `variance`: (*event), for `diagonal`; `event_shape`: for `learned`;
    `mixture`, `mixture_weight`: another objective (flow matching, GFT) added to the loss.
    Raises: ValueError for N < 1, independent pairs, an unknown covariance, distance or solver, or a covariance beside huber.
    """

    name = "mle"
    title = "maximum likelihood of reconstructions (MLE)"
    paper = Paper(
        "Fine-Tuning Flow Matching via Maximum Likelihood Estimation of Reconstructions",
        "2510.02081",
        "@article{li2025finetuning, title={Fine-Tuning Flow Matching via Maximum Likelihood Estimation of Reconstructions}, "
        "author={Li and Ding and Li and Li}, journal={arXiv preprint arXiv:2510.02081}, year={2025}}",
    )

    lowers_loss = False
    drops_conditions = False
    variance: Tensor

    def __init__(
        self,
        num_steps: int | Sequence[int] = 8,
        solver: str = "euler",
        *,
        shift: float = 1.0,
        gradient: GradientMode = "direct",
        last_steps: int = 1,
        covariance: Covariance = "scalar",
        distance: Distance = "squared",
        variance: Tensor | None = None,
        event_shape: Sequence[int] = (),
        coupling: Coupling | None = None,
        allow_independent: bool = False,
        mixture: Objective | None = None,
        mixture_weight: float = 0.0,
    ):
        super().__init__()
        if coupling is not None and coupling.name == "independent" and not allow_independent:
            raise ValueError(
                "independent pairs make reconstruction fit E[x_1 | condition], the mean: every mode collapses. Give batches with "
                "x_0 from a bank (pairs: ot_output, best_of_k, self ...), or pass allow_independent=True for an experiment."
            )
        if covariance not in get_args(Covariance):
            raise ValueError(f"unknown covariance {covariance!r}; choose one of {', '.join(get_args(Covariance))}.")
        if distance not in get_args(Distance):
            raise ValueError(f"unknown distance {distance!r}; choose one of {', '.join(get_args(Distance))}.")
        if distance == "huber" and covariance != "scalar":
            raise ValueError(f"distance huber has no covariance: choose covariance scalar, not {covariance!r}.")
        tableau(solver)
        counts = [num_steps] if isinstance(num_steps, int) else list(num_steps)
        self.grids = [time_grid(n, shift) for n in counts]
        if not self.grids:
            raise ValueError("num_steps must name at least one number of steps.")
        self.solver, self.gradient, self.last_steps = solver, gradient, last_steps
        self.covariance, self.distance, self.coupling = covariance, distance, coupling
        self.mixture, self.mixture_weight = mixture, mixture_weight
        self.prefetch = (coupling is not None and coupling.expensive) or (mixture is not None and mixture.prefetch)
        if covariance == "diagonal":
            if variance is None:
                raise ValueError("covariance 'diagonal' needs the variance of each coordinate.")
            floor = max(RELATIVE_FLOOR * float(variance.median()), VARIANCE_FLOOR)
            self.register_buffer("variance", variance.clamp(min=floor), persistent=False)
        if covariance == "learned":
            self.log_variance = nn.Parameter(torch.zeros(tuple(event_shape)))

    def draw(self, batch: Batch, generator: torch.Generator, shard: Shard) -> Batch:
        """Keep the bank's noise (or pair fresh noise), and draw what the mixture needs."""
        x_0 = batch.x_0
        if x_0 is None:
            if self.coupling is None:
                raise ValueError("reconstruction needs pairs: batches with x_0 from a bank, or a coupling.")
            noise = torch.randn(len(batch) * shard.world_size, *batch.x_1.shape[1:], generator=generator)
            x_0 = couple(self.coupling, noise, batch.x_1, batch.condition, shard)
        if self.mixture is not None:
            batch = self.mixture.draw(replace(batch, x_0=None), generator, shard)
        return replace(batch, x_0=x_0)

    def reconstruct(self, velocity: Velocity, batch: Batch, times: Sequence[float]) -> Tensor:
        """phi(x_0, c): (batch, *event), differentiable in the parameters of the velocity."""
        end = solve(
            velocity.field(batch.condition),
            batch.x_0,
            times,
            self.solver,
            gradient=self.gradient,
            last_steps=self.last_steps,
            parameters=[p for p in velocity.parameters() if p.requires_grad],
        )
        return velocity.without_padding(end, batch.condition)

    def forward(self, velocity: Velocity, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """The negative log-likelihood (up to constants) of the paired data point; logs the reconstruction error and N."""
        times = self.grids[0]
        if len(self.grids) > 1:
            times = self.grids[int(torch.randint(len(self.grids), (), generator=generator))]
        squares = (batch.x_1 - self.reconstruct(velocity, batch, times)).float().square()
        loss = self._likelihood(squares)
        logs: Logs = {"reconstruction": squares.detach().mean(), "num_steps": len(times) - 1}
        if self.mixture is not None:
            extra, extra_logs = self.mixture(velocity, batch, step, generator)
            loss = loss + self.mixture_weight * extra
            logs |= {**extra_logs, "mixture_loss": extra.detach()}
        return loss, logs

    def _likelihood(self, squares: Tensor) -> Tensor:
        if self.distance == "huber":
            return ((squares.flatten(1).mean(dim=1) + HUBER**2).sqrt() - HUBER).mean()
        if self.covariance == "scalar":
            return squares.mean()
        if self.covariance == "diagonal":
            return (squares / self.variance).mean()
        variance = VARIANCE_FLOOR + self.log_variance.exp()  # a sum: a clamp would have no gradient below the floor
        return 0.5 * (squares / variance + variance.log()).mean()


@dataclass(frozen=True)
class ReconstructionConfig(Choices):
    """Maximum likelihood of reconstructions; the pairs are the `pairs` section."""

    num_steps: list[int] = field(default_factory=lambda: [8])
    """Solver steps inside the loss: the number you will sample with, or several, of which one is drawn at every step."""
    solver: FixedMethod = "euler"
    """Solver inside the loss: the one you will sample with."""
    gradient: GradientMode = "direct"
    """direct, checkpointed (memory flat in the number of steps), truncated (last steps only) or adjoint."""
    last_steps: int = 1
    """truncated: steps the gradient goes through."""
    covariance: Covariance = "scalar"
    """scalar: plain squared error; diagonal: divided by the data's variance, or 1/100 of its median over coordinates where it is less; learned: trained with the model."""
    distance: Distance = "squared"
    """squared: squared error; huber: pseudo-Huber, which grows with the error rather than with its square (scalar covariance only)."""
    flow_matching_weight: float = 0.0
    """Weight of a flow-matching loss, with the base's coupling, beside the reconstruction."""
    anchor_weight: float = 0.0
    """Weight of a gradual fine-tuning loss (temperature of `train.temperature`) beside the reconstruction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("flow_matching_weight", "anchor_weight"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"objective.{key} must be >= 0, got {getattr(self, key)}.")

    def build(self, context: ObjectiveContext) -> ReconstructionObjective:
        """The objective.  Raises: ValueError when both mixtures are asked for."""
        if self.flow_matching_weight and self.anchor_weight:
            raise ValueError("choose one mixture: objective.flow_matching_weight or objective.anchor_weight.")
        coupling = COUPLINGS.get(context.base_coupling, IndependentCoupling)()  # the velocity the base has learned
        path: dict[str, Any] = {"coupling": coupling, "times": TimeDensity(shift=0.0).on(context.shift)}
        mixture: Objective | None = FlowMatchingObjective(**path) if self.flow_matching_weight else None
        if self.anchor_weight:
            reference = context.require_reference("mle with an anchor")
            mixture = GradualObjective(reference, context.temperature, context.num_steps, **path)
        in_batch = {"sorted": "ot", "independent": "independent"}.get(context.pairs.name)
        return ReconstructionObjective(
            self.num_steps,
            self.solver,
            shift=context.shift,
            gradient=self.gradient,
            last_steps=self.last_steps,
            covariance=self.covariance,
            distance=self.distance,
            variance=context.variance,
            event_shape=context.event_shape,
            coupling=context.coupling(in_batch) if in_batch else None,
            allow_independent=context.pairs.allow_independent,
            mixture=mixture,
            mixture_weight=self.flow_matching_weight or self.anchor_weight,
        )

    def describe(self, context: ObjectiveContext) -> str:
        """The solver inside the loss, the pairs, the gradient, and what is mixed in."""
        counts = ", ".join(map(str, self.num_steps))
        several = f"N drawn from {counts} at every step" if len(self.num_steps) > 1 else f"N = {counts}"
        gradient = f"through the last {self.last_steps} steps" if self.gradient == "truncated" else f"`{self.gradient}`"
        text = (
            f"MLE of reconstructions: the `{self.solver}` solver runs inside the loss, with {several}, and where it ends is fitted to the paired data "
            f"point ({self.distance if self.distance == 'huber' else self.covariance + ' covariance'}, gradient {gradient}). {pairs_words(context.pairs)}"
        )
        if self.flow_matching_weight:
            return f"{text} Flow matching is added with weight {self.flow_matching_weight:g}."
        if self.anchor_weight:
            return f"{text} GFT, anchored to the frozen base, is added with weight {self.anchor_weight:g}, {temperature_words(context.temperature)}."
        return text
