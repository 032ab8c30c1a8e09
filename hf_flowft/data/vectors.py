"""Vectors from a file (parquet, csv, npz) or a Hub data set: any table of numbers, with optional labels or condition vectors."""

from __future__ import annotations

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
        with np.load(config.path, allow_pickle=False) as arrays:
            missing = [column for column in (*config.columns, config.label_column) if column and column not in arrays]
            if missing:
                raise ValueError(f"{config.path} has no array {missing[0]!r}; its arrays are {', '.join(arrays)}.")
            return Dataset.from_dict({key: arrays[key] for key in arrays}), {"source": Path(config.path).name}
    return load_source(config.path, config.split, config.revision)


def _join(dataset: Dataset, columns: list[str], name: str) -> Dataset:
    """One list-valued column `name` made of several columns."""
    require_columns(dataset, columns, "the table")
    table = dataset.with_format("numpy")[:]
    parts = [np.asarray(table[column], dtype=np.float32).reshape(len(dataset), -1) for column in columns]
    return dataset.remove_columns([c for c in (name,) if c in dataset.column_names]).add_column(
        name, list(np.concatenate(parts, axis=1))
    )


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
