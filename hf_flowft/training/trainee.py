"""What the settings of a model give a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers import ModelMixin

from ..data import FlowData
from ..latents import LatentPipeline
from ..pipelines import FlowPipeline
from ..replay import Keep, made_anew
from ..velocity import FrozenVelocity


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
