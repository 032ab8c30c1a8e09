"""A transformer of a text-to-image pipeline as a flow model like any other: latents and the numbers of prompts in, noise - data out."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from ..conventions import sigma_from_timestep
from ..data.buckets import Buckets
from ..models import FlowModelOutput
from ..velocity import Sized
from .family import LatentFamily
from .prompts import PromptTable

SMALLEST_SIGMA = 1e-3
"""Of the velocity of the padding, which is 0 / 0 at the end."""


def freeze(transformer: Any) -> None:
    """No weight is trained, and no table of constants (positions: up to a gigabyte) is a part of the state that is kept and compared."""
    transformer.requires_grad_(False)
    for module in transformer.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=False)


class LatentFlowModel(ModelMixin, ConfigMixin, Sized):
    """The transformer of a pipeline under diffusers' convention for flow models, its conditions a number each.

    Args: `transformer`; `family`: how it is asked; `prompts`: what the numbers stand for; `guidance`: for transformers that are told how much;
    `buckets`: sizes of latents, where there are several on one canvas. Gradient checkpointing, adapters and precision are the transformer's own.

    With buckets, the transformer sees each latent in its own size. The padding flows to zero along straight lines, v = -x / (1 - t), which is the
    exact velocity there of every path from noise to padded data, so that it adds nothing to a loss. At t = 1 that is 0 / 0: solvers that ask there
    (heun, rk4) miss zero in their last step, which `without_padding` makes good in samples and reconstructions. Means over a tensor count the padding.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True

    def __init__(
        self,
        transformer: Any,
        family: LatentFamily,
        prompts: PromptTable,
        guidance: float = 3.5,
        buckets: Buckets | None = None,
    ):
        super().__init__()
        self.transformer, self.family, self.prompts, self.guidance = transformer, family, prompts, guidance
        self.buckets = buckets
        self.register_to_config(family=family.name, guidance=guidance)

    @property
    def working_dtype(self) -> torch.dtype:
        """What the transformer computes in: the precision of its own weights, not of an adapter's."""
        return next(p.dtype for p in self.transformer.parameters() if p.is_floating_point())

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        prompt: Tensor,
        size: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowModelOutput | tuple[Tensor]:
        """noise - data.

        Args: `sample`: (batch, *latent); `timestep`: (batch,), 1000 sigma; `prompt`: (batch,), numbers of prompts; `size`: (batch,), numbers of
        buckets, where the model has some.
        """
        output = self._ask(sample, timestep, prompt) if size is None else self._by_size(sample, timestep, prompt, size)
        return FlowModelOutput(output) if return_dict else (output,)

    def _ask(self, sample: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        text = {
            key: value.to(self.working_dtype) if value.is_floating_point() else value
            for key, value in self.prompts.rows(prompt).items()
        }
        return self.family.output(self.transformer, sample.to(self.working_dtype), timestep, text, self.guidance)

    def _by_size(self, sample: Tensor, timestep: Tensor, prompt: Tensor, size: Tensor) -> Tensor:
        if self.buckets is None:
            raise ValueError("this model was built for latents of one size: leave `size` out.")
        sigma = sigma_from_timestep(timestep).clamp(min=SMALLEST_SIGMA).to(sample.dtype)
        output = sample / sigma.reshape(-1, *[1] * (sample.ndim - 1))
        for rows, latents, (height, width) in self.buckets.crops(sample, size):
            output[rows, :, :height, :width] = self._ask(latents, timestep[rows], prompt[rows]).to(sample.dtype)
        return output

    def without_padding(self, x: Tensor, **condition: Tensor) -> Tensor:
        """See `Sized`."""
        if self.buckets is None or "size" not in condition:
            return x
        bare = torch.zeros_like(x)
        for rows, latents, (height, width) in self.buckets.crops(x, condition["size"]):
            bare[rows, :, :height, :width] = latents
        return bare
