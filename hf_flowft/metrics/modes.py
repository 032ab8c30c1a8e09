"""What samples do around known centres, how diverse they are, and whether they are copies: each number is in the units of the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .distances import flat_pair, flat_samples, mean_over_pairs


def _to_centres(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest centre and its index: (n,), (n,)."""
    a, b = flat_pair(x, centres)
    nearest = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    return nearest.values, nearest.indices


def distance_to_nearest_centre(x: Tensor, centres: Tensor) -> float:
    """The mean distance of a sample to the nearest centre, in data units; lower is better, down to the value of the data itself.

    Below that value it rewards modes that have shrunk: read it beside `within_mode_std_ratio` and a distance to the data.

    Args: `x`: (n, *event); `centres`: (k, *event).
    """
    return _to_centres(x, centres)[0].mean().item()


def bad_share(x: Tensor, centres: Tensor, threshold: float) -> float:
    """The share of samples farther than `threshold` from every centre, in [0, 1]; lower is better.

    Args: `x`: (n, *event); `centres`: (k, *event); `threshold`: in data units.
    """
    return (_to_centres(x, centres)[0] > threshold).double().mean().item()


def mode_shares(x: Tensor, centres: Tensor) -> Tensor:
    """The share of samples whose nearest centre is each one, in [0, 1]: (k,), sums to 1; neither is better (see `mode_share_error`).

    Args: `x`: (n, *event); `centres`: (k, *event).
    """
    index = _to_centres(x, centres)[1]
    return torch.bincount(index, minlength=centres.shape[0]).double() / x.shape[0]


def mode_share_error(x: Tensor, centres: Tensor, weights: Tensor) -> float:
    """The total variation between the mode shares and their true weights, in [0, 1]; lower is better.

        TV = 1/2 sum_k |share_k - weight_k|

    Args: `x`: (n, *event); `centres`: (k, *event); `weights`: (k,), sum to 1.
    """
    w = weights.detach().to("cpu", torch.float64)
    if w.shape != centres.shape[:1] or not torch.isclose(w.sum(), w.new_ones(()), atol=1e-5) or bool((w < 0).any()):
        raise ValueError(
            f"weights must be {centres.shape[0]} shares that sum to 1, one a centre, got {weights.tolist()}."
        )
    return (mode_shares(x, centres) - w).abs().sum().item() / 2


def within_mode_std(x: Tensor, centres: Tensor, threshold: float = math.inf) -> float:
    """The standard deviation of a coordinate around the mean of its own mode, pooled over coordinates and modes, in data units.

    Neither is better: it should equal that of the data (`within_mode_std_ratio`). Samples farther than `threshold` from every centre
    are left out, because a few stragglers between the modes hide modes that have shrunk.

        std^2 = sum_i ||x_i - mean of its mode||^2 / ( d (n - number of modes met) )

    Args: `x`: (n, *event); `centres`: (k, *event).  Raises: ValueError when no mode holds two samples.
    """
    distance, index = _to_centres(x, centres)
    kept = distance <= threshold
    flat, index = flat_samples(x)[kept], index[kept]
    counts = torch.bincount(index, minlength=centres.shape[0])
    freedom = int(kept.sum()) - int((counts > 0).sum())
    if freedom < 1:
        raise ValueError(
            f"a spread within modes needs two samples of one mode, but the modes hold {counts.tolist()} samples."
        )
    sums = flat.new_zeros(centres.shape[0], flat.shape[1]).index_add_(0, index, flat)
    means = sums / counts.clamp(min=1)[:, None]
    return math.sqrt((flat - means[index]).square().sum().item() / (flat.shape[1] * freedom))


def within_mode_std_ratio(x: Tensor, y: Tensor, centres: Tensor, threshold: float = math.inf) -> float:
    """`within_mode_std` of the samples over that of the truth, without unit; neither is better: 1 is right, less is shrinkage.

    Args: `x`: (n, *event); `y`: (m, *event), the truth, cut at the same `threshold`; `centres`: (k, *event).
    """
    truth = within_mode_std(y, centres, threshold)
    if truth == 0:
        raise ValueError("the truth has no spread within its modes, so a ratio to it means nothing.")
    return within_mode_std(x, centres, threshold) / truth


def diversity(x: Tensor) -> float:
    """The mean distance between two samples under ONE condition, in data units; neither is better (higher is more diverse).

    Args: `x`: (n, *event), n >= 2.
    """
    return mean_over_pairs(torch.cdist, flat_samples(x, minimum=2))


def nearest_distance(x: Tensor, train: Tensor) -> float:
    """The mean distance of a sample to the nearest training sample, in data units; neither is better.

    0 is a copy: much less than that of held-out data is memorising, much more is off the data.

    Args: `x`: (n, *event); `train`: (m, *event).
    """
    return _to_centres(x, train)[0].mean().item()


def noise_sensitivity(x: Tensor, other: Tensor) -> float:
    """E||phi(x_0, c) - phi(x_0', c)||, how much the noise decides, in data units; neither is better (0 is collapse).

    Args: `x`, `other`: (n, *event), outputs for two independent noises; row i of both under the same condition.
    """
    a, b = flat_pair(x, other)
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"rows of both outputs share a condition, so their numbers must agree, got {a.shape[0]} and {b.shape[0]}."
        )
    return (a - b).norm(dim=1).mean().item()


def collapse_ratio(x: Tensor, other: Tensor, data: Tensor) -> float:
    """`noise_sensitivity` over the mean distance of two data points, without unit; neither is better: an alarm when near 0.

    Without conditions a perfect model has 1; with conditions less, as far as they decide the sample.

    Args: `x`, `other`: as `noise_sensitivity`; `data`: (m, *event), m >= 2.
    """
    spread = diversity(data)
    if spread == 0:
        raise ValueError("all data points coincide, so a ratio to their spread means nothing.")
    return noise_sensitivity(x, other) / spread
