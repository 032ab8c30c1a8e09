"""Images of several sizes in one table: each in the bucket next to its aspect ratio, on a canvas that holds them all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, Image
from torch import Tensor
from torch.nn import functional

from .reading import UNREADABLE

MAX_RATIO = 2.0
"""Of the longer side to the shorter."""


@dataclass(frozen=True)
class Buckets:
    """Sizes (height, width), the square one first.  A row of a size lies in the upper left of the canvas; the rest of it is padding."""

    sizes: tuple[tuple[int, int], ...]

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width that hold every size."""
        return max(h for h, _ in self.sizes), max(w for _, w in self.sizes)

    def nearest(self, height: int, width: int) -> int:
        """The number of the bucket whose aspect ratio is nearest, on a logarithmic scale."""
        wanted = math.log(height / width)
        return min(range(len(self.sizes)), key=lambda i: abs(math.log(self.sizes[i][0] / self.sizes[i][1]) - wanted))

    def reduced(self, factor: int) -> Buckets:
        """The same sizes in units `factor` times larger (pixels -> latent pixels)."""
        return Buckets(tuple((h // factor, w // factor) for h, w in self.sizes))

    def crops(self, x: Tensor, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
        """For each bucket that occurs: which rows of `x` (n, channels, *canvas) are in it, those rows without padding, and their size."""
        for number in numbers.unique().tolist():
            rows = (numbers == number).nonzero().flatten()
            height, width = self.sizes[number]
            yield rows, x[rows][..., :height, :width], (height, width)

    def pad(self, x: Tensor) -> Tensor:
        """(..., height, width) on the canvas, with zeros around it."""
        return _padded(x, self.canvas, 0.0)


def on_white(images: Sequence[Tensor]) -> Tensor:
    """Images (channels, height, width) of several sizes in one tensor, each in the upper left."""
    size = max(image.shape[-2] for image in images), max(image.shape[-1] for image in images)
    return torch.stack([_padded(image, size, 1.0) for image in images])


def _padded(x: Tensor, size: tuple[int, int], value: float) -> Tensor:
    return functional.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]), value=value)


def buckets_of(resolution: int, step: int) -> Buckets:
    """All sizes in multiples of `step` that fill an area of at most resolution^2 and are at most twice as long as wide.

    Raises: ValueError for a resolution that is no multiple of the step.
    """
    if step < 1 or resolution % step:
        raise ValueError(
            f"data.bucket_step must divide data.resolution {resolution} (for 512: 64), got {step}; 0 crops every image to a square."
        )
    found = {(resolution, resolution)}
    for short in range(step, resolution, step):
        long = resolution * resolution // short // step * step
        if long <= MAX_RATIO * short:
            found |= {(short, long), (long, short)}
    return Buckets(tuple(sorted(found, key=lambda size: (size[0] != size[1], size))))


def bucket_numbers(rows: Dataset, column: str, buckets: Buckets) -> list[int]:
    """The bucket of every image of a column; found once and kept in the cache of `datasets`."""
    stored = rows.select_columns([column]).cast_column(column, Image(decode=False))
    options = {"column": column, "buckets": buckets}
    numbered = stored.map(_numbers, batched=True, batch_size=16, remove_columns=[column], fn_kwargs=options)
    return numbered["bucket"][:]


def _numbers(batch: dict[str, list[Any]], column: str, buckets: Buckets) -> dict[str, list[int]]:
    return {"bucket": [_number(image, buckets) for image in batch[column]]}


def _number(stored: Any, buckets: Buckets) -> int:
    try:
        image = Image().decode_example(stored)
    except UNREADABLE:
        image = None
    if image is None:
        return 0  # missing or unreadable: whoever reads the row says which it is
    return buckets.nearest(image.height, image.width)  # as it is shown: turned by what a camera has noted
