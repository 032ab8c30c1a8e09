"""What is trained: a fresh network, a pretrained one, or a residual on a frozen pretrained one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from diffusers import ModelMixin, UNet2DModel

from ..choices import Choices
from ..data import FlowData
from ..models import ActionTransformer, ConditionalUNet1D, VelocityMLP, ViscousFlowModel
from ..models.bases import label_rows
from ..models.observation import IMAGE_PREFIX
from ..models.viscosity import in_words
from ..randomness import keyed_seed
from ..schedulers import FlowODEScheduler
from .bases import load_base
from .latents import LoRAConfig, latent_trainee, viscous_trainee
from .trainee import Trainee, frozen_copy


@dataclass(frozen=True)
class MLPConfig(Choices):
    """A fresh `VelocityMLP`: vectors and small images."""

    hidden_dim: int = 256
    """Width."""
    num_layers: int = 4
    """Residual blocks (film) or hidden layers (concat)."""
    time: Literal["film", "concat"] = "film"
    """film: the time modulates residual blocks; concat: a plain MLP on [x, t]."""
    activation: Literal["relu", "silu", "gelu", "tanh"] = "silu"
    """The non-linearity."""
    shift: float = 1.0
    """Shift of the sampling grid."""

    def build(self, data: FlowData, num_classes: int, seed: int) -> Trainee:
        """A network with seeded weights for the data's shape and conditions.  Raises: ValueError for data with images to observe."""
        observed = data.rows("train", [0]).condition
        unknown = sorted(set(observed) - {"class_labels", "condition"})
        if unknown:
            raise ValueError(
                f"mlp takes labels and vectors, but the data give {unknown[0]!r}; use model.name unet1d or transformer1d."
            )
        condition = observed.get("condition")
        options = {key: value for key, value in asdict(self).items() if key != "shift"}
        model = _seeded(
            seed,
            VelocityMLP,
            event_shape=list(data.event_shape),
            num_classes=num_classes,
            condition_dim=0 if condition is None else condition.shape[1],
            **options,
        )
        return Trainee(model, FlowODEScheduler(shift=self.shift))


@dataclass(frozen=True)
class UNetConfig:
    """A fresh diffusers `UNet2DModel`: images."""

    channels: list[int] = field(default_factory=lambda: [32, 64])
    """Channels at each resolution."""
    layers_per_block: int = 2
    """Residual layers at each resolution."""
    attention: bool = True
    """Self-attention at the lowest resolution."""
    norm_groups: int = 8
    """Groups of the group normalisation."""
    shift: float = 1.0
    """Shift of the sampling grid."""

    def build(self, data: FlowData, num_classes: int, seed: int) -> Trainee:
        """A network with seeded weights.  Raises: ValueError for data that are not square images or are too small to be halved so often."""
        if len(data.event_shape) != 3 or data.event_shape[1] != data.event_shape[2]:
            raise ValueError(
                f"unet2d takes square images (channels, size, size), got samples of shape {data.event_shape}; use model.name mlp."
            )
        channels, size, _ = data.event_shape
        if size % 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"images of size {size} cannot be halved {len(self.channels) - 1} times; give fewer model.channels."
            )
        down = ["DownBlock2D"] * (len(self.channels) - 1) + ["AttnDownBlock2D" if self.attention else "DownBlock2D"]
        model = _seeded(
            seed,
            UNet2DModel,
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(self.channels),
            layers_per_block=self.layers_per_block,
            down_block_types=tuple(down),
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
            norm_num_groups=self.norm_groups,
            attention_head_dim=8,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
        return Trainee(model, FlowODEScheduler(shift=self.shift))


@dataclass(frozen=True, kw_only=True)
class ActionModelConfig:
    """A fresh network of action chunks."""

    network: ClassVar[type[ModelMixin]]
    image_widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    """Channels of the stages of the image encoder, where the data have images."""
    share_image_encoder: bool = False
    """One image encoder for all cameras instead of one each."""
    shift: float = 1.0
    """Shift of the sampling grid."""

    def build(self, data: FlowData, num_classes: int, seed: int) -> Trainee:
        """A network with seeded weights for the data's chunks and observations.  Raises: ValueError for data that are no chunks."""
        if len(data.event_shape) != 2:
            raise ValueError(
                f"{self.network.__name__} takes action chunks (horizon, action_dim), got samples of shape {data.event_shape}; "
                "use model.name mlp."
            )
        observed = data.rows("train", [0]).condition
        images = {
            key.removeprefix(IMAGE_PREFIX): list(value.shape[1:])
            for key, value in observed.items()
            if key.startswith(IMAGE_PREFIX)
        }
        options = {key: value for key, value in asdict(self).items() if key != "shift"}
        model = _seeded(
            seed,
            self.network,
            event_shape=list(data.event_shape),
            num_classes=num_classes,
            condition_dim=observed["condition"].shape[1] if "condition" in observed else 0,
            images=images or None,
            **options,
        )
        return Trainee(model, FlowODEScheduler(shift=self.shift))


@dataclass(frozen=True, kw_only=True)
class UNet1DConfig(ActionModelConfig):
    """A fresh `ConditionalUNet1D`: action chunks under observations."""

    network = ConditionalUNet1D
    channels: list[int] = field(default_factory=lambda: [64, 128, 256])
    """Channels at each resolution of the horizon, which is halved between them."""
    kernel_size: int = 5
    """Steps of the horizon a convolution sees (odd)."""
    groups: int = 8
    """Groups of the group normalisation."""
    embedding_dim: int = 128
    """Width of the embedding of time and observation."""


@dataclass(frozen=True, kw_only=True)
class Transformer1DConfig(ActionModelConfig):
    """A fresh `ActionTransformer`: action chunks under observations."""

    network = ActionTransformer
    hidden_dim: int = 128
    """Width of the tokens, a multiple of num_heads."""
    num_layers: int = 4
    """Blocks of attention and MLP."""
    num_heads: int = 4
    """Heads of the attention."""


@dataclass(frozen=True)
class PretrainedConfig(Choices):
    """A pretrained flow, all of its weights trained."""

    path: str = ""
    """The pipeline: a folder, or a repository on the Hub."""
    revision: str = ""
    """The revision of a Hub repository; empty for the newest."""
    reference_device: Literal["", "cpu"] = ""
    """cpu: the frozen copy that GFT asks stays in the memory of the host; slower, and half the weights on the device. Empty: beside the model."""
    reference_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen copy, which makes pairs and replay too, and stands for the base in the report."""

    def build(self, data: FlowData, num_classes: int, seed: int) -> Trainee:
        """The pipeline's model, ready to be trained; of captioned data the transformer of a text-to-image pipeline."""
        if data.caption_column:
            trainee = latent_trainee(self.path, self.revision, data)
        else:
            base = load_base(self.path, self.revision, data)
            trainee = Trainee(base.model, base.scheduler, base)
        if self.reference_device or self.reference_dtype != "float32":
            trainee.reference = frozen_copy(trainee.model, self.reference_device, self.reference_dtype)
        if isinstance(trainee.model, ViscousFlowModel):
            trainee.model.unfreeze_base()
        trainee.model.requires_grad_(True)
        return trainee


@dataclass(frozen=True)
class ViscosityConfig(Choices):
    """Generalized artificial viscosity (GAV): a dissipative residual on the frozen base."""

    path: str = ""
    """The base's pipeline: a folder, or a repository on the Hub."""
    revision: str = ""
    """The revision of a Hub repository; empty for the newest."""
    structure: Literal["gradient", "metric", "dominance", "paper", "mlp"] = "gradient"
    """gradient, metric, dominance: certified rates; paper: as published, not certified; mlp: the ablation, a plain residual network."""
    wiring: Literal["in_loop", "cascade"] = "in_loop"
    """in_loop: the viscosity acts on the flow; cascade: it acts on the base's output, as a second half of the time."""
    hidden_dim: int = 128
    """Width of the residual."""
    num_terms: int = 2
    """Number of nonlinear terms."""
    activation: str = "tanh"
    """Their non-linearity."""
    rank: int = 2
    """Rank of the Cayley rotations."""
    gate_start: float = 0.0
    """The viscosity acts after this time only; 0 acts throughout."""

    @property
    def residual_options(self) -> dict[str, Any]:
        """What the residual itself is made by."""
        return {key: value for key, value in asdict(self).items() if key not in ("path", "revision", "wiring")}

    def describe(self) -> str:
        """What is trained, in a sentence."""
        return in_words(self.structure, self.wiring)

    def build(self, data: FlowData, num_classes: int, seed: int) -> Trainee:
        """The base with its residual; only the residual is trained. Of captioned data the base is the transformer of a text-to-image pipeline."""
        if data.caption_column:
            if self.wiring == "cascade":
                raise ValueError(
                    "the viscosity of a text-to-image pipeline is in its loop: set model.wiring to in_loop."
                )
            return viscous_trainee(self.path, self.revision, data, seed, **self.residual_options)
        base = load_base(self.path, self.revision, data)
        if base.predicts != "velocity":
            raise ValueError(f"viscosity is for flows, but the model at {self.path} predicts the {base.predicts}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, "initialisation"))
            condition = base.conditions.get("condition")
            model = ViscousFlowModel.from_base(
                base.model,
                event_shape=list(data.event_shape),
                num_classes=max(label_rows(base.model) - 1, 0),
                condition_dim=0 if condition is None else condition.shape[1],
                wiring=self.wiring,
                **self.residual_options,
            )
        return Trainee(model, base.scheduler, base)


MODELS: dict[str, type] = {
    "mlp": MLPConfig,
    "unet1d": UNet1DConfig,
    "transformer1d": Transformer1DConfig,
    "unet2d": UNetConfig,
    "pretrained": PretrainedConfig,
    "viscosity": ViscosityConfig,
    "lora": LoRAConfig,
}


def _seeded(seed: int, cls: type, **options: Any) -> ModelMixin:
    """A network whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "initialisation"))
        return cls(**options)
