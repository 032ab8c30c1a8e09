"""Networks of this package, and the classes a saved model may name."""

from .mlp import VelocityMLP
from .output import FlowModelOutput
from .reference import BaseReference
from .transformer1d import ActionTransformer
from .unet1d import ConditionalUNet1D
from .unet_fourier import FourierUNet2DModel
from .viscosity import ViscousFlowModel

__all__ = [
    "ActionTransformer",
    "BaseReference",
    "ConditionalUNet1D",
    "FlowModelOutput",
    "FourierUNet2DModel",
    "VelocityMLP",
    "ViscousFlowModel",
]
