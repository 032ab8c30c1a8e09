"""What a saved pipeline says about itself, checked before it is believed: the description in its index, and its conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import ModelMixin
from torch import Tensor

from ..conventions import Prediction
from ..models import ViscousFlowModel
from ..models.bases import label_rows
from ..models.observation import IMAGE_PREFIX
from ..repository import TensorShape, load_tensors, shown, tensor_shapes

MAX_NUMBERS = 1 << 24
"""Numbers in one sample at most."""


def check_description(description: Any, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """The description of a pipeline, each fact by itself; {} when there is none.  See `FlowPipeline` for what is in it; other keys are kept.

    Args: `needed`: facts that must be there.  Raises: ValueError naming the fact that is missing, of another type or has no meaning.
    """
    facts = {} if description is None else description
    if not isinstance(facts, dict):
        raise ValueError(f"the pipeline's description must be an object, got {shown(facts)}.")
    for key in needed:
        if key not in facts:
            raise ValueError(f"the pipeline's description lacks {key!r}.")
    for key, (is_right, expected) in FACTS.items():
        if key in facts and not is_right(facts[key]):
            raise ValueError(f"the pipeline's {key} is {shown(facts[key])}, where {expected} is expected.")
    return facts


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e30 < value < 1e30


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_NUMBERS


def _is_shape(value: Any) -> bool:
    sizes = value if isinstance(value, list) else []
    return 0 < len(sizes) <= 8 and all(map(_is_count, sizes)) and math.prod(sizes) <= MAX_NUMBERS


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]


def _are_nulls(value: Any) -> bool:
    """For each condition a number, or the numbers of one row."""
    rows = value.values() if isinstance(value, dict) else [[]]
    return all(row != [] and all(map(_is_number, row if isinstance(row, list) else [row])) for row in rows)


def _are_units(value: Any) -> bool:
    """mean and std of a `Normalisation`: numbers, or lists of as many; std > 0."""
    if not (isinstance(value, dict) and value.keys() <= {"mean", "std"}):
        return False
    try:
        mean, std = (torch.tensor(value.get(key, rest), dtype=torch.float64) for key, rest in (("mean", 0), ("std", 1)))
        torch.broadcast_shapes(mean.shape, std.shape)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return False
    return bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())


def _is_policy(value: Any) -> bool:
    """What a `FlowPolicyPipeline` reads of it."""
    if not isinstance(value, dict) or not isinstance(value.get("cameras"), dict):
        return False
    named = _are_names(value.get("state_keys")) and _are_names(list(value["cameras"].values()))
    counted = all(_is_count(value.get(f"{kind}_horizon")) for kind in ("observation", "action"))
    return named and counted and _is_count(value.get("num_tasks"), 0) and bool(value["state_keys"] or value["cameras"])


SHAPE = f"a list of sizes with a product up to {MAX_NUMBERS}"
UNITS = "an object of a finite mean and a finite std > 0"
FACTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "event_shape": (_is_shape, SHAPE),
    "normalisation": (_are_units, UNITS),
    "condition_normalisation": (_are_units, UNITS),
    "is_image": (lambda x: isinstance(x, bool), "true or false"),
    "value_range": (_is_range, "[lowest, highest]"),
    "label_names": (_are_names, "a list of names"),
    "coupling": (lambda x: isinstance(x, str), "a name"),
    "predicts": (lambda x: x in get_args(Prediction), f"one of {', '.join(get_args(Prediction))}"),
    "null_condition": (lambda x: x is None or _are_nulls(x), "an object of numbers, one condition each"),
    "policy": (_is_policy, "an object of state_keys, cameras, horizons and num_tasks"),
    "observation_normalisation": (lambda x: isinstance(x, dict) and all(map(_are_units, x.values())), UNITS),
}
"""What is known of each fact by itself."""


def check_agreement(facts: dict[str, Any], model: ModelMixin) -> None:
    """Raises: ValueError when the description contradicts the model (one of `pipelines.loading.KNOWN_CLASSES`), or the parts of one each other."""
    rows, networks = label_rows(model), [model.config]
    if isinstance(model, ViscousFlowModel):
        networks.append(model.config["base"])
        if rows > label_rows(model.base_model):
            raise ValueError(f"the pipeline's model takes {rows} labels, but its base {label_rows(model.base_model)}.")
    shape = event_shape(facts, model)
    for config in networks:
        _check_shape(config, shape)
    for key, value in facts.get("normalisation", {}).items():
        _check_fits(key, value, shape)
    for key, value in facts.get("condition_normalisation", {}).items():
        _check_fits(f"condition_normalisation, {key},", value, [networks[-1].get("condition_dim") or 1], "condition")
    null = (facts.get("null_condition") or {}).get("class_labels")
    if null is not None and rows and not (_is_number(null) and 0 <= null < rows):
        raise ValueError(f"the pipeline's label for 'none' is {shown(null)}, but its model takes 0 to {rows - 1}.")
    policy = facts.get("policy", {})
    cameras, images = (set(x or {}) for x in (policy.get("cameras"), networks[-1].get("images")))
    if policy and cameras != images:
        raise ValueError(f"the pipeline's cameras are {sorted(cameras)}, but its model sees {sorted(images)}.")
    unscaled = set(policy.get("state_keys", [])) - set(facts.get("observation_normalisation", {}))
    if unscaled:
        raise ValueError(f"the pipeline's observation_normalisation lacks the state {shown(min(unscaled))}.")


def _check_fits(key: str, value: Any, shape: list[int], what: str = "event_shape") -> None:
    try:
        torch.tensor(value).expand(shape)
    except RuntimeError as error:
        raise ValueError(f"the pipeline's {key} is {shown(value)}, which does not fit its {what} {shape}.") from error


def event_shape(facts: dict[str, Any], model: ModelMixin) -> list[int]:
    """The shape of one sample, by the description or the config of the model.  Raises: ValueError when that is no shape."""
    if "event_shape" in facts:
        return facts["event_shape"]
    config = model.config
    if "event_shape" in config:
        shape = list(config["event_shape"])
    else:
        size = config["sample_size"]
        shape = [config["in_channels"], *(size if isinstance(size, (list, tuple)) else [size, size])]
    if not _is_shape(shape):
        raise ValueError(f"the pipeline's model gives its samples the shape {shown(shape)}, where {SHAPE} is expected.")
    return shape


def _check_shape(config: Any, shape: list[int]) -> None:
    """One network and the shape of the samples: most have their own, a U-Net of images its channels."""
    if "event_shape" in config:
        if shape != list(config["event_shape"]):
            raise ValueError(f"the pipeline's event_shape is {shape}, but its model's {shown(config['event_shape'])}.")
        return
    channels = config["in_channels"], config["out_channels"]
    if channels != (shape[0], shape[0]) or len(shape) != 3:
        raise ValueError(
            f"the pipeline's model turns {channels[0]} channels into {channels[1]}, but event_shape is {shape}."
        )


def load_conditions(path: Path, model: ModelMixin | None) -> dict[str, Tensor]:
    """The conditions a pipeline was saved with, by name, rows first; {} without the file.

    Args: `model`: what they are checked against, when it was loaded with them.
    Raises: ValueError, as far as the header tells before they are read, when they are not rows of what the model takes.
    """
    if not path.is_file():
        return {}
    saved = tensor_shapes(path)
    rows = {entry.shape[:1] for entry in saved.values()}
    if len(rows) > 1 or not rows.isdisjoint([(), (0,)]):
        raise ValueError(f"{path} must hold at least one row, and as many of each, got {_told(saved)}.")
    if model is None:
        return load_tensors(path)
    inner = model.base_model if isinstance(model, ViscousFlowModel) else model
    accepted = _condition_shapes(inner.config)
    for name, entry in saved.items():
        if entry.shape[1:] != accepted.get(name) or entry.is_floating != (name == "condition"):
            raise ValueError(f"{path} holds {_told({name: entry})}, but the model takes rows of {shown(accepted)}.")
    return _checked(load_tensors(path), path, label_rows(inner))


def _told(saved: dict[str, TensorShape]) -> str:
    return shown({name: (entry.dtype, *entry.shape) for name, entry in saved.items()})


def _condition_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """What a network may be conditioned on, and the shape of one row of it; vectors hold fractions, labels and images whole numbers."""
    shapes: dict[str, tuple[int, ...]] = {"class_labels": ()}
    if config.get("condition_dim"):
        shapes["condition"] = (config["condition_dim"],)
    return shapes | {IMAGE_PREFIX + name: tuple(shape) for name, shape in (config.get("images") or {}).items()}


def _checked(conditions: dict[str, Tensor], path: Path, num_labels: int) -> dict[str, Tensor]:
    if num_labels and "class_labels" in conditions:
        lowest, highest = (int(x) for x in conditions["class_labels"].aminmax())
        if lowest < 0 or highest >= num_labels:
            raise ValueError(f"{path} holds labels from {lowest} to {highest}; the model knows {num_labels}.")
    if "condition" in conditions and not conditions["condition"].isfinite().all():
        raise ValueError(f"{path} holds conditions that are not finite.")
    return conditions
