"""Data for fine-tuning: named splits of a `datasets.Dataset`, the conditions in it, and the normalisation the model works in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..batch import Batch
from ..randomness import keyed_generator

SPLITS = ("train", "validation", "test", "base_train", "base_validation", "base_test")


@dataclass(frozen=True)
class Normalisation:
    """z = (x - mean) / std, with one number for all coordinates or one a coordinate; stored with the model, undone by the pipeline."""

    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0

    @classmethod
    def fit(cls, x: Tensor) -> Normalisation:
        """One mean and standard deviation a coordinate of vectors (n, d); constant coordinates keep a std of 1."""
        std = x.std(dim=0, correction=0)
        return cls(x.mean(dim=0).tolist(), torch.where(std > 0, std, torch.ones_like(std)).tolist())

    def apply(self, x: Tensor) -> Tensor:
        """Data units to model units: (batch, *event)."""
        return (x - self._tensor(self.mean, x)) / self._tensor(self.std, x)

    def undo(self, z: Tensor) -> Tensor:
        """Model units to data units: (batch, *event)."""
        return z * self._tensor(self.std, z) + self._tensor(self.mean, z)

    def log_volume(self, event_shape: Sequence[int]) -> float:
        """log |dx/dz| of one sample: what a log-density in model units loses in data units."""
        return float(torch.tensor(self.std, dtype=torch.float64).expand(tuple(event_shape)).log().sum())

    @staticmethod
    def _tensor(value: float | list[float], like: Tensor) -> Tensor:
        return torch.tensor(value, dtype=like.dtype, device=like.device)


@dataclass
class FlowData:
    """A data set ready for a flow.

    `splits`: named as in SPLITS; the `base_*` splits hold data of the base's domain, on which forgetting is measured. `sample_column` holds the
    data, `condition_columns` maps a keyword argument of the model to a column; `decode` turns a stored value (an image) into an array of
    `event_shape` when it is read. `facts` (source, revision, licence ...) go to results and card.
    """

    name: str
    splits: dict[str, Dataset]
    event_shape: tuple[int, ...]
    normalisation: Normalisation = Normalisation()
    sample_column: str = "sample"
    condition_columns: dict[str, str] = field(default_factory=dict)
    is_image: bool = False
    decode: Callable[[Any], np.ndarray] | None = None
    label_names: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            if name not in SPLITS:
                raise ValueError(f"unknown split {name!r}; the splits of a FlowData are {', '.join(SPLITS)}.")
            require_columns(split, [self.sample_column, *self.condition_columns.values()], f"split {name!r}")
            if len(split) == 0:
                raise ValueError(
                    f"split {name!r} of {self.name!r} is empty: check the data source, the labels chosen and the split sizes."
                )
        if "train" not in self.splits:
            raise ValueError(f"data {self.name!r} has no 'train' split, only {sorted(self.splits)}.")

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples in each split."""
        return {name: len(split) for name, split in self.splits.items()}

    @property
    def num_classes(self) -> int:
        """Number of labels the model must know; 0 without labels."""
        column = self.condition_columns.get("class_labels")
        if column is None:
            return 0
        return max(len(self.label_names), 1 + self.labels()[-1])

    def labels(self, *splits: str) -> list[int]:
        """The labels that occur in these splits (without any: in all), in order.  Raises: ValueError for what are not whole numbers >= 0."""
        column = self.condition_columns["class_labels"]
        parts = [self.conditions(split)["class_labels"] for split in splits or self.splits]
        if any(x.is_floating_point() or x.ndim != 1 for x in parts):
            raise ValueError(f"the label column {column!r} of {self.name!r} must hold one whole number a row.")
        found: list[int] = torch.cat(parts).unique().tolist()
        if found[0] < 0:
            raise ValueError(
                f"the label column {column!r} of {self.name!r} holds {found[0]}: labels are numbered from 0 (remove unlabelled rows)."
            )
        return found

    def rows(self, split: str, index: Sequence[int] | None = None) -> Batch:
        """Rows of a split (all without `index`), normalised, float32, on the CPU.

        Raises: ValueError for an unknown split, samples of another shape, or values that are not finite (naming the first such row).
        """
        if split not in self.splits:
            raise ValueError(f"data {self.name!r} has no split {split!r}; it has {', '.join(self.splits)}.")
        dataset = self.splits[split]
        where = range(len(dataset)) if index is None else list(index)
        table = self._read(dataset, where, split)
        samples = stack_samples(table[self.sample_column], self.event_shape, where, f"split {split!r} of {self.name!r}")
        condition = {key: _condition(table[column], column) for key, column in self.condition_columns.items()}
        return Batch(self.normalisation.apply(samples), condition)

    def conditions(self, split: str) -> dict[str, Tensor]:
        """The conditions of a whole split, without reading its samples."""
        dataset = self.splits[split].with_format("numpy")
        return {key: _condition(dataset[column][:], column) for key, column in self.condition_columns.items()}

    def _read(self, dataset: Dataset, where: Sequence[int], split: str) -> dict[str, Any]:
        if self.decode is None:
            return dataset.with_format("numpy")[where]
        try:
            table = dataset[where]
        except (OSError, SyntaxError) as error:  # Pillow's errors of unknown, truncated and broken files
            row = next(row for row in where if not _is_readable(dataset, row))
            raise ValueError(
                f"row {row} of split {split!r} of {self.name!r} is an unreadable image: {error}"
            ) from error
        values = table[self.sample_column]
        missing = [row for row, value in zip(where, values, strict=True) if value is None]
        if missing:
            raise ValueError(f"row {missing[0]} of split {split!r} of {self.name!r} has no image.")
        return {**table, self.sample_column: [self.decode(value) for value in values]}


def _is_readable(dataset: Dataset, row: int) -> bool:
    try:
        return bool(dataset[row])
    except (OSError, SyntaxError):
        return False


def stack_samples(values: Any, event_shape: Sequence[int], where: Sequence[int], name: str) -> Tensor:
    """Arrays of one shape as a float32 tensor (n, *event_shape), checked."""
    arrays = [_channels_first(np.asarray(value), event_shape) for value in values]
    for row, array in zip(where, arrays, strict=True):
        if array.shape != tuple(event_shape):
            raise ValueError(
                f"row {row} of {name} has shape {array.shape}, expected {tuple(event_shape)}: convert the data, or choose resolution and channels."
            )
    samples = torch.from_numpy(np.stack(arrays).astype(np.float32))
    bad = ~torch.isfinite(samples.flatten(1)).all(dim=1)
    if bad.any():
        raise ValueError(
            f"row {list(where)[int(bad.nonzero()[0])]} of {name} holds NaN or infinite values ({int(bad.sum())} such rows); clean the data."
        )
    return samples


def _channels_first(array: np.ndarray, event_shape: Sequence[int]) -> np.ndarray:
    """Decoded images come as (height, width[, channels]); events of three axes are (channels, height, width)."""
    if len(event_shape) != 3 or array.shape == tuple(event_shape):
        return array
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _condition(values: Any, column: str) -> Tensor:
    array = np.asarray(values)
    if array.dtype == object or not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"the condition column {column!r} must hold numbers of one shape, got {array.dtype}; encode labels as integers."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"the condition column {column!r} holds NaN or infinite values.")
    return torch.from_numpy(array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32))


def require_columns(dataset: Dataset, columns: Sequence[str], where: str) -> None:
    """Raises ValueError when a column is missing, naming the ones there are."""
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(f"{where} has no column {missing[0]!r}; its columns are {', '.join(dataset.column_names)}.")


def split_rows(size: int, validation: float, test: float, seed: int, name: str = "data") -> dict[str, list[int]]:
    """A seeded partition of `size` rows into train / validation / test by fractions.

    Raises: ValueError for fractions outside [0, 1) or splits that would be empty.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"validation and test fractions must be >= 0 and leave room for training, got {validation} and {test}."
        )
    if size == 0:
        raise ValueError(f"{name} is empty: there is nothing to split; check the source and the labels chosen.")
    order = torch.randperm(size, generator=keyed_generator(seed, "split")).tolist()
    cut_test = round(size * test)
    cut_validation = cut_test + round(size * validation)
    return {"test": order[:cut_test], "validation": order[cut_test:cut_validation], "train": order[cut_validation:]}


def split_dataset(
    dataset: Dataset,
    validation: float,
    test: float,
    seed: int,
    *,
    prefix: str = "",
    train_size: int = 0,
    name: str = "data",
) -> dict[str, Dataset]:
    """`split_rows` applied; `prefix` "base_" names the base's splits; `train_size` > 0 keeps that many training rows.

    Raises: ValueError when `train_size` is negative, or the training part is smaller.
    """
    parts = split_rows(len(dataset), validation, test, seed, name)
    if train_size < 0:
        raise ValueError(f"train_size must be at least 1, or 0 for all rows, got {train_size}.")
    if train_size > len(parts["train"]):
        raise ValueError(
            f"train_size is {train_size}, but only {len(parts['train'])} rows of {name} are left for training."
        )
    if train_size:
        parts["train"] = parts["train"][:train_size]
    return {f"{prefix}{split}": dataset.select(rows) for split, rows in parts.items() if rows or split == "train"}


def select_labels(dataset: Dataset, column: str, labels: Sequence[int]) -> Dataset:
    """The rows whose label is one of `labels` (all rows when `labels` is empty).  Raises: ValueError when there is no label column."""
    if not labels:
        return dataset
    if not column:
        raise ValueError(
            f"labels {list(labels)} were chosen, but no column holds labels: name it with data.label_column."
        )
    values = np.asarray(dataset.with_format("numpy")[column])
    return dataset.select(np.flatnonzero(np.isin(values, list(labels))))


def balanced_take(dataset: Dataset, column: str, size: int) -> Dataset:
    """The first `size` rows, as evenly over the labels as they allow: few training images should not miss a class."""
    values = np.asarray(dataset.with_format("numpy")[column])
    rank = np.empty(len(values), dtype=np.int64)
    for label in np.unique(values):
        rows = np.flatnonzero(values == label)
        rank[rows] = np.arange(len(rows))
    return dataset.select(np.sort(np.lexsort((values, rank))[:size]))


def describe(data: FlowData) -> Mapping[str, Any]:
    """What the results and the card say about the data."""
    return {"name": data.name, **data.facts, "event_shape": list(data.event_shape), "counts": data.counts}
