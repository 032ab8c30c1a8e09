"""Meta-World: fifty tasks of one robot arm at a table (MuJoCo), with the scripted experts of the package."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from .base import Observation, Step, checked_action, checked_state, import_extra
from .mujoco_state import import_mujoco, picture, read_state, state_size, write_state

FRAME_SIZE, MOST_REWARD = 18, 10.0
TASKS = (
    *("assembly-v3", "basketball-v3", "bin-picking-v3", "box-close-v3", "button-press-topdown-v3"),
    *("button-press-topdown-wall-v3", "button-press-v3", "button-press-wall-v3", "coffee-button-v3", "coffee-pull-v3"),
    *("coffee-push-v3", "dial-turn-v3", "disassemble-v3", "door-close-v3", "door-lock-v3", "door-open-v3"),
    *("door-unlock-v3", "drawer-close-v3", "drawer-open-v3", "faucet-close-v3", "faucet-open-v3", "hammer-v3"),
    *("hand-insert-v3", "handle-press-side-v3", "handle-press-v3", "handle-pull-side-v3", "handle-pull-v3"),
    *("lever-pull-v3", "peg-insert-side-v3", "peg-unplug-side-v3", "pick-out-of-hole-v3", "pick-place-v3"),
    *("pick-place-wall-v3", "plate-slide-back-side-v3", "plate-slide-back-v3", "plate-slide-side-v3", "plate-slide-v3"),
    *("push-back-v3", "push-v3", "push-wall-v3", "reach-v3", "reach-wall-v3", "shelf-place-v3", "soccer-v3"),
    *("stick-pull-v3", "stick-push-v3", "sweep-into-v3", "sweep-v3", "window-close-v3", "window-open-v3"),
)


class MetaWorld:
    """A task of Meta-World at 80 Hz; an action is a move of the hand (3,) and the closing of the gripper, each in [-1, 1].

    Observations, as in LeRobot's Meta-World data: `observation.state` (4,), hand position in m and opening of the gripper in [0, 1];
    `observation.environment_state` (39,): hand, gripper and objects now (18), the same one step before (18), the goal (3), so it holds
    `observation.state` too. Reward: a tenth of Meta-World's shaped one, so 0..1. Starts: object and goal are drawn from the seed, without end
    (the 50 goals of Meta-World's own MT1 benchmark are not used).
    """

    fps = 80
    max_steps = 500
    action_dim = 4

    def __init__(self, task: str):
        import_mujoco()
        self._env = import_extra("metaworld.env_dict").ALL_V3_ENVIRONMENTS[task]()
        self._env._partially_observable = False  # the goal is observed
        self._env.__dict__.pop("sawyer_observation_space", None)  # the bounds cached with a hidden goal
        self._env._set_task_called = True
        self._env._freeze_rand_vec, self._env.seeded_rand_vec = False, True
        self.name = f"metaworld/{task}"
        self.success = f"Meta-World's own test of {task}"
        self.action_low, self.action_high = np.full(4, -1, np.float32), np.ones(4, np.float32)
        self.observation_shapes: dict[str, tuple[int, ...]] = {
            "observation.state": (4,),
            "observation.environment_state": (39,),
        }

    def reset(self, seed: int) -> Observation:
        """The start and the goal Meta-World draws from the seed."""
        self._env.seed(int(seed))
        return _named(self._env.reset()[0])

    def step(self, action: np.ndarray) -> Step:
        """Move for 1/80 s; done at success. `info`: "success"."""
        move = checked_action(action, self)
        self._env.curr_path_length = 0  # the length of an episode is the caller's choice
        observation, reward, _, _, info = self._env.step(move)
        success = bool(info["success"])
        return Step(_named(observation), float(reward) / MOST_REWARD, success, {"success": success})

    def get_state(self) -> np.ndarray:
        """The physics and the last frame, float64; it belongs to the episode (the seed) it was read in, whose goal it does not hold."""
        return np.concatenate([read_state(self._env.model, self._env.data), self._env._prev_obs])

    def set_state(self, state: np.ndarray) -> Observation:
        """Go back to a moment of this episode, exactly.  Raises: ValueError for another size."""
        size = state_size(self._env.model)
        vector = checked_state(state, (size + FRAME_SIZE,), self.name)
        write_state(self._env.model, self._env.data, vector[:size])
        self._env._prev_obs = vector[size:].copy()
        frame = self._env._get_curr_obs_combined_no_goal()
        return _named(np.concatenate([frame, vector[size:], self._env._get_pos_goal()]))

    def hold_action(self) -> np.ndarray:
        """No move, gripper at rest."""
        return np.zeros(4, dtype=np.float32)

    def render(self) -> np.ndarray:
        """The table from the corner behind the goal, uint8 (256, 256, 3).  Raises: ValueError when MuJoCo has no OpenGL."""
        return picture(self._env.model, self._env.data, "corner2")

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()


def scripted_expert(task: str) -> Callable[[np.ndarray], np.ndarray]:
    """Meta-World's expert for a task: `observation.environment_state` (39,) -> action (4,), clipped to [-1, 1]."""
    import_mujoco()
    policy = import_extra("metaworld.policies").ENV_POLICY_MAP[task]()

    def act(observation: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its moves are longer than 1, which the environment clips
            return np.clip(policy.get_action(np.asarray(observation, dtype=np.float64)), -1, 1).astype(np.float32)

    return act


def _named(observation: np.ndarray) -> Observation:
    state = observation.astype(np.float32)
    return {"observation.state": state[:4].copy(), "observation.environment_state": state}
