"""From rows of a table to batches: decoded, checked and normalised, with every fault named by its row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Array2D, Array3D, Array4D, Array5D, Dataset
from PIL.Image import DecompressionBombError
from torch import Tensor

from ..batch import Batch
from .normalisation import Normalisation

ARRAYS = (Array2D, Array3D, Array4D, Array5D)
UNREADABLE = (OSError, SyntaxError, ValueError, DecompressionBombError)
"""What Pillow and `datasets` raise for unknown, truncated, broken, absent and enormous images."""


@dataclass(frozen=True)
class RowReader:
    """How the rows of one data set become batches; the arguments are those of `FlowData`.  Holds no data, so it travels to other processes."""

    event_shape: tuple[int, ...]
    normalisation: Normalisation
    sample_column: str
    condition_columns: dict[str, str]
    decode: Callable[[Any], np.ndarray] | None
    condition_normalisation: dict[str, Normalisation] = field(default_factory=dict)
    gather: dict[str, Callable[[np.ndarray], Tensor]] = field(default_factory=dict)

    def batch(self, dataset: Dataset, where: Sequence[int], place: str, numbers: Sequence[int] | None = None) -> Batch:
        """The rows at the positions `where`, normalised, float32, on the CPU.

        Args: `place`: where the rows are from, and `numbers`: what they are called there (without: their positions), both for errors.
        Raises: ValueError for samples of another shape, unreadable images, or values that are not finite (naming the first such row).
        """
        numbers = where if numbers is None else numbers
        table = self._read(dataset, where, place, numbers)
        samples = stack_samples(table[self.sample_column], self.event_shape, numbers, place)
        return Batch(self.normalisation.apply(samples), self._conditions(table, dataset))

    def conditions(self, dataset: Dataset, keys: Sequence[str]) -> dict[str, Tensor]:
        """Some conditions of all rows, without reading anything else."""
        numbers = dataset.with_format("numpy")
        return {key: self._condition(key, numbers[self.condition_columns[key]][:], dataset) for key in keys}

    def _conditions(self, table: dict[str, Any], dataset: Dataset) -> dict[str, Tensor]:
        return {key: self._condition(key, table[column], dataset) for key, column in self.condition_columns.items()}

    def _condition(self, key: str, values: Any, dataset: Dataset) -> Tensor:
        if key in self.gather:
            return self.gather[key](np.asarray(values))
        column = self.condition_columns[key]
        condition = _condition(values, column)
        if isinstance(dataset.features[column], ARRAYS) and dataset.features[column].dtype == "uint8":
            condition = condition.to(torch.uint8)  # pictures, which `datasets` reads as whole numbers of eight bytes
        units = self.condition_normalisation.get(key)
        return condition if units is None else units.apply(condition)

    def _read(self, dataset: Dataset, where: Sequence[int], place: str, numbers: Sequence[int]) -> dict[str, Any]:
        if self.decode is None:
            return dataset.with_format("numpy")[where]
        try:
            table = dataset[where]
        except UNREADABLE as error:
            broken = (n for n, i in zip(numbers, where, strict=True) if not _is_readable(dataset, i))
            row = next(broken, numbers[0])  # what was unreadable a moment ago may be back, on a network
            raise ValueError(f"row {row} of {place} is an unreadable image: {error}") from error
        values = table[self.sample_column]
        missing = [row for row, value in zip(numbers, values, strict=True) if value is None]
        if missing:
            raise ValueError(f"row {missing[0]} of {place} has no image.")
        pixels = [_decoded(self.decode, value, row, place) for row, value in zip(numbers, values, strict=True)]
        return {**table, self.sample_column: pixels}


def _decoded(decode: Callable[[Any], np.ndarray], value: Any, row: int, place: str) -> np.ndarray:
    try:
        return decode(value)
    except ValueError as error:
        raise ValueError(f"row {row} of {place} cannot be used: {error}.") from error


def require_labels(labels: Tensor, num_classes: int, numbers: Sequence[int], place: str) -> None:
    """Raises ValueError for labels of a stream that the rows looked at first have not announced."""
    bad = (
        torch.arange(len(labels)) if labels.is_floating_point() else ((labels < 0) | (labels >= num_classes)).nonzero()
    )
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"row {numbers[first]} of {place} has the label {labels[first].item()}, but the labels are 0 to {num_classes - 1} by the rows "
            "looked at first: raise data.epoch_size to look at more, or name the labels to train on in data.labels."
        )


def _is_readable(dataset: Dataset, row: int) -> bool:
    try:
        return bool(dataset[row])
    except UNREADABLE:
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
