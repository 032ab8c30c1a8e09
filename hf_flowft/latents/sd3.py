"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..repository import read_json
from .family import LatentFamily, text_rows


class StableDiffusion3(LatentFamily):
    """Two CLIPs and T5, a transformer that takes latents as they are; guidance by a second evaluation under no prompt."""

    name = "sd3"
    pipeline = "StableDiffusion3Pipeline"
    transformer = "SD3Transformer2DModel"
    readers = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    targets = (*LatentFamily.targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    text_length = 256
    max_shift = 1.16

    def output(
        self, transformer: Any, sample: Tensor, timestep: Tensor, text: dict[str, Tensor], guidance: float
    ) -> Tensor:
        """See `LatentFamily`."""
        return transformer(hidden_states=sample, timestep=timestep, **text, return_dict=False)[0]

    def encode_text(self, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        """See `LatentFamily`."""
        taken = getattr(
            pipeline.tokenizer_3, "model_max_length", self.text_length
        )  # of a T5 that is there, and reads less
        length = min(self.text_length, taken)
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return text_rows(encoder_hidden_states=embeds, pooled_projections=pooled)

    def call(self, transformer: Mapping[str, Any], folder: Path, guidance: float) -> dict[str, Any]:
        """See `LatentFamily`; a T5 that reads less is given less."""
        known, tokenizer = super().call(transformer, folder, guidance), folder / "tokenizer_3" / "tokenizer_config.json"
        taken = read_json(tokenizer).get("model_max_length") if tokenizer.is_file() else None
        return {**known, "max_sequence_length": min(self.text_length, taken or self.text_length)}

    def text_like(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """See `LatentFamily`: 77 tokens of CLIP and those of T5."""
        embeds = torch.zeros(1, 77 + self.text_length, config["joint_attention_dim"])
        return {"encoder_hidden_states": embeds, "pooled_projections": torch.zeros(1, config["pooled_projection_dim"])}
