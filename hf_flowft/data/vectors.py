"""Vectors from a file (parquet, csv, npz) or a Hub data set: any table of numbers, with optional labels or condition vectors."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset

from ..digests import tensors_digest
from .flow_data import FlowData
from .normalisation import Normalisation
from .reading import stack_samples
from .sources import SourceConfig, digest, open_source, split_source
from .streams import in_memory

LOST, NOISE = 0.1, 1e-12
"""Rounding by more than this part of its spread spoils a number; a spread below that part of its value is rounding itself, and nothing is lost."""


OWN = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class VectorsConfig(SourceConfig):
    """A table of vectors; `path` may also be an .npz file."""

    columns: list[str] = field(default_factory=list)
    """The columns that make up the vector: one list-valued column, or several numbers; for .npz the one array (n, d)."""
    condition_columns: list[str] = field(default_factory=list)
    """Number columns that make up a condition vector; empty for none."""
    normalise: bool = True
    """Give each coordinate, of vectors and of conditions, mean 0 and std 1 (of the training split); stored with the model, whose pipeline takes and
    gives the units of the data."""

    @property
    def used(self) -> list[str]:
        """Every column that is read."""
        return [column for column in (*self.columns, *self.condition_columns, self.label_column) if column]


def _open(config: VectorsConfig) -> tuple[Dataset | IterableDataset, dict[str, str]]:
    path = Path(config.path)
    if path.suffix != ".npz":
        return open_source(config)
    if config.streaming:
        raise ValueError(f"an .npz file is read as a whole: set data.streaming to false for {path}, or write parquet.")
    return Dataset.from_dict(_arrays(config.path, config.used)), {"source": path.name, "digest": digest(path)}


def _arrays(path: str, wanted: list[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which must have as many rows each."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [column for column in wanted if column not in file]
            if missing:
                raise ValueError(f"it has no array {missing[0]!r}, only {', '.join(file)}")
            arrays = {column: file[column] for column in wanted}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read {path}: {error}.") from error
    for column, array in arrays.items():
        if array.dtype.kind == "c":
            raise ValueError(f"the array {column!r} of {path} is complex: give real and imaginary part as two arrays.")
    rows = {column: array.shape[:1] for column, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"the arrays of {path} must have one row a sample, but their lengths are {rows}.")
    return arrays


def _prepare(rows: Dataset, numbers: Sequence[int], config: VectorsConfig) -> Dataset:
    """The columns `sample` and `condition`, and that of the labels.  Raises: ValueError for no rows, or what are not finite numbers."""
    if len(rows) == 0:
        raise ValueError(f"the table is empty: its columns {', '.join(config.columns)} have no rows.")
    is_whole = not config.streaming  # the spread of a block of a stream says nothing
    made = {"sample": _joined(rows, config.columns, numbers, is_whole)}
    if config.condition_columns:
        made["condition"] = _joined(rows, config.condition_columns, numbers, is_whole)
    if config.label_column:
        made[config.label_column] = rows.select_columns([config.label_column]).with_format("arrow")[:][0]
    return in_memory(pa.table(made))


def _joined(rows: Dataset, columns: Sequence[str], numbers: Sequence[int], is_whole: bool) -> pa.Array:
    """One array of vectors made of several columns.  Raises: ValueError for what are not finite numbers, by the number of the row."""
    exact = np.concatenate([_numbers(rows, column) for column in columns], axis=1)
    with np.errstate(over="ignore"):  # what is too large is named below
        values = exact.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise ValueError(
            f"row {numbers[bad[0]]} of the table holds NaN, infinite or missing values in {', '.join(columns)} ({len(bad)} such rows); clean the data."
        )
    if is_whole:
        _require_resolved(exact, values, columns)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _require_resolved(exact: np.ndarray, values: np.ndarray, columns: Sequence[str]) -> None:
    """Raises: ValueError when what distinguishes the rows is lost in float32, which holds seven digits."""
    spread, offset = exact.std(axis=0), np.abs(exact.mean(axis=0))
    lost = np.abs(values - exact).max(axis=0) > LOST * spread
    if (lost & (spread > NOISE * offset)).any():
        number = int(np.flatnonzero(lost & (spread > NOISE * offset))[0])
        raise ValueError(
            f"number {number} of {', '.join(columns)} is about {offset[number]:.3g} and varies by {spread[number]:.3g} only, which float32 does not "
            "resolve: take an offset off it first."
        )


def _numbers(dataset: Dataset, column: str) -> np.ndarray:
    """A column as float64 (rows, width)."""
    try:
        values = dataset.select_columns([column]).with_format("numpy", dtype=np.float64)[:][column]  # else: float32
        return np.asarray(values, dtype=np.float64).reshape(len(dataset), -1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the column {column!r} must hold numbers, as many in each row: {error}.") from error


def load_vectors(config: VectorsConfig) -> FlowData:
    """The table as flow data.  Raises: ValueError for missing files or columns, an empty table, values that are not numbers."""
    if not config.path or not config.columns:
        raise ValueError(
            "data.path and data.columns must be given: where the table is, and which columns make up the vector."
        )
    rows, facts = _open(config)
    splits, stream = split_source(config, rows, config.used, partial(_prepare, config=config))
    train = splits["train"].with_format("numpy")

    def units(column: str) -> Normalisation:
        rows = train[column][:]
        vectors = stack_samples(rows, (len(rows[0]),), range(len(rows)), f"the training split of {config.path}")
        return Normalisation.fit(vectors)

    conditions = {"condition": "condition"} if config.condition_columns else {}
    labels = {"class_labels": config.label_column} if config.label_column else {}
    return FlowData(
        name=Path(config.path).stem,
        splits=splits,
        event_shape=(len(train[0]["sample"]),),
        normalisation=units("sample") if config.normalise else Normalisation(),
        condition_normalisation={key: units(column) for key, column in conditions.items() if config.normalise},
        condition_columns={**conditions, **labels},
        facts={**facts, "columns": list(config.columns), **config.facts},
        stream=stream,
    )


def from_tensors(
    name: str,
    train: torch.Tensor | np.ndarray,
    validation: torch.Tensor | np.ndarray,
    test: torch.Tensor | np.ndarray,
    *,
    labels: Sequence[torch.Tensor | np.ndarray] | None = None,
    condition: Sequence[torch.Tensor | np.ndarray] | None = None,
) -> FlowData:
    """Vectors or arrays already in memory, as flow data: (n, *event) each, used as they are, in float32.

    Tensors on any device and of any type, arrays and lists are taken.

    Args: `labels`: three tensors (n,) of whole numbers, for train, validation and test; `condition`: three of vectors (n, d).
    Raises: ValueError for a number in the place of a sample, what is not finite, by its row, and conditions of other rows than the samples.
    """
    given = {"sample": (train, validation, test), "class_labels": labels, "condition": condition}
    columns = {key: _of_splits(parts, key, name) for key, parts in given.items() if parts is not None}
    sizes = {key: [len(part) for part in parts.values()] for key, parts in columns.items()}
    if any(size != sizes["sample"] for size in sizes.values()):
        raise ValueError(f"{name!r} must have as many labels and conditions as samples in each split, got {sizes}.")
    splits = {
        split: Dataset.from_dict({key: list(parts[split].numpy()) for key, parts in columns.items()}) for split in OWN
    }
    named = {
        split if key == "sample" else f"{split}/{key}": x
        for key, parts in columns.items()
        for split, x in parts.items()
    }
    return FlowData(
        name=name,
        splits=splits,
        event_shape=tuple(columns["sample"]["train"].shape[1:]),
        condition_columns={key: key for key in columns if key != "sample"},
        facts={"source": "tensors", "digest": tensors_digest(named)},
    )


def _of_splits(parts: Sequence[torch.Tensor | np.ndarray], key: str, name: str) -> dict[str, torch.Tensor]:
    """What was given for train, validation and test.  Raises: ValueError for another number of tensors, and as `_held`."""
    if len(parts) != len(OWN):
        raise ValueError(f"the {key} of {name!r} must be {len(OWN)} tensors, for {', '.join(OWN)}; got {len(parts)}.")
    if key == "class_labels":
        return {split: torch.as_tensor(x).detach().cpu() for split, x in zip(OWN, parts, strict=True)}
    where = "" if key == "sample" else f"the {key} of "
    return {split: _held(x, f"{where}the split {split!r} of {name!r}") for split, x in zip(OWN, parts, strict=True)}


def _held(values: torch.Tensor | np.ndarray, place: str) -> torch.Tensor:
    given = torch.as_tensor(values).detach()
    if given.is_complex():
        raise ValueError(f"{place} is complex: give real and imaginary part as two numbers.")
    x = given.float().cpu()
    if x.ndim < 2:
        raise ValueError(
            f"{place} must have samples along its first axis, (n, *event), got shape {tuple(x.shape)}: numbers are (n, 1)."
        )
    bad = (~torch.isfinite(x.flatten(1)).all(dim=1)).nonzero()
    if len(bad):
        raise ValueError(
            f"row {int(bad[0])} of {place} holds NaN or infinite values ({len(bad)} such rows); clean the data."
        )
    return x
