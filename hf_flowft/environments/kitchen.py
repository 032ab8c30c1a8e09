"""Franka Kitchen (gymnasium-robotics): an arm does several things in a kitchen in any order."""

from __future__ import annotations

import numpy as np

from .base import Observation, Step, checked_action, checked_state, import_extra
from .mujoco_state import import_mujoco, picture, read_state, state_size, write_state

TASKS = ("microwave", "kettle", "light switch", "slide cabinet")
ROBOT_SIZE = 9


class Kitchen:
    """The four tasks of TASKS at 12 Hz; an action (9,) is the speed of the joints, each in [-1, 1].

    Observations: `observation.state` (18,), positions and speeds of the robot's joints; `observation.environment_state` (41,), of the
    kitchen's. Reward: how many tasks have been done so far, 0..4. Starts: always the same pose; the seed moves only the noise of the
    sensors, which the simulator adds.  No scripted expert exists: demonstrations come from data sets.
    """

    name = "kitchen"
    fps = 12
    max_steps = 280
    success = f"all of {', '.join(TASKS)} are done"
    action_dim = 9

    def __init__(self) -> None:
        mujoco = import_mujoco()
        if int(mujoco.__version__.split(".")[0]) >= 4:
            raise ImportError(
                f"the kitchen needs mujoco below 4, got {mujoco.__version__}: pip install hf_flowft[policy]"
            )
        module = import_extra("gymnasium_robotics.envs.franka_kitchen.kitchen_env")
        self._env = module.KitchenEnv(tasks_to_complete=list(TASKS))
        self._done: set[str] = set()
        self.action_low, self.action_high = np.full(9, -1, np.float32), np.ones(9, np.float32)
        self.observation_shapes: dict[str, tuple[int, ...]] = {
            "observation.state": (18,),
            "observation.environment_state": (41,),
        }

    def reset(self, seed: int) -> Observation:
        """The kitchen as it always starts, seen with the seed's sensor noise."""
        self._done = set()
        return _named(self._env.reset(seed=int(seed))[0]["observation"])

    def step(self, action: np.ndarray) -> Step:
        """Move for 1/12.5 s; done when all tasks are. `info`: "success", "tasks" (names of those done)."""
        observation, _, _, _, info = self._env.step(checked_action(action, self).astype(np.float64))
        self._done |= set(info["step_task_completions"])
        success = len(self._done) == len(TASKS)
        facts = {"success": success, "tasks": sorted(self._done)}
        return Step(_named(observation["observation"]), float(len(self._done)), success, facts)

    def get_state(self) -> np.ndarray:
        """The physics and the joint readings the controller starts from, float64; not the noise, nor which tasks were done."""
        robot = self._env.robot_env
        return np.concatenate([read_state(robot.model, robot.data), robot._last_robot_qpos])

    def set_state(self, state: np.ndarray) -> Observation:
        """Go back to a moment; the observation holds new sensor noise.  Raises: ValueError for another size."""
        robot = self._env.robot_env
        size = state_size(robot.model)
        vector = checked_state(state, (size + ROBOT_SIZE,), self.name)
        write_state(robot.model, robot.data, vector[:size])
        observation = _named(self._env._get_obs(robot._get_obs())["observation"])
        robot._last_robot_qpos = vector[size:].copy()
        return observation

    def hold_action(self) -> np.ndarray:
        """No speed."""
        return np.zeros(9, dtype=np.float32)

    def render(self) -> np.ndarray:
        """The kitchen, uint8 (256, 256, 3).  Raises: ValueError when MuJoCo has no OpenGL."""
        return picture(self._env.robot_env.model, self._env.robot_env.data, -1)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()


def _named(observation: np.ndarray) -> Observation:
    state = observation.astype(np.float32)
    return {"observation.state": state[:18], "observation.environment_state": state[18:]}
