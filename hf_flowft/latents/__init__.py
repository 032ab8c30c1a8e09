"""Text-to-image pipelines of diffusers whose transformers are flows of latents: opened, encoded for, trained as any other velocity, saved."""

from .encoding import Decoder, Encoder, encode, sizes_like
from .family import LatentFamily
from .lora import adapters_off, add_lora, continue_lora, start_adapter
from .model import LatentFlowModel
from .opening import FAMILIES, LatentBase, find_base
from .own import deal_prompts, keep_samples, own_samples
from .pipeline import Adapter, LatentPipeline, merge, require_fused
from .prompts import NOTHING, PromptTable
from .viscosity import LatentViscosity, add_fresh_viscosity, load_viscosity, viscosity_off

__all__ = [
    "FAMILIES",
    "NOTHING",
    "Adapter",
    "Decoder",
    "Encoder",
    "LatentBase",
    "LatentFamily",
    "LatentFlowModel",
    "LatentPipeline",
    "LatentViscosity",
    "PromptTable",
    "adapters_off",
    "add_fresh_viscosity",
    "add_lora",
    "continue_lora",
    "deal_prompts",
    "encode",
    "find_base",
    "keep_samples",
    "load_viscosity",
    "merge",
    "own_samples",
    "require_fused",
    "sizes_like",
    "start_adapter",
    "viscosity_off",
]
