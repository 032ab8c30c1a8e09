"""The report on the test splits: quality by solver steps, what was forgotten, and what the flow and its samples are like."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..batch import Batch
from ..metrics.flow import adaptive_evaluations, path_geometry
from ..metrics.held_out import reconstruction_error
from ..metrics.modes import diversity, nearest_distance
from ..results import mean_and_error
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


def report(evaluator: Evaluator, velocity: Velocity) -> Numbers:
    """Every number of the report, with the data, the noise and the settings of an evaluator."""
    domains = {evaluator.test_split: "target"}
    if "base_test" in evaluator.data.splits:
        domains["base_test"] = "base_domain"
    metrics: Numbers = {}
    for split, domain in domains.items():
        metrics |= _by_steps(evaluator, velocity, split, domain)
    return metrics | _of_a_policy(evaluator, velocity) | _of_the_flow(evaluator, velocity)


def _by_steps(evaluator: Evaluator, velocity: Velocity, split: str, domain: str) -> Numbers:
    """The metric, and what networks say of images, at every number of steps of the report."""
    count = len(evaluator.held_out(split))
    if evaluator.rollouts is not None:
        count = evaluator.config.episodes * evaluator.config.num_repeats
    numbers: Numbers = {}
    if evaluator.metric_name == "held_out_loss":
        entry = mean_and_error(evaluator.distances(velocity, split, 1)) | {"count": count, "direction": "lower"}
        numbers[f"{domain}/held_out_loss"] = entry
    for n in evaluator.report_steps:
        draws = _of_samples(evaluator, velocity, split, n)
        for name in draws[0]:
            entry = mean_and_error([draw[name] for draw in draws]) | {"count": count}
            numbers[f"{domain}/{name}@{n}"] = entry | {"direction": DIRECTIONS.get(name, "lower")}
    return numbers


def _of_samples(evaluator: Evaluator, velocity: Velocity, split: str, num_steps: int) -> list[dict[str, float]]:
    """The metric and the image numbers of the same samples, for each repeat; of a policy the metric of each episode."""
    if evaluator.rollouts is not None:
        return [{evaluator.metric_name: value} for value in evaluator.distances(velocity, split, num_steps)]
    judges_images = evaluator.image_numbers is not None
    judges_samples = evaluator.metric_name not in ("held_out_loss", "kid")  # which is among the image numbers
    if not (judges_samples or judges_images):
        return [{}]
    held_out, found = evaluator.held_out(split), []
    for repeat in range(evaluator.config.num_repeats):
        samples = evaluator.samples(velocity, held_out, num_steps, repeat)
        numbers = {evaluator.metric_name: evaluator.distance_of(samples, held_out)} if judges_samples else {}
        found.append(numbers | (evaluator.image_numbers(samples, held_out) if judges_images else {}))
    return found


def _of_a_policy(evaluator: Evaluator, velocity: Velocity) -> Numbers:
    """The error of one chunk under each held-out observation at the numbers of steps of the selection, and the action diversity."""
    split = evaluator.test_split
    spread = evaluator.action_diversity(velocity, split)
    if spread is None:
        return {}
    numbers: Numbers = {}
    held_out, draws = evaluator.held_out(split), range(evaluator.config.num_repeats)
    for n in evaluator.select_steps if evaluator.metric_name != "reconstruction" else []:
        values = [reconstruction_error(evaluator.samples(velocity, held_out, n, draw), held_out) for draw in draws]
        numbers[f"reconstruction@{n}"] = {**mean_and_error(values), "count": len(held_out), "direction": "lower"}
    count = len(evaluator.observed(split))
    return {**numbers, "action_diversity": {"value": spread, "count": count, "direction": "neither"}}


def _of_the_flow(evaluator: Evaluator, velocity: Velocity) -> Numbers:
    """Loss, paths, and how near to each other and to the training data samples are."""
    data, config = evaluator.data, evaluator.config
    held_out = evaluator.held_out(evaluator.test_split).rows(slice(0, NUM_SAMPLES))
    train = data.samples("train", range(min(data.counts["train"], config.max_samples)))
    draws = [_of_one_draw(evaluator, velocity, held_out, train, repeat) for repeat in range(config.num_repeats)]
    numbers = {name: mean_and_error([draw[name] for draw in draws]) for name in draws[0]}
    numbers["nearest_train_of_test"] = {"value": float(nearest_distance(held_out.x_1, train))}
    if _has_paths(evaluator):
        noise, size = evaluator.noise(held_out, "paths"), min(NUM_SAMPLES, config.batch_size)
        numbers["nfe_dopri5"] = {
            "value": float(adaptive_evaluations(velocity, noise, held_out.condition, batch_size=size))
        }
    return {
        name: {**numbers[name], "count": len(held_out), "direction": direction}
        for name, direction in FLOW_NUMBERS.items()
        if name in numbers
    }


def _of_one_draw(
    evaluator: Evaluator, velocity: Velocity, held_out: Batch, train: Tensor, repeat: int
) -> dict[str, float]:
    samples = evaluator.samples(velocity, held_out, max(evaluator.report_steps), repeat)
    numbers = {"nearest_train": nearest_distance(samples, train), "diversity": diversity(samples)}
    if not evaluator.is_flow:
        return numbers
    numbers["held_out_loss"] = evaluator.held_out_loss(velocity, held_out, repeat)
    if _has_paths(evaluator):
        noise, size = evaluator.noise(held_out, "paths", repeat), min(NUM_SAMPLES, evaluator.config.batch_size)
        geometry = path_geometry(velocity, noise, held_out.condition, num_steps=16, batch_size=size)
        numbers |= {"path_length": geometry.path_length, "straightness": geometry.straightness}
    return numbers


def _has_paths(evaluator: Evaluator) -> bool:
    """Whether paths are measured: not of images of several sizes, whose padding has paths of its own."""
    return evaluator.is_flow and evaluator.config.path_numbers and evaluator.data.buckets is None
