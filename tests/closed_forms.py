"""Fields whose flows are known exactly: the Gaussian targets every layer is tested on."""

import torch
from torch import Tensor, nn


def gaussian_velocity(x: Tensor, t: float | Tensor, mean: float | Tensor = 0.0, variance: float = 1.0) -> Tensor:
    """v*(x, t) of the linear path from N(0, 1) to N(mean, variance), independent coupling, coordinate by coordinate.

    v = m + B (x - t m),  B = (t C - (1 - t)) / S,  S = (1 - t)^2 + t^2 C;  the flow map is x_1 = m + sqrt(C) x_0.
    """
    slope = (t * variance - (1 - t)) / ((1 - t) ** 2 + t**2 * variance)
    return mean + slope * (x - t * mean)


class GaussianFlow(nn.Module):
    """`gaussian_velocity` as a network in the papers' convention; it has one parameter, which does nothing."""

    def __init__(self, mean: float = 0.0, variance: float = 1.0):
        super().__init__()
        self.mean, self.variance = mean, variance
        self.idle = nn.Parameter(torch.zeros(()))

    def forward(
        self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """v(x, t) to N(mean + label, variance)."""
        mean = self.mean if class_labels is None else self.mean + _column(class_labels, x)
        return gaussian_velocity(x, _column(t, x), mean, self.variance) + 0 * self.idle


def _column(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (x.ndim - 1))
