"""Demonstrations without a human: scripted experts in the simulators, each episode a function of its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.robot import write_lerobot
from ..randomness import keyed_seed
from .base import SEEDS, Environment, Observation, initial_seeds
from .fleet import worker_context
from .known import make_environment
from .metaworld import scripted_expert
from .planner_pusht import PushPlanner

MOST_ATTEMPTS = 20
"""So many attempts for each demonstration asked for, and the expert counts as unable to do the task."""


class Demonstration(NamedTuple):
    """A demonstration: the `seed` of its start, and arrays (steps, ...) by LeRobot's keys.

    `arrays`: the observations before each action, "action" (steps, action_dim) as executed, "next.reward" (steps,) float32, and
    "next.success" and "next.done" (steps,), true in the last step.
    """

    seed: int
    arrays: dict[str, np.ndarray]


class Attempts(NamedTuple):
    """`episodes`: the successes, in the order of their seeds; `attempts`: how many seeds it took."""

    episodes: list[Demonstration]
    attempts: int


def demonstrate(
    env_name: str,
    num_episodes: int,
    *,
    offset: int = 0,
    noise: float = 0.0,
    max_steps: int | None = None,
    processes: int = 1,
) -> Attempts:
    """So many successful episodes of the environment's scripted expert, ended at the first success; failures are left out.

    The seeds tried are those of `SEEDS["demonstrations"]`, one after another from `offset` on: the same arguments give the same
    episodes, with any number of processes.

    Args:
        env_name: "pusht", "pusht-pixels" or "metaworld/<task>".
        noise: standard deviation of the noise on the executed actions, in halves of their range; it makes demonstrations differ, and
            shows how to recover.
        max_steps: an episode without success by then has failed; None: the environment's own.

    Raises: ValueError when there is no expert, or it fails twenty times as often as asked for; ImportError without the simulator.
    """
    if num_episodes < 1 or processes < 1 or noise < 0:
        raise ValueError(
            f"num_episodes and processes are at least 1, noise at least 0, got {num_episodes}, {processes}, {noise}."
        )
    if not env_name.startswith(("pusht", "metaworld/")):
        make_environment(env_name).close()
        raise ValueError(f"there is no scripted expert for {env_name!r}: there are for pusht and metaworld/<task>.")
    most = min(MOST_ATTEMPTS * num_episodes, len(SEEDS["demonstrations"]) - offset)
    seeds = initial_seeds("demonstrations", most, offset)
    episodes: list[Demonstration] = []
    for attempts, episode in enumerate(_episodes(partial(attempt, env_name, noise, max_steps), seeds, processes), 1):
        episodes += [] if episode is None else [episode]
        if len(episodes) == num_episodes:
            return Attempts(episodes, attempts)
    raise ValueError(
        f"the expert of {env_name} succeeded {len(episodes)} times in {most} attempts, {num_episodes} were asked for: "
        "give it more steps (max_steps) or less noise."
    )


def attempt(env_name: str, noise: float, max_steps: int | None, seed: int) -> Demonstration | None:
    """The expert's episode of a seed, None when it fails."""
    environment = _environment(env_name)
    observation = environment.reset(seed)
    expert = _expert(environment, seed)
    random = np.random.default_rng(keyed_seed("demonstration noise", seed))
    half_range = (environment.action_high - environment.action_low) / 2
    rows: list[Observation] = []
    for _ in range(max_steps or environment.max_steps):
        wanted = expert(observation) + noise * half_range * random.standard_normal(environment.action_dim)
        action = np.clip(wanted, environment.action_low, environment.action_high).astype(np.float32)
        step = environment.step(action)
        outcome = {"next.reward": np.float32(step.reward), "next.success": step.info["success"], "next.done": step.done}
        rows.append({**observation, "action": action, **{key: np.asarray(value) for key, value in outcome.items()}})
        observation = step.observation
        if step.done:
            return Demonstration(seed, {key: np.stack([row[key] for row in rows]) for key in rows[0]})
    return None


def _episodes(
    run: Callable[[int], Demonstration | None], seeds: list[int], processes: int
) -> Iterator[Demonstration | None]:
    """The episodes of the seeds, in order."""
    if processes == 1:
        yield from map(run, seeds)
        return
    with worker_context().Pool(processes) as pool:  # leaving it stops what has been begun and is not needed
        yield from pool.imap(run, seeds)


_KEPT: dict[str, Environment] = {}
"""The environment this process has made last, used again for the next episode."""


def _environment(env_name: str) -> Environment:
    if env_name not in _KEPT:
        for environment in _KEPT.values():
            environment.close()
        _KEPT.clear()
        _KEPT[env_name] = make_environment(env_name)
    return _KEPT[env_name]


def _expert(environment: Environment, seed: int) -> Callable[[Observation], np.ndarray]:
    """The expert for one episode of an environment."""
    if environment.name.startswith("metaworld/"):
        policy = scripted_expert(environment.name.removeprefix("metaworld/"))
        return lambda observation: policy(observation["observation.environment_state"])
    planner = PushPlanner(keyed_seed("planner", seed))
    targets: list[np.ndarray] = []

    def push(observation: Observation) -> np.ndarray:
        if not targets:
            state = environment.get_state()
            targets.extend(planner.plan(state[:2], state[2:5]))
        return targets.pop(0)

    return push


def write_demonstrations(
    folder: str | Path, env_names: Sequence[str], num_episodes: int, *, noise: float = 0.0, processes: int = 1
) -> dict[str, int]:
    """A LeRobotDataset of so many demonstrations of each environment, which are its tasks, in their order.

    Args: `folder`: a new one; the rest as for `demonstrate`.  Returns: environment -> attempts.
    Raises: ValueError for a folder that is there or environments of different rates or observations; the others of `demonstrate` and `write_lerobot`.
    """
    if Path(folder).exists():
        raise ValueError(f"{folder} is there already: choose another folder, or remove it.")
    rates, shapes = {}, {}
    for name in env_names:
        environment = make_environment(name)
        environment.close()
        rates[name], shapes[name] = environment.fps, environment.observation_shapes
    if len(set(rates.values())) > 1:
        raise ValueError(f"one data set has one rate, but these environments have {rates} frames a second.")
    if any(observed != shapes[env_names[0]] for observed in shapes.values()):
        raise ValueError(f"one data set has the same observations everywhere, but these environments have {shapes}.")
    found = {name: demonstrate(name, num_episodes, noise=noise, processes=processes) for name in env_names}
    episodes = [episode.arrays for attempts in found.values() for episode in attempts.episodes]
    tasks = [name for name in found for _ in range(num_episodes)]
    write_lerobot(folder, episodes, fps=rates[env_names[0]], tasks=tasks)
    return {name: attempts.attempts for name, attempts in found.items()}
