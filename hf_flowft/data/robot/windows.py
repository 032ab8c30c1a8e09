"""What a policy sees and what it does at each time step: windows of an episode, held at its ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-4
"""Seconds by which an offset may miss a frame."""


class Windows(NamedTuple):
    """`rows` (steps, offsets): the row of the table at each offset from each time step; `is_pad`, alike: whether it is a repeated end."""

    rows: np.ndarray
    is_pad: np.ndarray


def frame_offsets(seconds: Sequence[float], fps: float, tolerance: float = TOLERANCE) -> list[int]:
    """Offsets in seconds ("delta timestamps") as numbers of frames.

    Args: `fps`: frames a second; `tolerance`: seconds by which an offset may miss a frame.
    Raises: ValueError for an offset that is no multiple of 1/fps, and for no offsets at all.
    """
    if not len(seconds):
        raise ValueError("a window needs at least one offset, got none.")
    values = np.asarray(seconds, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"offsets must be finite numbers of seconds, got {list(seconds)}.")
    frames = np.rint(values * fps)
    wrong = np.flatnonzero(np.abs(values - frames / fps) > tolerance)
    if len(wrong):
        raise ValueError(
            f"the offset {values[wrong[0]]:g} s is no multiple of 1/fps = {1 / fps:g} s (to {tolerance:g} s): "
            f"the nearest is {frames[wrong[0]] / fps:g} s."
        )
    return [int(frame) for frame in frames]


def windows(lengths: Sequence[int], offsets: Sequence[int]) -> Windows:
    """For every time step of every episode, the rows at `offsets` frames from it, never leaving the episode.

    Before the start of an episode its first row is repeated, after the end its last.

    Args: `lengths`: time steps of the episodes, which follow each other in the table; `offsets`: see `frame_offsets`.
    Raises: ValueError for an episode without a step.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.ndim != 1 or (sizes < 1).any():
        raise ValueError(f"every episode must have at least one time step, got the lengths {list(lengths)}.")
    ends = np.repeat(np.cumsum(sizes), sizes)[:, None]
    starts = ends - np.repeat(sizes, sizes)[:, None]
    wanted = np.arange(sizes.sum())[:, None] + np.asarray(offsets, dtype=np.int64)
    rows = np.clip(wanted, starts, ends - 1)
    return Windows(rows, rows != wanted)


def observation_offsets(observation_horizon: int) -> list[int]:
    """The offsets of the last `observation_horizon` observations, oldest first: ..., -1, 0."""
    return list(range(1 - observation_horizon, 1))


def action_offsets(observation_horizon: int, prediction_horizon: int) -> list[int]:
    """The offsets of an action chunk, whose first action belongs to the oldest observation: "now" is the action number To - 1."""
    return list(range(1 - observation_horizon, prediction_horizon - observation_horizon + 1))
