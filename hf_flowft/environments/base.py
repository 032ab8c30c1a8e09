"""What an environment is, which seeds may be used for what, and the errors all environments share."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

Observation = dict[str, np.ndarray]
"""Arrays by LeRobot's keys, in the simulator's own units: states float32 (size,), images uint8 (height, width, 3)."""

SEEDS = {
    "demonstrations": range(0, 100_000),
    "test": range(100_000, 200_000),
    "validation": range(200_000, 300_000),
}
"""Which seeds of `reset` start which episodes. They are disjoint, so a start that was demonstrated is never a start that is scored, and
what is chosen on validation is reported on test. In Meta-World the seed draws the goal too, so the goals are as disjoint as the starts."""


class Step(NamedTuple):
    """One step: `observation` after it; `reward`; `done`, whether the task is accomplished; `info`, with "success" and what else is known."""

    observation: Observation
    reward: float
    done: bool
    info: dict[str, Any]


class Environment(Protocol):
    """A simulated task, gymnasium underneath. Observations and actions are raw: nothing here is normalised.

    `name`: its key in ENVIRONMENTS; `fps`: control steps a second; `max_steps`: the usual length of an episode, at which rollouts stop
    (the environment itself does not); `success`: what counts as success, in words; `action_low`, `action_high`: float32 (action_dim,);
    `observation_shapes`: the shape of each observation.
    """

    name: str
    fps: int
    max_steps: int
    success: str
    action_dim: int
    action_low: np.ndarray
    action_high: np.ndarray
    observation_shapes: dict[str, tuple[int, ...]]

    def reset(self, seed: int) -> Observation:
        """Start the episode of this seed, the same one whatever was simulated before."""

    def step(self, action: np.ndarray) -> Step:
        """Apply an action (action_dim,) for one control step.  Raises: ValueError for a wrong shape, NaN or infinity."""

    def get_state(self) -> np.ndarray:
        """The state of the physics, for `set_state`."""

    def set_state(self, state: np.ndarray) -> Observation:
        """Put the physics into a state.  Raises: ValueError for a wrong size."""

    def hold_action(self) -> np.ndarray:
        """The action (action_dim,) that keeps the robot where it is."""

    def render(self) -> np.ndarray:
        """A picture of the scene, uint8 (height, width, 3)."""

    def close(self) -> None:
        """Free what the simulator holds."""


def initial_seeds(split: str, count: int, offset: int = 0) -> list[int]:
    """`count` seeds of a split of SEEDS, from its `offset`-th on.

    Raises: ValueError for an unknown split, or when the split has no so many.
    """
    if split not in SEEDS:
        raise ValueError(f"there is no split {split!r} of initial conditions: choose one of {', '.join(SEEDS)}.")
    seeds = SEEDS[split]
    if count < 1 or offset < 0 or offset + count > len(seeds):
        raise ValueError(
            f"the split {split!r} has {len(seeds)} initial conditions: count={count} from offset={offset} is not among them."
        )
    return list(seeds[offset : offset + count])


def import_extra(module: str) -> ModuleType:
    """A module of the optional packages for policies.  Raises: ImportError saying how to install them."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"environments need {module.split('.')[0]} ({error}): pip install hf_flowft[policy]"
        ) from error


def checked_action(action: np.ndarray, environment: Environment, where: str = "") -> np.ndarray:
    """The action as float32 (action_dim,); `where`, as in "episode of seed 3, step 12: ", begins the message of an error.

    Raises: ValueError when it has another shape, or is not finite.
    """
    array = np.asarray(action, dtype=np.float32)
    if array.shape != (environment.action_dim,):
        raise ValueError(
            f"{where}an action of {environment.name} has shape ({environment.action_dim},), got {array.shape}."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{where}the action for {environment.name} is not finite: {array.tolist()}.")
    return array


def checked_state(state: Sequence[float] | np.ndarray, sizes: Sequence[int], name: str) -> np.ndarray:
    """The state as a float64 vector.  Raises: ValueError when its size is none of `sizes`, or it is not finite."""
    vector = np.asarray(state, dtype=np.float64)
    if vector.ndim != 1 or vector.size not in sizes or not np.isfinite(vector).all():
        accepted = " or ".join(map(str, sizes))
        raise ValueError(f"a state of {name} is {accepted} finite numbers, got {vector.tolist()}.")
    return vector
