"""Images from a folder, a file or the Hub, resized and cropped to one resolution, with optional labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import ClassLabel, Image
from PIL import Image as PILImage
from PIL import ImageOps

from .flow_data import FlowData, Normalisation, require_columns, select_labels, split_dataset
from .sources import load_source


@dataclass(frozen=True)
class ImagesConfig:
    """An image data set."""

    path: str = ""
    """A folder of images, a .parquet file or folder, or the id of a data set on the Hub."""
    image_column: str = "image"
    """The column of the images."""
    label_column: str = ""
    """An integer or class-label column the model is conditioned on; empty for none."""
    labels: list[int] = field(default_factory=list)
    """Train on these labels only; empty for all."""
    base_labels: list[int] = field(default_factory=list)
    """The labels the base knows, on which forgetting is measured."""
    resolution: int = 32
    """Height and width; images are resized on the shorter side and cropped in the centre."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour."""
    split: str = "train"
    """The split of a Hub data set."""
    revision: str = ""
    """The revision of a Hub data set; empty for the newest."""
    train_size: int = 0
    """Keep so many training images; 0 keeps all."""
    validation: float = 0.1
    """Fraction held out for selecting the model."""
    test: float = 0.1
    """Fraction held out for the reported numbers."""
    seed: int = 0
    """Seed of the split."""


def prepare_image(image: PILImage.Image, resolution: int, channels: int) -> np.ndarray:
    """A PIL image as (channels, resolution, resolution) uint8: shorter side resized (bicubic), centre cropped."""
    fitted = ImageOps.fit(
        image.convert("L" if channels == 1 else "RGB"), (resolution, resolution), PILImage.Resampling.BICUBIC
    )
    array = np.asarray(fitted, dtype=np.uint8)
    return array[None] if channels == 1 else np.moveaxis(array, -1, 0)


def load_images(config: ImagesConfig) -> FlowData:
    """The images as flow data in [-1, 1]; they are decoded when a batch needs them.

    Raises: ValueError for a missing source or column, a column that holds no images, or empty splits.
    """
    if not config.path:
        raise ValueError("data.path must be given: a folder of images, a file, or the id of a data set on the Hub.")
    if config.resolution < 1 or config.channels not in (1, 3):
        raise ValueError(
            f"data.resolution must be at least 1 and data.channels 1 or 3, got {config.resolution} and {config.channels}."
        )
    dataset, facts = load_source(config.path, config.split, config.revision)
    require_columns(
        dataset, [config.image_column, *([config.label_column] if config.label_column else [])], config.path
    )
    if not isinstance(dataset.features[config.image_column], Image):
        raise ValueError(
            f"column {config.image_column!r} of {config.path} holds {dataset.features[config.image_column]}, not images."
        )
    target = select_labels(dataset, config.label_column, config.labels) if config.labels else dataset
    fractions = (config.validation, config.test, config.seed)
    splits = split_dataset(target, *fractions, train_size=config.train_size, name=config.path)
    if config.base_labels:
        splits |= split_dataset(
            select_labels(dataset, config.label_column, config.base_labels),
            *fractions,
            prefix="base_",
            name="the base's labels",
        )
    label = dataset.features.get(config.label_column)
    return FlowData(
        name=Path(config.path).name,
        splits=splits,
        event_shape=(config.channels, config.resolution, config.resolution),
        normalisation=Normalisation(127.5, 127.5),
        sample_column=config.image_column,
        decode=partial(prepare_image, resolution=config.resolution, channels=config.channels),
        condition_columns={"class_labels": config.label_column} if config.label_column else {},
        is_image=True,
        label_names=list(label.names) if isinstance(label, ClassLabel) else [],
        facts={
            **facts,
            "labels": list(config.labels),
            "base_labels": list(config.base_labels),
            "value_range": [0.0, 255.0],
        },
    )
