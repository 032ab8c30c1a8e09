"""A velocity network for vectors and small images: an MLP conditioned on time, labels and vectors."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from ..conventions import sigma_from_timestep, t_from_sigma
from .output import FlowModelOutput, check_inputs
from .saved import SafeModelMixin

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class _FiLMBlock(nn.Module):
    """x + MLP(scale LayerNorm(x) + shift), scale and shift from the embedding (Perez et al. 2018); the identity at the start."""

    def __init__(self, width: int, activation: str):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.inner = nn.Linear(width, width)
        self.activation = ACTIVATIONS[activation]()
        self.outer = nn.Linear(width, width)
        for layer in (self.film, self.outer):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding).chunk(2, dim=1)
        return x + self.outer(self.activation(self.inner(torch.addcmul(shift, self.norm(x), 1 + scale))))


class VelocityMLP(SafeModelMixin, ConfigMixin):
    """An MLP velocity in diffusers' convention: `forward(sample, timestep, class_labels, condition).sample` = noise - data.

    Args:
        event_shape: shape of one sample, e.g. [2] or [1, 8, 8]; it is flattened inside.
        hidden_dim: width of the layers.
        num_layers: residual FiLM blocks (`time="film"`), or hidden layers (`time="concat"`).
        time: `film`: a sinusoidal embedding of the time, with labels and conditions added, modulates residual blocks; `concat`: a plain MLP
            on [x, t, condition] (the toy network of arXiv 2510.02081).
        activation: relu, silu, gelu or tanh.
        num_classes: labels 0 .. num_classes - 1; the extra label `num_classes` means "no label" (for classifier-free guidance).
        condition_dim: size of an optional vector condition.
    """

    @register_to_config
    def __init__(
        self,
        event_shape: list[int],
        hidden_dim: int = 256,
        num_layers: int = 3,
        time: Literal["film", "concat"] = "film",
        activation: str = "silu",
        num_classes: int = 0,
        condition_dim: int = 0,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}.")
        if time not in ("film", "concat"):
            raise ValueError(f"unknown time {time!r}; choose film or concat.")
        if num_layers < 1 or hidden_dim < 1:
            raise ValueError(f"num_layers and hidden_dim must be at least 1, got {num_layers} and {hidden_dim}.")
        if time == "concat" and num_classes:
            raise ValueError("labels need time='film'; a 'concat' network takes vector conditions only.")
        size = math.prod(event_shape)
        if time == "concat":
            widths = [size + 1 + condition_dim, *[hidden_dim] * num_layers]
            layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), ACTIVATIONS[activation]())]
            self.net = nn.Sequential(*layers, nn.Linear(hidden_dim, size))
            return
        self.embed_time = nn.Sequential(nn.Linear(64, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim))
        self.embed_label = nn.Embedding(num_classes + 1, hidden_dim) if num_classes else None
        self.embed_condition = nn.Linear(condition_dim, hidden_dim) if condition_dim else None
        self.input = nn.Linear(size, hidden_dim)
        self.blocks = nn.ModuleList(_FiLMBlock(hidden_dim, activation) for _ in range(num_layers))
        self.output = nn.Linear(hidden_dim, size)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        condition: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowModelOutput | tuple[Tensor]:
        """Args: `sample`: (batch, *event_shape); `timestep`: number or (batch,) in [0, 1000]; `class_labels`: (batch,) int64;
        `condition`: (batch, condition_dim).  Raises: ValueError for a sample or condition of another shape, or a missing or unknown condition.
        """
        check_inputs(self.config, sample, class_labels, condition)
        x = sample.flatten(1)
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=x.device).expand(x.shape[0])
        if self.config.time == "concat":
            t = t_from_sigma(sigma_from_timestep(timestep))[:, None].to(x.dtype)
            out = self.net(torch.cat([x, t] if condition is None else [x, t, condition.to(x.dtype)], dim=1))
        else:
            out = self._film(x, timestep, class_labels, condition)
        out = out.reshape(sample.shape)
        return FlowModelOutput(sample=out) if return_dict else (out,)

    def _film(self, x: Tensor, timestep: Tensor, class_labels: Tensor | None, condition: Tensor | None) -> Tensor:
        embedding = self.embed_time(get_timestep_embedding(timestep, 64).to(x.dtype))
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(class_labels)
        if self.embed_condition is not None:
            embedding = embedding + self.embed_condition(condition.to(x.dtype))
        embedding = nn.functional.silu(embedding)
        hidden = self.input(x)
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.output(hidden)
