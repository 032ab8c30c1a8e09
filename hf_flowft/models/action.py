"""What the action models share: one way for time, label, states and images to reach a network of action chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from .observation import IMAGE_PREFIX, ObservationEncoder, Recomputing
from .output import FlowModelOutput, check_inputs
from .saved import SafeModelMixin


class ActionModel(Recomputing, SafeModelMixin, ConfigMixin):
    """A velocity of action chunks (horizon, action_dim) under an observation, in diffusers' convention: output = noise - data.

    A subclass has the config options `event_shape`, `num_classes`, `condition_dim` and `images`, calls `_observe` when it is built, and
    says in `_velocity` what it makes of a chunk and an embedding.
    """

    _supports_gradient_checkpointing = True

    def _observe(
        self,
        size: int,
        event_shape: Sequence[int],
        num_classes: int,
        condition_dim: int,
        images: Mapping[str, Sequence[int]] | None,
        image_widths: Sequence[int],
        share_image_encoder: bool,
    ) -> None:
        """Build the embedding of `size` and what it needs.  Raises: ValueError for event shapes or images that are none."""
        if len(event_shape) != 2 or min(event_shape) < 1:
            raise ValueError(f"event_shape must be [horizon, action_dim], got {list(event_shape)}.")
        self.cameras = ObservationEncoder(images, image_widths, share_image_encoder) if images else None
        observed = condition_dim + (self.cameras.size if images else 0)
        self.embed_time = _perceptron(64, size)
        self.embed_label = nn.Embedding(num_classes + 1, size) if num_classes else None
        self.embed_observation = _perceptron(observed, size) if observed else None

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        condition: Tensor | None = None,
        return_dict: bool = True,
        *,
        image_features: Tensor | None = None,
        **images: Tensor,
    ) -> FlowModelOutput | tuple[Tensor]:
        """Args: `sample`: (batch, horizon, action_dim); `timestep`: number or (batch,) in [0, 1000]; `class_labels`: (batch,) int64;
        `condition`: (batch, condition_dim); `image_<camera>`: (batch, observation_horizon, channels, height, width) uint8, or in their
        place `image_features`, what `encode_images` made of them: a solver need not look at the same images at every step.
        Raises: ValueError for a sample of another shape, or a condition that is missing, unknown or of another shape.
        """
        check_inputs(self.config, sample, class_labels, condition)
        self._check_images(sample, image_features, images)
        if self.cameras is not None and image_features is None:
            image_features = self.cameras(images)
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(sample.shape[0])
        embedding = self.embed_time(get_timestep_embedding(timestep, 64).to(sample.dtype))
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(class_labels)
        observed = [x.to(sample.dtype) for x in (condition, image_features) if x is not None]
        if observed:
            embedding = embedding + self.embed_observation(torch.cat(observed, dim=1))
        out = self._velocity(sample, nn.functional.silu(embedding))
        return FlowModelOutput(sample=out) if return_dict else (out,)

    def encode_images(self, **images: Tensor) -> Tensor:
        """The images `image_<camera>` of all cameras, each as in `forward`, as `image_features`: (batch, features).

        Raises: ValueError as `forward`, and when this model sees no images.
        """
        if self.cameras is None:
            raise ValueError("this model sees no images; its config option images is empty.")
        self._check_cameras(images)
        self.cameras.check(images, len(next(iter(images.values()), ())))
        return self.cameras(images)

    def _velocity(self, sample: Tensor, embedding: Tensor) -> Tensor:
        """noise - data: `sample`: (batch, horizon, action_dim), `embedding`: (batch, size) -> the shape of `sample`."""
        raise NotImplementedError

    def _check_images(self, sample: Tensor, features: Tensor | None, images: Mapping[str, Any]) -> None:
        self._check_cameras(images)
        if features is not None:
            wanted = (len(sample), self.cameras.size) if self.cameras is not None else None
            if images or features.shape != wanted:
                raise ValueError(
                    f"image_features must be what encode_images returns, {wanted or 'nothing for a model without images'}, in place "
                    f"of the images: got {tuple(features.shape)} and {sorted(images) or 'no images'}."
                )
        elif self.cameras is not None:
            self.cameras.check(images, len(sample))

    def _check_cameras(self, images: Mapping[str, Any]) -> None:
        known = [IMAGE_PREFIX + name for name in self.cameras.shapes] if self.cameras is not None else []
        for key in images:
            if key not in known:
                raise ValueError(f"this model takes no condition {key!r}; its images are {', '.join(known) or 'none'}.")


def _perceptron(size_in: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size_in, size), nn.SiLU(), nn.Linear(size, size))
