"""Samples of a base under its own prompts: what forgetting is measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ..conventions import time_grid
from ..data import FlowData
from ..data.sources import digest
from ..randomness import keyed_generator
from ..replay import Keep, made_anew
from ..sampling import generate
from ..velocity import Velocity
from .encoding import cache_folder, cached, sizes_like
from .model import LatentFlowModel
from .opening import LatentBase

NUM_STEPS = 28


def deal_prompts(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The base's prompts for replay, validation and test: of every four two, one and one; all for all where there are fewer than four."""
    if len(numbers) < 4:
        return numbers, numbers, numbers
    place = torch.arange(len(numbers)) % 4
    return numbers[place < 2], numbers[place == 2], numbers[place == 3]


def own_samples(
    model: LatentFlowModel,
    base: LatentBase,
    data: FlowData,
    prompts: Tensor,
    shift: float,
    count: int,
    batch_size: int,
    key: str,
) -> Dataset:
    """Rows of the base's latents under prompts in turn, drawn once (Euler, 28 steps) and kept in the cache of `datasets`.

    Args: `model`: the base; `prompts`: numbers; `shift`: of the grid; `count`: rows; `key`: of their noise, with nothing of a run's seed in it.
    """
    settings = [base.fingerprint("transformer"), str(model.working_dtype), model.guidance, shift, count, NUM_STEPS, key]
    digest = hashlib.sha256(json.dumps([*settings, prompts.tolist()]).encode()).hexdigest()[:16]

    def rows() -> Iterator[dict[str, Any]]:
        noise = torch.randn(count, *data.event_shape, generator=keyed_generator(0, "own samples", key))
        condition = {"prompt": prompts.repeat(-(-count // len(prompts)))[:count]}
        if data.buckets is not None:
            condition["size"] = sizes_like(data.splits["train"], count)
        times, title = time_grid(NUM_STEPS, shift), f"samples of the base for {key}"
        x = generate(Velocity(model), noise, condition, times, batch_size=batch_size, progress=title)
        for i, latent in enumerate(x):
            yield {"latent": latent.numpy(), **{name: int(value[i]) for name, value in condition.items()}}

    return cached(cache_folder(data.facts["encoded"]) / f"{key}-{digest}.arrow", rows)


def keep_samples(model: LatentFlowModel, base: LatentBase, data: FlowData, start: str = "") -> Keep:
    """Holds samples that replay has drawn of a base, in the cache of `datasets`.

    Args: `start`: the adapter that is a part of the base; one on the Hub may change under its name, and then nothing is held.
    """
    if start and not Path(start).is_dir():
        return made_anew
    adapter = digest(Path(start)) if start else ""
    identity = [base.fingerprint("transformer"), str(model.working_dtype), model.guidance, adapter]
    folder = cache_folder(data.facts["encoded"])

    def keep(key: str, make: Callable[[], Tensor]) -> Tensor:
        name = hashlib.sha256(json.dumps([identity, key]).encode()).hexdigest()[:16]
        rows = cached(folder / f"replay-{name}.arrow", lambda: ({"latent": x.numpy()} for x in make()))
        return rows.with_format("torch")["latent"][:]

    return keep
