"""Comparing fine-tunes by their whole curve: target quality against forgetting, over all checkpoints and learning rates.

For an unconditional model the two exclude each other, and for the energy distance D the limit is known. D(p, q) is the squared distance of two
embeddings in a Hilbert space, so the triangle inequality gives, for EVERY model p,

    sqrt D(p, target) + sqrt D(p, base)  >=  sqrt D(target, base),        with equality for the mixtures (1 - a) base + a target.

The mixing curve is therefore the exact Pareto front of the energy distance: no method can pass it, and methods differ by how far above they stay.
The sliced W2 obeys a triangle inequality too, but its front are displacements (every sample part of the way), which mixtures do not reach. Which
kind of in-between model looks better thus depends on the distance; both are reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Curves = list[dict[str, Any]]
"""The cells of one method and seed: one a learning rate."""
METRICS = ("energy", "sliced")
Measure = float | str
"""A limit of forgetting, or "area"."""
LIMITS: dict[str, tuple[float, ...]] = {
    "energy": (0.05, 0.1, 0.25, 0.5, 0.75, math.inf),
    "sliced": (0.3, 0.5, 0.7, 0.85, math.inf),
}
"""Forgetting allowed, as a share of the distance between the two domains (1: the base's domain is lost); energy is a squared distance."""


def points(curves: Curves, metric: str) -> np.ndarray:
    """All checkpoints of some runs: rows of (forgetting, target, held-out score), the first two as shares of the distance of the domains."""
    rows = []
    for cell in curves:
        gap, curve = cell["gap"][metric], cell["curve"]
        base, target = np.array(curve[f"base_{metric}"]) / gap, np.array(curve[f"target_{metric}"]) / gap
        rows.append(np.stack([base, target, np.array(curve["held_out"])], axis=1))
    return np.concatenate(rows)


def chosen(curves: Curves, metric: str, limit: float) -> float:
    """The target quality (test split) of the checkpoint with the best HELD-OUT score among those that forget at most `limit`.

    Where no checkpoint is within the limit (not even the base, whose own error counts as forgetting) it is the one that forgets least.
    """
    table = points(curves, metric)
    within = table[table[:, 0] <= limit]
    if not len(within):
        within = table[[table[:, 0].argmin()]]
    return float(within[within[:, 2].argmin(), 1])


def area(curves: Curves, metric: str) -> float:
    """The share of the unit square (forgetting x target, in units of the distance of the domains) that some checkpoint dominates; higher is better.

    The mixing curve of the energy distance has 5/6: 1 - the integral of (1 - sqrt f)^2.
    """
    front, best, total = points(curves, metric)[:, :2].clip(min=0), 1.0, 0.0
    for forgetting, target in front[np.lexsort((front[:, 1], front[:, 0]))]:
        if forgetting < 1 and target < best:
            total += (best - target) * (1 - forgetting)
            best = target
    return total


def front_curve(curves: Curves, metric: str, grid: Sequence[float]) -> list[float]:
    """`chosen` at each limit of a grid."""
    return [chosen(curves, metric, limit) for limit in grid]


def mixing_curve(grid: Iterable[float]) -> list[float]:
    """The Pareto front of the energy distance, in units of the distance of the domains: target = (1 - sqrt forgetting)^2."""
    return [(1 - math.sqrt(min(f, 1.0))) ** 2 for f in grid]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard error and number of seeds."""
    array = np.asarray(values, dtype=float)
    error = array.std(ddof=1) / math.sqrt(array.size) if array.size > 1 else math.nan
    return {"value": float(array.mean()), "stderr": float(error), "count": int(array.size)}


def difference(values: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """The paired difference over seeds."""
    return summary(np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float))


def beyond(entry: dict[str, float], sign: int = -1) -> bool:
    """Whether a difference has a sign by more than two standard errors."""
    return sign * entry["value"] > 2 * entry["stderr"]


def measures(metric: str) -> list[Measure]:
    """What is compared for a metric: target quality at each limit, and the area."""
    return [*LIMITS[metric], "area"]


class Comparison:
    """Every method of one setting by its whole curve, and what each gains over plain fine-tuning and over plain with warm-up.

    Args: `cells`: method -> seed -> the cells over its learning rates.
    """

    def __init__(self, cells: dict[str, list[Curves]]):
        self.cells = cells

    def values(self, method: str, metric: str, measure: Measure) -> list[float]:
        """One number a seed: `chosen` at a limit, or the "area"."""
        if measure == "area":
            return [area(curves, metric) for curves in self.cells[method]]
        return [chosen(curves, metric, float(measure)) for curves in self.cells[method]]

    def against(self, method: str, baseline: str, metric: str, measure: Measure) -> dict[str, float]:
        """The paired difference to a baseline; negative is better, for the area too (its sign is turned)."""
        sign = -1 if measure == "area" else 1
        ours, theirs = self.values(method, metric, measure), self.values(baseline, metric, measure)
        return difference([sign * v for v in ours], [sign * v for v in theirs])

    def wins(self, method: str, baselines: Sequence[str]) -> list[dict[str, Any]]:
        """A method by every metric and measure against all baselines at once: better or worse than ALL of them by over two standard errors."""
        result = []
        for metric, measure in [(m, limit) for m in METRICS for limit in measures(m)]:
            gaps = {b: self.against(method, b, metric, measure) for b in baselines}
            verdict = "better" if all(beyond(gap) for gap in gaps.values()) else "undecided"
            verdict = "worse" if all(beyond(gap, 1) for gap in gaps.values()) else verdict
            row = {"method": method, "metric": metric, "measure": str(measure), "differences": gaps}
            result.append({**row, "verdict": verdict})
        return result
