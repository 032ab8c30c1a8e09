"""FLUX.1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conventions import sigma_from_timestep, timestep_from_sigma
from .family import LatentFamily, text_rows


class Flux(LatentFamily):
    """CLIP and T5; latents are packed two by two into tokens with positions, time is sigma itself, and FLUX.1-dev is told its guidance."""

    name = "flux"
    pipeline = "FluxPipeline"
    transformer = "FluxTransformer2DModel"
    readers = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    targets = (*LatentFamily.targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    text_length = 512

    def output(
        self, transformer: Any, sample: Tensor, timestep: Tensor, text: dict[str, Tensor], guidance: float
    ) -> Tensor:
        """See `LatentFamily`."""
        pipeline = self.pipeline_class()
        batch, channels, height, width = sample.shape
        where: dict[str, Any] = {"device": sample.device, "dtype": sample.dtype}
        packed = transformer(
            hidden_states=pipeline._pack_latents(sample, batch, channels, height, width),
            timestep=sigma_from_timestep(timestep),
            guidance=torch.full((batch,), guidance, device=sample.device)
            if transformer.config.guidance_embeds
            else None,
            img_ids=pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, **where),
            txt_ids=torch.zeros(text["encoder_hidden_states"].shape[1], 3, **where),
            **text,
            return_dict=False,
        )[0]
        return pipeline._unpack_latents(packed, height, width, 1)

    def encode_text(self, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        """See `LatentFamily`."""
        embeds, pooled, _ = pipeline.encode_prompt(prompts, None, max_sequence_length=self.text_length)
        return text_rows(encoder_hidden_states=embeds, pooled_projections=pooled)

    def call(self, transformer: Mapping[str, Any], folder: Path, guidance: float) -> dict[str, Any]:
        """See `LatentFamily`; a transformer that is told its guidance is told the same."""
        known = super().call(transformer, folder, guidance)
        return {**known, "guidance_scale": guidance} if transformer["guidance_embeds"] else known

    def taken_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """See `LatentFamily`; two by two pixels are one token."""
        channels, height, width = latent_shape
        return (height // 2) * (width // 2), 4 * channels

    def flow_timestep(self, transformer: Any, timestep: Tensor) -> Tensor:
        """See `LatentFamily`; this transformer multiplies the time itself."""
        return timestep_from_sigma(timestep)

    def patch(self, config: Mapping[str, Any]) -> int:
        """Two by two, whatever the transformer says of itself: it sees packed latents."""
        return 2

    def channels(self, config: Mapping[str, Any]) -> int:
        """A quarter of the transformer's, which sees four latent pixels at once."""
        return config["in_channels"] // 4

    def text_like(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """See `LatentFamily`."""
        embeds = torch.zeros(1, self.text_length, config["joint_attention_dim"])
        return {"encoder_hidden_states": embeds, "pooled_projections": torch.zeros(1, config["pooled_projection_dim"])}
