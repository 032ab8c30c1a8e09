"""The pretrained pipeline a run starts from, checked against its data."""

from __future__ import annotations

from ..data import FlowData
from ..models.bases import label_rows
from ..models.observation import IMAGE_PREFIX
from ..pipelines import FlowPipeline


def load_base(path: str, revision: str, data: FlowData) -> FlowPipeline:
    """The pretrained pipeline, checked against the data.

    Raises: ValueError when no path is given, or when the data have another shape, other conditions or more labels than the model.
    """
    if not path:
        raise ValueError("model.path must name the pretrained pipeline: a folder, or a repository on the Hub.")
    base = FlowPipeline.from_pretrained(path, revision=revision or None)
    check_fits(base, path, data)
    return base


def check_fits(base: FlowPipeline, path: str, data: FlowData) -> None:
    """Raises: ValueError when a pipeline cannot be trained or judged on the data, naming what differs."""
    if base.event_shape != data.event_shape:
        raise ValueError(
            f"the model at {path} makes samples of shape {base.event_shape}, but the data have shape {data.event_shape}."
        )
    taken, given = (
        sorted(key for key in keys if not key.startswith(IMAGE_PREFIX))
        for keys in (base.conditions, data.condition_columns)
    )
    if taken and taken != given:
        raise ValueError(
            f"the model at {path} is conditioned on {taken}, but the data give {given or 'no conditions'}."
        )
    if "class_labels" not in data.condition_columns:
        return
    null = (base.description.get("null_condition") or {}).get("class_labels")
    known = int(null) if null is not None else base.model.config.get("num_classes") or label_rows(base.model)
    if not known:
        raise ValueError(f"the model at {path} takes no labels, but the data give some: train without them.")
    labels = data.labels()
    if labels[-1] >= known:
        raise ValueError(
            f"the model at {path} knows the labels 0 to {known - 1}, but the data have {labels[0]} to {labels[-1]}: choose data.labels among "
            "those, renumber the labels, or pretrain a model with more."
        )
