"""Images with captions, from a folder with metadata.jsonl, a file or the Hub: what text-to-image models are fine-tuned on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image as PILImage

from .buckets import Buckets, bucket_numbers, buckets_of
from .flow_data import FlowData
from .images import ImagesConfig, load_images, prepare_image

OF_ALL = "prompt of all"
"""The column of the one prompt."""
BUCKET = "bucket of the size"
"""The column of the numbers of buckets."""


@dataclass(frozen=True, kw_only=True)
class CaptionedConfig(ImagesConfig):
    """Images and what they show in words: encoded once by the model's own encoders, then read as latents."""

    caption_column: str = "text"
    """The column of the captions (in a folder of images: a key of its metadata.jsonl)."""
    prompt: str = ""
    """One prompt for all images, in the place of captions ("a photo of sks dog")."""
    resolution: int = 512
    """Height and width; images are resized on the shorter side and cropped in the centre."""
    bucket_step: int = 0
    """Keep about the aspect ratio of each image: its size is the nearest of those in multiples of so many pixels (64, say) whose area is at most
    resolution^2. 0: every image is a square."""
    base_prompts: str = ""
    """A text file of prompts, one a line, by which the base is to be kept (replay); empty for a general list that comes with the package."""

    base_samples: int = 16
    """Samples of the base on which forgetting is measured, in validation and in test, under prompts that replay does not use where there are at least
    four; 0 measures none. Where base_labels name images of the base's own, those are taken instead."""
    base_pipeline: str = ""
    """The pipeline these samples are drawn from, for a model that goes on from a fine-tuned one; empty for the pipeline at model.path, without any
    adapter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming:
            raise ValueError("captioned data are encoded once and kept: set data.streaming to false.")
        if self.bucket_step:
            buckets_of(self.resolution, self.bucket_step)
        if self.base_samples < 0:
            raise ValueError(f"data.base_samples must be >= 0, got {self.base_samples}.")
        if self.channels != 3:
            raise ValueError(f"text-to-image models make colour images: data.channels must be 3, got {self.channels}.")


def load_captioned(config: CaptionedConfig) -> FlowData:
    """The images in [-1, 1], their captions in a column of text; labels only choose among the rows.

    Raises: ValueError as `load_images`, for a missing caption column, or prompts that cannot be read.
    """
    images = load_images(config)
    splits = {name: _with_prompt(rows, config.prompt) for name, rows in images.splits.items()}
    column = OF_ALL if config.prompt else config.caption_column
    if column not in splits["train"].column_names:
        raise ValueError(
            f"{config.path} has no column {column!r} of captions; its columns are {', '.join(splits['train'].column_names)}: choose one as "
            "data.caption_column, give data.prompt, one prompt for all images, or write captions into metadata.jsonl."
        )
    sized = (
        _sized(images, splits, config) if config.bucket_step else replace(images, splits=splits, condition_columns={})
    )
    return replace(
        sized,
        label_names=[],
        caption_column=column,
        base_prompts=read_prompts(config.base_prompts),
        base_samples=0 if "base_test" in splits else config.base_samples,
        base_pipeline=config.base_pipeline,
        facts={**images.facts, **({"prompt": config.prompt} if config.prompt else {})},
    )


def _sized(images: FlowData, splits: dict[str, Dataset], config: CaptionedConfig) -> FlowData:
    """The data with images of several sizes on one canvas, and in the condition `size` the number of each one's bucket."""
    buckets = buckets_of(config.resolution, config.bucket_step)
    numbers = {name: bucket_numbers(rows, images.sample_column, buckets) for name, rows in splits.items()}
    return replace(
        images,
        splits={name: rows.add_column(BUCKET, numbers[name]) for name, rows in splits.items()},
        event_shape=(config.channels, *buckets.canvas),
        decode=partial(_on_canvas, buckets=buckets, channels=config.channels),
        condition_columns={"size": BUCKET},
        buckets=buckets,
    )


def _on_canvas(image: PILImage.Image, buckets: Buckets, channels: int) -> np.ndarray:
    """(channels, *canvas) uint8: the image in the size of its bucket, in the upper left."""
    pixels = prepare_image(image, buckets.sizes[buckets.nearest(image.height, image.width)], channels)
    canvas = np.zeros((channels, *buckets.canvas), np.uint8)
    canvas[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return canvas


def _with_prompt(rows: Dataset, prompt: str) -> Dataset:
    return rows.add_column(OF_ALL, [prompt] * len(rows)) if prompt else rows


def read_prompts(path: str) -> list[str]:
    """The prompts in a text file, one a line, without empty ones; the list that comes with the package where no file is named.

    Raises: ValueError when the file cannot be read or holds none.
    """
    file = Path(path) if path else Path(__file__).with_name("prompts.txt")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the prompts {path}: {error}.") from error
    prompts = list(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one a line.")
    return prompts
