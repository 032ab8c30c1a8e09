"""Samples against the held-out rows whose conditions they were drawn under."""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import Batch
from .distances import energy_distance, energy_distance_by_label


def energy_metric(samples: Tensor, held_out: Batch) -> float:
    """Energy distance, within labels (averaged over them) where the condition is a label; labels with a single row are left out."""
    labels = held_out.condition.get("class_labels")
    if labels is not None:
        kept = torch.bincount(labels)[labels] > 1
        if kept.any():
            return float(energy_distance_by_label(samples[kept], held_out.x_1[kept], labels[kept], labels[kept]))
    return float(energy_distance(samples, held_out.x_1))


def reconstruction_error(samples: Tensor, held_out: Batch) -> float:
    """Mean squared error of one sample under each held-out condition."""
    return float((samples - held_out.x_1).square().mean())
