"""Rollouts as the judge of a run: what selects a policy is what it reaches, not how well it reconstructs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from diffusers import ModelMixin

from ..environments.base import initial_seeds
from ..environments.rollout import rollout
from ..pipelines import FlowPipeline, FlowPolicyPipeline
from ..velocity import Velocity
from .settings import EvalConfig

STARTS: Mapping[str, str] = {"train": "validation", "validation": "validation", "test": "test"}
"""From which starts a split is judged; the demonstrations' own are never among them."""


class Rollouts:
    """(velocity, split, num_steps, repeat) -> one minus the mean reached reward, over `config.episodes` starts of its own for each repeat.

    Args: `config`: names environment and solver; `pipeline`: makes the pipeline of a model; `seed`: of the policy's noise.
    Raises: ValueError when the pipeline is no policy.
    """

    def __init__(self, config: EvalConfig, pipeline: Callable[[ModelMixin], FlowPipeline], seed: int = 0):
        self.config, self.pipeline, self.seed = config, pipeline, seed

    @torch.no_grad()
    def __call__(self, velocity: Velocity, split: str, num_steps: int, repeat: int) -> float:
        """See the class.  Raises: ValueError for a split of other tasks, which this environment does not show."""
        if split not in STARTS:
            raise ValueError(
                f"eval.environment judges the task that is trained, not the split {split!r}: leave out base_tasks."
            )
        policy = self.pipeline(velocity.model)
        if not isinstance(policy, FlowPolicyPipeline):
            raise ValueError("eval.environment needs a policy: data of the kind robot.")
        policy.set_progress_bar_config(disable=True)
        episodes = self.config.episodes
        scheduler = {"velocity": f"ode:{self.config.solver}", "noise": "ddim", "mean": None}[policy.predicts]
        result = rollout(
            policy.as_policy(scheduler=scheduler, num_inference_steps=num_steps),
            self.config.environment,
            initial_seeds(STARTS[split], episodes, repeat * episodes),
            observation_horizon=policy.observation_horizon,
            action_horizon=policy.action_horizon,
            num_envs=episodes,
            seed=self.seed,
        )
        return 1 - float(result.max_reward.mean())
