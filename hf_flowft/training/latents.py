"""What is trained of a text-to-image pipeline: low-rank adapters on its transformer, or the whole of it."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from accelerate.utils import str_to_bool

from ..data import FlowData
from ..latents import (
    NOTHING,
    Decoder,
    Encoder,
    LatentFlowModel,
    LatentPipeline,
    adapters_off,
    add_lora,
    encode,
    find_base,
)
from ..schedulers import FlowODEScheduler
from ..velocity import SharedVelocity
from .trainee import Trainee

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (LoRA) on the frozen transformer of a text-to-image pipeline."""

    path: str = ""
    """The pipeline of diffusers: a folder, or a repository on the Hub."""
    revision: str = ""
    """The revision of a Hub repository; empty for the newest."""
    rank: int = 16
    """Rank of the adapters."""
    alpha: int = 0
    """The adapters count alpha / rank times; 0 for alpha = rank."""
    dropout: float = 0.0
    """Dropout in front of the adapters."""
    target_modules: list[str] = field(default_factory=list)
    """The linear layers that get an adapter, by the end of their names; empty for the attention's projections."""
    guidance: float = 3.5
    """For transformers that are told their guidance (FLUX.1-dev): what they are told, in training and in sampling here."""
    dtype: Precision = "float32"
    """Precision of the frozen weights and the text encoders; adapters, times and latents stay float32."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"model.rank must be at least 1, got {self.rank}.")
        if not (self.alpha >= 0 and 0 <= self.dropout < 1):
            raise ValueError(
                f"model.alpha must be >= 0 and model.dropout in [0, 1), got {self.alpha} and {self.dropout}."
            )

    def build(self, data: FlowData, num_classes: int, seed: int) -> Trainee:
        """The pipeline's transformer under fresh adapters; the base is the same network with them off.

        Raises: ValueError for data without captions, a pipeline that is no flow, or layers it does not have.
        """
        dtype = getattr(torch, self.dtype)
        trainee = latent_trainee(self.path, self.revision, data, self.guidance, dtype, is_adapter=True)
        transformer = trainee.model.transformer
        targets = self.target_modules or trainee.model.family.targets
        add_lora(transformer, targets, self.rank, self.alpha or self.rank, self.dropout, seed)
        trainee.reference = SharedVelocity(trainee.model, partial(adapters_off, transformer))
        return trainee


def latent_trainee(
    path: str,
    revision: str,
    data: FlowData,
    guidance: float = 3.5,
    dtype: torch.dtype = torch.float32,
    is_adapter: bool = False,
) -> Trainee:
    """A pipeline's transformer as the model, and the data as its latents: first what encodes is in memory, then what is trained.

    Raises: ValueError as `find_base`, `LatentBase.generator` and `encode`.
    """
    base, device = find_base(path, revision), training_device()
    encoder = Encoder(base, dtype, device, progress=True)
    latents, table = encode(data, encoder)
    del encoder
    gc.collect()
    pipeline = base.generator(dtype)
    model = LatentFlowModel(pipeline.transformer, base.family, table, guidance).to(device).eval()
    shift = base.family.shift(pipeline.scheduler, model.transformer, latents.event_shape)
    latents.to_images = Decoder(base.family, pipeline.vae, device)
    latents.facts["text_to_image"] = {
        "pipeline": base.family.pipeline,
        "base": base.name,
        "adapter": is_adapter,
        "prompt": data.facts.get("prompt") or table.prompts[1],
        "trigger": data.facts.get("prompt", ""),
        "size": list(data.event_shape[1:]),
    }
    description = {"coupling": "independent", "null_condition": {"prompt": NOTHING}}
    conditions = {"prompt": table.numbers(data.base_prompts)}
    scheduler = FlowODEScheduler(shift=shift)
    start = LatentPipeline(model, scheduler, description, conditions, base, is_adapter)
    return Trainee(model, scheduler, start, data=latents)


def training_device() -> torch.device:
    """Where this process will train: what encodes and what is trained go there before the trainer takes over."""
    if str_to_bool(os.environ.get("ACCELERATE_USE_CPU") or "false") or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    return torch.device(kind, int(os.environ.get("LOCAL_RANK") or 0)) if kind != "mps" else torch.device(kind)
