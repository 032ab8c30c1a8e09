"""A small U-Net for labelled images, with batch normalisation that stays as it was found: the network of a class-conditional MNIST flow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from ..conventions import sigma_from_timestep, t_from_sigma
from .output import FlowModelOutput, check_inputs
from .saved import SafeModelMixin


class _FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the kept statistics, in training too: those of a fine-tuning batch would change the base before its first step."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class _FourierEmbedding(nn.Module):
    """t -> sqrt(2) [sin 2 pi w t, cos 2 pi w t], with learned frequencies w."""

    def __init__(self, size: int):
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(1, size // 2))

    def forward(self, t: Tensor) -> Tensor:
        angles = 2 * math.pi * t[:, None] * self.frequencies.float()  # in float32: half precision would blur the time
        return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1).to(self.frequencies.dtype)


class _Block(nn.Module):
    """x + conv(conv(x) + time + label)."""

    def __init__(self, channels: int, time_dim: int, label_dim: int):
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.SiLU(), _FrozenBatchNorm(channels), nn.Conv2d(channels, channels, 3, padding=1))
            for _ in range(2)
        )
        self.time, self.label = (
            nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, channels)) for size in (time_dim, label_dim)
        )

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        hidden = self.first(x) + (self.time(time) + self.label(label))[:, :, None, None]
        return x + self.second(hidden)


class _Stage(nn.Module):
    """Residual blocks of one resolution, and a change of the resolution before or after them."""

    def __init__(self, channels: int, options: tuple[int, int, int], enter: nn.Module, leave: nn.Module):
        super().__init__()
        number, time_dim, label_dim = options
        self.enter, self.leave = enter, leave
        self.blocks = nn.ModuleList(_Block(channels, time_dim, label_dim) for _ in range(number))

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, time, label)
        return self.leave(x)


class FourierUNet2DModel(SafeModelMixin, ConfigMixin):
    """A U-Net velocity in diffusers' convention: `forward(sample, timestep, class_labels).sample` = noise - data.

    Its batch normalisation keeps the statistics it was saved with and is not trained by them: it is made for going on from a trained network.

    Args:
        event_shape: (channels, height, width), both sizes divisible by 2 once for every width after the first.
        channels: widths, from the full resolution down.
        layers_per_block: residual blocks of a resolution.
        time_dim: of the learned Fourier embedding of the time; even.
        label_dim: of the embedding of the label.
        num_classes: labels 0 .. num_classes - 1; the extra label `num_classes` means "no label" (for classifier-free guidance).
    """

    @register_to_config
    def __init__(
        self,
        event_shape: list[int],
        channels: Sequence[int] = (16, 32, 64),
        layers_per_block: int = 2,
        time_dim: int = 40,
        label_dim: int = 8,
        num_classes: int = 10,
    ):
        super().__init__()
        if not channels or min(*channels, layers_per_block, label_dim, num_classes) < 1:
            raise ValueError(
                f"channels, layers_per_block, label_dim and num_classes must be positive, got {list(channels)}, {layers_per_block}, {label_dim} and "
                f"{num_classes}."
            )
        scale = 2 ** (len(channels) - 1)
        if len(event_shape) != 3 or event_shape[1] % scale or event_shape[2] % scale:
            raise ValueError(
                f"event_shape must be (channels, height, width) with sizes divisible by {scale} for {len(channels)} widths, got {list(event_shape)}."
            )
        if time_dim < 2 or time_dim % 2:
            raise ValueError(f"time_dim must be even, half of it sines and half cosines; got {time_dim}.")
        options = (layers_per_block, time_dim, label_dim)
        self.embed_time = _FourierEmbedding(time_dim)
        self.embed_label = nn.Embedding(num_classes + 1, label_dim)
        self.input = nn.Sequential(
            nn.Conv2d(event_shape[0], channels[0], 3, padding=1), _FrozenBatchNorm(channels[0]), nn.SiLU()
        )
        steps = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(
            _Stage(fine, options, nn.Identity(), nn.Conv2d(fine, coarse, 3, stride=2, padding=1))
            for fine, coarse in steps
        )
        self.middle = _Stage(channels[-1], options, nn.Identity(), nn.Identity())
        self.up = nn.ModuleList(
            _Stage(
                fine,
                options,
                nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(coarse, fine, 3, padding=1)),
                nn.Identity(),
            )
            for fine, coarse in reversed(steps)
        )
        self.output = nn.Conv2d(channels[0], event_shape[0], 3, padding=1)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> FlowModelOutput | tuple[Tensor]:
        """Args: `sample`: (batch, *event_shape); `timestep`: number or (batch,) in [0, 1000]; `class_labels`: (batch,) int64.

        Raises: ValueError for a sample of another shape, or missing labels.
        """
        check_inputs(self.config, sample, class_labels, None)
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        time = self.embed_time(t_from_sigma(sigma_from_timestep(timestep)))
        label = self.embed_label(class_labels)
        x, skipped = self.input(sample), []
        for stage in self.down:
            x = stage(x, time, label)
            skipped.append(x)
        x = self.middle(x, time, label)
        for stage in self.up:
            x = stage(x + skipped.pop(), time, label)
        v = self.output(x)
        return FlowModelOutput(sample=v) if return_dict else (v,)
