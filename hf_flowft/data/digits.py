"""scikit-learn's handwritten digits: 1,797 real 8x8 images that ship with the package, so they work offline."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, Features

from .flow_data import FlowData
from .normalisation import Normalisation
from .splits import balanced_take, require_disjoint, select_labels, split_dataset


@dataclass(frozen=True)
class DigitsConfig:
    """Handwritten digits (UCI Optical Recognition, through scikit-learn), 8x8, values 0..16."""

    labels: list[int] = field(default_factory=lambda: list(range(10)))
    """The digits to train on; empty for all that are not base_labels."""
    base_labels: list[int] = field(default_factory=list)
    """The digits the base knows, on which forgetting is measured; empty for pretraining."""
    train_size: int = 0
    """Keep so many training images, evenly over the labels; 0 keeps all."""
    validation: float = 0.2
    """Fraction held out for selecting the model."""
    test: float = 0.3
    """Fraction held out for the reported numbers."""
    conditional: bool = True
    """Whether the model is told the label."""
    seed: int = 0
    """Seed of the split."""


def digits_dataset() -> Dataset:
    """All 1,797 digits as a `datasets.Dataset` with the columns `sample` (1, 8, 8) and `label`."""
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    features = Features(
        {"sample": Array3D((1, 8, 8), "float32"), "label": ClassLabel(names=[str(i) for i in range(10)])}
    )
    return Dataset.from_dict(
        {"sample": bunch.images.astype(np.float32)[:, None], "label": bunch.target}, features=features
    )


def load_digits(config: DigitsConfig = DigitsConfig()) -> FlowData:
    """The digits as flow data in [-1, 1].  Raises: ValueError for labels that are not digits or a training size that is too large."""
    for label in (*config.labels, *config.base_labels):
        if label not in range(10):
            raise ValueError(f"a digit is one of 0 to 9, got {label}.")
    require_disjoint(config.labels, config.base_labels, "labels")
    if config.train_size < 0:
        raise ValueError(f"train_size must be at least 1, or 0 for all images, got {config.train_size}.")
    everything = digits_dataset()
    fractions = (config.validation, config.test, config.seed)
    target = select_labels(everything, "label", config.labels, config.base_labels)
    splits = split_dataset(target, *fractions, name=f"digits {config.labels}")
    if config.train_size:
        if config.train_size > len(splits["train"]):
            raise ValueError(
                f"train_size is {config.train_size}, but the training split has {len(splits['train'])} images."
            )
        splits["train"] = balanced_take(splits["train"], "label", config.train_size)
    if config.base_labels:
        splits |= split_dataset(
            select_labels(everything, "label", config.base_labels), *fractions, prefix="base_", name="base digits"
        )
    return FlowData(
        name="digits",
        splits=splits,
        event_shape=(1, 8, 8),
        normalisation=Normalisation(8.0, 8.0),
        condition_columns={"class_labels": "label"} if config.conditional else {},
        is_image=True,
        label_names=[str(i) for i in range(10)],
        facts={
            "source": "scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits)",
            "licence": "CC BY 4.0",
            "labels": list(config.labels),
            "base_labels": list(config.base_labels),
            "value_range": [0.0, 16.0],
        },
    )
