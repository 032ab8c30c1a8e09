"""What is trained of a text-to-image pipeline: low-rank adapters on its transformer, or the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from ..choices import Choices
from ..data import FlowData
from ..latents import (
    NOTHING,
    Adapter,
    Decoder,
    Encoder,
    LatentBase,
    LatentFlowModel,
    LatentPipeline,
    adapters_off,
    add_fresh_viscosity,
    add_lora,
    continue_lora,
    deal_prompts,
    encode,
    find_base,
    keep_samples,
    own_samples,
    require_fused,
    sizes_like,
    start_adapter,
    viscosity_off,
)
from ..randomness import keyed_seed
from ..schedulers import FlowODEScheduler
from ..velocity import SharedVelocity
from .processes import training_device
from .trainee import Trainee

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class LoRAConfig(Choices):
    """Low-rank adapters (LoRA) on the frozen transformer of a text-to-image pipeline."""

    path: str = ""
    """The pipeline of diffusers: a folder, or a repository on the Hub."""
    revision: str = ""
    """The revision of a Hub repository; empty for the newest."""
    start: str = ""
    """An adapter to go on from, a folder or repository (`pipeline/` of an earlier run): it is a part of the base then, and keeps its rank, layers
    and alpha; forgetting is still measured on samples of the pipeline without it. Empty for a fresh one."""
    fused: list[str] = field(default_factory=list)
    """Adapters that are a part of the base, folders or repositories: they are added into its frozen weights first. The result is used with them."""
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
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"model.rank must be at least 1, got {self.rank}.")
        if self.start and self.dropout:
            raise ValueError(f"an adapter that is gone on from has no dropout: leave out model.dropout {self.dropout}.")
        if not (self.alpha >= 0 and 0 <= self.dropout < 1):
            raise ValueError(
                f"model.alpha must be >= 0 and model.dropout in [0, 1), got {self.alpha} and {self.dropout}."
            )

    def build(self, data: FlowData, num_classes: int, seed: int) -> Trainee:
        """The pipeline's transformer under fresh adapters; the base is the same network with them off.

        Raises: ValueError for data without captions, a pipeline that is no flow, or layers it does not have.
        """
        dtype = getattr(torch, self.dtype)
        trainee = latent_trainee(self.path, self.revision, data, self.guidance, dtype, "lora", self.fused)
        transformer, family = trainee.model.transformer, trainee.model.family
        if self.start:
            require_fused(self.start, trainee.base.base)
            continue_lora(family.pipeline_class(), transformer, self.start)
        else:
            targets = self.target_modules or family.targets
            add_lora(transformer, targets, self.rank, self.alpha or self.rank, self.dropout, seed)
        base = start_adapter if self.start else adapters_off
        trainee.reference = SharedVelocity(trainee.model, partial(base, transformer))
        trainee.keep = keep_samples(trainee.model, trainee.base.base, trainee.data, self.start)
        return trainee


def viscous_trainee(path: str, revision: str, data: FlowData, seed: int, **options: Any) -> Trainee:
    """A pipeline's transformer, frozen, under a fresh viscosity on its latents; the base is the same network with it off.

    Args: `options`: those of `LatentViscosity` that are chosen.
    Raises: ValueError as `latent_trainee`, and for images of several sizes.
    """
    trainee = latent_trainee(path, revision, data, adapter="viscosity")
    if trainee.model.buckets is not None:
        raise ValueError("a viscosity is for latents of one size: leave out data.bucket_step.")
    transformer, family = trainee.model.transformer, trainee.model.family
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "initialisation"))
        add_fresh_viscosity(transformer, family, trainee.data.event_shape, **options)
    trainee.reference = SharedVelocity(trainee.model, partial(viscosity_off, transformer))
    return trainee


def latent_trainee(
    path: str,
    revision: str,
    data: FlowData,
    guidance: float = 3.5,
    dtype: torch.dtype = torch.float32,
    adapter: Adapter = "",
    fused: Sequence[str] = (),
) -> Trainee:
    """A pipeline's transformer as the model, and the data as its latents: first what encodes is in memory, then what is trained.

    Raises: ValueError as `find_base`, `LatentBase.generator` and `encode`.
    """
    base, device = find_base(path, revision, fused), training_device()
    encoder = Encoder(base, dtype, device, progress=True)
    latents, table = encode(data, encoder)
    encoder.forget()
    pipeline = base.generator(dtype)
    model = LatentFlowModel(pipeline.transformer, base.family, table, guidance, latents.buckets).to(device).eval()
    square = data.event_shape[1:] if data.buckets is None else data.buckets.sizes[0]
    factor = base.family.downscaling(pipeline.vae.config)
    shape = (latents.event_shape[0], *(length // factor for length in square))
    shift = base.family.shift(pipeline.scheduler, model.transformer, shape)  # all sizes have about as many tokens
    latents.to_images = Decoder(base.family, pipeline.vae, device, latents.buckets)
    latents.facts["text_to_image"] = {
        "pipeline": base.family.pipeline,
        "base": base.name,
        "adapter": adapter,
        "fused": list(base.fused_names),
        "prompt": data.facts.get("prompt") or table.prompts[1],
        "trigger": data.facts.get("prompt", ""),
        "size": list(square),
        "call": base.family.call(model.transformer.config, base.folder, guidance),
        "replaced_shift": base.family.replaced_shift(pipeline.scheduler, shift),
    }
    nulls = {key: NOTHING if key == "prompt" else None for key in latents.condition_columns}
    description = {"coupling": "independent", "null_condition": nulls}
    replay = table.numbers(data.base_prompts)
    if data.base_samples:
        replay, *held_out = deal_prompts(replay)
        origin, source = _origin(data, model, base, dtype)
        for split, numbers in zip(("base_validation", "base_test"), held_out, strict=True):
            count, size = data.base_samples, encoder.batch_size
            latents.splits[split] = own_samples(origin, source, latents, numbers, shift, count, size, split)
    conditions = {"prompt": replay}
    if latents.buckets is not None:
        conditions["size"] = sizes_like(latents.splits["train"], len(replay))
    scheduler = FlowODEScheduler(shift=shift)
    start = LatentPipeline(model, scheduler, description, conditions, base, adapter)
    return Trainee(model, scheduler, start, data=latents, keep=keep_samples(model, base, latents))


def _origin(
    data: FlowData, model: LatentFlowModel, base: LatentBase, dtype: torch.dtype
) -> tuple[LatentFlowModel, LatentBase]:
    """The model on whose samples forgetting is measured, and its pipeline: those that are trained, or the ones the data name.

    Raises: ValueError when the data name a pipeline of another family.
    """
    if not data.base_pipeline:
        return model, base
    source = find_base(data.base_pipeline, fused=data.base_fused)
    if source.family is not base.family:
        raise ValueError(
            f"data.base_pipeline {data.base_pipeline} is a {source.family.pipeline}, but {base.name} is a {base.family.pipeline}."
        )
    transformer = source.generator(dtype).transformer
    known = LatentFlowModel(transformer, base.family, model.prompts, model.guidance, model.buckets)
    return known.to(training_device()).eval(), source
