"""Small networks of time and condition only: what a viscosity is centred on, shifted by and driven with."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional


class ConditionHead(nn.Module):
    """(t, c) -> a vector: sinusoidal time, label and condition embedded and added, SiLU, and a linear layer of zeros.

    The state is no input: whatever is built on the output has the Jacobian it has without it. `num_classes` labels
    and one for "no label".
    """

    def __init__(self, output_dim: int, num_classes: int = 0, condition_dim: int = 0, hidden_dim: int = 64):
        super().__init__()
        self.embed_time = nn.Sequential(nn.Linear(64, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim))
        self.embed_label = nn.Embedding(num_classes + 1, hidden_dim) if num_classes else None
        self.embed_condition = nn.Linear(condition_dim, hidden_dim) if condition_dim else None
        self.output = zero_linear(hidden_dim, output_dim)

    def forward(self, timestep: Tensor, class_labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """`timestep`: (batch,) in [0, 1000]; `class_labels`: (batch,); `condition`: (batch, c) -> (batch, output_dim)."""
        dtype = self.output.weight.dtype
        embedding = self.embed_time(get_timestep_embedding(timestep, 64).to(dtype))
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(class_labels)
        if self.embed_condition is not None:
            embedding = embedding + self.embed_condition(condition.to(dtype))
        return self.output(functional.silu(embedding))


class PlainResidual(nn.Module):
    """The ablation of arXiv 2510.02081: an MLP with one hidden layer on [x, t, label, condition]; zero at the start."""

    def __init__(self, size: int, num_classes: int = 0, condition_dim: int = 0, hidden_dim: int = 128):
        super().__init__()
        self.num_labels = num_classes + 1 if num_classes else 0
        self.hidden = nn.Linear(size + 1 + self.num_labels + condition_dim, hidden_dim)
        self.output = zero_linear(hidden_dim, size)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None, condition: Tensor | None) -> Tensor:
        """`x`: (batch, d); `t`: (batch,) in [0, 1] -> (batch, d)."""
        inputs = [x, t[:, None].to(x.dtype)]
        if self.num_labels:
            inputs.append(functional.one_hot(class_labels, self.num_labels).to(x.dtype))
        if condition is not None:
            inputs.append(condition.to(x.dtype))
        return self.output(functional.silu(self.hidden(torch.cat(inputs, dim=1))))


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer that starts at exactly zero, its gradient alive."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
