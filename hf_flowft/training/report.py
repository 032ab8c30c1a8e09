"""The report on the test splits: quality by solver steps, what was forgotten, and what the flow and its samples are like."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor

from ..batch import Batch
from ..metrics.flow import adaptive_evaluations, path_geometry
from ..metrics.held_out import reconstruction_error
from ..metrics.modes import diversity, nearest_distance
from ..results import mean_and_error
from ..solvers import UnsolvableError
from ..velocity import Velocity
from .evaluation import Evaluator
from .image_numbers import DIRECTIONS

FLOW_NUMBERS = {
    "held_out_loss": "lower",
    "path_length": "lower",
    "straightness": "lower",
    "nfe_dopri5": "lower",
    "nearest_train": "neither",
    "nearest_train_of_test": "neither",
    "diversity": "neither",
}
"""What the report says of the flow itself and its samples, and which direction is better."""
NUM_SAMPLES = 256
"""Held-out rows these numbers are measured on, at most; also the largest batch of an adaptive solver, whose count depends on it."""

Numbers = dict[str, dict[str, Any]]
"""Name -> value, count, direction; stderr, repeats and their values where noise is drawn."""


class _Judged:
    """What is judged, by whom.  Samples of the test split at the most steps, which several numbers are made of, are drawn once."""

    def __init__(self, evaluator: Evaluator, velocity: Velocity):
        self.evaluator, self.velocity = evaluator, velocity
        self._kept: dict[int, Tensor] = {}

    def samples(self, split: str, num_steps: int, repeat: int) -> Tensor:
        """One sample for each held-out row of a split."""
        held_out = self.evaluator.held_out(split)
        if split != self.evaluator.test_split or num_steps != max(self.evaluator.report_steps):
            return self.evaluator.samples(self.velocity, held_out, num_steps, repeat)
        if repeat not in self._kept:
            self._kept[repeat] = self.evaluator.samples(self.velocity, held_out, num_steps, repeat)
        return self._kept[repeat]


def report(evaluator: Evaluator, velocity: Velocity) -> Numbers:
    """Every number of the report, with the data, the noise and the settings of an evaluator."""
    judged = _Judged(evaluator, velocity)
    metrics = _by_steps(judged, evaluator.test_split, "target")
    if "base_test" in evaluator.data.splits:
        metrics |= _by_steps(judged, "base_test", "base_domain")
    return metrics | _of_a_policy(judged) | _of_the_flow(judged)


def _by_steps(judged: _Judged, split: str, domain: str) -> Numbers:
    """The metric, and what networks say of images, at every number of steps of the report."""
    evaluator, velocity = judged.evaluator, judged.velocity
    count = len(evaluator.held_out(split))
    if evaluator.rollouts is not None:
        count = evaluator.config.episodes * evaluator.config.num_repeats
    numbers: Numbers = {}
    if evaluator.metric_name == "held_out_loss":
        entry = mean_and_error(evaluator.distances(velocity, split, 1)) | {"count": count, "direction": "lower"}
        numbers[f"{domain}/held_out_loss"] = entry
    for n in evaluator.report_steps:
        draws = _of_samples(judged, split, n)
        for name in draws[0]:
            entry = mean_and_error([draw[name] for draw in draws]) | {"count": count}
            numbers[f"{domain}/{name}@{n}"] = entry | {"direction": DIRECTIONS.get(name, "lower")}
    return numbers


def _of_samples(judged: _Judged, split: str, num_steps: int) -> list[dict[str, float]]:
    """The metric and the image numbers of the same samples, for each repeat; of a policy the metric of each episode."""
    evaluator, velocity = judged.evaluator, judged.velocity
    if evaluator.rollouts is not None:
        return [{evaluator.metric_name: value} for value in evaluator.distances(velocity, split, num_steps)]
    judges_images = evaluator.image_numbers is not None
    judges_samples = evaluator.metric_name not in ("held_out_loss", "kid")  # which is among the image numbers
    if not (judges_samples or judges_images):
        return [{}]
    held_out, found = evaluator.held_out(split), []
    for repeat in range(evaluator.config.num_repeats):
        samples = judged.samples(split, num_steps, repeat)
        numbers = {}
        if judges_samples:
            numbers[evaluator.metric_name] = evaluator.judge_samples(
                velocity, samples, held_out, num_steps, repeat
            ).value
        found.append(numbers | (evaluator.image_numbers(samples, held_out) if judges_images else {}))
    return found


def _of_a_policy(judged: _Judged) -> Numbers:
    """The error of one chunk under each held-out observation at the numbers of steps of the selection, and the action diversity."""
    evaluator, velocity, split = judged.evaluator, judged.velocity, judged.evaluator.test_split
    spread = evaluator.action_diversity(velocity, split)
    if spread is None:
        return {}
    numbers: Numbers = {}
    held_out, draws = evaluator.held_out(split), range(evaluator.config.num_repeats)
    for n in evaluator.select_steps if evaluator.metric_name != "reconstruction" else []:
        values = [reconstruction_error(judged.samples(split, n, draw), held_out) for draw in draws]
        numbers[f"reconstruction@{n}"] = {**mean_and_error(values), "count": len(held_out), "direction": "lower"}
    count = len(evaluator.observed(split))
    return {**numbers, "action_diversity": {"value": spread, "count": count, "direction": "neither"}}


def _of_the_flow(judged: _Judged) -> Numbers:
    """Loss, paths, and how near to each other and to the training data samples are."""
    evaluator = judged.evaluator
    data, config = evaluator.data, evaluator.config
    held_out = evaluator.held_out(evaluator.test_split).rows(slice(0, NUM_SAMPLES))
    train = data.samples("train", range(min(data.counts["train"], config.max_samples)))
    draws = [_of_one_draw(judged, held_out, train, repeat) for repeat in range(config.num_repeats)]
    numbers = {name: mean_and_error([draw[name] for draw in draws]) for name in draws[0]}
    numbers["nearest_train_of_test"] = {"value": float(nearest_distance(held_out.x_1, train))}
    if _has_paths(evaluator):
        noise, size = evaluator.noise(held_out, "paths"), min(NUM_SAMPLES, config.batch_size)
        with suppress(UnsolvableError):  # such a field has no such number, and everything else is still worth having
            evaluations = adaptive_evaluations(judged.velocity, noise, held_out.condition, batch_size=size)
            numbers["nfe_dopri5"] = {"value": float(evaluations)}
    return {
        name: {**numbers[name], "count": len(held_out), "direction": direction}
        for name, direction in FLOW_NUMBERS.items()
        if name in numbers
    }


def _of_one_draw(judged: _Judged, held_out: Batch, train: Tensor, repeat: int) -> dict[str, float]:
    evaluator = judged.evaluator
    samples = judged.samples(evaluator.test_split, max(evaluator.report_steps), repeat)[:NUM_SAMPLES]
    numbers = {"nearest_train": nearest_distance(samples, train)}
    if len(samples) > 1:
        numbers["diversity"] = diversity(samples)
    if not evaluator.is_flow:
        return numbers
    numbers["held_out_loss"] = float(evaluator.held_out_losses(judged.velocity, held_out, repeat).mean())
    if _has_paths(evaluator):
        noise, size = evaluator.noise(held_out, "paths", repeat), min(NUM_SAMPLES, evaluator.config.batch_size)
        geometry = path_geometry(judged.velocity, noise, held_out.condition, num_steps=16, batch_size=size)
        numbers |= {"path_length": geometry.path_length, "straightness": geometry.straightness}
    return numbers


def _has_paths(evaluator: Evaluator) -> bool:
    """Whether paths are measured: not of images of several sizes, whose padding has paths of its own."""
    return evaluator.is_flow and evaluator.config.path_numbers and evaluator.data.buckets is None
