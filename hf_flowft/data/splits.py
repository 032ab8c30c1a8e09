"""Seeded partitions of a table into training, validation and test, and the choice of rows by label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..randomness import keyed_generator


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


def require_label_column(labels: Sequence[int], column: str) -> None:
    """Raises ValueError when labels are chosen and no column holds any."""
    if labels and not column:
        raise ValueError(
            f"labels {list(labels)} were chosen, but no column holds labels: name it with data.label_column."
        )


def require_disjoint(new: Sequence[Any], known: Sequence[Any], option: str) -> None:
    """Raises ValueError when what is trained on and what the base is judged on have something in common; `option`: the former's setting."""
    both = [value for value in new if value in known]
    if both:
        raise ValueError(f"{both[0]!r} is in data.{option} and in data.base_{option}: it is either new or known.")


def has_label(values: np.ndarray, labels: Sequence[int], others: Sequence[int] = ()) -> np.ndarray:
    """Which of the `values` are one of `labels` (all, where there are none) and none of `others`."""
    wanted = np.isin(values, list(others), invert=True)
    return wanted & np.isin(values, list(labels)) if labels else wanted


def select_labels(dataset: Dataset, column: str, labels: Sequence[int], others: Sequence[int] = ()) -> Dataset:
    """The rows that `has_label` chooses: all where nothing is named.  Raises: ValueError when there is no label column."""
    if not labels and not others:
        return dataset
    require_label_column([*labels, *others], column)
    return dataset.select(np.flatnonzero(has_label(np.asarray(dataset.with_format("numpy")[column]), labels, others)))


def balanced_take(dataset: Dataset, column: str, size: int) -> Dataset:
    """The first `size` rows, as evenly over the labels as they allow: few training images should not miss a class."""
    values = np.asarray(dataset.with_format("numpy")[column])
    rank = np.empty(len(values), dtype=np.int64)
    for label in np.unique(values):
        rows = np.flatnonzero(values == label)
        rank[rows] = np.arange(len(rows))
    return dataset.select(np.sort(np.lexsort((values, rank))[:size]))
