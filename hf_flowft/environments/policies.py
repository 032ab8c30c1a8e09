"""Policies that learned nothing: baselines, and the far ends of the scale. Each is a `Policy` for `rollout`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..randomness import keyed_seed
from .base import Observation
from .known import make_environment
from .metaworld import scripted_expert
from .planner_pusht import PushPlanner
from .pusht import tee_pose
from .rollout import Policy


def random_policy(env_name: str, action_horizon: int = 8) -> Policy:
    """Actions drawn evenly from the range of the environment's actions."""
    environment = make_environment(env_name)
    low, high = environment.action_low, environment.action_high
    environment.close()

    def act(observations: Observation, generators: list[torch.Generator]) -> np.ndarray:
        drawn = [torch.rand(action_horizon, len(low), generator=generator).numpy() for generator in generators]
        return low + (high - low) * np.stack(drawn)

    return act


def hold_still_policy(env_name: str, action_horizon: int = 8) -> Policy:
    """Stay where you are: in Push-T the place of the agent is the target, elsewhere all actions are 0."""
    environment = make_environment(env_name)
    action_dim = environment.action_dim
    environment.close()

    def act(observations: Observation, generators: list[torch.Generator]) -> np.ndarray:
        places = observations["observation.state"][:, -1]
        still = places if env_name.startswith("pusht") else np.zeros((len(places), action_dim), np.float32)
        return np.repeat(still[:, None], action_horizon, axis=1)

    return act


def expert_policy(env_name: str, action_horizon: int = 8) -> Policy:
    """The scripted experts, deciding anew from what they see: the planner of pushes for "pusht", Meta-World's for its tasks.

    Meta-World's answer to the observation of each step, so they need action_horizon=1.
    Raises: ValueError for an environment without an expert, or another action_horizon.
    """
    if env_name == "pusht":
        return _each(lambda state, tee, seed: PushPlanner(seed).chunk(state, tee_pose(tee), action_horizon))
    if not env_name.startswith("metaworld/"):
        raise ValueError(f"there is no scripted expert for {env_name!r}: there are for pusht and metaworld/<task>.")
    if action_horizon != 1:
        raise ValueError(f"Meta-World's experts answer to each observation: action_horizon is 1, got {action_horizon}.")
    expert = scripted_expert(env_name.removeprefix("metaworld/"))
    return _each(lambda state, everything, seed: expert(everything)[None])


def _each(decide: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> Policy:
    """A policy that decides for one environment after another from the newest state, with a seed from its generator."""

    def act(observations: Observation, generators: list[torch.Generator]) -> np.ndarray:
        states, others = (observations[f"observation.{key}"][:, -1] for key in ("state", "environment_state"))
        seeds = [keyed_seed("expert", generator.initial_seed()) for generator in generators]
        return np.stack([decide(*row) for row in zip(states, others, seeds, strict=True)])

    return act
