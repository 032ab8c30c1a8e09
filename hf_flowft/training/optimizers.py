"""What turns gradients into steps: AdamW, with moments in full or in eight bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .settings import TrainConfig


def make_optimizer(config: TrainConfig, parameters: Sequence[nn.Parameter], is_divided: bool) -> torch.optim.Optimizer:
    """AdamW on the parameters.

    Args: `is_divided`: each process holds a part of every tensor (FSDP).
    Raises: ValueError for eight bits where bitsandbytes is not installed, or under FSDP.
    """
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.adam_betas,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options, fused=all(p.dtype == torch.float32 for p in parameters))
    if is_divided:
        raise ValueError(
            "train.optimizer adamw_8bit is not written for FSDP, which divides the moments anyway: use adamw."
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("train.optimizer adamw_8bit needs bitsandbytes: pip install bitsandbytes.") from error
    return AdamW8bit(parameters, **options)
