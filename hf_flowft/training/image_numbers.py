"""What networks say of the images a model draws: their distance to held-out ones, and whether they show what their captions say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import Batch
from ..data import FlowData
from ..metrics.distances import kid
from ..metrics.image_features import CLIPScore, ImageFeatures
from .settings import EvalConfig

DIRECTIONS = {"kid": "lower", "clip": "higher"}


class ImageNumbers:
    """(samples, held out) -> `kid`: kernel distance of EfficientNet features to the held-out images; `clip`: CLIP score of images and captions.

    Args: `config`: says which; `data`: images, or latents with captions.  Raises: ValueError for data that are no images, or have no captions.
    """

    def __init__(self, config: EvalConfig, data: FlowData, device: torch.device | str = "cpu"):
        if not data.is_image:
            raise ValueError(f"kid and eval.clip are for images, but {data.name!r} holds none.")
        if config.clip and not data.prompts:
            raise ValueError(f"eval.clip compares images with their captions, but {data.name!r} has none.")
        self.data = data
        self.features = ImageFeatures(device, config.batch_size) if config.measures_kid else None
        self.score = CLIPScore(config.clip, device, config.batch_size) if config.clip else None
        self._seen: dict[int, Tensor] = {}

    def __call__(self, samples: Tensor, held_out: Batch) -> dict[str, float]:
        """`samples`: one for each held-out row, in model units."""
        images, numbers = self.data.images(samples, held_out.condition), {}
        if self.features is not None:
            numbers["kid"] = self._kid(images, held_out)
        if self.score is not None:
            captions = [self.data.prompts[number] for number in held_out.condition["prompt"].tolist()]
            numbers["clip"] = float(self.score(images, captions).mean())
        return numbers

    def kid(self, samples: Tensor, held_out: Batch) -> float:
        """The kernel distance alone, which selects models."""
        return self._kid(self.data.images(samples, held_out.condition), held_out)

    def _kid(self, images: Sequence[Tensor], held_out: Batch) -> float:
        truth = self._seen.get(id(held_out))
        if truth is None:  # a split is judged often, and stays the same object
            truth = self._seen[id(held_out)] = self.features(self.data.images(held_out.x_1, held_out.condition))
        return kid(self.features(images), truth)
