"""Means over training seeds, with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean over training seeds, its standard error, and the number of seeds."""

    value: float
    stderr: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.stderr:.3f}" if self.seeds > 1 or self.stderr else f"{self.value:.3f}"


def over_seeds(numbers: Sequence[float | None]) -> Estimate:
    """One number a seed; None, which a results file holds for what is not finite, is NaN."""
    values = [math.nan if number is None else number for number in numbers]
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(float(np.mean(values)), spread, len(values))


def over_episodes(episodes: Sequence[np.ndarray]) -> Estimate:
    """The values of several episodes a seed, of every seed from the same starts. The error is the larger of that between the seeds' means and that
    between the starts' (each the mean over the seeds): starts and seeds are both drawn, and with few of either one alone may be too small by chance.
    """
    means = over_seeds([float(values.mean()) for values in episodes])
    starts = np.mean(episodes, axis=0)
    between = float(starts.std(ddof=1)) / math.sqrt(len(starts)) if len(starts) > 1 else 0.0
    return means._replace(stderr=max(between, means.stderr))
