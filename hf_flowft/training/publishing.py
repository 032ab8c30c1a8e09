"""A run that shares itself: each best model on a branch while it goes on, and the finished run at the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import ModelMixin
from tqdm import tqdm

from ..hub import push_pipeline, push_run, require_repository
from ..pipelines import FlowPipeline
from .callbacks import Callback
from .config import HubConfig

if TYPE_CHECKING:
    from .evaluation import Score
    from .trainer import FlowTrainer


class Publisher(Callback):
    """Pushes what a run makes, as its `hub` section says; nothing when that names no repository.

    Args: `pipeline`: makes the pipeline of the model as it is.  Raises: ValueError, before any training, when the repository cannot be had.
    """

    def __init__(self, config: HubConfig, pipeline: Callable[[ModelMixin], FlowPipeline]):
        self.config, self.pipeline = config, pipeline
        if config.push_to_hub:
            require_repository(config.push_to_hub, config.private or None)

    def on_evaluate(self, trainer: FlowTrainer, score: Score, is_best: bool) -> None:
        """Push a new best model to its branch; a Hub that cannot be reached does not stop the training."""
        if not (self.config.push_best_to and is_best and score.step):
            return
        try:
            push_pipeline(
                self.pipeline(trainer.model),
                self.config.push_to_hub,
                revision=self.config.push_best_to,
                commit_message=f"The best model so far, of step {score.step}",
            )
        except ValueError as error:
            warnings.warn(f"the best model of step {score.step} was not pushed: {error}", stacklevel=2)

    def finish(self, run_folder: Path) -> None:
        """Push the finished run.  Raises: ValueError saying how to repeat it: nothing is lost."""
        if not self.config.push_to_hub:
            return
        try:
            tqdm.write(f"Pushed to {push_run(run_folder, self.config.push_to_hub)}")
        except ValueError as error:
            raise ValueError(
                f"the run is finished and kept in {run_folder}, but {error} "
                f"Repeat the push with `hf-flowft push {run_folder} --repo {self.config.push_to_hub}`."
            ) from error
