"""Samples of a base under its own prompts: what forgetting is measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ..conventions import time_grid
from ..data import FlowData
from ..randomness import keyed_generator
from ..sampling import generate
from ..velocity import Velocity
from .encoding import cache_folder, cached
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
        numbers = prompts.repeat(-(-count // len(prompts)))[:count]
        times, title = time_grid(NUM_STEPS, shift), f"samples of the base for {key}"
        x = generate(Velocity(model), noise, {"prompt": numbers}, times, batch_size=batch_size, progress=title)
        for latent, number in zip(x, numbers.tolist(), strict=True):
            yield {"latent": latent.numpy(), "prompt": number}

    return cached(cache_folder(data.facts["encoded"]) / f"{key}-{digest}.arrow", rows)
