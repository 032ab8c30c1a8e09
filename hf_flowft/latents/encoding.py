"""Images and captions as latents and numbered prompts: encoded once, kept in the cache of `datasets`, and read from there ever after."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array2D, Array3D, Dataset, Features, Image, Value
from datasets import Sequence as Series
from datasets import config as datasets_config
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from ..batch import Batch
from ..data import FlowData, Normalisation
from ..data.buckets import Buckets
from ..repository import read_json
from .family import LatentFamily
from .opening import LatentBase
from .prompts import PromptTable

FORMAT = 1
"""Raised when what is stored changes its meaning."""


class Encoder:
    """The half of a pipeline that encodes, loaded when it is first needed and held no longer than this object.

    Args: `base`; `dtype`: of what reads text (the autoencoder works in float32); `device`; `batch_size`: images or prompts at once.
    """

    def __init__(
        self,
        base: LatentBase,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
        progress: bool = False,
    ):
        self.base, self.dtype, self.device, self.batch_size, self.progress = base, dtype, device, batch_size, progress

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline without its transformer, on the device."""
        return self.base.encoders(self.dtype).to(self.device)

    def forget(self) -> None:
        """Let the encoders leave memory."""
        self.__dict__.pop("pipeline", None)
        gc.collect()

    def require_size(self, data: FlowData) -> None:
        """Raises: ValueError for images that the autoencoder and the transformer do not divide evenly."""
        config = read_json(self.base.folder / "transformer" / "config.json")
        unit = self.downscaling * self.base.family.patch(config)
        what = "data.resolution" if data.buckets is None else "data.bucket_step"
        bad = next((size for size in _sizes(data) if any(length % unit for length in size)), None)
        if bad is not None:
            raise ValueError(
                f"{what} must be a multiple of {unit} for {self.base.name}, which takes no images of {bad[0]} x {bad[1]} pixels."
            )

    @property
    def downscaling(self) -> int:
        """How many times smaller than its image a latent is."""
        return self.base.family.downscaling(read_json(self.base.folder / "vae" / "config.json"))

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
        """A row for each prompt, "no prompt" first."""
        family = self.base.family
        yield from _rows([""], family.encode_nothing(self.pipeline))
        for start in self._blocks(len(prompts), "prompts"):
            some = list(prompts[start : start + self.batch_size])
            yield from _rows(some, family.encode_text(self.pipeline, some))

    @torch.no_grad()
    def images(self, data: FlowData, split: str, table: PromptTable) -> Iterator[dict[str, Any]]:
        """A row for each image of a split: its latent and the number of its prompt."""
        numbers = table.numbers(data.splits[split][data.caption_column][:]).tolist()
        for start in self._blocks(len(numbers), f"images of {split}"):
            index = range(start, min(start + self.batch_size, len(numbers)))
            rows = data.rows(split, index)
            sizes = {key: rows.condition[key].tolist() for key in data.condition_columns}
            for i, latent in enumerate(self._encoded(data, rows).numpy()):
                yield {
                    "latent": latent,
                    "prompt": numbers[start + i],
                    **{key: value[i] for key, value in sizes.items()},
                }

    def _encoded(self, data: FlowData, rows: Batch) -> Tensor:
        """Latents on the CPU; those of several sizes each without the padding of its image, on a canvas of their own."""
        x = rows.x_1.to(self.device)
        if data.buckets is None:
            return self.base.family.encode_images(self.pipeline.vae, x).float().cpu()
        canvas, latents = data.buckets.reduced(self.downscaling), dict[int, Tensor]()
        for where, pixels, _ in data.buckets.crops(x, rows.condition["size"]):
            some = canvas.pad(self.base.family.encode_images(self.pipeline.vae, pixels).float().cpu())
            latents |= zip(where.tolist(), some, strict=True)
        return torch.stack([latents[i] for i in range(len(rows))])

    def _blocks(self, size: int, what: str) -> Iterator[int]:
        starts = range(0, size, self.batch_size)
        return iter(tqdm(starts, desc=f"encoding {what}", disable=not self.progress, leave=False))


def _sizes(data: FlowData) -> Sequence[tuple[int, ...]]:
    return [data.event_shape[1:]] if data.buckets is None else data.buckets.sizes


def _rows(prompts: list[str], tensors: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    for i, prompt in enumerate(prompts):
        yield {"prompt": prompt, **{key: value[i].numpy() for key, value in tensors.items()}}


class Decoder:
    """Latents as images in [0, 1], one at a time; the autoencoder is on the device only meanwhile.

    Args: `buckets`: the sizes of latents, where there are several.
    """

    def __init__(
        self, family: LatentFamily, vae: Any, device: torch.device | str = "cpu", buckets: Buckets | None = None
    ):
        self.family, self.vae, self.device = family, vae.requires_grad_(False).eval(), device
        self.buckets = buckets

    @torch.no_grad()
    def __call__(self, latents: Tensor, condition: Mapping[str, Tensor]) -> list[Tensor]:
        """(n, *latent), drawn under `condition` -> n images (channels, height, width) on the CPU, each in its own size."""
        self.vae.to(self.device)
        try:
            return [self._decoded(latent, row, condition) for row, latent in enumerate(latents)]
        finally:
            self.vae.to("cpu")

    def _decoded(self, latent: Tensor, row: int, condition: Mapping[str, Tensor]) -> Tensor:
        if self.buckets is not None:
            height, width = self.buckets.sizes[int(condition["size"][row])]
            latent = latent[..., :height, :width]
        image = self.family.decode(self.vae, latent[None].to(self.device))[0].cpu()
        return (image / 2 + 0.5).clamp(0, 1)


def encode(data: FlowData, encoder: Encoder) -> tuple[FlowData, PromptTable]:
    """The data as latents under numbered prompts, from the cache where they have been encoded before.

    Args: `data`: captioned images.  Returns: the data, whose condition is `prompt`, a number, and the table of its prompts and the base's.
    Raises: ValueError for data without captions, a row without one, or images of a size the pipeline does not take.
    """
    prompts = list(dict.fromkeys([*_captions(data), *data.base_prompts]))
    key = fingerprint(data, encoder)
    folder = cache_folder(key)
    if not folder.is_dir():
        encoder.require_size(data)
    table = PromptTable(cached(folder / "prompts.arrow", partial(encoder.prompts, prompts)))
    splits = {
        split: cached(folder / f"{split}.arrow", partial(encoder.images, data, split, table)) for split in data.splits
    }
    shown = table.numbers(list(dict.fromkeys([*_captions(data, "train")[:4], *data.base_prompts[:4]])))
    buckets = data.buckets.reduced(encoder.downscaling) if data.buckets is not None else None
    pictured = {"prompt": shown}
    if buckets is not None:
        pictured["size"] = sizes_like(splits["train"], len(shown))
    latents = replace(
        data,
        splits=splits,
        event_shape=tuple(splits["train"].features["latent"].shape),
        buckets=buckets,
        normalisation=Normalisation(),
        sample_column="latent",
        decode=None,
        caption_column="",
        prompts=table.prompts,
        condition_columns={key: key for key in ("prompt", *data.condition_columns)},
        pictured=pictured,
        facts={**data.facts, "encoded": key},
    )
    return latents, table


def sizes_like(train: Dataset, count: int) -> Tensor:
    """Sizes for prompts that come without an image, (count,): those of the training images in turn."""
    return torch.from_numpy(np.resize(np.asarray(train["size"][:], dtype=np.int64), count))


def cache_folder(key: str) -> Path:
    """Where what belongs to a fingerprint is kept."""
    return Path(datasets_config.HF_DATASETS_CACHE) / "hf_flowft" / key


def _captions(data: FlowData, *splits: str) -> list[str]:
    """The captions that occur, in order.  Raises: ValueError for a row that has none."""
    if not data.caption_column:
        raise ValueError(
            f"a text-to-image model reads captions, but the data {data.name!r} have none: use data.name captioned."
        )
    found: dict[str, None] = {}
    for split in splits or data.splits:
        for row, caption in enumerate(data.splits[split][data.caption_column][:]):
            if not isinstance(caption, str) or not caption.strip():
                raise ValueError(
                    f"row {row} of split {split!r} of {data.name!r}{_file(data, split, row)} has no caption but {caption!r}: give it one in words, or "
                    "data.prompt for all."
                )
            found[caption] = None
    return list(found)


def _file(data: FlowData, split: str, row: int) -> str:
    """The file of an image, where it came from one."""
    stored = (
        data.splits[split].select([row]).cast_column(data.sample_column, Image(decode=False))[0][data.sample_column]
    )
    return f" ({Path(stored['path']).name})" if stored and stored.get("path") else ""


def fingerprint(data: FlowData, encoder: Encoder) -> str:
    """What identifies the encodings of a data set by a pipeline: the rows, the encoding files, and every setting."""
    parts = {
        "format": FORMAT,
        "base": encoder.base.fingerprint(),
        "family": encoder.base.family.name,
        "text_length": encoder.base.family.text_length,
        "dtype": str(encoder.dtype),
        "sizes": _sizes(data),
        "splits": {name: split._fingerprint for name, split in data.splits.items()},
        "columns": [data.sample_column, data.caption_column],
        "base_prompts": data.base_prompts,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def cached(file: Path, rows: Callable[[], Iterator[dict[str, Any]]]) -> Dataset:
    """The rows kept in a file of the cache, which one process makes when there is none; an interrupted one leaves nothing behind."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            temporary = Path(tempfile.mkdtemp(dir=file.parent, prefix=".making-"))
            try:
                _write(rows(), temporary / file.name)
                os.replace(temporary / file.name, file)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return Dataset.from_file(str(file))


def _write(rows: Iterator[dict[str, Any]], file: Path) -> None:
    """Rows of one form as an Arrow file, a few at a time."""
    first = next(rows)
    features = Features({key: _feature(value) for key, value in first.items()})
    with ArrowWriter(path=str(file), features=features, writer_batch_size=16) as writer:
        writer.write(first)
        for row in rows:
            writer.write(row)
        writer.finalize()


def _feature(value: Any) -> Any:
    if isinstance(value, str):
        return Value("string")
    if isinstance(value, int):
        return Value("int64")
    kind = str(value.dtype)
    if value.ndim == 1:
        return Series(Value(kind), length=len(value))
    return {2: Array2D, 3: Array3D}[value.ndim](shape=value.shape, dtype=kind)
