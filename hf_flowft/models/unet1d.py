"""A U-Net over the horizon of an action chunk (after Diffusion Policy, arXiv 2303.04137)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from .action import ActionModel
from .heads import zero_linear


class _ResidualBlock(nn.Module):
    """skip(x) + conv(SiLU(scale norm(conv(SiLU(norm(x)))) + shift)), scale and shift of each channel from the embedding, 1 and 0 at the start."""

    def __init__(self, size_in: int, size: int, kernel_size: int, groups: int, embedding_dim: int):
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, size_in)
        self.conv_in = nn.Conv1d(size_in, size, kernel_size, padding=kernel_size // 2)
        self.film = zero_linear(embedding_dim, 2 * size)
        self.norm_out = nn.GroupNorm(groups, size, affine=False)
        self.conv_out = nn.Conv1d(size, size, kernel_size, padding=kernel_size // 2)
        self.skip = nn.Conv1d(size_in, size, 1) if size_in != size else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x`: (batch, size_in, horizon); `embedding`: (batch, embedding_dim) -> (batch, size, horizon)."""
        hidden = self.conv_in(functional.silu(self.norm_in(x)))
        scale, shift = self.film(embedding)[:, :, None].chunk(2, dim=1)
        hidden = self.conv_out(functional.silu(torch.addcmul(shift, self.norm_out(hidden), 1 + scale)))
        return self.skip(x) + hidden


class _Stage(nn.Module):
    """The two residual blocks of one resolution."""

    def __init__(self, size_in: int, size: int, *options: int):
        super().__init__()
        self.first = _ResidualBlock(size_in, size, *options)
        self.second = _ResidualBlock(size, size, *options)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x`: (batch, size_in, horizon); `embedding`: (batch, embedding_dim) -> (batch, size, horizon)."""
        return self.second(self.first(x, embedding), embedding)


class ConditionalUNet1D(ActionModel):
    """Temporal convolutions at several resolutions of the horizon: `forward(sample, timestep, class_labels, condition).sample` = noise - data.

    Two residual blocks at each resolution on the way down, at the bottom and on the way up, the horizon halved between them; the
    observation and the time modulate every block (FiLM, Perez et al. 2018). The last layer starts at zero, so the first velocity is 0.
    With the defaults, event_shape=[16, 2] and condition_dim=36 it has 3,005,378 parameters; an `images` encoder of the default widths
    adds 11.2 million a camera.

    Args:
        event_shape: [horizon, action_dim].
        channels: at each resolution, multiples of `groups`; the horizon must be a multiple of 2 ** (len(channels) - 1).
        kernel_size: steps a convolution sees, odd.
        groups: of the group normalisation.
        embedding_dim: width of the embedding of time and observation.
        num_classes: task labels 0 .. num_classes - 1; the extra label `num_classes` means "no label" (for classifier-free guidance).
        condition_dim: size of the vector of state observations; 0 for none.
        images: camera -> [observation_horizon, channels, height, width], each a keyword argument `image_<camera>`; None for states only.
        image_widths: channels of the stages of the image encoder (ResNet-18).
        share_image_encoder: one encoder for all cameras instead of one each.
    """

    _no_split_modules = ["_ResidualBlock"]

    @register_to_config
    def __init__(
        self,
        event_shape: list[int],
        channels: Sequence[int] = (64, 128, 256),
        kernel_size: int = 5,
        groups: int = 8,
        embedding_dim: int = 128,
        num_classes: int = 0,
        condition_dim: int = 0,
        images: dict[str, list[int]] | None = None,
        image_widths: Sequence[int] = (64, 128, 256, 512),
        share_image_encoder: bool = False,
    ):
        super().__init__()
        self._observe(embedding_dim, event_shape, num_classes, condition_dim, images, image_widths, share_image_encoder)
        _check_sizes(event_shape[0], channels, kernel_size, groups)
        upper = range(len(channels) - 1)
        above = [channels[0], *channels]
        options = (kernel_size, groups, embedding_dim)
        self.input = nn.Conv1d(event_shape[1], channels[0], kernel_size, padding=kernel_size // 2)
        self.down = nn.ModuleList(_Stage(above[i], channels[i], *options) for i in upper)
        self.downsample = nn.ModuleList(nn.Conv1d(channels[i], channels[i], 3, stride=2, padding=1) for i in upper)
        self.bottom = _Stage(above[-2], channels[-1], *options)
        self.upsample = nn.ModuleList(
            nn.ConvTranspose1d(channels[i + 1], channels[i + 1], 4, stride=2, padding=1) for i in reversed(upper)
        )
        self.up = nn.ModuleList(_Stage(channels[i + 1] + channels[i], channels[i], *options) for i in reversed(upper))
        self.norm = nn.GroupNorm(groups, channels[0])
        self.output = nn.Conv1d(channels[0], event_shape[1], 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def _velocity(self, sample: Tensor, embedding: Tensor) -> Tensor:
        x, kept = self.input(sample.transpose(1, 2)), []
        for stage, downsample in zip(self.down, self.downsample, strict=True):
            x = self.run(stage, x, embedding)
            kept.append(x)
            x = downsample(x)
        x = self.run(self.bottom, x, embedding)
        for upsample, stage in zip(self.upsample, self.up, strict=True):
            x = self.run(stage, torch.cat([upsample(x), kept.pop()], dim=1), embedding)
        return self.output(functional.silu(self.norm(x))).transpose(1, 2).contiguous()


def _check_sizes(horizon: int, channels: Sequence[int], kernel_size: int, groups: int) -> None:
    if not channels or groups < 1 or any(size < 1 or size % groups for size in channels):
        raise ValueError(f"channels must be multiples of groups = {groups}, at least one: got {list(channels)}.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
    halvings = len(channels) - 1
    if horizon % 2**halvings:
        raise ValueError(
            f"a horizon of {horizon} cannot be halved {halvings} times: choose a multiple of {2**halvings}, or fewer channels."
        )
