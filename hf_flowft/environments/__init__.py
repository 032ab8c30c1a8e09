"""Simulated tasks for policies: environments, scripted demonstrations, corruptions, rollouts and videos (extra `policy`)."""

from .base import SEEDS, Environment, Observation, Step, initial_seeds
from .corruptions import Corruption, EpisodeCorruption, augment, augment_images, parse_corruptions
from .demonstrations import Attempts, Demonstration, demonstrate, write_demonstrations
from .episode import action_jerk
from .known import ENVIRONMENTS, make_environment
from .policies import expert_policy, hold_still_policy, random_policy
from .rollout import Policy, RolloutResult, rollout
from .videos import film, write_video

__all__ = [
    "ENVIRONMENTS",
    "SEEDS",
    "Attempts",
    "Corruption",
    "Demonstration",
    "Environment",
    "EpisodeCorruption",
    "Observation",
    "Policy",
    "RolloutResult",
    "Step",
    "action_jerk",
    "augment",
    "augment_images",
    "demonstrate",
    "expert_policy",
    "film",
    "hold_still_policy",
    "initial_seeds",
    "make_environment",
    "parse_corruptions",
    "random_policy",
    "rollout",
    "write_demonstrations",
    "write_video",
]
