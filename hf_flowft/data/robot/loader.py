"""Demonstrations of a robot as flow data: the sample is a chunk of actions, the condition what the robot sees."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, Dataset, Features, Value
from datasets import Sequence as ListFeature

from ..flow_data import FlowData
from ..normalisation import Normalisation
from ..splits import split_rows
from .config import RobotConfig
from .frames import open_frames
from .lerobot import Rows, open_lerobot, read_rows
from .metadata import Metadata
from .statistics import statistics, units
from .windows import action_offsets, observation_offsets, windows

STATE_KEYS = ("observation.state", "observation.environment_state")
AGREED = ("state_keys", "cameras", "image_size", "action_key", "observation_horizon", "prediction_horizon", "fps")
"""What a policy and the data it is fine-tuned on must have in common."""


LOOKED_AT, OUT_OF_PROPORTION = 1000, 100.0


@dataclass
class RobotData(FlowData):
    """Flow data of a policy: `facts["policy"]` says what it sees and does, `facts["observation_normalisation"]` in what units it sees."""

    def adopt(self, description: Mapping[str, Any]) -> None:
        """See `FlowData`.  Raises: ValueError when the pipeline is no policy, or one that sees or does something else."""
        policy, own = description.get("policy"), self.facts["policy"]
        if not isinstance(policy, Mapping) or not isinstance(description.get("observation_normalisation"), Mapping):
            raise ValueError(
                f"the base is no policy: its description has no 'policy' and units of observations, which {self.name!r} needs."
            )
        for key in AGREED:
            if policy.get(key) != own[key]:
                raise ValueError(
                    f"the base has the {key} {policy.get(key)!r}, but the data {self.name!r} have {own[key]!r}: they must agree."
                )
        for number, (known, new) in enumerate(zip(description.get("label_names", []), self.label_names, strict=False)):
            if known != new:
                raise ValueError(
                    f"task {number} is {known!r} for the base, but {new!r} in {self.name!r}: their tasks must be numbered alike."
                )
        observed = description["observation_normalisation"]
        for key, mine in self.facts["observation_normalisation"].items():
            if len(observed.get(key, {}).get("mean", [])) != len(mine["mean"]):
                raise ValueError(
                    f"the base has seen another {key!r} than that of {self.name!r}, of {len(mine['mean'])} numbers."
                )
        super().adopt(description)
        own["normalisation"] = policy["normalisation"]
        self._observe_in(dict(observed))
        self._warn_of_what_the_base_never_saw_move()

    def _warn_of_what_the_base_never_saw_move(self) -> None:
        """A coordinate that hardly moved in the base's demonstrations has tiny units, in which these are out of all proportion."""
        if not self.condition_normalisation:
            return
        condition = self.rows("train", range(min(self.counts["train"], LOOKED_AT))).condition["condition"]
        far = condition.abs().amax(dim=0)
        if far.max() > OUT_OF_PROPORTION:
            warnings.warn(
                f"in the units of the base, number {int(far.argmax())} of the observations of {self.name!r} reaches {float(far.max()):.3g}: it hardly moved in "
                "the base's demonstrations. Fine-tuning from there forgets much; a base pretrained with data.statistics dataset, on a data set "
                "that has the new task too, sees it in proportion.",
                stacklevel=2,
            )

    def _observe_in(self, observed: dict[str, dict[str, list[float]]]) -> None:
        self.facts["observation_normalisation"] = observed
        policy = self.facts["policy"]
        if policy["state_keys"]:
            units = window_units(observed, policy["state_keys"], policy["observation_horizon"])
            self.condition_normalisation = {"condition": units}


def window_units(observed: Mapping[str, Mapping[str, list[float]]], keys: Sequence[str], horizon: int) -> Normalisation:
    """The units of a window (horizon * size), oldest observation first, from those of each key."""
    mean, std = ([number for key in keys for number in observed[key][name]] for name in ("mean", "std"))
    return Normalisation(mean * horizon, std * horizon)


def load_robot(config: RobotConfig = RobotConfig()) -> FlowData:
    """Windows of demonstrations, split by episodes.

    Each split has a row for every time step of its episodes: `sample` (prediction_horizon, action_dim), `condition` (observation_horizon * size)
    and `action_is_pad` (prediction_horizon): which actions repeat an end of the episode; `episode_index`, `frame_index` and `task_index`; and for
    each camera `image_<camera>`, the numbers of the time steps of its pictures, which are read with the rows: (observation_horizon, channels,
    height, width) uint8.
    Raises: ValueError in one sentence for data sets that are missing, broken or have nothing of what is asked for.
    """
    if not config.path:
        raise ValueError("data.path must be given: the folder of a LeRobotDataset, or its id on the Hub.")
    metadata, facts = open_lerobot(config.path, config.revision, config.cameras, config.max_episodes)
    keys = config.state_keys or [key for key in STATE_KEYS if key in metadata.features]
    if not keys and not config.cameras:
        raise ValueError(
            f"{config.path} has neither {' nor '.join(STATE_KEYS)}: name what is observed in data.state_keys."
        )
    cameras = _cameras(config.cameras)
    frames = {
        name: open_frames(metadata, camera, config.image_size, config.max_episodes) for name, camera in cameras.items()
    }
    rows = read_rows(metadata, [*keys, config.action_key])
    episodes = _split_episodes(config, metadata)
    actions, observed = _units(config, metadata, rows, keys, episodes["train"])
    splits = _windows(config, metadata, rows, keys, list(cameras), episodes)
    label_names = metadata.tasks if config.task_conditioning else []
    policy = {
        "state_keys": keys,
        "cameras": {name.removeprefix("image_"): camera for name, camera in cameras.items()},
        "image_size": list(config.image_size),
        "action_key": config.action_key,
        **{key: getattr(config, key) for key in ("observation_horizon", "prediction_horizon", "action_horizon")},
        "num_tasks": len(label_names),
        "fps": metadata.fps,
        "normalisation": config.normalisation,
    }
    columns = {"condition": "condition"} if keys else {}
    data = RobotData(
        name=Path(config.path).name,
        splits=splits,
        event_shape=(config.prediction_horizon, *np.shape(actions.mean)),
        normalisation=actions,
        condition_columns=columns
        | {name: name for name in cameras}
        | ({"class_labels": "task_index"} if config.task_conditioning else {}),
        gather=dict(frames),
        label_names=label_names,
        facts={
            **facts,
            "format": f"LeRobotDataset {metadata.version}",
            "episodes": {split: len(numbers) for split, numbers in episodes.items()},
            "tasks": list(config.tasks),
            "base_tasks": list(config.base_tasks),
            "policy": policy,
        },
    )
    data._observe_in({key: asdict(unit) for key, unit in observed.items()})
    return data


def _cameras(keys: Sequence[str]) -> dict[str, str]:
    """The argument of the model for each camera: observation.images.top is image_top, observation.image is image_image."""
    names = {f"image_{key.removeprefix('observation.').removeprefix('images.')}": key for key in keys}
    if len(names) != len(keys):
        raise ValueError(f"two of the cameras {list(keys)} have the same name.")
    return names


def _split_episodes(config: RobotConfig, metadata: Metadata) -> dict[str, list[int]]:
    """The episodes of each split, in order."""
    unknown = [task for task in (*config.tasks, *config.base_tasks) if task not in metadata.tasks]
    if unknown:
        raise ValueError(
            f"{config.path} has no task {unknown[0]!r}; its tasks are {', '.join(map(repr, metadata.tasks))}."
        )
    tasks = config.tasks or [task for task in metadata.tasks if task not in config.base_tasks]
    fractions = (config.validation, config.test, config.seed)
    parts: dict[str, list[int]] = {}
    for prefix, wanted in {"": tasks, **({"base_": config.base_tasks} if config.base_tasks else {})}.items():
        everything = enumerate(metadata.episodes[: config.max_episodes or None])
        chosen = [number for number, episode in everything if not wanted or set(episode.tasks) <= set(wanted)]
        split = split_rows(len(chosen), *fractions, f"{prefix}episodes of {config.path}")
        if not prefix and config.train_size > len(split["train"]):
            raise ValueError(
                f"data.train_size is {config.train_size}, but only {len(split['train'])} episodes are left for training."
            )
        if not prefix and config.train_size:
            split["train"] = split["train"][: config.train_size]
        parts |= {f"{prefix}{name}": sorted(chosen[i] for i in numbers) for name, numbers in split.items() if numbers}
    if "train" not in parts:
        raise ValueError(f"no episode of {config.path} is left for training: lower data.validation and data.test.")
    return parts


def _units(
    config: RobotConfig, metadata: Metadata, rows: Rows, keys: Sequence[str], train: Sequence[int]
) -> tuple[Normalisation, dict[str, Normalisation]]:
    """The units of the actions, and of each observation."""
    steps, found = _steps(metadata, train), {}
    for key in dict.fromkeys([config.action_key, *keys]):
        values = rows.columns[key].reshape(len(rows.columns[key]), -1)
        known = statistics(values[steps]) if config.statistics == "train" else metadata.statistics(key)
        found[key] = units(known, config.normalisation, values.shape[1], f"{key!r} of {config.path}")
    return found[config.action_key], {key: found[key] for key in keys}


def _steps(metadata: Metadata, episodes: Sequence[int]) -> np.ndarray:
    """The rows of these episodes."""
    spans = [metadata.episodes[number] for number in episodes]
    return np.concatenate([np.arange(span.start, span.start + span.length) for span in spans])


def _windows(
    config: RobotConfig,
    metadata: Metadata,
    rows: Rows,
    keys: Sequence[str],
    cameras: Sequence[str],
    episodes: dict[str, list[int]],
) -> dict[str, Dataset]:
    """A table of windows for each split."""
    seen = windows(metadata.lengths, observation_offsets(config.observation_horizon)).rows
    done = windows(metadata.lengths, action_offsets(config.observation_horizon, config.prediction_horizon))
    actions = rows.columns[config.action_key].reshape(len(seen), -1).astype(np.float32)
    states = [rows.columns[key].reshape(len(seen), -1).astype(np.float32) for key in keys]
    state = np.concatenate(states, axis=1) if keys else np.empty((len(seen), 0), np.float32)
    numbers = np.repeat(np.arange(len(metadata.lengths)), metadata.lengths)
    frame = windows(metadata.lengths, [0]).rows[:, 0] - np.array([e.start for e in metadata.episodes])[numbers]
    horizon = config.prediction_horizon
    features = {
        "sample": Array2D((horizon, actions.shape[1]), "float32"),
        "action_is_pad": ListFeature(Value("bool"), length=horizon),
        "episode_index": Value("int64"),
        "frame_index": Value("int64"),
        "task_index": Value("int64"),
        **({"condition": ListFeature(Value("float32"), length=seen.shape[1] * state.shape[1])} if keys else {}),
        **{name: ListFeature(Value("int64"), length=seen.shape[1]) for name in cameras},
    }
    splits = {}
    for split, chosen in episodes.items():
        steps = _steps(metadata, chosen)
        columns = {
            "sample": actions[done.rows[steps]],
            "action_is_pad": done.is_pad[steps],
            "episode_index": numbers[steps],
            "frame_index": frame[steps],
            "task_index": rows.task_index[steps],
            "condition": state[seen[steps]].reshape(len(steps), -1),
            **{name: seen[steps] for name in cameras},
        }
        splits[split] = Dataset.from_dict({key: columns[key] for key in features}, features=Features(features))
    return splits
