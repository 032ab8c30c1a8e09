"""Training objectives: one file each. A new method is a subclass of `Objective` with its settings, and a line in OBJECTIVES."""

from .base import Logs, Objective, ObjectiveConfig, ObjectiveContext, Paper
from .behaviour_cloning import BehaviourCloningConfig, BehaviourCloningObjective
from .flow_matching import FlowMatchingConfig, FlowMatchingObjective
from .gradual import GradualConfig, GradualObjective, ReplayObjective
from .noise_prediction import NoisePredictionConfig, NoisePredictionObjective
from .prior_preservation import PriorPreservationConfig, PriorPreservationObjective
from .reconstruction import ReconstructionConfig, ReconstructionObjective

OBJECTIVES: dict[str, type] = {
    "fm": FlowMatchingConfig,
    "gft": GradualConfig,
    "mle": ReconstructionConfig,
    "bc": BehaviourCloningConfig,
    "noise_prediction": NoisePredictionConfig,
    "prior": PriorPreservationConfig,
}

__all__ = [
    "OBJECTIVES",
    "BehaviourCloningConfig",
    "BehaviourCloningObjective",
    "FlowMatchingConfig",
    "FlowMatchingObjective",
    "GradualConfig",
    "GradualObjective",
    "Logs",
    "NoisePredictionConfig",
    "NoisePredictionObjective",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveContext",
    "Paper",
    "PriorPreservationConfig",
    "PriorPreservationObjective",
    "ReconstructionConfig",
    "ReconstructionObjective",
    "ReplayObjective",
]
