"""Samples against the held-out rows whose conditions they were drawn under."""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import Batch
from .distances import energy_distance, energy_distance_by_label


def energy_metric(samples: Tensor, held_out: Batch) -> float:
    """Energy distance within labels, averaged over them, where the condition is a label; labels with a single row are left out.

    The same within prompts, where every prompt has several rows: who draws a three for "eight" and an eight for "three" is not as good as who does
    not. Where captions are mostly of one image each there is no other way than to compare all samples with all images.
    """
    labels, prompts = held_out.condition.get("class_labels"), held_out.condition.get("prompt")
    if labels is not None:
        repeated = torch.bincount(labels)[labels] > 1
        if repeated.any():
            return float(
                energy_distance_by_label(samples[repeated], held_out.x_1[repeated], labels[repeated], labels[repeated])
            )
    elif prompts is not None and (torch.bincount(prompts)[prompts] > 1).all():
        return float(energy_distance_by_label(samples, held_out.x_1, prompts, prompts))
    return float(energy_distance(samples, held_out.x_1))


def reconstruction_error(samples: Tensor, held_out: Batch) -> float:
    """Mean squared error of one sample under each held-out condition."""
    return float((samples - held_out.x_1).square().mean())
