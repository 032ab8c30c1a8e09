"""Rollouts as the judge of a run: what selects a policy is what it reaches, not how well it reconstructs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from ..environments.base import initial_seeds
from ..environments.rollout import Policy, rollout
from ..environments.videos import film
from ..pipelines import FlowPipeline, FlowPolicyPipeline
from ..velocity import Velocity
from .settings import EvalConfig

FILMED = 10
STARTS: Mapping[str, str] = {"train": "validation", "validation": "validation", "test": "test"}
"""From which starts a split is judged; the demonstrations' own are never among them."""


class Rollouts:
    """(velocity, split, num_steps, repeat) -> one minus the reached reward of each of `config.episodes` episodes; every repeat has starts of its own.

    Args: `config`: names environment and solver; `pipeline`: makes the pipeline of a model; `seed`: of the policy's noise.
    Raises: ValueError when the pipeline is no policy.
    """

    def __init__(self, config: EvalConfig, pipeline: Callable[[ModelMixin], FlowPipeline], seed: int = 0):
        self.config, self.pipeline, self.seed = config, pipeline, seed

    @torch.no_grad()
    def __call__(self, velocity: Velocity, split: str, num_steps: int, repeat: int) -> list[float]:
        """See the class.  Raises: ValueError for a split of other tasks, which this environment does not show."""
        if split not in STARTS:
            raise ValueError(
                f"eval.environment judges the task that is trained, not the split {split!r}: leave out base_tasks."
            )
        policy, options = self._policy(velocity, num_steps)
        seeds = initial_seeds(STARTS[split], self.config.episodes, repeat * self.config.episodes)
        return (1 - rollout(policy, self.config.environment, seeds, **options).max_reward).tolist()

    @torch.no_grad()
    def film(self, velocity: Velocity, num_steps: int, folder: Path) -> list[Path]:
        """The best and the worst of a few test episodes; none, and a warning, where the simulator cannot draw."""
        policy, options = self._policy(velocity, num_steps)
        seeds = initial_seeds("test", min(self.config.episodes, FILMED))
        result = rollout(policy, self.config.environment, seeds, **options)
        try:
            return film(policy, result, folder, self.pipeline(velocity.model).policy["fps"], **options)
        except ValueError as error:
            warnings.warn(f"no videos of this policy: {error}", stacklevel=2)
            return []

    def _policy(self, velocity: Velocity, num_steps: int) -> tuple[Policy, dict[str, Any]]:
        """The policy as it acts, and the options of its rollouts."""
        policy = self.pipeline(velocity.model)
        if not isinstance(policy, FlowPolicyPipeline):
            raise ValueError("eval.environment needs a policy: data of the kind robot.")
        policy.set_progress_bar_config(disable=True)
        scheduler = {"velocity": f"ode:{self.config.solver}", "noise": "ddim", "mean": None}[policy.predicts]
        options = {
            "observation_horizon": policy.observation_horizon,
            "action_horizon": policy.action_horizon,
            "num_envs": self.config.episodes,
            "seed": self.seed,
        }
        return policy.as_policy(scheduler=scheduler, num_inference_steps=num_steps), options
