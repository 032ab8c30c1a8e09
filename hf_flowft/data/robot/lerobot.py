"""A LeRobotDataset, version 2.1 or 3.0, from a folder or from the Hub: read with pyarrow, nothing of it is ever executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download

from ...repository import hub_problem
from ..hub_source import resolve_commit
from ..sources import digest
from . import tables
from .metadata import INDEX_KEYS, NUMBER_TYPES, Metadata, read_metadata

META_FILES = ["meta/*.json", "meta/*.jsonl", "meta/*.parquet"]
TIME_TOLERANCE = 0.1
"""Part of a frame by which a time stamp may miss frame_index / fps."""


@dataclass(frozen=True)
class Rows:
    """All time steps, episode after episode: `columns` of (steps, *shape), scalars as (steps,); `task_index` (steps,)."""

    columns: dict[str, np.ndarray]
    task_index: np.ndarray


def open_lerobot(
    path: str, revision: str = "", cameras: Sequence[str] = (), episodes: int = 0
) -> tuple[Metadata, dict[str, str]]:
    """The metadata of a data set whose files are then all here, and facts about where it came from.

    Args: `path`: a folder, or the id of a data set on the Hub; `revision`: a branch, tag or commit there, empty for main; `cameras`: whose videos
    are wanted; `episodes`: of the first so many, 0 for all.  Of a Hub data set only JSON, parquet and those videos are downloaded.
    Raises: ValueError in one sentence when there is none, or its metadata are broken.
    """
    local = Path(path)
    if local.is_dir():
        if revision:
            raise ValueError(f"data.revision {revision!r} is for data sets on the Hub, but {path} is a folder here.")
        return read_metadata(local), {"source": local.resolve().name, "split": "train", "digest": digest(local)}
    if local.exists():
        raise ValueError(f"{path} is a file: give the folder of a LeRobotDataset, which has meta/ and data/ in it.")
    commit, online = resolve_commit(path, revision or "main")
    metadata = read_metadata(_download(path, commit, META_FILES, online))
    shown = metadata.episodes[: episodes or None]
    videos = sorted({episode.videos[key].file for episode in shown for key in cameras if key in episode.videos})
    _download(path, commit, ["data/*.parquet", *videos], online)
    return metadata, {"source": path, "split": "train", "revision": commit}


def _download(path: str, commit: str, patterns: list[str], online: bool) -> Path:
    try:
        folder = snapshot_download(
            path, repo_type="dataset", revision=commit, allow_patterns=patterns, local_files_only=not online
        )
    except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
        raise ValueError(f"{path!r} is no folder here, and {hub_problem(error, commit)}") from error
    return Path(folder)


def read_rows(metadata: Metadata, keys: Sequence[str]) -> Rows:
    """Some number features at every time step, checked.

    Raises: ValueError naming feature, file, episode and time step: a key that is missing or holds no numbers, another shape than in info.json,
    NaN or infinite values, time stamps of another fps, episodes that are not contiguous or not as long as the metadata say.
    """
    _require_numbers(metadata, keys)
    wanted = list(dict.fromkeys([*INDEX_KEYS, *keys]))
    parts: dict[str, list[np.ndarray]] = {key: [] for key in wanted}
    for path in tables.data_files(metadata.folder, "data/*/*.parquet"):
        table = tables.read_table(path, wanted)
        for key in wanted:
            parts[key].append(tables.numbers(table[key], metadata.features[key].shape, key, str(path)))
    columns = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    _require_order(metadata, columns)
    for key in wanted:
        _require_finite(metadata, key, columns[key])
    _require_times(metadata, columns)
    _require_tasks(metadata, columns)
    return Rows({key: columns[key] for key in keys}, columns["task_index"].astype(np.int64))


def _require_numbers(metadata: Metadata, keys: Sequence[str]) -> None:
    for key in keys:
        feature = metadata.features.get(key)
        if feature is None:
            raise ValueError(f"{metadata.folder.name} has no {key!r}; its features are {', '.join(metadata.features)}.")
        if feature.dtype not in NUMBER_TYPES:
            hint = "name it in data.cameras" if feature.is_camera else "choose another"
            raise ValueError(f"{key!r} of {metadata.folder.name} is of type {feature.dtype!r}, not numbers: {hint}.")
    for key in INDEX_KEYS:
        if metadata.features[key].shape != (1,):
            raise ValueError(
                f"{key!r} of {metadata.folder.name} must have the shape [1], got {list(metadata.features[key].shape)}."
            )


def _require_order(metadata: Metadata, columns: dict[str, np.ndarray]) -> None:
    """The rows must be those of the episodes in the metadata, one after another."""
    episodes, lengths = columns["episode_index"], np.array(metadata.lengths)
    if len(episodes) != lengths.sum():
        raise ValueError(
            f"the tables in {metadata.folder / 'data'} have {len(episodes)} rows, but the episodes in meta/ have {lengths.sum()} in all."
        )
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    expected = {
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "frame_index": np.arange(len(episodes)) - starts,
        "index": np.arange(len(episodes)),
    }
    for key, right in expected.items():
        wrong = np.flatnonzero(columns[key] != right)
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"{key!r} of row {row} in {metadata.folder / 'data'} is {columns[key][row]}, but by the lengths in meta/ it is {right[row]}: "
                "the rows of an episode must be contiguous and in order."
            )


def _require_finite(metadata: Metadata, key: str, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        starts = np.array([episode.start for episode in metadata.episodes])
        episode = int(np.searchsorted(starts, bad[0], side="right")) - 1
        raise ValueError(
            f"{key!r} of {metadata.folder.name} holds NaN, infinite or missing values: first in episode {episode}, frame "
            f"{bad[0] - starts[episode]} ({len(bad)} such rows); clean the data."
        )


def _require_tasks(metadata: Metadata, columns: dict[str, np.ndarray]) -> None:
    """The task of every row must be one of its episode's."""
    pairs = np.unique(np.stack([columns["episode_index"], columns["task_index"]], axis=1), axis=0)
    for episode, index in pairs.tolist():
        tasks = metadata.episodes[episode].tasks
        if index not in [metadata.tasks.index(task) for task in tasks]:
            raise ValueError(
                f"'task_index' in rows of episode {episode} of {metadata.folder} is {index}, but by the metadata its tasks are {', '.join(tasks)}."
            )


def _require_times(metadata: Metadata, columns: dict[str, np.ndarray]) -> None:
    """Time stamps must be frame_index / fps."""
    time, frame = columns["timestamp"].astype(np.float64), columns["frame_index"]
    wrong = np.flatnonzero(np.abs(time * metadata.fps - frame) > TIME_TOLERANCE + 1e-6 * frame)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"'fps' in {metadata.folder / 'meta/info.json'} is {metadata.fps:g}, but the 'timestamp' of frame {frame[row]} of episode "
            f"{columns['episode_index'][row]} is {time[row]:g} s: one of them is wrong."
        )
