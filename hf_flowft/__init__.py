"""hf_flowft: fine-tuning of flow-matching models in the Hugging Face ecosystem."""

from .data import (
    CaptionedConfig,
    DigitsConfig,
    FlowData,
    ImagesConfig,
    RobotConfig,
    ToyConfig,
    VectorsConfig,
    from_tensors,
    load_captioned,
    load_digits,
    load_images,
    load_robot,
    load_toy,
    load_vectors,
    write_lerobot,
)
from .latents import load_viscosity
from .models import ActionTransformer, ConditionalUNet1D, FourierUNet2DModel, VelocityMLP, ViscousFlowModel
from .objectives import FlowMatchingObjective, GradualObjective, Objective, ReconstructionObjective, ReplayObjective
from .pairs import PairBuilder, PairsConfig
from .pipelines import FlowPipeline, FlowPolicyPipeline, describe_data
from .replay import build_replay
from .schedulers import FlowODEScheduler, FlowSDEScheduler
from .training import BankRows, Callback, EvalConfig, FlowTrainer, Run, TrainConfig, load_config
from .velocity import FrozenVelocity, Velocity

__version__ = "0.1.0"

__all__ = [
    "ActionTransformer",
    "BankRows",
    "Callback",
    "CaptionedConfig",
    "ConditionalUNet1D",
    "DigitsConfig",
    "EvalConfig",
    "FlowData",
    "FlowMatchingObjective",
    "FlowODEScheduler",
    "FlowPipeline",
    "FlowPolicyPipeline",
    "FlowSDEScheduler",
    "FlowTrainer",
    "FourierUNet2DModel",
    "FrozenVelocity",
    "GradualObjective",
    "ImagesConfig",
    "Objective",
    "PairBuilder",
    "PairsConfig",
    "ReconstructionObjective",
    "ReplayObjective",
    "RobotConfig",
    "Run",
    "ToyConfig",
    "TrainConfig",
    "VectorsConfig",
    "Velocity",
    "VelocityMLP",
    "ViscousFlowModel",
    "build_replay",
    "describe_data",
    "from_tensors",
    "load_captioned",
    "load_config",
    "load_digits",
    "load_images",
    "load_robot",
    "load_toy",
    "load_vectors",
    "load_viscosity",
    "write_lerobot",
]
