"""Sana."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .family import LatentFamily, text_rows


class Sana(LatentFamily):
    """Gemma reads the prompt after an instruction; a deep-compression autoencoder; the time may be scaled, and a learned variance is dropped."""

    name = "sana"
    pipeline = "SanaPipeline"
    transformer = "SanaTransformer2DModel"
    readers = ("text_encoder", "tokenizer")
    text_length = 300

    def output(
        self, transformer: Any, sample: Tensor, timestep: Tensor, text: dict[str, Tensor], guidance: float
    ) -> Tensor:
        """See `LatentFamily`."""
        time = timestep * transformer.config.timestep_scale
        output = transformer(sample, timestep=time, **text, return_dict=False)[0]
        return output[:, : sample.shape[1]]

    def encode_text(self, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        """See `LatentFamily`; with the instruction the pipeline gives by default."""
        instruction = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
        return self._encode(pipeline, prompts, instruction)

    def encode_nothing(self, pipeline: Any) -> dict[str, Tensor]:
        """See `LatentFamily`; the pipeline gives no instruction here."""
        return self._encode(pipeline, [""], None)

    def _encode(self, pipeline: Any, prompts: list[str], instruction: list[str] | None) -> dict[str, Tensor]:
        embeds, mask, _, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            complex_human_instruction=instruction,
        )
        return text_rows(encoder_hidden_states=embeds, encoder_attention_mask=mask)

    def encode_images(self, vae: Any, pixels: Tensor) -> Tensor:
        """See `LatentFamily`; this autoencoder has no posterior."""
        return vae.encode(pixels).latent * vae.config.scaling_factor

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See `LatentFamily`."""
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]

    def call(self, transformer: Mapping[str, Any], folder: Path, guidance: float) -> dict[str, Any]:
        """See `LatentFamily`; in the very size that is asked for, not one from a table."""
        return {**super().call(transformer, folder, guidance), "use_resolution_binning": False}

    def flow_timestep(self, transformer: Any, timestep: Tensor) -> Tensor:
        """See `LatentFamily`; without the transformer's scale."""
        return timestep / transformer.config.timestep_scale

    def text_vector(self, text: Mapping[str, Tensor]) -> Tensor:
        """See `LatentFamily`; the mean over the tokens that are there."""
        there = text["encoder_attention_mask"].unsqueeze(-1).to(text["encoder_hidden_states"].dtype)
        return (text["encoder_hidden_states"] * there).sum(1) / there.sum(1).clamp(min=1)

    def downscaling(self, vae: Mapping[str, Any]) -> int:
        """See `LatentFamily`; this autoencoder counts its blocks elsewhere."""
        return 2 ** (len(vae["encoder_block_out_channels"]) - 1)

    def text_like(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """See `LatentFamily`."""
        mask = torch.ones(1, self.text_length, dtype=torch.int64)
        return {
            "encoder_hidden_states": torch.zeros(1, self.text_length, config["caption_channels"]),
            "encoder_attention_mask": mask,
        }
