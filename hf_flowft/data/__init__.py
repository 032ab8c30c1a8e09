"""Data sets for flows: one file a kind of data, each a typed config and a loader that returns `FlowData`."""

from collections.abc import Callable
from typing import Any

from .captioned import CaptionedConfig, load_captioned
from .digits import DigitsConfig, load_digits
from .flow_data import FlowData
from .images import ImagesConfig, load_images
from .normalisation import Normalisation
from .robot import RobotConfig, load_robot, write_lerobot
from .toy import ToyConfig, load_toy
from .vectors import VectorsConfig, from_tensors, load_vectors

DATA: dict[str, tuple[type, Callable[[Any], FlowData]]] = {
    "toy": (ToyConfig, load_toy),
    "digits": (DigitsConfig, load_digits),
    "images": (ImagesConfig, load_images),
    "vectors": (VectorsConfig, load_vectors),
    "robot": (RobotConfig, load_robot),
    "captioned": (CaptionedConfig, load_captioned),
}


def load_data(config: Any) -> FlowData:
    """The data that the section `data` of a run's settings names."""
    return next(load for kind, load in DATA.values() if kind is type(config))(config)


__all__ = [
    "DATA",
    "CaptionedConfig",
    "DigitsConfig",
    "FlowData",
    "ImagesConfig",
    "Normalisation",
    "RobotConfig",
    "ToyConfig",
    "VectorsConfig",
    "from_tensors",
    "load_captioned",
    "load_data",
    "load_digits",
    "load_images",
    "load_robot",
    "load_toy",
    "load_vectors",
    "write_lerobot",
]
