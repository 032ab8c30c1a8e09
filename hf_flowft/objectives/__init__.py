"""Training objectives: one file each. A new method is a subclass of `Objective`."""

from .base import Logs, Objective, Paper
from .flow_matching import FlowMatchingObjective
from .gradual import GradualObjective, ReplayObjective
from .reconstruction import ReconstructionObjective

__all__ = ["FlowMatchingObjective", "GradualObjective", "Logs", "Objective", "Paper", "ReconstructionObjective", "ReplayObjective"]
