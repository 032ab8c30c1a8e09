"""Networks of this package, and the classes a saved model may name."""

from .mlp import VelocityMLP
from .output import FlowModelOutput

__all__ = ["FlowModelOutput", "VelocityMLP"]
