"""An exponential moving average of the trained parameters, in float32 whatever the precision of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn


class EMA:
    """shadow <- decay_k shadow + (1 - decay_k) parameter after the optimiser step k.

        constant  decay_k = decay
        warmup    decay_k = min(decay, (1 + k) / (10 + k)): short runs are not dominated by their start
        power     decay_k = min(decay, 1 - (1 + k)^-0.75)

    Args: `parameters`: name -> parameter, the ones that are trained.  Raises: ValueError for a decay outside [0, 1).
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        decay: float = 0.999,
        mode: Literal["constant", "warmup", "power"] = "warmup",
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"the EMA decay must be in [0, 1), got {decay}.")
        self.parameters, self.decay, self.mode = parameters, decay, mode
        self.shadow = {name: p.detach().float().clone() for name, p in parameters.items()}
        self._shadows, self._live = list(self.shadow.values()), list(parameters.values())

    def decay_at(self, step: int) -> float:
        """decay_k."""
        if self.mode == "constant":
            return self.decay
        ramp = (1 + step) / (10 + step) if self.mode == "warmup" else 1 - (1 + step) ** -0.75
        return min(self.decay, ramp)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the parameters after optimiser step `step` (counted from 0)."""
        live = [p.float() if p.dtype != torch.float32 else p for p in self._live]
        torch._foreach_lerp_(self._shadows, live, 1 - self.decay_at(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model carries the averaged weights inside the block, and its own again afterwards, whatever happens in it."""
        live = {name: p.detach().clone() for name, p in self.parameters.items()}
        copy_into(self.parameters, self.shadow)
        try:
            yield
        finally:
            copy_into(self.parameters, live)

    def load(self, shadow: dict[str, Tensor]) -> None:
        """Restore the averages."""
        copy_into(self.shadow, shadow)


@torch.no_grad()
def copy_into(target: dict[str, Tensor] | dict[str, nn.Parameter], source: dict[str, Tensor]) -> None:
    """Copy tensors by name.  Raises: ValueError when names or shapes differ."""
    if set(target) != set(source):
        different = sorted(set(target) ^ set(source))
        raise ValueError(
            f"the saved tensors are not those of this model: {different[:5]} ({len(different)} names differ)."
        )
    for name, tensor in target.items():
        if tensor.shape != source[name].shape:
            raise ValueError(
                f"the saved tensor {name!r} has shape {tuple(source[name].shape)}, the model's {tuple(tensor.shape)}."
            )
    for name, tensor in target.items():
        tensor.copy_(source[name])
