"""What travels from the data to an objective: one batch, with whatever has been drawn for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Data points and what was drawn for them; every tensor has one row a sample and moves with its sample.

    `x_1`: (batch, *event) data; `condition`: keyword arguments of the model, tensors of (batch, ...);
    `x_0`: noise paired with x_1, set by a bank of pairs or by `Objective.draw`;
    `x_t`, `v_t`, `t`: the point on the path, the velocity to fit there, and its time, set by `draw`;
    `replay`: a batch of the base's own samples beside this one.  What has not been drawn is None.
    """

    x_1: Tensor
    condition: dict[str, Tensor] = field(default_factory=dict)
    x_0: Tensor = None
    x_t: Tensor = None
    v_t: Tensor = None
    t: Tensor = None
    replay: Batch = None

    def __len__(self) -> int:
        return self.x_1.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `function` applied to every tensor in it."""
        return Batch(**{f.name: _map(function, getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def rows(self, index: Tensor | slice) -> Batch:
        """The samples chosen by an index tensor or a slice."""
        return self.map(lambda x: x[index])

    def split(self, parts: int) -> Iterator[Batch]:
        """`parts` equal consecutive pieces: the micro-batches of gradient accumulation.

        Raises: ValueError when the batch does not divide into them.
        """
        if parts < 1 or len(self) % parts:
            raise ValueError(f"a batch of {len(self)} does not divide into {parts} equal parts.")
        size = len(self) // parts
        if parts == 1:
            yield self
        else:
            for start in range(0, size * parts, size):
                yield self.rows(slice(start, start + size))

    def with_condition(self, condition: dict[str, Tensor]) -> Batch:
        """The batch under other conditions."""
        return replace(self, condition=condition)


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Batch):
        return value.map(function)
    if isinstance(value, dict):
        return {key: function(tensor) for key, tensor in value.items()}
    return value
