"""Data for fine-tuning: named splits of a `datasets.Dataset`, the conditions in it, and the normalisation the model works in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..batch import Batch
from .buckets import Buckets, on_white
from .normalisation import Normalisation
from .reading import RowReader
from .splits import require_columns
from .streams import RowStream

SPLITS = ("train", "validation", "test", "base_train", "base_validation", "base_test")


@dataclass
class FlowData:
    """A data set ready for a flow.

    `splits`: named as in SPLITS; the `base_*` splits hold data of the base's domain, on which forgetting is measured. `sample_column` holds the
    data, `condition_columns` maps a keyword argument of the model to a column; `decode` turns a stored value (an image) into an array of
    `event_shape` when it is read. `condition_normalisation`: the units of conditions that are not used as they are, by argument. `gather`, by
    argument too: what makes of an array of a column's values, such as row numbers (rows, n), the condition itself (rows, n, ...); for what is too
    large to be stored once a row. `caption_column`: texts for models that read them, `prompts`: what the numbers in the condition `prompt` mean
    once they have been read, `base_prompts`: those by which the base is to be
    kept, `base_samples`: on how many of its samples that is measured, and `base_pipeline`: of which base, "" for the one that is trained, with the
    adapters `base_fused` added to it. `pictured`: conditions that pictures show, in the place of those of the first rows; `to_images`: what makes images in [0, 1] of samples that are none themselves (latents), in model units, and of their conditions.
    `buckets`: what the numbers in the condition `size` mean, for images of several sizes. `facts` (source, revision,
    licence ...) go to results and card. With a `stream`, training reads from there, and the split `train` is a sample of it: for statistics, labels
    and banks of pairs.
    """

    name: str
    splits: dict[str, Dataset]
    event_shape: tuple[int, ...]
    normalisation: Normalisation = field(default_factory=Normalisation)
    sample_column: str = "sample"
    condition_columns: dict[str, str] = field(default_factory=dict)
    is_image: bool = False
    decode: Callable[[Any], np.ndarray] | None = None
    condition_normalisation: dict[str, Normalisation] = field(default_factory=dict)
    gather: dict[str, Callable[[np.ndarray], Tensor]] = field(default_factory=dict)
    label_names: list[str] = field(default_factory=list)
    caption_column: str = ""
    prompts: list[str] = field(default_factory=list)
    base_prompts: list[str] = field(default_factory=list)
    base_samples: int = 0
    base_pipeline: str = ""
    base_fused: list[str] = field(default_factory=list)
    pictured: dict[str, Tensor] = field(default_factory=dict)
    to_images: Callable[[Tensor, Mapping[str, Tensor]], list[Tensor]] | None = None
    buckets: Buckets | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    stream: RowStream | None = None

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            if name not in SPLITS:
                raise ValueError(f"unknown split {name!r}; the splits of a FlowData are {', '.join(SPLITS)}.")
            captions = [self.caption_column] if self.caption_column else []
            require_columns(split, [self.sample_column, *captions, *self.condition_columns.values()], f"split {name!r}")
            if len(split) == 0:
                raise ValueError(
                    f"split {name!r} of {self.name!r} is empty: check the data source, the labels chosen and the split sizes."
                )
        if "train" not in self.splits:
            raise ValueError(f"data {self.name!r} has no 'train' split, only {sorted(self.splits)}.")

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples in each split."""
        return {name: len(split) for name, split in self.splits.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """What must be as it was when a run goes on: the commit or content the rows are from, what encoded them, how many there are, and the units
        of their conditions."""
        known: dict[str, Any] = {k: self.facts[k] for k in ("revision", "digest", "encoded") if k in self.facts}
        if "policy" not in self.facts:  # whose settings say it
            known |= {f"units of {key}": asdict(units) for key, units in self.condition_normalisation.items()}
        return {**known, "counts": self.counts}

    @property
    def num_classes(self) -> int:
        """Number of labels the model must know; 0 without labels."""
        column = self.condition_columns.get("class_labels")
        if column is None:
            return 0
        return max(len(self.label_names), 1 + self.labels()[-1])

    def labels(self, *splits: str) -> list[int]:
        """The labels that occur in these splits (without any: in all), in order.  Raises: ValueError for what are not whole numbers >= 0."""
        column = self.condition_columns["class_labels"]
        parts = [self.conditions(split, ["class_labels"])["class_labels"] for split in splits or self.splits]
        if any(x.is_floating_point() or x.ndim != 1 for x in parts):
            raise ValueError(f"the label column {column!r} of {self.name!r} must hold one whole number a row.")
        found: list[int] = torch.cat(parts).unique().tolist()
        if found[0] < 0:
            raise ValueError(
                f"the label column {column!r} of {self.name!r} holds {found[0]}: labels are numbered from 0 (remove unlabelled rows)."
            )
        return found

    def rows(self, split: str, index: Sequence[int] | None = None) -> Batch:
        """Rows of a split (all without `index`), normalised, float32, on the CPU.

        Raises: ValueError for an unknown split, samples of another shape, or values that are not finite (naming the first such row).
        """
        if split not in self.splits:
            raise ValueError(f"data {self.name!r} has no split {split!r}; it has {', '.join(self.splits)}.")
        dataset = self.splits[split]
        where = range(len(dataset)) if index is None else list(index)
        return self.reader.batch(dataset, where, f"split {split!r} of {self.name!r}")

    def samples(self, split: str, index: Sequence[int] | None = None) -> Tensor:
        """Rows of a split as `rows` gives them, without their conditions: (n, *event)."""
        bare = replace(self, condition_columns={})
        return bare.rows(split, index).x_1

    @property
    def reader(self) -> RowReader:
        """How rows become batches, as things stand (the normalisation may be replaced by a base's)."""
        columns = (self.sample_column, self.condition_columns)
        return RowReader(
            self.event_shape, self.normalisation, *columns, self.decode, self.condition_normalisation, self.gather
        )

    def conditions(self, split: str, keys: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The conditions of a whole split (all, or some by argument), without reading its samples."""
        return self.reader.conditions(self.splits[split], list(self.condition_columns) if keys is None else keys)

    def images(self, samples: Tensor, condition: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Samples in model units, drawn under `condition`, as images (channels, height, width) in [0, 1], each in its own size."""
        if self.to_images is not None:
            return self.to_images(samples, condition)
        low, high = self.facts.get("value_range", (0.0, 1.0))
        return (self.normalisation.undo(samples) - low) / (high - low)

    def to_unit(self, samples: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The same in one tensor (n, channels, height, width), white where an image is smaller than others."""
        images = self.images(samples, condition)
        return images if isinstance(images, Tensor) else on_white(images)

    def adopt(self, description: Mapping[str, Any]) -> None:
        """Work in the units of a pipeline, by its description: what is fine-tuned must see the numbers it was trained on."""
        self.normalisation = Normalisation(**description.get("normalisation", {}))
        seen = description.get("condition_normalisation")
        self.condition_normalisation = {"condition": Normalisation(**seen)} if seen else {}


def describe(data: FlowData) -> Mapping[str, Any]:
    """What the results and the card say about the data."""
    stream = data.stream
    sizes = {} if stream is None else {"epoch_size": stream.epoch_size, "shuffle_buffer": stream.shuffle_buffer}
    described = {"event_shape": list(data.event_shape), "counts": data.counts}
    return {"name": data.name, **data.facts, **described, **({"stream": sizes} if sizes else {})}
