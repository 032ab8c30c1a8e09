"""What a LeRobotDataset says of itself, versions 2.1 and 3.0: features, tasks and episodes, checked against each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...repository import read_json
from . import tables
from .statistics import pooled

VERSIONS = ("v2.1", "v3.0")
INDEX_KEYS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
NUMBER_TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


@dataclass(frozen=True)
class Feature:
    """A column: its type (a number type, "image", "video", "string"), the shape of a row, and the names of its parts, as they are given."""

    dtype: str
    shape: tuple[int, ...]
    names: Any = None

    @property
    def is_camera(self) -> bool:
        """Whether it holds pictures."""
        return self.dtype in ("image", "video")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a camera, in whichever order the feature has them."""
        first = self.names[0] if isinstance(self.names, list) and self.names else None
        channels_first = first in ("channel", "channels", "c") or (first is None and self.shape[0] in (1, 3))
        a, b, c = self.shape
        return (a, b, c) if channels_first else (c, a, b)


@dataclass(frozen=True)
class VideoPart:
    """The frames of one episode in a video: its file, relative to the data set, and the second its first frame is at."""

    file: str
    start: float


@dataclass(frozen=True)
class Episode:
    """One demonstration: rows `start` to `start + length` of the whole table, its tasks, and its part of each camera's videos."""

    length: int
    start: int
    tasks: tuple[str, ...]
    videos: dict[str, VideoPart] = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """All that is known before any row is read; `tasks` by their index, `episodes` by theirs; `fps`: frames a second."""

    folder: Path
    version: str
    fps: float
    features: dict[str, Feature]
    tasks: list[str]
    episodes: list[Episode]

    @property
    def lengths(self) -> list[int]:
        """Time steps of each episode."""
        return [episode.length for episode in self.episodes]

    def statistics(self, key: str) -> dict[str, Any]:
        """The data set's own statistics of a feature.  Raises: ValueError when they are missing or broken."""
        if self.version == "v3.0":
            path = self.folder / "meta/stats.json"
            return tables.field(read_json(path), key, dict, str(path))
        path = self.folder / "meta/episodes_stats.jsonl"
        parts = [tables.field(line, "stats", dict, str(path)) for line in tables.read_lines(path)]
        try:
            return pooled([tables.field(part, key, dict, str(path)) for part in parts])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"the statistics of {key!r} in {path} are broken: {error!r}.") from error


def read_metadata(folder: Path) -> Metadata:
    """The metadata of a data set in a folder.

    Raises: ValueError naming file and field for another version, what is missing or of a wrong type, and counts that contradict each other.
    """
    path = folder / "meta/info.json"
    info, place = read_json(path), str(path)
    version = tables.field(info, "codebase_version", str, place)
    if version not in VERSIONS:
        raise ValueError(
            f"{place} is of version {version!r}; {' and '.join(VERSIONS)} can be read: convert it with lerobot's own script."
        )
    fps = float(tables.field(info, "fps", float, place))
    if fps <= 0:
        raise ValueError(f"'fps' in {place} must be positive, got {fps}.")
    features = _features(tables.field(info, "features", dict, place), place)
    read_tasks, read_episodes = (_tasks_v3, _episodes_v3) if version == "v3.0" else (_tasks_v2, _episodes_v2)
    chunk = tables.field(info, "chunks_size", int, place)
    cameras = [key for key, feature in features.items() if feature.dtype == "video"]
    metadata = Metadata(
        folder, version, fps, features, read_tasks(folder), read_episodes(folder, cameras, max(1, chunk))
    )
    _require_counts(metadata, info, place)
    return metadata


def _features(content: dict[str, Any], place: str) -> dict[str, Feature]:
    features = {}
    for key, value in content.items():
        where = f"feature {key!r} of {place}"
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object of dtype and shape, got {value!r}.")
        if not key or "/" in key or "\\" in key or key in (".", ".."):
            raise ValueError(f"the name of {where} cannot be that of a folder.")
        shape = tables.field(value, "shape", list, where)
        if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
            raise ValueError(f"'shape' in {where} must be whole numbers above 0, got {shape}.")
        feature = Feature(tables.field(value, "dtype", str, where), tuple(shape), value.get("names"))
        if feature.is_camera and len(shape) != 3:
            raise ValueError(f"'shape' in {where} must have three axes, as pictures have, got {shape}.")
        features[key] = feature
    missing = [key for key in INDEX_KEYS if key not in features]
    if missing:
        raise ValueError(f"'features' in {place} has no {missing[0]!r}, which every LeRobotDataset has.")
    return features


def _require_counts(metadata: Metadata, info: dict[str, Any], place: str) -> None:
    """What info.json counts must be there, and the tasks of the episodes too."""
    found = {
        "total_episodes": len(metadata.episodes),
        "total_frames": sum(metadata.lengths),
        "total_tasks": len(metadata.tasks),
    }
    for key, count in found.items():
        if tables.field(info, key, int, place) != count:
            raise ValueError(f"{key!r} in {place} is {info[key]}, but the other files in meta/ have {count}.")
    if not metadata.episodes:
        raise ValueError(f"{metadata.folder} has no episodes.")
    for number, episode in enumerate(metadata.episodes):
        strange = [task for task in episode.tasks if task not in metadata.tasks]
        if strange:
            raise ValueError(
                f"episode {number} of {metadata.folder} has the task {strange[0]!r}, which meta/tasks does not list."
            )


def _tasks_v3(folder: Path) -> list[str]:
    path = folder / "meta/tasks.parquet"  # written by pandas, whose name for an index without one is the other
    text = "task" if "task" in tables.column_names(path) else "__index_level_0__"
    rows = tables.read_table(path, ["task_index", text]).rename_columns(["task_index", "task"])
    return _in_order(rows.to_pylist(), path)


def _tasks_v2(folder: Path) -> list[str]:
    path = folder / "meta/tasks.jsonl"
    return _in_order(tables.read_lines(path), path)


def _in_order(rows: list[dict[str, Any]], path: Path) -> list[str]:
    """The tasks, which must be numbered from 0 without a gap."""
    by_index = {
        tables.field(row, "task_index", int, str(path)): tables.field(row, "task", str, str(path)) for row in rows
    }
    if sorted(by_index) != list(range(len(rows))):
        raise ValueError(f"'task_index' in {path} must number the tasks from 0, got {sorted(by_index)[:10]}.")
    return [by_index[index] for index in range(len(rows))]


def _episodes_v2(folder: Path, cameras: list[str], chunk: int) -> list[Episode]:
    path = folder / "meta/episodes.jsonl"
    rows = [(row, str(path)) for row in tables.read_lines(path)]

    def videos(number: int, row: dict[str, Any], place: str) -> dict[str, VideoPart]:
        name = "videos/chunk-{:03d}/{}/episode_{:06d}.mp4"
        return {camera: VideoPart(name.format(number // chunk, camera, number), 0.0) for camera in cameras}

    return _episodes(rows, videos)


def _episodes_v3(folder: Path, cameras: list[str], chunk: int) -> list[Episode]:
    places = {
        camera: [f"videos/{camera}/{k}" for k in ("chunk_index", "file_index", "from_timestamp")] for camera in cameras
    }
    spans = ["dataset_from_index", "dataset_to_index"]
    columns = ["episode_index", "length", "tasks", *spans, *(key for keys in places.values() for key in keys)]
    rows = [
        (row, str(path))
        for path in tables.data_files(folder, "meta/episodes/*/*.parquet")
        for row in tables.read_table(path, columns).to_pylist()
    ]

    def videos(number: int, row: dict[str, Any], place: str) -> dict[str, VideoPart]:
        found = {}
        for camera, (chunk_key, file_key, time_key) in places.items():
            chunk_index, file_index = (tables.field(row, key, int, place) for key in (chunk_key, file_key))
            name = PurePosixPath("videos", camera, f"chunk-{chunk_index:03d}", f"file-{file_index:03d}.mp4")
            found[camera] = VideoPart(name.as_posix(), float(tables.field(row, time_key, float, place)))
        return found

    episodes = _episodes(rows, videos)
    for number, (episode, (row, place)) in enumerate(zip(episodes, rows, strict=True)):
        span = [tables.field(row, key, int, place) for key in spans]
        if span != [episode.start, episode.start + episode.length]:
            raise ValueError(
                f"'dataset_from_index' and 'dataset_to_index' of episode {number} in {place} are {span}, but by the lengths its rows are "
                f"{episode.start} to {episode.start + episode.length}: episodes must follow each other."
            )
    return episodes


def _episodes(rows: Iterable[tuple[dict[str, Any], str]], videos: Any) -> list[Episode]:
    """Episodes from rows of metadata, each with the name of its file; they must be numbered from 0 in order."""
    found: list[Episode] = []
    start = 0
    for number, (row, place) in enumerate(rows):
        if tables.field(row, "episode_index", int, place) != number:
            raise ValueError(
                f"'episode_index' in {place} must number the episodes from 0 in order, got {row['episode_index']} for episode {number}."
            )
        length = tables.field(row, "length", int, place)
        if length < 1:
            raise ValueError(f"'length' of episode {number} in {place} must be at least 1, got {length}.")
        tasks = tables.field(row, "tasks", list, place)
        if not tasks or not all(isinstance(task, str) for task in tasks):
            raise ValueError(
                f"'tasks' of episode {number} in {place} must be a list of at least one text, got {tasks!r}."
            )
        found.append(Episode(length, start, tuple(tasks), videos(number, row, place)))
        start += length
    return found
