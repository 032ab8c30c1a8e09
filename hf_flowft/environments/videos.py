"""Videos of episodes: gif without anything else, mp4 with the optional packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .base import import_extra
from .rollout import Policy, RolloutResult, rollout

LAST_MILLISECONDS = 1_500
"""How long the last frame of a gif stays."""
PALETTE_FRAMES = 8


def write_video(frames: np.ndarray, path: Path, fps: int) -> Path:
    """Write frames as .gif or .mp4, by the suffix of `path`; its folder is made.

    Args: `frames`: uint8 (frames, height, width, 3).  Raises: ValueError for other frames or another suffix; ImportError for mp4
    without the optional packages.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"a video takes uint8 frames (frames, height, width, 3), got {frames.dtype} {frames.shape}.")
    writers = {".gif": _write_gif, ".mp4": _write_mp4}
    if path.suffix not in writers:
        raise ValueError(f"videos are written as .gif or .mp4, got {path.name}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    writers[path.suffix](frames, path, fps)
    return path


def film(policy: Policy, result: RolloutResult, folder: Path, fps: int, **options: Any) -> list[Path]:
    """The best and the worst episode of a rollout, run again and recorded: good.gif and bad.gif (the first alone where there is one episode).

    By success, then by maximum reward; among equals the shorter is the better.

    Args: `options`: those of the rollout, so that the episodes go the same way.  Raises: ValueError when the simulator cannot draw.
    """
    order = sorted(
        range(len(result.seeds)), key=lambda i: (not result.success[i], -result.max_reward[i], result.steps[i])
    )
    chosen = [result.seeds[i] for i in dict.fromkeys((order[0], order[-1]))]
    shown = rollout(policy, result.env_name, chosen, record=range(len(chosen)), **options)
    names = zip(("good", "bad"), shown.frames.values(), strict=False)
    return [write_video(frames, folder / f"{name}.gif", fps) for name, frames in names]


def _write_gif(frames: np.ndarray, path: Path, fps: int) -> None:
    """One palette for all frames, taken from some of them, so that still parts stay still."""
    some = np.linspace(0, len(frames) - 1, min(len(frames), PALETTE_FRAMES)).round().astype(int)
    palette = Image.fromarray(np.concatenate(frames[some])).quantize(128)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    hundredths = max(2, round(100 / fps))  # the unit of the format, and the least that players keep
    durations = [10 * hundredths] * (len(images) - 1) + [LAST_MILLISECONDS]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)


def _write_mp4(frames: np.ndarray, path: Path, fps: int) -> None:
    """H.264; odd sizes are refused by most players, so an odd row or column is left out."""
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    writer = import_extra("imageio_ffmpeg").write_frames(str(path), (width, height), fps=fps, macro_block_size=2)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame[:height, :width]))
    writer.close()
