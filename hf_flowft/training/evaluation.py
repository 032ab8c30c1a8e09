"""Judging a velocity: samples, the selection metric, and the rows and the noise it is measured with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..batch import Batch
from ..conventions import Prediction
from ..data import FlowData
from ..metrics.distances import frechet_distance
from ..metrics.flow import held_out_losses
from ..metrics.held_out import energy_by_row, energy_metric, energy_score, reconstruction_by_row
from ..models.looking import look
from ..randomness import keyed_generator
from ..velocity import Velocity
from .diversity import NUM_OBSERVATIONS, action_diversity
from .image_numbers import ImageNumbers
from .processes import training_device
from .samplers import Sampler
from .settings import EvalConfig

SampleMetric = Callable[[Tensor, Batch], float]
"""metric(samples, held_out) -> a number, lower is better; samples and `held_out.x_1` are in model units and share their conditions."""
ENERGY_MAX_SIZE = 256


@dataclass(frozen=True)
class Score:
    """The selection metric of one candidate: a value for each repeat on the target, and on the base's data where there is some; of a policy also
    its `action_diversity`, which selects nothing. `rows`: what each held-out row of the target adds, where that is known; of the base alone in
    what is kept, of the others `row_error`, the standard error over these rows of their difference from the base."""

    step: int
    target: list[float]
    base_domain: list[float]
    action_diversity: float | None = None
    rows: list[float] = field(default_factory=list)
    row_error: float = 0.0

    @property
    def value(self) -> float:
        """Mean over the repeats."""
        return sum(self.target) / len(self.target)

    @property
    def forgetting(self) -> float | None:
        """Mean on the base's data."""
        return sum(self.base_domain) / len(self.base_domain) if self.base_domain else None


class Judgement(NamedTuple):
    """The metric of one draw, and what each held-out row adds to it: (rows,); None where it is no matter of rows."""

    value: float
    rows: Tensor | None = None


class Evaluator:
    """Scores velocities on one data set, always with the same noise.

    Args: `data`; `config`; `seed`: of the noise; `shift`: of the sampler's grid; `features`: (n, *event) -> (n, k), for `frechet`; `metric`: a
    user's own metric instead of the named ones; `rollouts`: (velocity, split, num_steps, repeat) -> one minus the reward of each episode, for policies;
    `predicts`, `scheduler`, `lowers_loss`: of the objective: what the networks have learned.
    Raises: ValueError for a metric that does not fit data or objective, and for splits of fewer rows than it needs.
    """

    def __init__(
        self,
        data: FlowData,
        config: EvalConfig,
        seed: int = 0,
        shift: float = 1.0,
        features: Callable[[Tensor], Tensor] | None = None,
        metric: SampleMetric | None = None,
        rollouts: Callable[[Velocity, str, int, int], list[float]] | None = None,
        predicts: Prediction = "velocity",
        scheduler: Any = None,
        lowers_loss: bool = True,
    ):
        self.rollouts, self.lowers_loss = rollouts, lowers_loss
        self.sampler = Sampler(config, shift, predicts, scheduler)
        self.select_steps = self.sampler.steps(config.select_num_steps)
        self.report_steps = self.sampler.steps(config.report_num_steps)
        self.data, self.config, self.seed, self.features, self.user_metric = data, config, seed, features, metric
        self.metric_name = getattr(metric, "__name__", "metric") if metric is not None else self._choose()
        if rollouts is not None:
            self.metric_name = "reward_shortfall"
        if self.metric_name == "frechet" and features is None:
            raise ValueError(
                "eval.metric 'frechet' needs features: pass features=callable to FlowTrainer, or choose another metric."
            )
        of_images = config.measures_kid or config.clip
        self.image_numbers = ImageNumbers(config, data, training_device()) if of_images else None
        self._held_out, self._observed = dict[str, Batch](), dict[str, Batch]()
        self._require_rows()
        if config.forgetting_limit and "base_validation" not in data.splits:
            raise ValueError(
                f"eval.forgetting_limit {config.forgetting_limit:g} limits what is lost of the base's data, but {data.name!r} names none (base_labels, "
                "base_tasks, or samples of a text-to-image base): name them, or set it to 0."
            )

    def _require_rows(self) -> None:
        """A split that is too small for the metric is named before the training, not after it."""
        used = {self.selection_split, self.test_split, "base_validation", "base_test"} & set(self.data.splits)
        small = [s for s in sorted(used) if min(self.data.counts[s], self.config.max_samples) < 2]
        wanting = "kid" if self.config.measures_kid else self.metric_name
        if small and wanting != "held_out_loss":
            other = ", or choose eval.metric held_out_loss" if self.is_flow and self.lowers_loss else ""
            raise ValueError(
                f"split {small[0]!r} of {self.data.name!r} gives {self.data.counts[small[0]]} rows (eval.max_samples {self.config.max_samples}), but "
                f"{wanting} needs two: hold more out{other}."
            )

    @property
    def is_flow(self) -> bool:
        """Whether there is a velocity, which has a loss and paths."""
        return self.sampler.predicts == "velocity"

    def _choose(self) -> str:
        if self.config.metric == "held_out_loss" and not self.is_flow:
            raise ValueError(
                f"eval.metric held_out_loss is that of a flow, but this model predicts the {self.sampler.predicts}: choose "
                "reconstruction, or eval.environment for a policy."
            )
        if self.config.metric == "held_out_loss" and not self.lowers_loss:
            raise ValueError(
                "eval.metric held_out_loss is the loss of independent pairs. It says nothing of a run of MLE, which trains where paths end, nor of pairs "
                "by optimal transport, of the run or of its base: choose energy, kid (of images) or reconstruction, or eval.environment for a policy."
            )
        if self.config.metric != "auto":
            return self.config.metric
        if self.features is not None:
            return "frechet"
        by_loss = self.is_flow and self.lowers_loss
        if any(key not in ("class_labels", "prompt", "size") for key in self.data.condition_columns):
            return "held_out_loss" if by_loss else "energy_score"
        is_small = math.prod(self.data.event_shape) <= ENERGY_MAX_SIZE and not self.data.prompts
        return "held_out_loss" if by_loss and not is_small else "energy"

    @property
    def selection_split(self) -> str:
        """The split that selects the model: the training data itself where nothing is held out for it."""
        return "validation" if "validation" in self.data.splits else "train"

    @property
    def test_split(self) -> str:
        """The split of the reported numbers: the one that selected, where no other is held out."""
        return "test" if "test" in self.data.splits else self.selection_split

    def held_out(self, split: str) -> Batch:
        """The rows a split is judged on (at most `max_samples`, in order)."""
        if split not in self._held_out:
            size = min(self.data.counts[split], self.config.max_samples)
            self._held_out[split] = self.data.rows(split, range(size))
        return self._held_out[split]

    def samples(self, velocity: Velocity, held_out: Batch, num_steps: int, repeat: int) -> Tensor:
        """One sample for each held-out row, under its condition, from noise keyed by the repeat."""
        return self.sampler(velocity, self.noise(held_out, repeat), held_out.condition, num_steps)

    def distances(self, velocity: Velocity, split: str, num_steps: int) -> list[float]:
        """The metric on a split at a number of steps: a number for each repeat, or for each episode; the same ones for every model."""
        repeats = range(self.config.num_repeats)
        if self.rollouts is not None:
            return [value for repeat in repeats for value in self.rollouts(velocity, split, num_steps, repeat)]
        return [self._judge(velocity, split, num_steps, repeat).value for repeat in repeats]

    def _judge(self, velocity: Velocity, split: str, num_steps: int, repeat: int) -> Judgement:
        held_out = self.held_out(split)
        if self.metric_name == "held_out_loss":
            rows = self.held_out_losses(velocity, held_out, repeat)
            return Judgement(float(rows.mean()), rows)
        samples = self.samples(velocity, held_out, num_steps, repeat)
        return self.judge_samples(velocity, samples, held_out, num_steps, repeat)

    def judge_samples(
        self, velocity: Velocity, samples: Tensor, held_out: Batch, num_steps: int, repeat: int
    ) -> Judgement:
        """The metric of samples, as `samples` draws them; infinite where one of them is not finite."""
        if self.user_metric is not None:
            return Judgement(float(self.user_metric(samples, held_out)))
        others = samples
        if self.metric_name == "energy_score":
            others = self.samples(velocity, held_out, num_steps, self.config.num_repeats + repeat)
        if not (samples.isfinite().all() and others.isfinite().all()):
            return Judgement(math.inf)
        if self.metric_name == "frechet":
            return Judgement(float(frechet_distance(self.features(samples), self.features(held_out.x_1))))
        if self.metric_name == "kid":
            return Judgement(self.image_numbers.kid(samples, held_out))
        if self.metric_name == "energy":
            return Judgement(energy_metric(samples, held_out), energy_by_row(samples, held_out))
        if self.metric_name == "energy_score":
            rows = energy_score(samples, others, held_out)
        else:
            rows = reconstruction_by_row(samples, held_out)
        return Judgement(float(rows.mean()), rows)

    def held_out_losses(self, velocity: Velocity, held_out: Batch, repeat: int = 0) -> Tensor:
        """The flow-matching loss of each row at the noise and times of a repeat: (n,)."""
        generator = keyed_generator(self.seed, "held out loss", repeat)
        return held_out_losses(
            velocity, held_out.x_1, held_out.condition, generator=generator, batch_size=self.config.batch_size
        )

    def score(self, velocity: Velocity, step: int) -> Score:
        """The selection metric on the validation splits."""
        target, rows = self._over_steps(velocity, self.selection_split)
        base = self._over_steps(velocity, "base_validation")[0] if "base_validation" in self.data.splits else []
        return Score(step, target, base, self.action_diversity(velocity, self.selection_split), rows)

    def action_diversity(self, velocity: Velocity, split: str) -> float | None:
        """See `diversity.action_diversity`, under observations spread over a split, mean over the numbers of steps of the selection; None for what is
        no policy.
        """
        if "policy" not in self.data.facts:
            return None
        with torch.no_grad():
            seen = look(velocity.model, self.observed(split).to(velocity.device).condition)
        observed = self.observed(split).with_condition(seen)

        def measured(steps: int) -> float:
            generator = keyed_generator(self.seed, "action diversity")
            return action_diversity(lambda x, c: self.sampler(velocity, x, c, steps), observed, generator)

        return sum(map(measured, self.select_steps)) / len(self.select_steps)

    def observed(self, split: str) -> Batch:
        """The rows of a split under whose observations the diversity of actions is measured."""
        if split not in self._observed:
            count = self.data.counts[split]
            index = torch.linspace(0, count - 1, min(count, NUM_OBSERVATIONS)).long().unique().tolist()
            self._observed[split] = self.data.rows(split, index)
        return self._observed[split]

    def _over_steps(self, velocity: Velocity, split: str) -> tuple[list[float], list[float]]:
        """Means over the numbers of steps of the selection: of the metric, for each repeat or episode, and of what each row adds, over the repeats."""
        steps = self.select_steps[:1] if self.metric_name == "held_out_loss" else self.select_steps
        if self.rollouts is not None:
            columns = [self.distances(velocity, split, n) for n in steps]
            return [sum(row) / len(row) for row in zip(*columns, strict=True)], []
        draws = [[self._judge(velocity, split, n, r) for n in steps] for r in range(self.config.num_repeats)]
        values = [sum(judged.value for judged in draw) / len(draw) for draw in draws]
        rows = [judged.rows for draw in draws for judged in draw if judged.rows is not None]
        return values, torch.stack(rows).mean(dim=0).tolist() if rows else []

    def settings(self) -> dict[str, Any]:
        """What the report depends on beside the model and the data; runs with the same can stand side by side."""
        names = ["num_repeats", "max_samples", *(["clip"] if self.config.clip else [])]
        kept = {name: getattr(self.config, name) for name in names}
        sampled = {"solver": self.sampler.solver, "report_num_steps": self.report_steps}
        return {"metric": self.metric_name, **sampled, **kept, "seed": self.seed}

    def noise(self, held_out: Batch, *key: int | str) -> Tensor:
        """The noise of a key, for each held-out row."""
        return torch.randn(held_out.x_1.shape, generator=keyed_generator(self.seed, "evaluation", *key))
