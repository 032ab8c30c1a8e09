"""The one training loop, its settings, and runs assembled from them."""

from .batches import BankRows
from .callbacks import Callback
from .config import RunConfig, load_config
from .run import Run, RunResult
from .settings import EvalConfig, TrainConfig
from .step import NonFiniteLossError, TrainResult
from .trainer import FlowTrainer

__all__ = [
    "BankRows",
    "Callback",
    "EvalConfig",
    "FlowTrainer",
    "NonFiniteLossError",
    "Run",
    "RunConfig",
    "RunResult",
    "TrainConfig",
    "TrainResult",
    "load_config",
]
