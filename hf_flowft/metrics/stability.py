"""How a metric moves over the checkpoints of a run: the "instantaneous variance" and "Spearman correlation" of gradual fine-tuning.

The paper's own definitions are not public (arXiv 2601.22495); these are the usual ones under those names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def _curve(values: Sequence[float], minimum: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < minimum or not np.isfinite(array).all():
        raise ValueError(f"a curve over checkpoints needs at least {minimum} finite numbers, got {list(values)}.")
    return array


def instantaneous_variance(values: Sequence[float], window: int = 3) -> float:
    """The mean of the unbiased variance of a metric in a sliding window of checkpoints, in squared metric units; lower is better.

    A steady trend counts too: over a window of w equal steps of size s it adds s^2 w (w + 1) / 12.

    Args: `values`: the metric at successive checkpoints; `window`: checkpoints a window, 2 at least.
    """
    if window < 2:
        raise ValueError(f"a variance needs a window of at least 2 checkpoints, got {window}.")
    windows = np.lib.stride_tricks.sliding_window_view(_curve(values, window), window)
    return float(windows.var(axis=1, ddof=1).mean())


def spearman_correlation(steps: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's rank correlation of training step and metric, without unit; lower is better for a metric that should fall.

    -1: the metric falls at every checkpoint; +1: it rises at every one; 0: no trend, also for a constant metric.

    Args: `steps`, `values`: of the checkpoints, two at least.  Raises: ValueError when their numbers differ.
    """
    from scipy.stats import spearmanr

    x, y = _curve(steps, 2), _curve(values, 2)
    if x.size != y.size:
        raise ValueError(f"one value a step is needed, got {x.size} steps and {y.size} values.")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(spearmanr(x, y).statistic)
