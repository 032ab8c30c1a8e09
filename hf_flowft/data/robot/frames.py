"""The pictures of a camera, found by the number of the time step: embedded in the table, or decoded once from videos."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value, load_dataset
from datasets import config as datasets_config
from filelock import FileLock
from PIL import Image
from torch import Tensor

from ..errors import reason
from ..pixels import eight_bits
from . import tables
from .metadata import Episode, Feature, Metadata
from .video import decode_frames

MAX_PIXELS = 64 << 20
CELL = {"bytes": Value("binary"), "path": Value("string")}
"""How an embedded picture is stored; whatever its path says is not read."""


@dataclass(frozen=True)
class EmbeddedFrames:
    """Pictures in the files of the table (PNG or JPEG bytes), decoded when they are read.

    `rows`: a data set with them in `column`, one a time step; `feature`: what info.json says; `size`: (height, width) they are brought to.
    """

    rows: Dataset
    column: str
    feature: Feature
    size: tuple[int, int]

    def __call__(self, index: np.ndarray) -> Tensor:
        """Time steps (...) -> pictures (..., channels, height, width) uint8.  Raises: ValueError naming an unreadable picture."""
        wanted, where = np.unique(index, return_inverse=True)
        cells = self.rows.with_format("arrow")[wanted.tolist()][self.column]
        pictures = np.stack([self._decode(cell.as_py(), int(row)) for cell, row in zip(cells, wanted, strict=True)])
        return torch.from_numpy(pictures[where.reshape(index.shape)])

    def _decode(self, cell: Any, row: int) -> np.ndarray:
        name = f"{self.column!r} of time step {row}"
        if not isinstance(cell, dict) or not cell.get("bytes"):
            raise ValueError(f"{name} has no picture in the table (pictures in files beside it are not read).")
        try:
            with Image.open(io.BytesIO(cell["bytes"])) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"it has {picture.width} x {picture.height} pixels")
                return fitted(picture, self.feature, self.size)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors of unknown, truncated and broken files
            raise ValueError(f"{name} is an unreadable picture: {reason(error)}.") from error


@dataclass(frozen=True)
class StoredFrames:
    """Pictures of all time steps in one array file (steps, channels, height, width) uint8, of which only those that are read are loaded."""

    path: Path

    def __call__(self, index: np.ndarray) -> Tensor:
        """Time steps (...) -> pictures (..., channels, height, width) uint8."""
        return torch.from_numpy(np.load(self.path, mmap_mode="r", allow_pickle=False)[index])


Frames = EmbeddedFrames | StoredFrames


def resized(pictures: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Pictures (..., height, width, channels) uint8, grey or RGB, brought to `size` (height, width) as those of a data set are."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    plain = flat[..., 0] if flat.shape[-1] == 1 else flat  # a grey picture has no axis of channels to Pillow
    made = [np.asarray(_resized(Image.fromarray(picture), size)) for picture in plain]
    return np.stack(made).reshape(*pictures.shape[:-3], *size, flat.shape[-1])


def _resized(picture: Image.Image, size: Sequence[int]) -> Image.Image:
    return picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def fitted(picture: Image.Image, feature: Feature, size: tuple[int, int]) -> np.ndarray:
    """A picture as (channels, *size) uint8, checked against info.json.  Raises: ValueError when its size is not the one given there, and as `eight_bits`."""
    channels, height, width = feature.image_shape
    if picture.size != (width, height):
        raise ValueError(
            f"it is {picture.width} wide and {picture.height} high, but meta/info.json has {width} and {height}"
        )
    picture = eight_bits(picture, channels)
    if (height, width) != size:
        picture = _resized(picture, size)
    array = np.asarray(picture, dtype=np.uint8)
    return array[None] if channels == 1 else np.moveaxis(array, -1, 0)


def open_frames(metadata: Metadata, camera: str, size: Sequence[int] = (), episodes: int = 0) -> Frames:
    """The pictures of a camera.

    Args: `camera`: a feature of type image or video; `size`: (height, width) they are brought to, empty for as they are; `episodes`: the first so
    many, whose videos alone are decoded, 0 for all.
    Raises: ValueError for another feature or size, and for videos: no decoder, or files that are missing or broken.
    """
    feature = metadata.features.get(camera)
    if feature is None or not feature.is_camera:
        known = ", ".join(key for key, f in metadata.features.items() if f.is_camera) or "no cameras at all"
        raise ValueError(f"{camera!r} is no camera of {metadata.folder.name}; it has {known}.")
    if feature.image_shape[0] not in (1, 3):
        raise ValueError(
            f"{camera!r} of {metadata.folder.name} has {feature.image_shape[0]} channels; 1 and 3 can be read."
        )
    if len(size) not in (0, 2) or any(n < 1 for n in size):
        raise ValueError(f"data.image_size must be [height, width] in pixels, or empty, got {list(size)}.")
    height, width = size or feature.image_shape[1:]
    if feature.dtype == "video":
        return _stored(metadata, camera, (height, width), metadata.episodes[: episodes or None])
    files = [str(path) for path in tables.data_files(metadata.folder, "data/*/*.parquet")]
    try:
        rows = load_dataset(
            "parquet", data_files=files, split="train", columns=[camera], features=Features({camera: CELL})
        )
    except Exception as error:  # datasets raises a dozen kinds; the user needs one sentence
        raise ValueError(f"cannot read {camera!r} in the tables of {metadata.folder}: {reason(error)}.") from error
    return EmbeddedFrames(rows, camera, feature, (height, width))


def _stored(metadata: Metadata, camera: str, size: tuple[int, int], episodes: Sequence[Episode]) -> StoredFrames:
    """The frames of the videos of the first episodes, decoded by one process into a file in the cache of `datasets`, unless they are there."""
    feature = metadata.features[camera]
    parts = [(episode.length, episode.videos[camera]) for episode in episodes]
    files = {part.file: _identity(metadata.folder / part.file) for _, part in parts}
    key = [files, [(n, part.file, part.start) for n, part in parts], metadata.fps, feature.image_shape, size]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    path = Path(datasets_config.HF_DATASETS_CACHE) / "hf_flowft_frames" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            _decode_all(path, metadata, camera, size, episodes)
    return StoredFrames(path)


def _decode_all(
    path: Path, metadata: Metadata, camera: str, size: tuple[int, int], episodes: Sequence[Episode]
) -> None:
    """The file of frames, which appears when it is complete."""
    shape = (sum(episode.length for episode in episodes), metadata.features[camera].image_shape[0], *size)
    with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
        made = Path(unfinished) / "frames.npy"
        array = np.lib.format.open_memmap(made, mode="w+", dtype=np.uint8, shape=shape)
        for episode in episodes:
            _fill(array, metadata, episode, camera, size)
        array.flush()
        os.replace(made, path)


def _identity(path: Path) -> list[Any]:
    """What tells whether a file is still the one whose frames are stored."""
    if not path.is_file():
        raise ValueError(f"there is no video {path}.")
    file = path.resolve().stat()
    return [str(path.resolve()), file.st_size, file.st_mtime_ns]


def _fill(array: np.ndarray, metadata: Metadata, episode: Episode, camera: str, size: tuple[int, int]) -> None:
    part, feature = episode.videos[camera], metadata.features[camera]
    path = metadata.folder / part.file
    row = episode.start
    for frame in decode_frames(path, part.start, episode.length, metadata.fps):
        try:
            array[row] = fitted(Image.fromarray(frame), feature, size)
        except ValueError as error:
            raise ValueError(f"a frame of {path} is not as described: {error}.") from error
        row += 1
    if row != episode.start + episode.length:
        raise ValueError(
            f"{path} has only {row - episode.start} of the {episode.length} frames of an episode from {part.start:g} s on."
        )
