"""The units a model works in, and the way back to those of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """z = (x - mean) / std, with one number for all coordinates or one a coordinate; stored with the model, undone by the pipeline."""

    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0

    @classmethod
    def fit(cls, x: Tensor) -> Normalisation:
        """One mean and standard deviation a coordinate of vectors (n, d); constant coordinates keep a std of 1."""
        std = x.std(dim=0, correction=0)
        return cls(x.mean(dim=0).tolist(), torch.where(std > 0, std, torch.ones_like(std)).tolist())

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
