"""What the settings of a model give a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin

from ..data import FlowData
from ..latents import LatentPipeline
from ..pipelines import FlowPipeline
from ..replay import Keep, made_anew
from ..velocity import FrozenVelocity, ParkedVelocity
from .processes import is_asked


@dataclass
class Trainee:
    """`model`: what is trained; `scheduler`: what it will be sampled with; `base`: the pipeline it starts from, None for a fresh network;
    `reference`: the frozen base, None where a copy must be made of it; `data`: as the model sees them, None where it takes them as they are; `keep`: holds samples of the base for
    the next run.
    """

    model: ModelMixin
    scheduler: Any
    base: FlowPipeline | LatentPipeline | None = None
    reference: FrozenVelocity | None = None
    data: FlowData | None = None
    keep: Keep = made_anew


def frozen_copy(model: ModelMixin, device: str, precision: str) -> FrozenVelocity:
    """The frozen base as a copy in a precision of its own.

    Args: `device`: "cpu" keeps it in the memory of the host, "" lets it follow the model.  Raises: ValueError under FSDP, which divides the copy.
    """
    if is_asked("FSDP"):
        raise ValueError(
            "FSDP divides the frozen copy as it does the model: leave out model.reference_device and model.reference_dtype."
        )
    dtype = getattr(torch, precision)
    return ParkedVelocity(model, device, dtype) if device else FrozenVelocity(model).to(dtype)
