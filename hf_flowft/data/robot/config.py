"""The settings of demonstrations of a robot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...choices import Choices
from ..splits import require_disjoint
from .statistics import NormalisationKind


@dataclass(frozen=True, kw_only=True)
class RobotConfig(Choices):
    """Demonstrations of a robot: a LeRobotDataset, version 2.1 or 3.0."""

    path: str = ""
    """The folder of the data set, or its id on the Hub."""
    revision: str = ""
    """The branch, tag or commit of a Hub data set; empty for the newest. The commit is recorded in results and card."""
    state_keys: list[str] = field(default_factory=list)
    """Numbers that are observed, in this order; empty for observation.state and observation.environment_state, whichever there are."""
    cameras: list[str] = field(default_factory=list)
    """Pictures that are observed, such as observation.images.top; videos need pip install hf_flowft[video]."""
    image_size: list[int] = field(default_factory=list)
    """[height, width] the pictures are resized to; empty for as they are."""
    action_key: str = "action"
    """What the policy gives."""
    observation_horizon: int = 2
    """Time steps that are observed: the present one and those before it."""
    prediction_horizon: int = 16
    """Actions in a chunk; the first belongs to the oldest observation."""
    action_horizon: int = 8
    """Actions of a chunk that are carried out, from the present one on, before the policy is asked again."""
    normalisation: NormalisationKind = "mean_std"
    """The units of actions and observations, coordinate by coordinate: mean 0 and std 1, the scale of the noise a flow begins with; or the range, or
    1 % to 99 % quantiles, to [-1, 1]."""
    statistics: Literal["train", "dataset"] = "train"
    """Of what: of the training episodes, or the data set's own, which know all episodes."""
    tasks: list[str] = field(default_factory=list)
    """Keep the episodes of these tasks only, by their text; empty for all that are not base_tasks."""
    base_tasks: list[str] = field(default_factory=list)
    """The tasks the base knows, on which forgetting is measured."""
    task_conditioning: bool = False
    """Whether the policy is told the number of the task."""
    max_episodes: int = 0
    """Look at the first so many episodes only; 0 for all."""
    train_size: int = 0
    """Keep so many training episodes; 0 keeps all."""
    validation: float = 0.1
    """Fraction of the episodes held out for selecting the model."""
    test: float = 0.1
    """Fraction of the episodes held out for the reported numbers."""
    seed: int = 0
    """Seed of the split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("observation_horizon", "prediction_horizon", "action_horizon"):
            if getattr(self, key) < 1:
                raise ValueError(f"data.{key} must be at least 1, got {getattr(self, key)}.")
        for key in ("max_episodes", "train_size"):
            if getattr(self, key) < 0:
                raise ValueError(f"data.{key} must be at least 1, or 0 for all, got {getattr(self, key)}.")
        if self.observation_horizon - 1 + self.action_horizon > self.prediction_horizon:
            raise ValueError(
                f"data.prediction_horizon is {self.prediction_horizon}, but the {self.action_horizon} actions that are carried out begin at "
                f"number {self.observation_horizon - 1} of it: observation_horizon - 1 + action_horizon must not be more."
            )
        require_disjoint(self.tasks, self.base_tasks, "tasks")
