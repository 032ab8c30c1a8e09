"""Samples against the held-out rows whose conditions they were drawn under; and what each of those rows adds, which tells how sure the number is."""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import Batch
from .distances import BLOCK_ROWS, energy_distance_by_label, flat_pair


def energy_metric(samples: Tensor, held_out: Batch) -> float:
    """Energy distance within labels, averaged over them, where the condition is a label; labels with a single row are left out.

    The same within prompts, where every prompt has several rows: who draws a three for "eight" and an eight for "three" is not as good as who does
    not. Where captions are mostly of one image each there is no other way than to compare all samples with all images.
    """
    rows, labels = _alike(held_out)
    return float(energy_distance_by_label(samples[rows], held_out.x_1[rows], labels, labels))


def energy_by_row(samples: Tensor, held_out: Batch) -> Tensor:
    """The part of `energy_metric` that each held-out row y decides, 2 E||x - y|| within its label: (rows that count,), their mean with the weights
    of the labels. Differences of two models vary over the rows as their energy distances do over sets of rows (the linear term of a U-statistic).
    """
    rows, labels = _alike(held_out)
    known, decided = labels.unique(), torch.empty(len(rows), dtype=torch.float64)
    for label in known:
        here = labels == label
        x, y = flat_pair(samples[rows[here]], held_out.x_1[rows[here]])
        distances = torch.cat([torch.cdist(x, block).mean(dim=0) for block in y.split(BLOCK_ROWS)])
        decided[here] = 2 * distances * len(rows) / (len(known) * len(y))
    return decided


def _alike(held_out: Batch) -> tuple[Tensor, Tensor]:
    """The rows that count, and a label for each: those with the same one are compared with each other."""
    labels, prompts = held_out.condition.get("class_labels"), held_out.condition.get("prompt")
    known = labels if labels is not None else prompts
    if known is not None:
        repeated = torch.bincount(known)[known] > 1
        if repeated.any() if labels is not None else repeated.all():
            return torch.nonzero(repeated).flatten(), known[repeated]
    return torch.arange(len(held_out)), torch.zeros(len(held_out), dtype=torch.int64)


def energy_score(samples: Tensor, others: Tensor, held_out: Batch) -> Tensor:
    """E||x - y|| - E||x - x'|| / 2 of each held-out row y, by two samples under its condition: (n,); lower is better.

    It is a proper score (Gneiting and Raftery 2007, section 4.2): best, on average, where x has the law of y given the condition. A squared error is
    lower still for who always draws the mean.
    """
    x, y = flat_pair(samples, held_out.x_1)
    other, _ = flat_pair(others, held_out.x_1)
    return ((x - y).norm(dim=1) + (other - y).norm(dim=1) - (x - other).norm(dim=1)) / 2


def reconstruction_by_row(samples: Tensor, held_out: Batch) -> Tensor:
    """Mean squared error of one sample under each held-out condition: (n,)."""
    return (samples - held_out.x_1).square().flatten(1).mean(dim=1)


def reconstruction_error(samples: Tensor, held_out: Batch) -> float:
    """The mean of `reconstruction_by_row`."""
    return float(reconstruction_by_row(samples, held_out).mean())
