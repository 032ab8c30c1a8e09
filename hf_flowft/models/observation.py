"""What a policy sees: camera images as vectors, by residual networks without batch statistics.

The networks are transformers' ResNet-18 with random weights, and two changes a policy needs:

- every BatchNorm is a GroupNorm of 16 channels a group. Statistics of the batch differ between training and control, between the
  weights and their moving average, and between processes; those of a single image do not.
- the average over the picture at the end is a spatial softmax (Finn et al. 2016; Levine et al. 2016): the mean position, in [-1, 1],
  of each of 32 learned feature maps read as a density. An average says what is in the picture; control needs to know where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

IMAGE_PREFIX = "image_"
"""The keyword argument of a camera is this and its name."""
KEYPOINTS = 32


class Recomputing:
    """A mixin of modules that run their parts plainly or, after diffusers' `enable_gradient_checkpointing`, recompute them in the backward pass."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def run(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        """part(*inputs)."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(part, *inputs)
        return part(*inputs)


class ImageEncoder(Recomputing, nn.Module):
    """uint8 pictures of one camera -> positions of its keypoints, each picture on its own.

    Args: `channels`: of a picture; `widths`: channels of the ResNet's stages, each halving the picture after the first (the stem
    makes a quarter of it); two basic blocks a stage.  Raises: ValueError for widths that do not divide into groups of 16.
    """

    def __init__(self, channels: int, widths: Sequence[int]):
        super().__init__()
        net = _resnet(channels, widths)
        self.stem, self.stages = net.embedder, net.encoder.stages
        self.keypoints = nn.Conv2d(widths[-1], KEYPOINTS, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """(n, channels, height, width) uint8 -> (n, 2 KEYPOINTS), in the dtype of the parameters."""
        x = frames.to(self.keypoints.weight.dtype) / 127.5 - 1
        for part in (self.stem, *self.stages):
            x = self.run(part, x)
        return spatial_softmax(self.keypoints(x))


class ObservationEncoder(nn.Module):
    """The images of several cameras over the observation window -> one vector.

    Args: `images`: camera -> [observation_horizon, channels, height, width]; `widths`: see `ImageEncoder`; `shared`: one encoder for
    all cameras instead of one each.  Raises: ValueError for another number of axes, or shared weights over different channels.
    """

    def __init__(self, images: Mapping[str, Sequence[int]], widths: Sequence[int], shared: bool = False):
        super().__init__()
        self.shapes = {name: tuple(images[name]) for name in sorted(images)}  # saved configs are sorted by name
        for name, shape in self.shapes.items():
            if len(shape) != 4 or min(shape) < 1:
                raise ValueError(
                    f"images gives each camera as [observation_horizon, channels, height, width], got {name}: {list(shape)}."
                )
        channels = [shape[1] for shape in self.shapes.values()]
        if shared and len(set(channels)) > 1:
            raise ValueError(
                f"cameras of {sorted(set(channels))} channels cannot share an encoder; set share_image_encoder to false."
            )
        self.encoders = nn.ModuleList(ImageEncoder(c, widths) for c in (channels[:1] if shared else channels))

    @property
    def size(self) -> int:
        """The length of the vector: two coordinates a keypoint, picture and camera."""
        return sum(2 * KEYPOINTS * shape[0] for shape in self.shapes.values())

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """`images`: `image_<camera>` -> (batch, observation_horizon, channels, height, width) uint8.  Returns: (batch, size)."""
        parts = []
        for i, name in enumerate(self.shapes):
            frames = images[IMAGE_PREFIX + name]
            encoder = self.encoders[min(i, len(self.encoders) - 1)]
            parts.append(encoder(frames.flatten(0, 1)).reshape(frames.shape[0], -1))
        return torch.cat(parts, dim=1)

    def check(self, images: Mapping[str, Tensor], batch: int) -> None:
        """Raises: ValueError for a camera too few, or images of another shape or of fractions."""
        for name, shape in self.shapes.items():
            key = IMAGE_PREFIX + name
            if images.get(key) is None:
                raise ValueError(f"this model sees the camera {name!r}, so {key} must be given.")
            image = images[key]
            if image.shape != (batch, *shape):
                raise ValueError(f"{key} must have shape {(batch, *shape)}, got {tuple(image.shape)}.")
            if image.is_floating_point():
                raise ValueError(
                    f"{key} must hold grey levels 0 to 255 as uint8, got {image.dtype}; the model scales them."
                )


def spatial_softmax(maps: Tensor) -> Tensor:
    """The mean position under softmax(map), x and y in [-1, 1] at the centres of the pixels: (n, k, height, width) -> (n, 2 k)."""
    height, width = maps.shape[2:]
    density = maps.flatten(2).softmax(dim=2).reshape(maps.shape)
    x = (density.sum(dim=2) * _centres(width, maps)).sum(dim=2)
    y = (density.sum(dim=3) * _centres(height, maps)).sum(dim=2)
    return torch.cat([x, y], dim=1)


def _centres(size: int, like: Tensor) -> Tensor:
    """(2 i + 1) / size - 1."""
    return ((2 * torch.arange(size, device=like.device) + 1) / size - 1).to(like.dtype)


def _resnet(channels: int, widths: Sequence[int]) -> Any:
    """transformers' ResNet with basic blocks, random weights, and GroupNorm."""
    from transformers import ResNetConfig, ResNetModel

    bad = [width for width in widths if width < 1 or (width >= 32 and width % 16)]
    if bad or not widths:
        raise ValueError(f"image_widths must be multiples of 16, or less than 32: got {list(widths)}.")
    net = ResNetModel(
        ResNetConfig(
            num_channels=channels,
            embedding_size=widths[0],
            hidden_sizes=list(widths),
            depths=[2] * len(widths),
            layer_type="basic",
        )
    )
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(max(child.num_features // 16, 1), child.num_features))
    return net
