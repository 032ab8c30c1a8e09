"""Statistics of observations and actions, as data sets of robots store them, and the units that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..normalisation import RELATIVE_WIDTH, Normalisation

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
NormalisationKind = Literal["min_max", "mean_std", "quantile"]
NEEDED: dict[str, tuple[str, str]] = {
    "min_max": ("min", "max"),
    "mean_std": ("mean", "std"),
    "quantile": ("q01", "q99"),
}


def statistics(values: np.ndarray) -> dict[str, list]:
    """min, max, mean, std, the quantiles of `QUANTILES` (each of the shape of a row) and count of rows (n, *shape), computed in float64."""
    x = np.asarray(values, dtype=np.float64)
    x = x.reshape(-1, 1) if x.ndim == 1 else x
    found = {"min": x.min(axis=0), "max": x.max(axis=0), "mean": x.mean(axis=0), "std": x.std(axis=0)}
    found |= dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0), strict=True))
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(x)]}


def histogram_statistics(counts: np.ndarray, frames: int) -> dict[str, list]:
    """The same of images, channel by channel, in [0, 1] and of shape (channels, 1, 1), from how often each of the 256 values occurs.

    Args: `counts`: (channels, 256); `frames`: the number of images.
    """
    levels, total = np.arange(256) / 255, counts.sum(axis=1)
    mean = counts @ levels / total
    square = counts @ levels**2 / total
    below = counts.cumsum(axis=1)

    def at(fraction: float) -> np.ndarray:
        return levels[(below >= np.maximum(1, fraction * total)[:, None]).argmax(axis=1)]

    found = {"min": at(0.0), "max": at(1.0), "mean": mean, "std": np.sqrt(np.maximum(square - mean**2, 0))}
    found |= {name: at(fraction) for name, fraction in QUANTILES.items()}
    return {name: value[:, None, None].tolist() for name, value in found.items()} | {"count": [frames]}


def pooled(parts: Sequence[Mapping[str, Sequence]]) -> dict[str, list]:
    """min, max, mean, std and count of rows of which some parts' are known; quantiles cannot be pooled."""
    count = np.array([np.asarray(part["count"], dtype=np.float64).reshape(-1)[0] for part in parts])
    low, high, mean, std = (
        np.array([np.asarray(part[k], dtype=np.float64) for part in parts]) for k in ("min", "max", "mean", "std")
    )
    weight = (count / count.sum()).reshape(-1, *[1] * (mean.ndim - 1))
    centre = (weight * mean).sum(axis=0)
    variance = (weight * (std**2 + (mean - centre) ** 2)).sum(axis=0)
    found = {"min": low.min(axis=0), "max": high.max(axis=0), "mean": centre, "std": np.sqrt(variance)}
    return {name: value.tolist() for name, value in found.items()} | {"count": [int(count.sum())]}


def units(known: Mapping[str, Any], kind: NormalisationKind, size: int, name: str) -> Normalisation:
    """The normalisation of a kind that follows from statistics.

    min_max: the range becomes [-1, 1]; quantile: the middle 98 %; mean_std: mean 0, std 1. A coordinate that is constant keeps a std of 1;
    one that is constant but for a few rows, so that its quantiles agree, takes its range.

    Args: `known`: as `statistics` gives them; `size`: how many coordinates there are; `name`: what they are of, for errors.
    Raises: ValueError for an unknown kind, and for statistics that are missing, of another size or not finite.
    """
    if kind not in NEEDED:
        raise ValueError(f"data.normalisation must be one of {', '.join(NEEDED)}, got {kind!r}.")
    first, second = (_vector(known, key, size, name) for key in NEEDED[kind])
    if kind == "mean_std":
        wide = second > RELATIVE_WIDTH * np.abs(first)
        return Normalisation(first.tolist(), np.where(wide, second, 1.0).tolist())
    rare = first == second
    if kind == "quantile" and rare.any():
        low, high = (_vector(known, key, size, name) for key in NEEDED["min_max"])
        first, second = np.where(rare, low, first), np.where(rare, high, second)
    return Normalisation.between(first.tolist(), second.tolist())


def _vector(known: Mapping[str, Any], key: str, size: int, name: str) -> np.ndarray:
    if key not in known:
        raise ValueError(
            f"the statistics of {name} have no {key!r}, only {', '.join(known)}: choose another data.normalisation, or data.statistics train."
        )
    try:
        vector = np.asarray(known[key], dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key!r} in the statistics of {name} must be numbers, got {known[key]!r}.") from error
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise ValueError(f"{key!r} in the statistics of {name} must be {size} finite numbers, got {known[key]!r}.")
    return vector
