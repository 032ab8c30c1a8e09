"""What the MuJoCo environments share: the whole state of the physics as one vector, and pictures."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy as np

from .base import import_extra


def import_mujoco() -> ModuleType:
    """MuJoCo without a display, unless the variable MUJOCO_GL (or DISPLAY) says where pictures come from."""
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "disabled")
    return import_extra("mujoco")


def state_size(model: Any) -> int:
    """How many numbers `read_state` gives."""
    mujoco = import_mujoco()
    return mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)


def read_state(model: Any, data: Any) -> np.ndarray:
    """Everything the next step depends on, float64: positions, velocities, controls, mocap bodies, the solver's warm start."""
    mujoco = import_mujoco()
    state = np.empty(state_size(model))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return state


def write_state(model: Any, data: Any, state: np.ndarray) -> None:
    """Put back what `read_state` gave, and compute what follows from it."""
    mujoco = import_mujoco()
    mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(
        model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION
    )  # the warm start, which forward overwrites


def picture(model: Any, data: Any, camera: str | int, size: int = 256) -> np.ndarray:
    """The scene from a camera (-1: the free one), uint8 (size, size, 3).

    Raises: ValueError when MuJoCo was loaded without OpenGL.
    """
    mujoco = import_mujoco()
    backend = os.environ.get("MUJOCO_GL", "")
    if backend.lower() in ("disabled", "disable", "off", "false", "0"):
        raise ValueError(
            f"MuJoCo draws no pictures with MUJOCO_GL={backend}: start the program with MUJOCO_GL=egl (or osmesa, or glfw with a display)."
        )
    with mujoco.Renderer(model, size, size) as renderer:
        renderer.update_scene(data, camera=camera)
        return renderer.render().copy()
