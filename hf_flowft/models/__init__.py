"""Networks of this package, and the classes a saved model may name."""

from .mlp import VelocityMLP
from .output import FlowModelOutput
from .reference import BaseReference
from .viscosity import ViscousFlowModel

__all__ = ["BaseReference", "FlowModelOutput", "VelocityMLP", "ViscousFlowModel"]
