"""Which rows a step sees: a pure function of the seed and the step."""

from __future__ import annotations

import torch
from torch import Tensor

from ..couplings import Shard
from ..randomness import keyed_generator


class SampleOrder:
    """An endless stream of shuffled passes over the rows, cut into effective batches: batch k is rows k B to (k + 1) B of the stream.

    No row is dropped at the end of a pass (a batch may span two passes), and nothing but (seed, step) decides which rows a step sees.

    Raises: ValueError when there are fewer rows than an effective batch, or when the batch does not divide over the processes.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int, shard: Shard = Shard()):
        if batch_size < 1 or batch_size % shard.world_size:
            raise ValueError(
                f"the effective batch of {batch_size} must be a positive multiple of the {shard.world_size} processes."
            )
        if num_rows < batch_size:
            raise ValueError(
                f"the training set has {num_rows} samples, fewer than the effective batch of {batch_size}: lower train.batch_size "
                f"(times gradient accumulation) to at most {num_rows}, or add data (of a stream: raise data.epoch_size)."
            )
        self.num_rows, self.batch_size, self.seed, self.shard = num_rows, batch_size, seed, shard
        self._passes: dict[int, Tensor] = {}

    def epoch(self, step: int) -> int:
        """The pass over the data in which a step begins."""
        return step * self.batch_size // self.num_rows

    def rows(self, step: int) -> Tensor:
        """This process's rows of the effective batch of a step: (batch_size / world_size,) int64."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.num_rows)
            take = min(stop - start, self.num_rows - offset)
            parts.append(self._pass(epoch)[offset : offset + take])
            start += take
        return self.shard.rows(torch.cat(parts))

    def _pass(self, epoch: int) -> Tensor:
        if epoch not in self._passes:
            self._passes = {k: v for k, v in self._passes.items() if k >= epoch - 1}
            self._passes[epoch] = torch.randperm(self.num_rows, generator=keyed_generator(self.seed, "order", epoch))
        return self._passes[epoch]
