"""Chunks in time: what is remembered of observations, and which action of which chunk comes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class RecedingHorizon:
    """Feeds a policy windows of observations, and executes its chunks.

    Args:
        observation_horizon: steps of a window; before so many were seen, the first is repeated.
        action_horizon: steps executed of a chunk, whose first action belongs to the oldest observation of its window.
        ensemble: None; or m >= 0: decide at every step and average all chunks that reach it with weights exp(-m i), i = 0 for the oldest.
    """

    def __init__(self, observation_horizon: int, action_horizon: int, ensemble: float | None = None):
        if min(observation_horizon, action_horizon) < 1:
            raise ValueError(f"horizons must be at least 1, got {observation_horizon} and {action_horizon}.")
        if ensemble is not None and not ensemble >= 0:
            raise ValueError(f"ensemble must be a number >= 0 or None, got {ensemble}.")
        self.observation_horizon, self.action_horizon, self.ensemble = observation_horizon, action_horizon, ensemble
        self._seen: deque[Mapping[str, Any]] = deque(maxlen=observation_horizon)
        self._waiting: deque[np.ndarray] = deque()
        self._chunks: list[np.ndarray] = []  # what is left of them, from now on, the oldest first

    def step(self, observation: Mapping[str, Any], decide: Callable[[dict[str, np.ndarray]], np.ndarray]) -> np.ndarray:
        """The next action (action_dim,).  Args: `observation`: of now; `decide`: a window, key -> (observation_horizon, ...), to a chunk
        (prediction_horizon, action_dim), called when it is needed.
        """
        self._seen.append(observation)
        while len(self._seen) < self.observation_horizon:
            self._seen.append(observation)
        if self.ensemble is not None:
            return self._averaged(decide(self._window())[self.observation_horizon - 1 :])
        if not self._waiting:
            chunk = decide(self._window())[self.observation_horizon - 1 :]
            self._waiting.extend(chunk[: self.action_horizon])
        return self._waiting.popleft()

    def _averaged(self, chunk: np.ndarray) -> np.ndarray:
        self._chunks = [old[1:] for old in self._chunks if len(old) > 1] + [chunk]
        weights = np.exp(-self.ensemble * np.arange(len(self._chunks)))
        return np.average([c[0] for c in self._chunks], axis=0, weights=weights)

    def _window(self) -> dict[str, np.ndarray]:
        return {key: np.stack([np.asarray(seen[key]) for seen in self._seen]) for key in self._seen[-1]}
