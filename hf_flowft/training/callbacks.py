"""What may watch a run: objects passed to the trainer, called on the main process only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evaluation import Score
    from .trainer import FlowTrainer


class Callback:
    """Override what is needed; none of it changes the run."""

    def on_log(self, trainer: FlowTrainer, step: int, logs: dict[str, float]) -> None:
        """Every `log_every` steps, with the averaged loss and the objective's numbers."""

    def on_evaluate(self, trainer: FlowTrainer, score: Score, is_best: bool) -> None:
        """After every evaluation, while the model still carries the evaluated weights."""
