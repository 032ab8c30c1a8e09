"""What must be known of a family of text-to-image pipelines to train its transformer as a velocity: one class, one page for each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BENT = (
    "shift_terminal",
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
"""Options of diffusers' schedulers that make another grid than a shifted uniform one."""


class LatentFamily:
    """One family of pipelines; a subclass says how its transformer is asked, how its prompts are read, and what differs from the defaults.

    Latents are always (batch, channels, height, width) here, in the units of the transformer; whatever a family packs, it unpacks again.
    """

    name: str
    pipeline: str
    """The class in diffusers."""
    transformer: str
    """The class of its transformer."""
    readers: tuple[str, ...]
    """The components that read text; they leave memory once the prompts are encoded."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """The layers that get a low-rank adapter, unless others are named."""
    text_length: int
    """Tokens of a prompt, as the pipeline takes them by default."""
    max_shift: float = 1.15
    """mu at the largest number of tokens, where the scheduler does not say it."""

    def pipeline_class(self) -> type[DiffusionPipeline]:
        """The pipeline's class (it needs transformers, which is imported here)."""
        import diffusers

        return getattr(diffusers, self.pipeline)

    def transformer_class(self) -> Any:
        """The transformer's class."""
        import diffusers

        return getattr(diffusers, self.transformer)

    def output(
        self, transformer: Any, sample: Tensor, timestep: Tensor, text: dict[str, Tensor], guidance: float
    ) -> Tensor:
        """What the pipeline's loop gets from its transformer: noise - data.

        Args: `sample`: (batch, *latent); `timestep`: (batch,), 1000 sigma; `text`: as `encode_text` made it; `guidance`: for transformers that
        are told how much.  Returns: (batch, *latent).
        """
        raise NotImplementedError

    def encode_text(self, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        """The prompts as the transformer takes them: tensors of one row a prompt, all of one shape."""
        raise NotImplementedError

    def encode_nothing(self, pipeline: Any) -> dict[str, Tensor]:
        """What stands for "no prompt" in guidance."""
        return self.encode_text(pipeline, [""])

    def encode_images(self, vae: Any, pixels: Tensor) -> Tensor:
        """Images in [-1, 1] as latents: the mean of the posterior, in the units of the transformer."""
        latents = vae.encode(pixels).latent_dist.mode()
        return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Latents as images in [-1, 1]."""
        return vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0), return_dict=False)[0]

    def call(self, transformer: Mapping[str, Any], folder: Path, guidance: float) -> dict[str, Any]:
        """Arguments with which diffusers' pipeline draws what is trained and measured here: each prompt asked once, and read as far as it was encoded.

        Args: `transformer`: its config; `folder`: of the pipeline; `guidance`: for transformers that are told how much.
        """
        return {"guidance_scale": 1.0, "max_sequence_length": self.text_length}

    def replaced_shift(self, scheduler: Any, shift: float) -> float | None:
        """The shift of an Euler scheduler to put in the place of one that takes no grid; None for one that takes it."""
        return None if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters else shift

    def channels(self, config: Mapping[str, Any]) -> int:
        """Channels of the latents, by the config of the transformer."""
        return config["in_channels"]

    def downscaling(self, vae: Mapping[str, Any]) -> int:
        """How many times smaller than its image a latent is in height and width, by the config of the autoencoder."""
        return 2 ** (len(vae["block_out_channels"]) - 1)

    def text_like(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Zeros of the shape of one encoded prompt, by the config of the transformer."""
        raise NotImplementedError

    def patch(self, config: Mapping[str, Any]) -> int:
        """Latent pixels in height and width that make one token, by the config of the transformer."""
        return config["patch_size"]

    def taken_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample as the transformer takes it, for latents (channels, height, width)."""
        return latent_shape

    def flow_timestep(self, transformer: Any, timestep: Tensor) -> Tensor:
        """1000 sigma, by the time that the transformer is given: (batch,) -> (batch,)."""
        return timestep

    def text_vector(self, text: Mapping[str, Tensor]) -> Tensor:
        """A prompt as one vector, by what the transformer is given of it: (batch, size)."""
        return text["pooled_projections"]

    def shift(self, scheduler: Any, transformer: Any, latent_shape: tuple[int, ...]) -> float:
        """The shift s of the pipeline's grid, sigma' = s sigma / (1 + (s - 1) sigma), for images of this size.

        It is the scheduler's own number, or, where that shifts dynamically, exp(mu) with mu linear in the number of tokens. This is the only place
        that says it: training times, solver grids, banks and evaluation go by it. (diffusers' Euler scheduler applies a fixed shift twice to the
        low end of its DEFAULT grid; with `sigmas=` it is applied once, as here.)
        """
        config = scheduler.config
        bent = [name for name in BENT if config.get(name)]
        if bent:
            raise ValueError(
                f"the pipeline's scheduler has {bent[0]}, which bends the grid in a way that is not trained for here."
            )
        if not config.get("use_dynamic_shifting"):
            return float(config.get("flow_shift") or config.get("shift") or 1.0)
        mu = self._mu(config, transformer, latent_shape)
        return mu if config.get("time_shift_type") == "linear" else math.exp(mu)

    def _mu(self, config: Any, transformer: Any, latent_shape: tuple[int, ...]) -> float:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        _, height, width = latent_shape
        tokens = (height // self.patch(transformer.config)) * (width // self.patch(transformer.config))
        return calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", self.max_shift),
        )


def require_flow(scheduler: Any, name: str) -> None:
    """Raises: ValueError when a pipeline's scheduler says that its network predicts something else than a velocity."""
    predicts = scheduler.config.get("prediction_type", "flow_prediction")
    flows = type(scheduler).__name__.startswith("FlowMatch") or scheduler.config.get("use_flow_sigmas")
    if predicts != "flow_prediction" or not flows:
        raise ValueError(
            f"the pipeline {name} is no flow: its {type(scheduler).__name__} takes {predicts!r}, and a network trained to predict noise is no "
            "velocity. Choose a flow-matching model, whose scheduler is a FlowMatch... one (or has use_flow_sigmas)."
        )


def text_rows(**tensors: Tensor) -> dict[str, Tensor]:
    """Tensors of a text encoder as they are kept: detached, fractions in float32, on the CPU."""
    return {
        key: (value.float() if value.is_floating_point() else value.to(torch.int64)).detach().cpu()
        for key, value in tensors.items()
    }
