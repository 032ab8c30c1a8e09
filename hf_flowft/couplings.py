"""Which noise goes with which data point: couplings return a permutation, so no sample is ever dropped or repeated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

Condition = Mapping[str, Tensor]
ConditionMode = Literal["auto", "ignore", "labels", "cost"]


class Coupling(Protocol):
    """Pairs a batch of noise with a batch of data."""

    @property
    def name(self) -> str:
        """Stored with the model: whether the noise is independent of the data decides which formulas hold for it."""

    @property
    def expensive(self) -> bool:
        """Whether it is worth computing ahead of time, in the background."""

    def __call__(self, x_0: Tensor, x_1: Tensor, condition: Condition | None = None) -> Tensor:
        """`permutation`: (batch,) int64 such that `x_0[permutation]` is paired with `x_1`; data and conditions stay in place."""
        ...


@dataclass(frozen=True)
class Shard:
    """Which rows of the global batch this process holds: rank `rank` of `world_size` holds one contiguous, equal block.

    `gather` concatenates a local tensor over the processes, in rank order, and leaves it on its device; it is called on every rank.
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Tensor], Tensor] = lambda x: x

    def rows(self, x: Tensor) -> Tensor:
        """This process's block of a tensor that every process holds whole."""
        size = x.shape[0] // self.world_size
        return x[self.rank * size : (self.rank + 1) * size]


def couple(
    coupling: Coupling, x_0: Tensor, x_1: Tensor, condition: Condition | None = None, shard: Shard = Shard()
) -> Tensor:
    """The noise for this process's rows, paired by ONE assignment over all processes.

    Args: `x_0`: (global batch, *event), the same on every process; `x_1`: (local batch, *event); `condition`: local rows.
    Returns: (local batch, *event), row i belongs to `x_1[i]`.
    """
    if coupling.name == "independent":
        return shard.rows(x_0)
    everywhere = {key: shard.gather(value) for key, value in (condition or {}).items()}
    return shard.rows(x_0[coupling(x_0, shard.gather(x_1), everywhere)])


def squared_distances(x: Tensor, y: Tensor) -> np.ndarray:
    """||x_i - y_j||^2 over all pairs, float64: (len(x), len(y)); events are flattened, one number a row is an event too."""
    a, b = (z.detach().cpu().double().reshape(z.shape[0], -1) for z in (x, y))
    return (torch.cdist(a, b) ** 2).numpy()


def exact_assignment(cost: np.ndarray, dimension: int | None = None) -> np.ndarray:
    """The permutation p that minimises sum_i cost[p[i], i], exactly, at any size.

    Args: `cost`: (n, n); `dimension` of the points behind the costs, when known: POT's network simplex is faster for many points in
    few dimensions, SciPy's shortest augmenting paths otherwise. Returns: (n,) int64: row p[i] goes with column i.
    """
    n = cost.shape[0]
    if cost.shape != (n, n):
        raise ValueError(f"an assignment needs as many points on both sides, got a cost of shape {cost.shape}.")
    if not np.isfinite(cost).all():
        raise ValueError("an assignment needs finite costs: the batch holds NaN or infinite values.")
    if dimension is not None and dimension <= 16 and n >= 256:
        import ot

        uniform = np.full(n, 1 / n)
        with warnings.catch_warnings():  # the log says the same, and SciPy takes over
            warnings.simplefilter("ignore")
            plan, log = ot.emd(uniform, uniform, cost, numItermax=max(1_000_000, 200 * n), log=True)
        rows = plan.argmax(axis=0)
        if log["warning"] is None and np.unique(rows).size == n:
            return rows
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost)
    return rows[np.argsort(columns)]


def round_to_permutation(plan: np.ndarray) -> np.ndarray:
    """A permutation near a doubly stochastic plan: heaviest entries first where they do not clash, the rest assigned exactly."""
    n = plan.shape[0]
    result = np.full(n, -1)
    free_rows, free_columns = np.ones(n, bool), np.ones(n, bool)
    best_row = plan.argmax(axis=0)
    for column in np.argsort(-plan[best_row, np.arange(n)]):
        if free_rows[best_row[column]]:
            result[column] = best_row[column]
            free_rows[best_row[column]] = free_columns[column] = False
    if free_columns.any():
        result[free_columns] = np.flatnonzero(free_rows)[exact_assignment(-plan[np.ix_(free_rows, free_columns)])]
    return result


@dataclass(frozen=True)
class IndependentCoupling:
    """Noise and data as they come: the coupling of ordinary flow matching."""

    name: str = "independent"
    expensive: bool = False

    def __call__(self, x_0: Tensor, x_1: Tensor, condition: Condition | None = None) -> Tensor:
        """The identity permutation."""
        return torch.arange(x_1.shape[0])


@dataclass(frozen=True)
class OTCoupling:
    """Exact minibatch optimal transport of the squared Euclidean cost (Tong et al. 2024, Pooladian et al. 2023).

    With conditions, plain OT makes the noise depend on them, while sampling draws it independently: the model then sees other noise in
    training than in use. `condition_mode` says what to do: `labels` pairs only within equal labels; `cost` adds
    `condition_weight` ||c - c'||^2 to the cost (vector conditions, which rarely repeat); `auto` takes `labels` for integer conditions and
    `cost` for others; `ignore` is plain OT, right for unconditional models only.
    """

    condition_mode: ConditionMode = "auto"
    condition_weight: float = 1.0
    name: str = "ot"
    expensive: bool = True

    def __call__(self, x_0: Tensor, x_1: Tensor, condition: Condition | None = None) -> Tensor:
        """See `Coupling`.  Raises: ValueError when the sizes differ or values are not finite."""
        return conditional_permutation(
            exact_assignment, x_0, x_1, condition, self.condition_mode, self.condition_weight
        )


@dataclass(frozen=True)
class SinkhornCoupling:
    """Entropic OT (POT's log-domain Sinkhorn), rounded to a permutation: for batches too large for exact transport.

    `regularisation` is relative to the mean cost; smaller is closer to exact and slower. Conditions as in `OTCoupling`.
    """

    regularisation: float = 0.02
    max_iterations: int = 500
    condition_mode: ConditionMode = "auto"
    condition_weight: float = 1.0
    name: str = "sinkhorn"
    expensive: bool = True

    def __post_init__(self) -> None:
        if not (self.regularisation > 0 and self.max_iterations >= 1):
            raise ValueError(
                f"Sinkhorn needs regularisation > 0 and max_iterations >= 1, got {self.regularisation} and {self.max_iterations}; "
                "for exact transport use the 'ot' coupling."
            )

    def __call__(self, x_0: Tensor, x_1: Tensor, condition: Condition | None = None) -> Tensor:
        """See `Coupling`."""
        return conditional_permutation(self._entropic, x_0, x_1, condition, self.condition_mode, self.condition_weight)

    def _entropic(self, cost: np.ndarray, dimension: int) -> np.ndarray:
        import ot

        n = cost.shape[0]
        uniform = np.full(n, 1 / n)
        regularisation = self.regularisation * max(float(cost.mean()), 1e-12)
        plan = ot.sinkhorn(
            uniform,
            uniform,
            cost,
            regularisation,
            method="sinkhorn_log",
            numItermax=self.max_iterations,
            stopThr=1e-6,
            warn=False,
        )
        return round_to_permutation(plan)


def conditional_permutation(
    assign: Callable[[np.ndarray, int], np.ndarray],
    x_0: Tensor,
    x_1: Tensor,
    condition: Condition | None,
    mode: ConditionMode = "auto",
    weight: float = 1.0,
) -> Tensor:
    """Apply an assignment rule with regard to conditions; row i of the noise is taken to carry condition i before it is moved.

    Args: `assign(cost, dimension) -> rows`; `x_0`, `x_1`: (batch, *event); `condition`: tensors of (batch, ...).
    Returns: (batch,) int64 permutation.  Raises: ValueError for noise and data of different shapes, or an unknown mode.
    """
    if x_0.shape != x_1.shape:
        raise ValueError(
            f"a coupling needs noise and data of one shape, got {tuple(x_0.shape)} and {tuple(x_1.shape)}."
        )
    dimension = x_1[0].numel()
    tensors = list((condition or {}).values()) if mode != "ignore" else []
    if mode not in get_args(ConditionMode):
        raise ValueError(f"unknown condition_mode {mode!r}; choose one of {', '.join(get_args(ConditionMode))}.")
    as_labels = [c for c in tensors if mode == "labels" or (mode == "auto" and not c.is_floating_point())]
    as_cost = [c for c in tensors if mode == "cost" or (mode == "auto" and c.is_floating_point())]
    groups = _equal_rows(as_labels, x_1.shape[0])
    result = torch.empty(x_1.shape[0], dtype=torch.int64)
    for rows in groups:
        cost = squared_distances(x_0[rows], x_1[rows])
        for c in as_cost:
            cost = cost + weight * squared_distances(c[rows], c[rows])
        result[rows] = rows[torch.from_numpy(np.asarray(assign(cost, dimension), dtype=np.int64))]
    return result


def _equal_rows(labels: list[Tensor], size: int) -> list[Tensor]:
    """Index sets of the rows whose labels are all equal; one set of all rows when there are no labels."""
    if not labels:
        return [torch.arange(size)]
    flat = [label.detach().cpu().reshape(size, -1).contiguous().view(torch.uint8) for label in labels]
    keys = torch.cat(flat, dim=1).numpy()
    group = np.unique(keys.view(np.dtype((np.void, keys.shape[1]))).ravel(), return_inverse=True)[1]
    order = torch.from_numpy(np.argsort(group, kind="stable"))
    return list(order.split(np.bincount(group).tolist()))


def candidates(condition: Condition, size: int, drawn: int | None = None) -> float:
    """Among how many rows an assignment can choose for a row of data, on average: those with its labels (`auto`), itself included.

    Args: `condition`: tensors of (size, ...); `drawn`: in a batch of so many of these rows; None for all of them.
    """
    groups = _equal_rows([c for c in condition.values() if not c.is_floating_point()], size)
    everywhere = sum(len(rows) ** 2 for rows in groups) / size
    return everywhere if drawn is None else 1 + (everywhere - 1) * (drawn - 1) / max(size - 1, 1)


def may_be_independent(coupling: str) -> bool:
    """Whether a flow is said to be trained with noise independent of its data, or nothing is said: the custom, then."""
    return coupling in ("independent", "unknown")


COUPLINGS = {"independent": IndependentCoupling, "ot": OTCoupling, "sinkhorn": SinkhornCoupling}
