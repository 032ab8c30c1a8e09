"""A transformer of a text-to-image pipeline as a flow model like any other: latents and the numbers of prompts in, noise - data out."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from ..models import FlowModelOutput
from .family import LatentFamily
from .prompts import PromptTable


class LatentFlowModel(ModelMixin, ConfigMixin):
    """The transformer of a pipeline under diffusers' convention for flow models, its conditions a number each.

    Args: `transformer`; `family`: how it is asked; `prompts`: what the numbers stand for; `guidance`: for transformers that are told how much.
    Gradient checkpointing, adapters and precision are the transformer's own.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True

    def __init__(self, transformer: Any, family: LatentFamily, prompts: PromptTable, guidance: float = 3.5):
        super().__init__()
        self.transformer, self.family, self.prompts, self.guidance = transformer, family, prompts, guidance
        self.register_to_config(family=family.name, guidance=guidance)

    @property
    def working_dtype(self) -> torch.dtype:
        """What the transformer computes in: the precision of its own weights, not of an adapter's."""
        return next(p.dtype for p in self.transformer.parameters() if p.is_floating_point())

    def forward(
        self, sample: Tensor, timestep: Tensor, prompt: Tensor, return_dict: bool = True
    ) -> FlowModelOutput | tuple[Tensor]:
        """noise - data.

        Args: `sample`: (batch, *latent); `timestep`: (batch,), 1000 sigma; `prompt`: (batch,), numbers of prompts.
        """
        text = {
            key: value.to(self.working_dtype) if value.is_floating_point() else value
            for key, value in self.prompts.rows(prompt).items()
        }
        output = self.family.output(self.transformer, sample.to(self.working_dtype), timestep, text, self.guidance)
        return FlowModelOutput(output) if return_dict else (output,)
