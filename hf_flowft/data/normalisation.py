"""The units a model works in, and the way back to those of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RELATIVE_WIDTH = 1e-6
"""A coordinate whose range or spread is a smaller part of its values than this is constant: float32 holds no more digits."""


@dataclass(frozen=True)
class Normalisation:
    """z = (x - mean) / std, with one number for all coordinates or one a coordinate; stored with the model, undone by the pipeline."""

    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0

    @classmethod
    def fit(cls, x: Tensor) -> Normalisation:
        """One mean and standard deviation a coordinate of vectors (n, d), in float64; constant coordinates keep a std of 1."""
        std, mean = torch.std_mean(x.double(), dim=0, correction=0)
        wide = std > RELATIVE_WIDTH * mean.abs()
        return cls(mean.tolist(), torch.where(wide, std, torch.ones_like(std)).tolist())

    @classmethod
    def between(cls, low: Sequence[float], high: Sequence[float]) -> Normalisation:
        """`low` becomes -1 and `high` 1, coordinate by coordinate; constant coordinates become 0 and keep a std of 1."""
        pairs = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
        half = [(b - a) / 2 for a, b in pairs]
        wide = [h > RELATIVE_WIDTH * max(abs(a), abs(b)) for h, (a, b) in zip(half, pairs, strict=True)]
        return cls([(a + b) / 2 for a, b in pairs], [h if w else 1.0 for h, w in zip(half, wide, strict=True)])

    def apply(self, x: Tensor) -> Tensor:
        """Data units to model units: (batch, *event)."""
        return (x - self._tensor(self.mean, x)) / self._tensor(self.std, x)

    def undo(self, z: Tensor) -> Tensor:
        """Model units to data units: (batch, *event)."""
        return z * self._tensor(self.std, z) + self._tensor(self.mean, z)

    def log_volume(self, event_shape: Sequence[int]) -> float:
        """log |dx/dz| of one sample: what a log-density in model units loses in data units."""
        return float(torch.tensor(self.std, dtype=torch.float64).expand(tuple(event_shape)).log().sum())

    @staticmethod
    def _tensor(value: float | list[float], like: Tensor) -> Tensor:
        return torch.tensor(value, dtype=like.dtype, device=like.device)
