"""Rollouts: how well a policy does from given initial conditions."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ..randomness import keyed_generator
from ..results import mean_and_error
from .base import Observation
from .corruptions import IN_NORMALISED_UNITS, Normalisation, parse_corruptions
from .episode import Outcome, Settings
from .fleet import Fleet, open_fleet
from .known import make_environment

DIRECTIONS = {
    "success": "higher",
    "max_reward": "higher",
    "final_reward": "higher",
    "steps": "neither",
    "jerk": "lower",
    "seconds_per_call": "lower",
}


class Policy(Protocol):
    """What a rollout asks for actions."""

    def __call__(self, observations: Observation, generators: list[torch.Generator]) -> np.ndarray:
        """Actions in raw units, (envs, action_horizon, action_dim), the first for now.

        Args: `observations`: raw windows, key -> (envs, observation_horizon, ...), oldest first; `generators`: one on the CPU for each
        environment, a function of the rollout's seed, the episode and the number of the decision in it: draw the noise of
        each environment from its own, and an episode goes the same way whatever is batched with it.
        """


@dataclass
class RolloutResult:
    """What came of the episodes, in the order of `seeds`.

    `success`, `max_reward`, `final_reward`, `steps`, `jerk` (of `action_jerk`, in halves of the range of actions): (episodes,);
    `call_seconds`, `call_sizes`: wall time of each call of the policy, and how many environments it decided for;
    `frames`: index of a recorded episode -> uint8 (steps + 1, height, width, 3).
    """

    env_name: str
    corruption: str
    seeds: list[int]
    success: np.ndarray
    max_reward: np.ndarray
    final_reward: np.ndarray
    steps: np.ndarray
    jerk: np.ndarray
    call_seconds: np.ndarray
    call_sizes: np.ndarray
    frames: dict[int, np.ndarray] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Means and standard errors over the episodes, as entries of a results file: name -> value, stderr, count, repeats, values, direction.

        The values of the episodes are kept for paired comparisons on the same initial conditions. `jerk` leaves out episodes of fewer than
        4 steps when no other is there. `seconds_per_call` is the median wall time of a decision for `call_sizes` environments at once:
        a latency only where num_envs=1.
        """
        numbers = {
            name: np.asarray(getattr(self, name), dtype=float) for name in DIRECTIONS if name != "seconds_per_call"
        }
        numbers["jerk"] = numbers["jerk"][np.isfinite(numbers["jerk"])]
        entries = {
            name: {**mean_and_error(values.tolist()), "count": len(values), "direction": DIRECTIONS[name]}
            for name, values in numbers.items()
            if len(values)
        }
        latency = {"value": float(np.median(self.call_seconds)), "count": len(self.call_seconds)}
        return {**entries, "seconds_per_call": {**latency, "direction": DIRECTIONS["seconds_per_call"]}}


def rollout(
    policy: Policy,
    env_name: str,
    seeds: Sequence[int],
    *,
    observation_horizon: int = 2,
    action_horizon: int = 8,
    max_steps: int | None = None,
    corruption: str = "",
    normalisation: Normalisation | None = None,
    num_envs: int = 50,
    num_processes: int = 1,
    record: Collection[int] = (),
    seed: int = 0,
) -> RolloutResult:
    """Run an episode from each initial condition; it ends at success or after `max_steps`.

    The environments live in `num_processes` processes, the policy in this one: up to `num_envs` episodes go on at once, and one call
    decides for all of them. The number of processes changes nothing but the time; `num_envs` changes the batches the policy sees, so
    results up to rounding.

    Args:
        policy: any callable, see `Policy`.
        env_name: a key of ENVIRONMENTS.
        seeds: of the initial conditions, all different: `initial_seeds("test", 200)`.
        observation_horizon, action_horizon: observations a decision sees, actions it executes.
        max_steps: at most so many; None: the environment's own.
        corruption: as for `parse_corruptions`; `normalisation`: the policy's observation statistics, which it may need.
        record: indices into `seeds` of the episodes to record pictures of.
        seed: of the policies' noise and of the corruptions'.

    Raises: ValueError for options that make no sense, actions of a wrong shape, actions that are not finite (naming the episode and the
        step), and a process that died; ImportError when the simulator is not installed; RuntimeError when a simulator fails.
    """
    _check(seeds, observation_horizon, action_horizon, max_steps, num_envs, num_processes, record)
    if normalisation is None and any(part.kind in IN_NORMALISED_UNITS for part in parse_corruptions(corruption)):
        raise ValueError(f"the corruption {corruption!r} is in normalised units: give the policy's normalisation.")
    environment = make_environment(env_name)
    max_steps, action_dim = max_steps or environment.max_steps, environment.action_dim
    environment.close()
    recorded = frozenset(seeds[index] for index in record)
    settings = Settings(
        env_name, observation_horizon, action_horizon, max_steps, corruption, normalisation, seed, recorded
    )
    calls: list[tuple[float, int]] = []
    with open_fleet(settings, min(num_processes, len(seeds))) as fleet:
        outcomes = _run(fleet, policy, seeds, settings, num_envs, action_dim, calls)
    return _collected(outcomes, seeds, settings, calls)


def _run(
    fleet: Fleet,
    policy: Policy,
    seeds: Sequence[int],
    settings: Settings,
    num_envs: int,
    action_dim: int,
    calls: list[tuple[float, int]],
) -> dict[int, Outcome]:
    """Rounds of one decision for every episode that goes on; a slot whose episode has ended takes the next seed. `calls` is filled."""
    waiting, free = deque(seeds), deque(range(min(num_envs, len(seeds))))
    going_on: dict[int, tuple[int, int]] = {}  # slot -> (seed of its episode, decisions so far)
    actions: dict[int, np.ndarray] = {}
    outcomes: dict[int, Outcome] = {}
    while waiting or going_on:
        orders: dict[int, int | np.ndarray] = dict(actions)
        while free and waiting:
            slot = free.popleft()
            going_on[slot] = (waiting.popleft(), 0)
            orders[slot] = going_on[slot][0]
        windows = {}
        for slot, reply in sorted(fleet.carry_out(orders).items()):
            if reply.outcome is not None:
                outcomes[reply.outcome.seed] = reply.outcome
                del going_on[slot]
                free.append(slot)
            else:
                windows[slot] = reply.window
        if windows:
            decisions = [going_on[slot] for slot in windows]
            chunks = _decide(policy, list(windows.values()), decisions, settings, action_dim, calls)
            actions = dict(zip(windows, chunks, strict=True))
            going_on = {slot: (episode, index + 1) for slot, (episode, index) in going_on.items()}
        else:
            actions = {}
    return outcomes


def _decide(
    policy: Policy,
    windows: list[Observation],
    decisions: list[tuple[int, int]],
    settings: Settings,
    action_dim: int,
    calls: list[tuple[float, int]],
) -> np.ndarray:
    """One call of the policy for all windows, timed into `calls`: (envs, action_horizon, action_dim)."""
    batch = {key: np.stack([window[key] for window in windows]) for key in windows[0]}
    generators = [keyed_generator("rollout", settings.seed, *decision) for decision in decisions]
    start = time.perf_counter()
    actions = np.asarray(policy(batch, generators))
    calls.append((time.perf_counter() - start, len(windows)))
    expected = (len(windows), settings.action_horizon, action_dim)
    if actions.shape != expected:
        raise ValueError(
            f"the policy gave actions of shape {actions.shape} to {settings.env_name}, expected (envs, action_horizon, action_dim) = {expected}."
        )
    return actions


def _collected(
    outcomes: Mapping[int, Outcome], seeds: Sequence[int], settings: Settings, calls: list[tuple[float, int]]
) -> RolloutResult:
    ordered = [outcomes[seed] for seed in seeds]
    seconds, sizes = zip(*calls, strict=True)
    numbers = {
        name: np.array([getattr(outcome, name) for outcome in ordered])
        for name in DIRECTIONS
        if name != "seconds_per_call"
    }
    return RolloutResult(
        env_name=settings.env_name,
        corruption=settings.corruption,
        seeds=list(seeds),
        **numbers,
        call_seconds=np.array(seconds),
        call_sizes=np.array(sizes),
        frames={index: outcome.frames for index, outcome in enumerate(ordered) if outcome.frames is not None},
    )


def _check(
    seeds: Sequence[int],
    observation_horizon: int,
    action_horizon: int,
    max_steps: int | None,
    num_envs: int,
    num_processes: int,
    record: Collection[int],
) -> None:
    """Raises: ValueError naming the option that makes no sense."""
    if len(seeds) == 0 or len(set(seeds)) != len(seeds):
        raise ValueError(
            f"seeds are one or more different numbers, got {len(seeds)} with {len(set(seeds))} different ones."
        )
    options = {
        "observation_horizon": observation_horizon,
        "action_horizon": action_horizon,
        "num_envs": num_envs,
        "num_processes": num_processes,
        "max_steps": math.inf if max_steps is None else max_steps,
    }
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} is at least 1, got {value}.")
    wrong = [index for index in record if not 0 <= index < len(seeds)]
    if wrong:
        raise ValueError(f"record names episodes by their place among the {len(seeds)} seeds, got {wrong}.")
