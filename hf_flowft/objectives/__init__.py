"""Training objectives: one file each. A new method is a subclass of `Objective` with its settings, and a line in OBJECTIVES."""

from .base import Logs, Objective, ObjectiveConfig, ObjectiveContext, Paper
from .flow_matching import FlowMatchingConfig, FlowMatchingObjective
from .gradual import GradualConfig, GradualObjective, ReplayObjective
from .reconstruction import ReconstructionConfig, ReconstructionObjective

OBJECTIVES: dict[str, type] = {"fm": FlowMatchingConfig, "gft": GradualConfig, "mle": ReconstructionConfig}

__all__ = [
    "OBJECTIVES",
    "FlowMatchingConfig",
    "FlowMatchingObjective",
    "GradualConfig",
    "GradualObjective",
    "Logs",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveContext",
    "Paper",
    "ReconstructionConfig",
    "ReconstructionObjective",
    "ReplayObjective",
]
