"""Artificial viscosity on a text-to-image pipeline: a small module beside its frozen transformer, switched off and saved alone as adapters are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..conventions import output_from_velocity
from ..models.residual import ViscousResidual
from ..models.saved import SafeModelMixin
from .family import LatentFamily
from .model import freeze
from .opening import FAMILIES


class LatentViscosity(ViscousResidual, SafeModelMixin, ConfigMixin):
    """gate(t) mu(x - m(t, c)) + g(t, c) on what a transformer of diffusers takes, to be added to what it gives; untrained it adds nothing.

    c is the prompt as one vector: the pooled embedding, or the mean over its tokens where the family has none.

    Args:
        pipeline: the class of the pipeline in diffusers.
        event_shape: shape of one sample as the transformer takes it: latents, packed where the family packs them. One size only.
        condition_dim: size of the prompt's vector.
        structure, hidden_dim, num_terms, activation, rank, gate_start: as those of `ViscousFlowModel`.
    """

    @register_to_config
    def __init__(
        self,
        pipeline: str,
        event_shape: list[int],
        condition_dim: int,
        structure: Literal["gradient", "metric", "dominance", "paper", "mlp"] = "gradient",
        hidden_dim: int = 128,
        num_terms: int = 1,
        activation: str = "tanh",
        rank: int = 2,
        gate_start: float = 0.0,
    ):
        super().__init__()
        if pipeline not in FAMILIES:
            raise ValueError(f"unknown pipeline {pipeline!r}; choose one of {', '.join(FAMILIES)}.")
        self.family = FAMILIES[pipeline]
        self.is_on = True
        self.add_parts()

    def forward(self, transformer: Any, taken: Tensor, timestep: Tensor, text: dict[str, Any]) -> Tensor:
        """What is added to the transformer's output, noise - data.

        Args: `transformer`: whose config scales the time; `taken`: (batch, *event_shape); `timestep`, `text`: as the transformer is given them.
        Raises: ValueError for samples of another shape.
        """
        shape = tuple(self.config.event_shape)
        if taken.shape[1:] != shape:
            raise ValueError(
                f"this viscosity was trained on latents of shape {shape}, got {tuple(taken.shape[1:])}: draw images of the size it was trained on."
            )
        time = self.family.flow_timestep(transformer, timestep).float().expand(len(taken))
        return output_from_velocity(self.residual(taken, time, None, self.family.text_vector(text)))


def add_fresh_viscosity(transformer: Any, family: LatentFamily, latent_shape: tuple[int, ...], **options: Any) -> None:
    """Freeze a transformer and put a viscosity on it, which alone is trained, in float32; at the start it changes nothing.

    Args: `latent_shape`: (channels, height, width); `options`: those of `LatentViscosity` that are chosen.
    Raises: ValueError for options that do not exist or do not go together.
    """
    freeze(transformer)
    size = family.text_vector(family.text_like(transformer.config)).shape[1]
    viscosity = LatentViscosity(family.pipeline, list(family.taken_shape(latent_shape)), size, **options)
    add_viscosity(transformer, viscosity.to(transformer.device))


def add_viscosity(transformer: Any, viscosity: LatentViscosity) -> None:
    """Let a viscosity act on all that a transformer gives from now on.  Raises: ValueError when it has one already."""
    if hasattr(transformer, "viscosity"):
        raise ValueError("this transformer has a viscosity already.")
    transformer.viscosity = viscosity
    transformer.register_forward_hook(_added, with_kwargs=True)


def _added(transformer: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """The hook: the transformer's output with the viscosity's, on the channels that are latents (a learned variance follows them)."""
    viscosity = transformer.viscosity
    if not viscosity.is_on:
        return output
    taken = named["hidden_states"] if "hidden_states" in named else given[0]
    own = output[0]
    change = viscosity(transformer, taken, named["timestep"], named).to(own.dtype)
    if change.shape != own.shape:
        channels = change.shape[1]
        whole = torch.cat([own[:, :channels] + change, own[:, channels:]], dim=1)
    else:
        whole = own + change
    return (whole, *output[1:]) if isinstance(output, tuple) else type(output)(sample=whole)


@contextmanager
def viscosity_off(transformer: Any) -> Iterator[None]:
    """Inside, the transformer computes what it did before it had a viscosity, bit for bit."""
    transformer.viscosity.is_on = False
    try:
        yield
    finally:
        transformer.viscosity.is_on = True


def load_viscosity(pipeline: Any, path: str | Path, **hub: Any) -> None:
    """Put a viscosity that a run has left on a pipeline of diffusers, which then draws with it; its numbers of steps and guidance stay its own.

    Args: `pipeline`: the one it was trained on, on its device; `path`: a folder or a repository; `hub`: `revision`, `cache_dir`, `token`,
    `local_files_only`.
    Raises: ValueError when there is none at `path`, it belongs to another kind of pipeline, or the transformer has one already.
    """
    viscosity = LatentViscosity.from_pretrained(path, **hub).eval()
    if type(pipeline).__name__ != viscosity.config.pipeline:
        raise ValueError(
            f"the viscosity at {path} belongs to a {viscosity.config.pipeline}, not to a {type(pipeline).__name__}."
        )
    add_viscosity(pipeline.transformer, viscosity.to(pipeline.device))
