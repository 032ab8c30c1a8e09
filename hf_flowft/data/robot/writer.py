"""Writing demonstrations as a LeRobotDataset, version 3.0: readable here, with plain `datasets`, and with lerobot."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Array2D, Array3D, Array4D, Array5D, Dataset, Features, Value
from datasets import Image as ImageFeature
from datasets import Sequence as ListFeature
from PIL import Image

from .metadata import INDEX_KEYS, NUMBER_TYPES
from .statistics import histogram_statistics, statistics

CHUNK_FILES = 1000
MEGABYTE = 1 << 20
ARRAYS = {2: Array2D, 3: Array3D, 4: Array4D, 5: Array5D}
INDEX_TYPES = {key: "float32" if key == "timestamp" else "int64" for key in INDEX_KEYS}
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"


def write_lerobot(
    folder: str | Path,
    episodes: Iterable[Mapping[str, np.ndarray]],
    fps: float,
    *,
    task: str = "",
    tasks: Sequence[str] = (),
    names: Mapping[str, Sequence[str]] | None = None,
    robot_type: str = "unknown",
    file_megabytes: int = 100,
) -> Path:
    """Write episodes as a LeRobotDataset v3.0.

    Args: `folder`: a new one; it appears when all is written; `episodes`: each a dict of arrays (steps, *shape), the same keys, types and shapes
    in each, such as `observation.state`, `action`, `next.reward` (steps,); a uint8 array (steps, height, width, channels) is a camera and is
    stored as PNG, which is lossless; `fps`: frames a second; `task`: what is demonstrated, or `tasks`: one for each episode; `names`: of the
    coordinates of a key; `file_megabytes`: a new file is begun when a table has grown larger, uncompressed.
    Returns: the folder.  Raises: ValueError for a folder that is there, no episodes, or arrays that do not fit together or hold NaN.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} is there already: choose another folder, or remove it.")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number of frames a second, got {fps}.")
    if bool(task) == bool(tasks):
        raise ValueError(f"give either one task for all episodes or tasks for each, got {task!r} and {list(tasks)}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished:
        root = Path(unfinished) / "dataset"
        writer = _Writer(root, float(fps), dict(names or {}), file_megabytes * MEGABYTE)
        for number, episode in enumerate(episodes):
            if tasks and number >= len(tasks):
                raise ValueError(f"there are {len(tasks)} tasks, but more episodes.")
            writer.add({key: np.asarray(value) for key, value in episode.items()}, tasks[number] if tasks else task)
        if tasks and len(writer.episodes) != len(tasks):
            raise ValueError(f"there are {len(tasks)} tasks, but {len(writer.episodes)} episodes.")
        writer.finish(robot_type, file_megabytes)
        root.rename(folder)
    return folder


class _Writer:
    """The files of a data set that is being written."""

    def __init__(self, root: Path, fps: float, names: dict[str, Sequence[str]], max_bytes: int):
        self.root, self.fps, self.names, self.max_bytes = root, fps, names, max_bytes
        self.schema: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.tasks: dict[str, int] = {}
        self.episodes: list[dict[str, Any]] = []
        self.steps = 0
        self.columns: dict[str, list[np.ndarray]] = {}
        self.histograms: dict[str, np.ndarray] = {}
        self.file: pq.ParquetWriter = None
        self.file_number, self.file_bytes = -1, 0

    def add(self, episode: dict[str, np.ndarray], task: str) -> None:
        """Write one episode."""
        number = len(self.episodes)
        length = self._check(episode, number)
        if not task or not isinstance(task, str):
            raise ValueError(f"the task of episode {number} must be a text, got {task!r}.")
        task_index = self.tasks.setdefault(task, len(self.tasks))
        columns = episode | {
            "timestamp": (np.arange(length) / self.fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": np.arange(self.steps, self.steps + length),
            "task_index": np.full(length, task_index),
        }
        self._write(_table(columns, self.schema))
        self.episodes.append(
            {
                "episode_index": number,
                "tasks": [task],
                "length": length,
                "data/chunk_index": self.file_number // CHUNK_FILES,
                "data/file_index": self.file_number % CHUNK_FILES,
                "dataset_from_index": self.steps,
                "dataset_to_index": self.steps + length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **self._statistics(columns),
            }
        )
        self.steps += length

    def _check(self, episode: dict[str, np.ndarray], number: int) -> int:
        """The length of an episode that is like the others.  Raises: ValueError naming episode and key."""
        schema = {key: (_dtype(value), value.shape[1:] or (1,)) for key, value in episode.items()}
        if not self.schema:
            self._begin(schema)
        known = {key: kind for key, kind in self.schema.items() if key not in INDEX_KEYS}
        if schema != known:
            key = next(key for key in [*known, *schema] if schema.get(key) != known.get(key))
            raise ValueError(
                f"episode {number} has {key!r} as {schema.get(key, 'nothing')}, the first one as {known.get(key, 'nothing')}: (type, shape) "
                "must be the same in all."
            )
        lengths = {key: len(value) if value.ndim else 0 for key, value in episode.items()}
        if len(set(lengths.values())) != 1 or min(lengths.values()) < 1:
            raise ValueError(
                f"the arrays of episode {number} must have one row a time step, but their lengths are {lengths}."
            )
        for key, value in episode.items():
            if not np.isfinite(value).all():
                raise ValueError(f"{key!r} of episode {number} holds NaN or infinite values.")
        return lengths.popitem()[1]

    def _begin(self, schema: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        """Fix the columns of the data set."""
        for key, (dtype, shape) in schema.items():
            if key in INDEX_KEYS or not key or "/" in key or "\\" in key:
                raise ValueError(
                    f"{key!r} cannot be a key of an episode: {', '.join(INDEX_KEYS)} are made here, and / is for files."
                )
            if dtype not in (*NUMBER_TYPES, "image") or len(shape) > max(ARRAYS):
                raise ValueError(
                    f"{key!r} must be an array of numbers of at most {max(ARRAYS)} axes a step, got {dtype} of {shape}."
                )
            if key in self.names and (dtype == "image" or len(self.names[key]) != shape[0]):
                raise ValueError(
                    f"names of {key!r} must be {shape[0]} names of coordinates, got {list(self.names[key])}."
                )
        unknown = sorted(set(self.names) - set(schema))
        if unknown or not schema:
            raise ValueError(
                f"the episodes have no {unknown[0]!r} to give names to." if unknown else "an episode has no arrays."
            )
        self.schema = schema | {key: (dtype, (1,)) for key, dtype in INDEX_TYPES.items()}

    def _write(self, table: pa.Table) -> None:
        """One episode is one group of rows."""
        if self.file is None or self.file_bytes + table.nbytes > self.max_bytes:
            self._close()
            self.file_number, self.file_bytes = self.file_number + 1, 0
            place = {"chunk_index": self.file_number // CHUNK_FILES, "file_index": self.file_number % CHUNK_FILES}
            path = self.root / DATA_PATH.format(**place)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = pq.ParquetWriter(path, table.schema)
        self.file.write_table(table)
        self.file_bytes += table.nbytes

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()

    def _statistics(self, columns: dict[str, np.ndarray]) -> dict[str, Any]:
        """Those of one episode, as columns of the metadata; what those of all episodes need is kept."""
        found: dict[str, list] = {}
        for key, values in columns.items():
            if self.schema[key][0] == "image":
                histogram = np.stack([np.bincount(x.reshape(-1), minlength=256) for x in np.moveaxis(values, -1, 0)])
                self.histograms[key] = self.histograms.get(key, 0) + histogram
                known = histogram_statistics(histogram, len(values))
            else:
                self.columns.setdefault(key, []).append(values)
                known = statistics(values)
            found |= {f"stats/{key}/{name}": value for name, value in known.items()}
        return found

    def finish(self, robot_type: str, file_megabytes: int) -> None:
        """Write the metadata.  Raises: ValueError when there was no episode."""
        if not self.episodes:
            raise ValueError("there are no episodes to write.")
        self._close()
        known = {key: statistics(np.concatenate(parts)) for key, parts in self.columns.items()}
        known |= {key: histogram_statistics(counts, self.steps) for key, counts in self.histograms.items()}
        info = {
            "codebase_version": "v3.0",
            "robot_type": robot_type,
            "total_episodes": len(self.episodes),
            "total_frames": self.steps,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": file_megabytes,
            "video_files_size_in_mb": 200,
            "fps": int(self.fps) if self.fps.is_integer() else self.fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": {key: self._feature(key) for key in self.schema},
        }
        (self.root / EPISODES_PATH).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.episodes), self.root / EPISODES_PATH)
        index = pd.Index(list(self.tasks), name="task")
        pd.DataFrame({"task_index": list(self.tasks.values())}, index=index).to_parquet(
            self.root / "meta/tasks.parquet"
        )
        for name, content in {"info": info, "stats": {key: known[key] for key in self.schema}}.items():
            (self.root / f"meta/{name}.json").write_text(json.dumps(content, indent=4))

    def _feature(self, key: str) -> dict[str, Any]:
        dtype, shape = self.schema[key]
        names = ["height", "width", "channels"] if dtype == "image" else self.names.get(key)
        return {"dtype": dtype, "shape": list(shape), "names": list(names) if names else None}


def _dtype(values: np.ndarray) -> str:
    """The type of a feature: "image" for what looks like pictures."""
    pictures = values.dtype == np.uint8 and values.ndim == 4 and values.shape[-1] in (1, 3)
    return "image" if pictures else str(values.dtype)


def _table(columns: dict[str, np.ndarray], schema: dict[str, tuple[str, tuple[int, ...]]]) -> pa.Table:
    """The rows of an episode with the features of `datasets` in the schema."""
    features = Features({key: _type(*schema[key]) for key in schema})
    values = {key: _stored(columns[key], *schema[key]) for key in schema}
    return Dataset.from_dict(values, features=features).data.table.replace_schema_metadata(
        features.arrow_schema.metadata
    )


def _type(dtype: str, shape: tuple[int, ...]) -> Any:
    if dtype == "image":
        return ImageFeature()
    if shape == (1,):
        return Value(dtype)
    return ListFeature(Value(dtype), length=shape[0]) if len(shape) == 1 else ARRAYS[len(shape)](shape, dtype)


def _stored(values: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Any:
    if dtype == "image":
        return [{"bytes": _png(picture), "path": None} for picture in values]
    return values.reshape(-1) if shape == (1,) else values


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, format="PNG")
    return buffer.getvalue()
