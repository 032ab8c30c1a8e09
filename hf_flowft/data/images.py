"""Images from a folder, a file or the Hub, resized and cropped to one resolution, with optional labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PILImage
from PIL import ImageOps

from .flow_data import FlowData
from .normalisation import Normalisation
from .pixels import eight_bits
from .sources import SourceConfig, open_source, split_source


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(SourceConfig):
    """An image data set."""

    image_column: str = "image"
    """The column of the images."""
    resolution: int = 32
    """Height and width; images are resized on the shorter side and cropped in the centre."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour."""


def prepare_image(image: PILImage.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """A PIL image as (channels, height, width) uint8: resized (bicubic) until it covers the size, centre cropped.

    Args: `size`: height and width; `channels`: 1 for grey, 3 for colour.  Raises: ValueError as `eight_bits`.
    """
    fitted = ImageOps.fit(eight_bits(image, channels), size[::-1], PILImage.Resampling.BICUBIC)
    array = np.asarray(fitted, dtype=np.uint8)
    return array[None] if channels == 1 else np.moveaxis(array, -1, 0)


def load_images(config: ImagesConfig) -> FlowData:
    """The images as flow data in [-1, 1]; they are decoded when a batch needs them.

    Raises: ValueError for a missing source or column, a column that holds no images, or empty splits.
    """
    if not config.path:
        raise ValueError("data.path must be given: a folder of images, a file, or the id of a data set on the Hub.")
    if config.resolution < 1:
        raise ValueError(f"data.resolution must be at least 1, got {config.resolution}.")
    rows, facts = open_source(config)
    columns = [config.image_column, *([config.label_column] if config.label_column else [])]
    splits, stream = split_source(config, rows, columns, partial(_require_images, config=config))
    label = splits["train"].features.get(config.label_column)
    return FlowData(
        name=Path(config.path).name,
        splits=splits,
        event_shape=(config.channels, config.resolution, config.resolution),
        normalisation=Normalisation(127.5, 127.5),
        sample_column=config.image_column,
        decode=partial(prepare_image, size=(config.resolution, config.resolution), channels=config.channels),
        condition_columns={"class_labels": config.label_column} if config.label_column else {},
        is_image=True,
        label_names=list(label.names) if isinstance(label, ClassLabel) else [],
        facts={**facts, **config.facts, "value_range": [0.0, 255.0]},
        stream=stream,
    )


def _require_images(rows: Dataset, numbers: Sequence[int], config: ImagesConfig) -> Dataset:
    """The rows as they are; they are decoded later."""
    kind = rows.features[config.image_column]
    if not isinstance(kind, Image):
        raise ValueError(f"column {config.image_column!r} of {config.path} holds {kind}, not images.")
    return rows
