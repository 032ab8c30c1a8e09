"""Vectors from a file (parquet, csv, npz) or a Hub data set: any table of numbers, with optional labels or condition vectors."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from .flow_data import FlowData, Normalisation, require_columns, select_labels, split_dataset, stack_samples
from .sources import load_source


@dataclass(frozen=True)
class VectorsConfig:
    """A table of vectors."""

    path: str = ""
    """A .parquet, .csv, .json or .npz file, a folder of such files, or the id of a data set on the Hub."""
    columns: list[str] = field(default_factory=list)
    """The columns that make up the vector: one list-valued column, or several numbers; for .npz the one array (n, d)."""
    label_column: str = ""
    """An integer column the model is conditioned on; empty for none."""
    condition_columns: list[str] = field(default_factory=list)
    """Number columns that make up a condition vector; empty for none."""
    labels: list[int] = field(default_factory=list)
    """Train on these labels only; empty for all."""
    base_labels: list[int] = field(default_factory=list)
    """The labels the base knows, on which forgetting is measured."""
    split: str = "train"
    """The split of a Hub data set."""
    revision: str = ""
    """The revision of a Hub data set; empty for the newest."""
    train_size: int = 0
    """Keep so many training rows; 0 keeps all."""
    validation: float = 0.15
    """Fraction held out for selecting the model."""
    test: float = 0.15
    """Fraction held out for the reported numbers."""
    normalise: bool = True
    """Give each coordinate mean 0 and std 1 (of the training split); stored with the model and undone by the pipeline."""
    seed: int = 0
    """Seed of the split."""


def _read(config: VectorsConfig) -> tuple[Dataset, dict[str, str]]:
    if Path(config.path).suffix == ".npz":
        wanted = [c for c in (*config.columns, *config.condition_columns, config.label_column) if c]
        return Dataset.from_dict(_arrays(config.path, wanted)), {"source": Path(config.path).name}
    return load_source(config.path, config.split, config.revision)


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
    rows = {column: array.shape[:1] for column, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"the arrays of {path} must have one row a sample, but their lengths are {rows}.")
    return arrays


def _join(dataset: Dataset, columns: list[str], name: str) -> Dataset:
    """One list-valued column `name` made of several columns.  Raises: ValueError for an empty table, or what are not finite numbers."""
    require_columns(dataset, columns, "the table")
    if len(dataset) == 0:
        raise ValueError(f"the table is empty: its columns {', '.join(columns)} have no rows.")
    parts = [_numbers(dataset, column) for column in columns]
    bad = np.flatnonzero(~np.isfinite(np.concatenate(parts, axis=1)).all(axis=1))
    if len(bad):
        raise ValueError(
            f"row {bad[0]} of the table holds NaN, infinite or missing values in {', '.join(columns)} ({len(bad)} such rows); clean the data."
        )
    return dataset.remove_columns([c for c in (name,) if c in dataset.column_names]).add_column(
        name, list(np.concatenate(parts, axis=1))
    )


def _numbers(dataset: Dataset, column: str) -> np.ndarray:
    """A column as float32 (rows, width)."""
    values = dataset.select_columns([column]).with_format("numpy")[:][column]
    try:
        return np.asarray(values, dtype=np.float32).reshape(len(dataset), -1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the column {column!r} must hold numbers, as many in each row: {error}.") from error


def load_vectors(config: VectorsConfig) -> FlowData:
    """The table as flow data.  Raises: ValueError for missing files or columns, an empty table, values that are not numbers."""
    if not config.path or not config.columns:
        raise ValueError(
            "data.path and data.columns must be given: where the table is, and which columns make up the vector."
        )
    dataset, facts = _read(config)
    dataset = _join(dataset, config.columns, "sample")
    conditions: dict[str, str] = {}
    if config.condition_columns:
        dataset, conditions["condition"] = _join(dataset, config.condition_columns, "condition"), "condition"
    if config.label_column:
        require_columns(dataset, [config.label_column], config.path)
        conditions["class_labels"] = config.label_column
    target = select_labels(dataset, config.label_column, config.labels) if config.labels else dataset
    splits = split_dataset(
        target, config.validation, config.test, config.seed, train_size=config.train_size, name=config.path
    )
    if config.base_labels:
        base = select_labels(dataset, config.label_column, config.base_labels)
        splits |= split_dataset(
            base, config.validation, config.test, config.seed, prefix="base_", name="the base's labels"
        )
    train = splits["train"].with_format("numpy")[:]["sample"]
    size = len(np.asarray(train[0]).reshape(-1))
    samples = stack_samples(train, (size,), range(len(train)), f"the training split of {config.path}")
    return FlowData(
        name=Path(config.path).stem,
        splits=splits,
        event_shape=(size,),
        normalisation=Normalisation.fit(samples) if config.normalise else Normalisation(),
        condition_columns=conditions,
        facts={
            **facts,
            "columns": list(config.columns),
            "labels": list(config.labels),
            "base_labels": list(config.base_labels),
        },
    )


def from_tensors(name: str, train: torch.Tensor, validation: torch.Tensor, test: torch.Tensor) -> FlowData:
    """Unconditional vectors or arrays already in memory, as flow data: (n, *event) each, used as they are."""
    parts = {"train": train, "validation": validation, "test": test}
    splits = {split: Dataset.from_dict({"sample": list(x.numpy())}) for split, x in parts.items()}
    return FlowData(name=name, splits=splits, event_shape=tuple(train.shape[1:]), facts={"source": "tensors"})
