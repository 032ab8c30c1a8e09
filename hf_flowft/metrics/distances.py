"""Distances between two sets of samples, `x` (of a model) and `y` (the truth): tensors of (n, *event), events flattened, float64.

All are lower is better. The U-statistics (energy distance, MMD, KID) are unbiased: between two samples of one law they are 0 on average,
so they may be slightly negative. Wasserstein and Frechet distances have a positive floor, which two samples of the truth show.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..couplings import exact_assignment, squared_distances

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Maps rows (a, d) and (b, d) to the matrix (a, b)."""
BLOCK_ROWS = 1024


def flat_samples(x: Tensor, name: str = "x", minimum: int = 1) -> Tensor:
    """Samples as a float64 matrix on the CPU: (n, *event) -> (n, d).  Raises: ValueError for too few samples, NaN or infinite values."""
    if x.ndim < 1 or x.shape[0] < minimum:
        raise ValueError(f"{name} needs at least {minimum} sample(s), got a tensor of shape {tuple(x.shape)}.")
    flat = x.detach().to("cpu", torch.float64).reshape(x.shape[0], -1)
    if not flat.isfinite().all():
        bad = int((~flat.isfinite()).any(dim=1).sum())
        raise ValueError(
            f"{name} holds NaN or infinite values in {bad} of its {x.shape[0]} samples: a distance to them means nothing."
        )
    return flat


def flat_pair(x: Tensor, y: Tensor, minimum: int = 1) -> tuple[Tensor, Tensor]:
    """Both sets flattened by `flat_samples`.  Raises: ValueError when their events differ in size."""
    a, b = flat_samples(x, "x", minimum), flat_samples(y, "y", minimum)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"x and y must hold events of one size, got {tuple(x.shape)} and {tuple(y.shape)}.")
    return a, b


def mean_over_pairs(kernel: Kernel, x: Tensor, y: Tensor | None = None) -> float:
    """The mean of k(x_i, y_j) over all pairs or, without `y`, of k(x_i, x_j) over i != j; by blocks of rows, so memory stays linear."""
    total = 0.0
    for start in range(0, x.shape[0], BLOCK_ROWS):
        block = kernel(x[start : start + BLOCK_ROWS], x if y is None else y)
        if y is None:
            block.diagonal(start).zero_()
        total += block.sum().item()
    return total / (x.shape[0] * (x.shape[0] - 1 if y is None else y.shape[0]))


def kernel_discrepancy(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y), the unbiased estimate without the diagonals (Gretton et al. 2012, eq. 3)."""
    return mean_over_pairs(kernel, x) + mean_over_pairs(kernel, y) - 2 * mean_over_pairs(kernel, x, y)


def wasserstein_2(x: Tensor, y: Tensor) -> float:
    """The exact Wasserstein-2 distance of two empirical laws, in data units; lower is better.

        W_2 = ( min over couplings of E ||x - y||^2 )^(1/2)

    Args: `x`: (n, *event); `y`: (m, *event). Equal sizes are an assignment problem, others a linear programme (POT).
    """
    a, b = flat_pair(x, y)
    cost = squared_distances(a, b)
    if a.shape[0] == b.shape[0]:
        rows = exact_assignment(cost, a.shape[1])
        return math.sqrt(cost[rows, range(len(rows))].mean())
    import ot

    return math.sqrt(max(0.0, float(ot.emd2([], [], cost, numItermax=max(1_000_000, 200 * sum(cost.shape))))))


def sliced_wasserstein_2(x: Tensor, y: Tensor, *, generator: torch.Generator, num_projections: int = 256) -> float:
    """The root mean square of W_2 over random directions, in data units; lower is better (Bonneel et al. 2015).

        SW_2 = ( E_u W_2(u.x, u.y)^2 )^(1/2), u uniform on the sphere; each 1-D distance is exact

    Args: `x`: (n, *event); `y`: (m, *event); `generator`: of the directions: the same one makes results comparable.
    """
    a, b = flat_pair(x, y)
    if num_projections < 1:
        raise ValueError(f"num_projections must be at least 1, got {num_projections}.")
    directions = torch.randn(a.shape[1], num_projections, generator=generator, dtype=a.dtype)
    directions = directions / directions.norm(dim=0)
    return math.sqrt(_squared_wasserstein_1d(a @ directions, b @ directions).mean().item())


def _squared_wasserstein_1d(x: Tensor, y: Tensor) -> Tensor:
    """The integral of (F^-1 - G^-1)^2 over [0, 1], exactly, column by column: (n, k), (m, k) -> (k,)."""
    n, m = x.shape[0], y.shape[0]
    x, y = x.sort(dim=0).values, y.sort(dim=0).values
    ends = (
        torch.cat([torch.arange(1, n + 1, dtype=x.dtype) / n, torch.arange(1, m + 1, dtype=x.dtype) / m]).sort().values
    )
    widths = ends.diff(prepend=ends.new_zeros(1))
    middles = ends - widths / 2
    quantiles_x = x[(middles * n).long().clamp(max=n - 1)]
    quantiles_y = y[(middles * m).long().clamp(max=m - 1)]
    return (widths[:, None] * (quantiles_x - quantiles_y) ** 2).sum(dim=0)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """The energy distance (squared form, unbiased), in data units; lower is better, 0 on average between samples of one law.

        D = 2 E||x - y|| - E||x - x'|| - E||y - y'||        (Szekely & Rizzo 2013; SciPy's is the root of its biased form)

    Args: `x`: (n, *event), n >= 2; `y`: (m, *event), m >= 2.
    """
    return kernel_discrepancy(lambda a, b: -torch.cdist(a, b), *flat_pair(x, y, minimum=2))


def energy_distance_by_label(x: Tensor, y: Tensor, labels_x: Tensor, labels_y: Tensor) -> float:
    """`energy_distance` within each label, averaged over the labels with equal weight, in data units; lower is better.

    Args: `x`: (n, *event) with `labels_x`: (n,) the label each was generated for; `y`, `labels_y`: the truth.
    Raises: ValueError when the two sides do not hold the same labels, or a label has fewer than two samples on a side.
    """
    for name, samples, labels in (("x", x, labels_x), ("y", y, labels_y)):
        if labels.shape != samples.shape[:1]:
            raise ValueError(
                f"labels_{name} must hold one label a sample, got {tuple(labels.shape)} for {tuple(samples.shape)}."
            )
    known, wanted = labels_x.unique().tolist(), labels_y.unique().tolist()
    if known != wanted or not wanted:
        raise ValueError(f"both sides must hold the same labels, got {known} for x and {wanted} for y.")
    distances = []
    for label in wanted:
        of_x, of_y = x[labels_x == label], y[labels_y == label]
        if min(len(of_x), len(of_y)) < 2:
            raise ValueError(
                f"label {label} needs at least two samples on both sides, got {len(of_x)} and {len(of_y)}."
            )
        distances.append(energy_distance(of_x, of_y))
    return sum(distances) / len(distances)


def median_bandwidth(y: Tensor) -> float:
    """The median distance between two samples of the truth, in data units: a bandwidth that does not depend on the model judged.

    Raises: ValueError when it is 0, i.e. when most samples coincide.
    """
    bandwidth = torch.pdist(flat_samples(y, "y", minimum=2)).median().item()
    if bandwidth == 0:
        raise ValueError("more than half of the distances between samples are 0: give a bandwidth.")
    return bandwidth


def mmd_squared(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """The squared maximum mean discrepancy with the kernel exp(-||x - y||^2 / (2 h^2)), without unit; lower is better.

    Unbiased (Gretton et al. 2012, eq. 3): 0 on average between samples of one law.

    Args: `x`: (n, *event), n >= 2; `y`: (m, *event), m >= 2; `bandwidth`: h, by default `median_bandwidth(y)`.
    """
    a, b = flat_pair(x, y, minimum=2)
    h = median_bandwidth(b) if bandwidth is None else bandwidth
    if not h > 0:
        raise ValueError(f"a bandwidth must be positive, got {h}.")
    return kernel_discrepancy(lambda p, q: torch.exp(-(torch.cdist(p, q) ** 2) / (2 * h**2)), a, b)


def kid(x: Tensor, y: Tensor) -> float:
    """The kernel inception distance: MMD^2 of features with (x.y / d + 1)^3, without unit; lower is better (Binkowski et al. 2018).

    Args: `x`: (n, d), n >= 2; `y`: (m, d), m >= 2: features of a network, on the whole sets rather than on subsets.
    """
    a, b = flat_pair(x, y, minimum=2)
    return kernel_discrepancy(lambda p, q: (p @ q.T / p.shape[1] + 1) ** 3, a, b)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The Frechet distance of the Gaussians with the moments of two sets, in squared feature units; lower is better (Heusel et al. 2017).

    Biased upwards for few samples: compare at equal n only.

    Args: `x`: (n, d), n >= 2; `y`: (m, d), m >= 2: features handed in (FID is this on Inception features); fewer than d samples are fine.
    """
    a, b = flat_pair(x, y, minimum=2)
    return frechet_of_moments(a.mean(dim=0), torch.cov(a.T), b.mean(dim=0), torch.cov(b.T))


def frechet_of_moments(mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor) -> float:
    """W_2^2 of two Gaussians, ||m - m'||^2 + tr(C + C' - 2 (C C')^(1/2)), in squared feature units; lower is better.

    The last trace is the sum of the singular values of C^(1/2) C'^(1/2): safe for singular covariances.

    Args: `mean_x`, `mean_y`: (d,); `covariance_x`, `covariance_y`: (d, d) symmetric, or scalars when d = 1.
    """
    size = mean_x.numel()
    c_x, c_y = (c.double().reshape(size, size) for c in (covariance_x, covariance_y))
    cross = torch.linalg.svdvals(_symmetric_root(c_x) @ _symmetric_root(c_y)).sum()
    means = (mean_x.double() - mean_y.double()).square().sum()
    return max(0.0, (means + c_x.trace() + c_y.trace() - 2 * cross).item())


def _symmetric_root(c: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((c + c.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
