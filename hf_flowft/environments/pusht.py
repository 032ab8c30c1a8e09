"""Push-T: a disc pushes a T into its place (gym-pusht, the physics of the Diffusion Policy paper)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .base import Observation, Step, checked_action, checked_state, import_extra

REST_SIZE, MOMENT_SIZE = 5, 10
GOAL_POSE = (256.0, 256.0, np.pi / 4)
TEE = np.array([(-60, 0), (60, 0), (60, 30), (-60, 30), (-15, 30), (15, 30), (15, 120), (-15, 120)], dtype=np.float64)
"""The keypoints of the T in its own frame, in pixels and in the order of gym-pusht: the corners of the bar, then of the stem."""


class PushT:
    """Push-T, in pixels of a 512 x 512 field at 10 Hz; an action is the place the agent is to go to.

    Observations: `observation.state` (2,), the agent's position, with `observation.environment_state` (16,), the T's 8 keypoints; with
    `pixels`, `observation.image` (96, 96, 3) in place of the keypoints. Reward: min(coverage of the goal / 0.95, 1).
    Starts: gym-pusht's own draw from the seed.
    """

    fps = 10
    max_steps = 300
    success = "the T covers more than 95 % of its place"
    action_dim = 2

    def __init__(self, pixels: bool = False):
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        module = import_extra("gym_pusht.envs.pusht")
        size = {"visualization_width": 256, "visualization_height": 256}
        self._env = module.PushTEnv(obs_type="state", render_mode="rgb_array", **size)
        self._env._get_coverage = _of_new_poses(self._env._get_coverage, self._env)
        self.name = "pusht-pixels" if pixels else "pusht"
        self.action_low, self.action_high = np.zeros(2, np.float32), np.full(2, 512, np.float32)
        seen = {"observation.image": (96, 96, 3)} if pixels else {"observation.environment_state": (16,)}
        self.observation_shapes = {"observation.state": (2,), **seen}

    def reset(self, seed: int) -> Observation:
        """The start gym-pusht draws from the seed."""
        self._env.reset(seed=int(seed))
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        """Move towards the target (2,) for 0.1 s; done when the coverage passes 0.95. `info`: "success", "coverage"."""
        target = checked_action(action, self)
        _, reward, done, _, info = self._env.step(target.astype(np.float64))
        facts = {"success": bool(done), "coverage": float(info["coverage"])}
        return Step(self._observe(), float(reward), bool(done), facts)

    def get_state(self) -> np.ndarray:
        """A moment, float64 (10,): agent x, y; T x, y, angle; velocities of the agent x, y and of the T x, y, angle."""
        agent, block = self._env.agent, self._env.block
        return np.array(
            [*agent.position, *block.position, block.angle, *agent.velocity, *block.velocity, block.angular_velocity]
        )

    def set_state(self, state: np.ndarray) -> Observation:
        """Put the bodies into a state, in new physics that remember no contact.

        Args: `state`: the 10 numbers of `get_state`, or a start, the first 5 of them: then all is at rest, and 0.01 s pass as after a reset.
        What is not in a state are the impulses of a contact going on, so in the middle of a push the next step may differ by
        some hundredths of a pixel.  Raises: ValueError for another size.
        """
        vector = checked_state(state, (REST_SIZE, MOMENT_SIZE), self.name)
        self._env._setup()
        place(self._env, vector)
        if vector.size == REST_SIZE:
            self._env.space.step(self._env.dt)
        return self._observe()

    def hold_action(self) -> np.ndarray:
        """Where the agent is."""
        return np.array(self._env.agent.position, dtype=np.float32)

    def render(self) -> np.ndarray:
        """The field with the last target as a cross, uint8 (256, 256, 3)."""
        return np.ascontiguousarray(self._env.render(), dtype=np.uint8)

    def close(self) -> None:
        """Nothing is held."""
        self._env.close()

    def _observe(self) -> Observation:
        observation = {"observation.state": np.array(self._env.agent.position, dtype=np.float32)}
        if "observation.image" in self.observation_shapes:
            observation["observation.image"] = np.ascontiguousarray(self._env._render(), dtype=np.uint8)
        else:
            keypoints = self._env.get_keypoints(self._env._block_shapes)
            observation["observation.environment_state"] = keypoints.ravel().astype(np.float32)
        return observation


def _of_new_poses(coverage: Callable[[], float], simulation: Any) -> Callable[[], float]:
    """The coverage, computed only where the T has moved: the polygons cost more than the physics, and most steps leave it where it is."""
    last: tuple[tuple[float, float, float], float] | None = None

    def remembered() -> float:
        nonlocal last
        pose = (*simulation.block.position, simulation.block.angle)
        if last is None or last[0] != pose:
            last = (pose, coverage())
        return last[1]

    return remembered


def place(simulation: Any, state: np.ndarray) -> None:
    """Put the bodies of a `PushTEnv` into a state of 5 (at rest) or 10 numbers, without a step of physics.

    The angle goes first: setting it turns the T about its centre of gravity, which moves the position.
    """
    agent, block = simulation.agent, simulation.block
    velocity = state[REST_SIZE:] if state.size == MOMENT_SIZE else np.zeros(REST_SIZE)
    block.angle = float(state[4])
    block.position = (float(state[2]), float(state[3]))
    agent.position = (float(state[0]), float(state[1]))
    agent.velocity = (float(velocity[0]), float(velocity[1]))
    block.velocity, block.angular_velocity = (float(velocity[2]), float(velocity[3])), float(velocity[4])
    simulation.space.reindex_shapes_for_body(block)
    simulation.space.reindex_shapes_for_body(agent)


def tee_keypoints(pose: np.ndarray) -> np.ndarray:
    """The T's 8 keypoints at poses (x, y, angle): (..., 3) -> (..., 8, 2), in the order of gym-pusht."""
    pose = np.asarray(pose, dtype=np.float64)
    cosine, sine = np.cos(pose[..., 2, None]), np.sin(pose[..., 2, None])
    x, y = TEE[:, 0], TEE[:, 1]
    turned = np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
    return turned + pose[..., None, :2]


def tee_pose(keypoints: np.ndarray) -> np.ndarray:
    """The pose (x, y, angle) of the T whose keypoints (16,) or (8, 2) these are, by least squares (Kabsch 1976)."""
    points = np.asarray(keypoints, dtype=np.float64).reshape(8, 2)
    a, b = TEE - TEE.mean(axis=0), points - points.mean(axis=0)
    angle = np.arctan2((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a * b).sum())
    origin = tee_keypoints(np.array([0.0, 0.0, angle])).mean(axis=0)
    return np.array([*(points.mean(axis=0) - origin), angle])
