"""A transformer over the steps of an action chunk, modulated by time and observation (after DiT, Peebles & Xie 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .action import ActionModel
from .heads import zero_linear


class _Attention(nn.Module):
    """Every step attends to every step.

    Written out: a chunk is short, and torch's fused kernels have no second derivative (likelihoods, Jacobians).
    """

    def __init__(self, size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.project_in = nn.Linear(size, 3 * size)
        self.project_out = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, horizon, size) -> (batch, horizon, size)."""
        batch, horizon, size = x.shape
        heads = self.project_in(x).reshape(batch, horizon, 3, self.num_heads, size // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.project_out((weights @ v).transpose(1, 2).reshape(x.shape))


class _Block(nn.Module):
    """x + gate f(scale LayerNorm(x) + shift) for f = attention, then for f = MLP; the gates start at zero and the block as the identity."""

    def __init__(self, size: int, num_heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(size, elementwise_affine=False)
        self.modulation = zero_linear(size, 6 * size)
        self.attention = _Attention(size, num_heads)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x`: (batch, horizon, size); `embedding`: (batch, size) -> (batch, horizon, size)."""
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = self.modulation(embedding)[:, None].chunk(6, dim=2)
        x = x + gate_a * self.attention(torch.addcmul(shift_a, self.norm(x), 1 + scale_a))
        return x + gate_m * self.mlp(torch.addcmul(shift_m, self.norm(x), 1 + scale_m))


class ActionTransformer(ActionModel):
    """The steps of a chunk as tokens: `forward(sample, timestep, class_labels, condition).sample` = noise - data.

    Time and observation enter by adaptive layer normalisation (adaLN-Zero) in every block. The last layer starts at zero, so the first
    velocity is 0. With the defaults, event_shape=[16, 2] and condition_dim=36 it has 1,269,122 parameters; an `images` encoder of the
    default widths adds 11.2 million a camera.

    Args:
        event_shape: [horizon, action_dim].
        hidden_dim: width of the tokens and of the embedding of time and observation, a multiple of `num_heads`.
        num_layers: blocks of attention and MLP.
        num_heads: of the attention.
        num_classes: task labels 0 .. num_classes - 1; the extra label `num_classes` means "no label" (for classifier-free guidance).
        condition_dim: size of the vector of state observations; 0 for none.
        images: camera -> [observation_horizon, channels, height, width], each a keyword argument `image_<camera>`; None for states only.
        image_widths: channels of the stages of the image encoder (ResNet-18).
        share_image_encoder: one encoder for all cameras instead of one each.
    """

    _no_split_modules = ["_Block"]

    @register_to_config
    def __init__(
        self,
        event_shape: list[int],
        hidden_dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        num_classes: int = 0,
        condition_dim: int = 0,
        images: dict[str, list[int]] | None = None,
        image_widths: Sequence[int] = (64, 128, 256, 512),
        share_image_encoder: bool = False,
    ):
        super().__init__()
        for name, number in (("hidden_dim", hidden_dim), ("num_layers", num_layers), ("num_heads", num_heads)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim must be a multiple of num_heads = {num_heads}, got {hidden_dim}.")
        self._observe(hidden_dim, event_shape, num_classes, condition_dim, images, image_widths, share_image_encoder)
        self.input = nn.Linear(event_shape[1], hidden_dim)
        self.positions = nn.Parameter(0.02 * torch.randn(event_shape[0], hidden_dim))
        self.blocks = nn.ModuleList(_Block(hidden_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_dim, elementwise_affine=False)
        self.modulation = zero_linear(hidden_dim, 2 * hidden_dim)
        self.output = zero_linear(hidden_dim, event_shape[1])

    def _velocity(self, sample: Tensor, embedding: Tensor) -> Tensor:
        x = self.input(sample) + self.positions
        for block in self.blocks:
            x = self.run(block, x, embedding)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=2)
        return self.output(torch.addcmul(shift, self.norm(x), 1 + scale))
