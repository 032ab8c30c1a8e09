"""Action diversity: whether a policy still has more than one answer to an observation, and an alarm for when it has lost them.

Reconstruction of noise that says nothing of the data ends in the mean of the demonstrated chunks; its error falls while control gets worse.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..batch import Batch
from .callbacks import Callback

if TYPE_CHECKING:
    from .evaluation import Score
    from .trainer import FlowTrainer

NUM_OBSERVATIONS = 64
"""Held-out observations it is measured under."""
NUM_NOISES = 8
"""Chunks under each of them."""
COLLAPSED = 1 / 3
"""Of the base's diversity: below is a collapse."""


def action_diversity(
    sample: Callable[[Tensor, dict[str, Tensor]], Tensor], observed: Batch, generator: torch.Generator
) -> float:
    """The standard deviation over the noises of the chunk under one observation, averaged over coordinates and observations.

    Args: `sample`: (x_0, condition) -> chunks, in model units, so normalised; `observed`: chunks (for their shape) and conditions.
    """
    x_0 = torch.randn(NUM_NOISES * len(observed), *observed.x_1.shape[1:], generator=generator)
    repeated = {key: x.repeat(NUM_NOISES, *[1] * (x.ndim - 1)) for key, x in observed.condition.items()}
    chunks = sample(x_0, repeated).reshape(NUM_NOISES, len(observed), -1)
    return float(chunks.std(dim=0).mean())


def collapse(scores: Sequence[Score]) -> str:
    """A sentence when one of the candidates has lost the diversity of the first, the base; "" otherwise, and where it was not measured."""
    base = scores[0].action_diversity
    lost = [
        (score.step, score.action_diversity)
        for score in scores
        if base is not None and score.action_diversity is not None and score.action_diversity < COLLAPSED * base
    ]
    if not lost:
        return ""
    step, value = lost[0]
    return (
        f"The actions have collapsed: from step {step} on the chunks that different noises give under one observation differ by {value:.2g} (standard "
        f"deviation, normalised), less than a third of the base's {base:.2g}. What answers to noise is lost, and rollouts may get stuck; pairs that "
        "the frozen base has chosen (pairs.name best_of_k or self), a lower learning rate or fewer steps keep it."
    )


class CollapseAlarm(Callback):
    """Warns once when the actions of a fine-tuned policy collapse."""

    def __init__(self) -> None:
        self.told = False

    def on_evaluate(self, trainer: FlowTrainer, score: Score, is_best: bool) -> None:
        """Look at the diversity of the candidates so far."""
        sentence = collapse(trainer.selection.scores)
        if sentence and not self.told:
            warnings.warn(sentence, stacklevel=2)
            self.told = True
