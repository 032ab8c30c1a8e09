"""The networks a saved model may name as the base it was built on: a closed list, so that loading a config never
imports by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import ModelMixin, UNet2DModel

from .mlp import VelocityMLP
from .options import check_known, check_options
from .transformer1d import ActionTransformer
from .unet1d import ConditionalUNet1D
from .unet_fourier import FourierUNet2DModel

BASES = {
    cls.__name__: cls for cls in (VelocityMLP, UNet2DModel, FourierUNet2DModel, ConditionalUNet1D, ActionTransformer)
}


def build_base(config: Mapping[str, Any]) -> ModelMixin:
    """A base network with fresh weights from its config, whose `_class_name` must be a key of BASES.

    Raises: ValueError naming the class and the accepted ones, or the class and the options it does not have or that are of another type.
    """
    model_class = BASES[_known(config)]
    check_options(model_class, config)
    check_known(model_class, config)
    return model_class(**{key: value for key, value in config.items() if not key.startswith("_")})


def base_config(model: ModelMixin) -> dict[str, Any]:
    """The config `build_base` rebuilds `model` from: its options and `_class_name`, without versions and paths.

    Raises: ValueError when the class of `model` is not in BASES.
    """
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    config["_class_name"] = type(model).__name__
    _known(config)
    return config


def event_shape(config: Mapping[str, Any]) -> list[int]:
    """The shape of one sample as the config of a base tells it.  Raises: ValueError when the config leaves it open."""
    if _known(config) != "UNet2DModel":
        return list(config["event_shape"])
    size = config.get("sample_size")
    if size is None:
        raise ValueError("this UNet2DModel takes samples of any size; give event_shape, e.g. event_shape=[3, 32, 32].")
    height, width = (size, size) if isinstance(size, int) else size
    return [config.get("in_channels", 3), height, width]


def label_rows(model: ModelMixin) -> int:
    """How many labels a network has an embedding for, "no label" included where it was built here; 0 without labels."""
    if model.config.get("num_classes"):
        return model.config["num_classes"] + 1
    return model.config.get("num_class_embeds") or 0


def _known(config: Mapping[str, Any]) -> str:
    name = config.get("_class_name") if isinstance(config, Mapping) else None
    if not isinstance(name, str) or name not in BASES:
        accepted = ", ".join(BASES)
        raise ValueError(
            f"a base of class {name!r} is not accepted; its config must name one of {accepted} as '_class_name'."
        )
    return name
