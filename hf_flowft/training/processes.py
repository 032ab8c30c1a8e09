"""One run on several processes: what they tell each other, and which ways of dividing a model the trainer takes part in."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    str_to_bool,
)
from torch import Tensor

from ..couplings import Shard
from .settings import TrainConfig

SHARDING = {
    "FSDP": DistributedType.FSDP,
    "DEEPSPEED": DistributedType.DEEPSPEED,
    "MEGATRON_LM": DistributedType.MEGATRON_LM,
}
PATIENCE = timedelta(hours=6)
"""How long processes wait for the main one, which evaluates alone."""


class Processes:
    """The processes of a run, each with the whole model (DDP) and its rows of the effective batch.

    Args: `train`: precision and trackers; `folder`: of the trackers.
    Raises: ValueError when the launch asks for a model divided over the processes (FSDP, DeepSpeed, Megatron-LM).
    """

    def __init__(self, train: TrainConfig, folder: Path | None):
        asked = [name for name in SHARDING if str_to_bool(os.environ.get(f"ACCELERATE_USE_{name}") or "false")]
        require_whole_models(asked)
        self.accelerator = Accelerator(
            mixed_precision=train.mixed_precision,
            log_with=train.report_to or None,
            project_dir=str(folder or "."),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the loop divides the loss itself
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        require_whole_models([name for name, kind in SHARDING.items() if kind == self.accelerator.distributed_type])
        self.count = self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.shard = Shard(self.accelerator.process_index, self.count, self.accelerator.gather)

    def gather(self, x: Tensor) -> Tensor:
        """A tensor's rows from all processes, in their order."""
        return self.accelerator.gather(x.to(self.accelerator.device))

    def numbers(self, value: float) -> Tensor:
        """A number of each process: (processes,) float64."""
        return self.gather(torch.tensor([value], dtype=torch.float64))

    def anywhere(self, flag: bool) -> bool:
        """Whether a flag is set on any process, so that all of them act alike."""
        return flag if self.count == 1 else bool(self.numbers(flag).any())

    def mean(self, value: float) -> float:
        """The mean over the processes."""
        return value if self.count == 1 else float(self.numbers(value).mean())

    def from_main(self, value: Any) -> Any:
        """What the main process holds, on every process."""
        box = [value]
        if self.count > 1:
            broadcast_object_list(box)
        return box[0]


def require_whole_models(sharding: list[str]) -> None:
    """Raises: ValueError when ways of dividing a model are asked for; `sharding` names them."""
    if sharding:
        raise ValueError(
            f"this trainer keeps the whole model on every process: its averages, checkpoints and evaluation are not written for {sharding[0]}. "
            "Launch with several processes alone (DDP). Where memory is short: a frozen base with a residual (model.name viscosity), "
            "train.gradient_checkpointing, train.gradient_accumulation_steps, train.mixed_precision bf16."
        )
