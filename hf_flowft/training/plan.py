"""What a run will need, before anything is downloaded or allocated: memory by its parts, operations and time of a step."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..data import CaptionedConfig
from ..latents import add_fresh_viscosity, add_lora
from ..latents.counting import Needs, count_encoders, count_needs
from ..latents.family import LatentFamily
from ..objectives import GradualConfig, PriorPreservationConfig, ReconstructionConfig
from ..solvers import tableau
from .config import RunConfig
from .latents import LoRAConfig
from .models import PretrainedConfig, ViscosityConfig

GIB = 1 << 30


def plan(config: RunConfig, tflops: float) -> str:
    """A table for a run on a text-to-image pipeline.

    Memory is that of one process: weights, what the optimiser and the averages keep, and the activations of a micro-step, counted on a transformer
    without memory; before it, what encodes images and prompts is there alone. Allocators and kernels need more, so leave a fifth free. Time is the operations of a step by what the device does.

    Args: `tflops`: floating-point operations a second the device reaches, in millions of millions.
    Raises: ValueError for other kinds of models and data.
    """
    model, data = config.model, config.data
    if not isinstance(data, CaptionedConfig) or not isinstance(model, LoRAConfig | PretrainedConfig | ViscosityConfig):
        raise ValueError(
            "a plan is made for text-to-image pipelines: data.name captioned, and model.name lora, pretrained or viscosity."
        )
    dtype = getattr(torch, model.dtype) if isinstance(model, LoRAConfig) else torch.float32
    size = (data.resolution, data.resolution)
    needs = count_needs(
        model.path, model.revision, size, dtype, config.train.gradient_checkpointing, partial(_adapt, config)
    )
    micro = config.train.batch_size // config.train.gradient_accumulation_steps
    together, operations = _of_the_objective(config, needs)
    moments = 2 if config.train.optimizer == "adamw_8bit" else 8
    frozen, state = needs.frozen * dtype.itemsize, (12 + moments) * needs.trained  # gradient, best and first weights
    memory = {
        "frozen weights": frozen,
        "trained weights (float32)": 4 * needs.trained,
        "their gradients, moments and copies": state + (4 * needs.trained if config.train.ema_decay else 0),
        "a frozen copy": _copy_bytes(model) * needs.trained,
        f"activations of {micro} x {together:g} samples": round(micro * together * needs.activations),
    }
    lines = [f"{name:<45} {value / GIB:8.2f} GiB" for name, value in memory.items() if value]
    total = sum(memory.values())
    step = config.train.batch_size * operations / 1e12
    encoders = count_encoders(model.path, model.revision, dtype)
    return "\n".join(
        [
            f"{needs.frozen + needs.trained:,} weights, {needs.trained:,} of them trained",
            *lines,
            f"{'together (leave a fifth more free)':<45} {total / GIB:8.2f} GiB",
            f"{'before, while encoding: the encoders alone':<45} {encoders / GIB:8.2f} GiB",
            f"{'operations of a step':<45} {step:8.2f} TFLOP",
            f"{f'time of a step at {tflops:g} TFLOP/s':<45} {step / tflops:8.2f} s",
        ]
    )


def _copy_bytes(model: LoRAConfig | PretrainedConfig | ViscosityConfig) -> int:
    """Of a weight of the frozen copy on the device: none for what is added to a frozen base, nor for one that stays in the host's memory."""
    if not isinstance(model, PretrainedConfig) or model.reference_device:
        return 0
    return getattr(torch, model.reference_dtype).itemsize


def _adapt(config: RunConfig, transformer: Any, family: LatentFamily, latent_shape: tuple[int, ...]) -> None:
    model = config.model
    if isinstance(model, LoRAConfig):
        add_lora(transformer, model.target_modules or family.targets, model.rank, model.alpha or model.rank, 0.0, 0)
    if isinstance(model, ViscosityConfig):
        add_fresh_viscosity(transformer, family, latent_shape, **model.residual_options)


def _of_the_objective(config: RunConfig, needs: Needs) -> tuple[float, float]:
    """Samples whose activations are held at once for each sample of the batch, and the operations that it costs."""
    objective, both = config.objective, needs.forward + needs.backward
    if isinstance(objective, ReconstructionConfig):
        solves = max(objective.num_steps) * len(tableau(objective.solver).c)
        last = objective.last_steps * len(tableau(objective.solver).c)
        through = min(solves, last) if objective.gradient == "truncated" else solves
        held = through if objective.gradient in ("direct", "truncated") else 1
        again = needs.forward if objective.gradient in ("checkpointed", "adjoint") else 0
        return held, solves * needs.forward + through * (needs.backward + again)
    if isinstance(objective, GradualConfig):
        return (2, 2 * both + needs.forward) if objective.measure == "replay" else (1, both + needs.forward)
    return (2, 2 * both) if isinstance(objective, PriorPreservationConfig) else (1, both)
