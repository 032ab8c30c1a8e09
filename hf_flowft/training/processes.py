"""One run on several processes: what they tell each other, and how the model is divided over them."""

from __future__ import annotations

import atexit
import os
import time
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    patch_environment,
    str_to_bool,
)
from torch import Tensor, nn

from ..couplings import Shard
from .settings import TrainConfig

ENGINES = {"DEEPSPEED": DistributedType.DEEPSPEED, "MEGATRON_LM": DistributedType.MEGATRON_LM}
PATIENCE = timedelta(hours=6)
"""How long processes wait for the main one, which evaluates alone."""


class Processes:
    """The processes of a run, each with its rows of the effective batch, and with the whole model (DDP) or a part of it (FSDP).

    Args: `train`: precision and trackers; `folder`: of the trackers; `model`: what is trained.
    Raises: ValueError when the launch asks for another engine (DeepSpeed, Megatron-LM), or for FSDP with fp16.
    """

    def __init__(self, train: TrainConfig, folder: Path | None, model: nn.Module):
        refuse_engines([name for name in ENGINES if is_asked(name)])
        fsdp = is_asked("FSDP")
        if fsdp and train.mixed_precision == "fp16":
            raise ValueError("train.mixed_precision fp16 scales gradients, which is not written for FSDP; use bf16.")
        kept = set(model.state_dict()) & {
            name for name, _ in model.named_buffers()
        }  # others are constants, up to a gigabyte
        with patch_environment(ACCELERATE_USE_FSDP="false"):  # the trainer divides the model itself, also on the CPU
            self.accelerator = Accelerator(
                mixed_precision=train.mixed_precision,
                log_with=train.report_to or None,
                project_dir=str(folder or "."),
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the loop divides the loss
                kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=PATIENCE),
                    DistributedDataParallelKwargs(broadcast_buffers=bool(kept)),
                ],
            )
        refuse_engines([name for name, kind in ENGINES.items() if kind == self.accelerator.distributed_type])
        self.count = self.accelerator.num_processes
        self.divided = fsdp and self.count > 1
        self.is_main = self.accelerator.is_main_process
        if self.count > 1:
            _release_at_exit()
        self.shard = Shard(self.accelerator.process_index, self.count, self.gather)

    def gather(self, x: Tensor) -> Tensor:
        """A tensor's rows from all processes, in their order, where `x` is; on the way they are on the device, as NCCL wants them."""
        return x if self.count == 1 else self.accelerator.gather(x.to(self.accelerator.device)).to(x.device)

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


@cache
def _release_at_exit() -> None:
    """Let gloo's threads end before the interpreter does.

    They free the tensors of the last collective, for which they need the interpreter's lock: one that asks for it during the shutdown aborts its
    process, and the launcher then kills the others, the main one while it writes the results. Sleeping hands them the lock.
    """
    atexit.register(time.sleep, 0.2)


def training_device() -> torch.device:
    """Where this process will train, before there is a trainer: what encodes, and what makes pairs and replay, works there already."""
    if is_asked("CPU") or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    return torch.device(kind, int(os.environ.get("LOCAL_RANK") or 0)) if kind != "mps" else torch.device(kind)


def device_of_whole_models() -> torch.device:
    """Where a frozen base is asked as a whole: under FSDP in the memory of the host, for the device holds its part of it only."""
    return torch.device("cpu") if is_asked("FSDP") else training_device()


def is_asked(name: str) -> bool:
    """Whether `accelerate launch`, or who launched, asks for the CPU, or for a way of dividing the model."""
    return bool(str_to_bool(os.environ.get(f"ACCELERATE_USE_{name}") or "false"))


def refuse_engines(names: list[str]) -> None:
    """Raises: ValueError when `names` is not empty: other engines than torch's own are asked for."""
    if names:
        raise ValueError(
            f"this trainer is not written for {names[0]}, which brings an optimiser and checkpoints of its own. Divide the model over the "
            "processes with FSDP (configs/accelerate/fsdp.yaml), or keep it whole on each (ddp.yaml)."
        )
