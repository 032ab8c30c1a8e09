"""One episode after another in one environment: what the policy sees, what is executed, and what came of it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from .base import Environment, Observation, checked_action
from .corruptions import EpisodeCorruption, Normalisation, parse_corruptions


class Settings(NamedTuple):
    """How episodes are run; see `rollout`. `record`: the seeds of which frames are kept."""

    env_name: str
    observation_horizon: int
    action_horizon: int
    max_steps: int
    corruption: str
    normalisation: Normalisation | None
    seed: int
    record: frozenset[int]


class Outcome(NamedTuple):
    """What came of an episode. `frames`: uint8 (steps + 1, height, width, 3), or None when it was not recorded."""

    seed: int
    success: bool
    max_reward: float
    final_reward: float
    steps: int
    jerk: float
    frames: np.ndarray | None


class Episode:
    """The episode going on in an environment.  Args: `environment`: used by nobody else; `settings`: of the rollout."""

    def __init__(self, environment: Environment, settings: Settings):
        self._environment = environment
        self._settings = settings
        self._corruptions = parse_corruptions(settings.corruption)

    def start(self, seed: int) -> Observation:
        """Begin the episode of a seed. Returns the first window: before it began, the first observation is repeated."""
        settings = self._settings
        self._seed = seed
        self._corruption = EpisodeCorruption(
            self._corruptions, settings.normalisation, seed=settings.seed, episode=seed
        )
        self._executed: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._success = False
        self._frames: list[np.ndarray] = []
        first = self._corruption.observe(self._environment.reset(seed), 0)
        self._window = deque([first] * settings.observation_horizon, maxlen=settings.observation_horizon)
        self._record()
        return self.window()

    def window(self) -> Observation:
        """The last observations as the policy sees them, oldest first: (observation_horizon, ...) for each key."""
        return {key: np.stack([seen[key] for seen in self._window]) for key in self._window[-1]}

    def advance(self, actions: np.ndarray) -> bool:
        """Execute a chunk (action_horizon, action_dim) until it or the episode ends. Returns whether the episode has ended.

        Raises: ValueError naming the episode and the step of an action that is not finite.
        """
        for action in actions:
            step = len(self._rewards)
            given = checked_action(action, self._environment, f"episode of seed {self._seed}, step {step}: ")
            executed = self._corruption.act(given, self._environment.hold_action())
            observation, reward, done, info = self._environment.step(executed)
            self._executed.append(executed)
            self._rewards.append(reward)
            self._success |= bool(info["success"])
            self._window.append(self._corruption.observe(observation, step + 1))
            self._record()
            if done or step + 1 == self._settings.max_steps:
                return True
        return False

    def outcome(self) -> Outcome:
        """What has come of the episode so far."""
        environment = self._environment
        half_range = (environment.action_high - environment.action_low) / 2
        return Outcome(
            seed=self._seed,
            success=self._success,
            max_reward=max(self._rewards),
            final_reward=self._rewards[-1],
            steps=len(self._rewards),
            jerk=action_jerk(np.stack(self._executed) / half_range),
            frames=np.stack(self._frames) if self._frames else None,
        )

    def _record(self) -> None:
        if self._seed in self._settings.record:
            self._frames.append(self._environment.render())


def action_jerk(actions: np.ndarray) -> float:
    """The mean over time of |a_{t+3} - 3 a_{t+2} + 3 a_{t+1} - a_t|^2, the squared jerk of Flash and Hogan (1985) in finite differences.

    Args: `actions`: (steps, action_dim).  Returns: NaN for fewer than 4 steps; lower is smoother. The unit of time is a control step.
    """
    if len(actions) < 4:
        return float("nan")
    third = np.diff(np.asarray(actions, dtype=np.float64), n=3, axis=0)
    return float((third**2).sum(axis=1).mean())
