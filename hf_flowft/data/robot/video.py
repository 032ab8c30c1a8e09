"""Frames of mp4 files, through the ffmpeg that comes with `imageio-ffmpeg`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import reason


def decode_frames(path: Path, start: float, count: int, fps: float) -> Iterator[np.ndarray]:
    """`count` consecutive frames (height, width, 3) uint8 from `start` seconds on, or as many as there are.

    Nothing but this file is opened, whatever is in it.
    Raises: ValueError when the decoder is not installed, or the file cannot be decoded.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ValueError(
            "these observations are videos, and there is no decoder: run pip install hf_flowft[video], or choose no cameras."
        ) from error
    seek = (
        ["-ss", f"{start - 0.5 / fps:.6f}"] if start > 0.5 / fps else []
    )  # half a frame early: the first one is never missed
    only_this_file = ["-protocol_whitelist", "file", "-f", "mp4"]
    frames = imageio_ffmpeg.read_frames(
        str(path),
        pix_fmt="rgb24",
        input_params=[*seek, *only_this_file],
        output_params=["-map", "0:v:0", "-frames:v", str(count), "-fps_mode", "passthrough"],
    )
    try:
        width, height = next(frames)["size"]
        for frame in frames:
            yield np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3)
    except (OSError, RuntimeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"cannot decode {path}: {reason(error)}.") from error
