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
        return f"{self.value:.3f} ± {self.stderr:.3f}"


def over_seeds(values: Sequence[float]) -> Estimate:
    """One number a seed."""
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(float(np.mean(values)), spread, len(values))


def over_episodes(episodes: Sequence[np.ndarray]) -> Estimate:
    """The values of several episodes a seed. The error is the larger of that between the seeds' means and that of all episodes as if the seeds did
    not matter: with three seeds either alone may be too small by chance.
    """
    means = over_seeds([float(values.mean()) for values in episodes])
    pooled = np.concatenate(episodes)
    within = float(pooled.std(ddof=1)) / math.sqrt(len(pooled)) if len(pooled) > 1 else 0.0
    return means._replace(stderr=max(within, means.stderr))
