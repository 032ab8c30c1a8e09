"""Effective batches as a pure function of the step: what makes resume bitwise, and two processes equal to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..batch import Batch
from ..couplings import Shard, candidates
from ..data import FlowData
from ..environments.corruptions import augment, augment_images, parse_corruptions, require_sensors
from ..models.observation import IMAGE_PREFIX
from ..objectives import Objective
from ..randomness import keyed_generator
from .loading import LoaderRows, StreamRows, prefetched
from .order import SampleOrder

IN_MEMORY_BYTES = 1 << 30


class Rows(Protocol):
    """Where training batches come from."""

    def __len__(self) -> int:
        """The number of rows."""

    def batches(self, order: SampleOrder, start: int) -> Iterator[Batch]:
        """The batches of the steps from `start` on, endlessly, on the CPU."""

    def row_numbers(self, order: SampleOrder, step: int) -> list[int]:
        """Which rows this process has seen in a step, for messages."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep to go on with the same rows; empty when the data set itself is the source."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore `tensors`, before the first batch."""


class MemoryRows:
    """Rows held in memory as tensors: small data sets, toys."""

    def __init__(self, table: Batch):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def batches(self, order: SampleOrder, start: int) -> Iterator[Batch]:
        """See `Rows`."""
        step = start
        while True:
            yield self.table.rows(order.rows(step))
            step += 1

    def row_numbers(self, order: SampleOrder, step: int) -> list[int]:
        """See `Rows`."""
        return order.rows(step).tolist()

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the table is read from the data set again."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to restore."""


class BankRows:
    """A bank of pairs, made once, or again after every `refresh_epochs` passes over it.

    Args: `build`: makes the bank number k, deterministically (called when it is first needed); `refresh_epochs`: 0 keeps the first bank.
    """

    def __init__(self, build: Callable[[int], Batch], refresh_epochs: int = 0):
        self.build, self.refresh_epochs = build, refresh_epochs
        self._bank: tuple[int, Batch] = (-1, None)  # one name: a thread may replace it while a checkpoint reads it

    def _use(self, version: int) -> Batch:
        if version != self._bank[0]:
            self._bank = (version, self.build(version))
        return self._bank[1]

    def __len__(self) -> int:
        return len(self._bank[1] if self._bank[1] is not None else self._use(0))

    def batches(self, order: SampleOrder, start: int) -> Iterator[Batch]:
        """See `Rows`."""
        step = start
        while True:
            version = order.epoch(step) // self.refresh_epochs if self.refresh_epochs else 0
            yield self._use(version).rows(order.rows(step))
            step += 1

    def row_numbers(self, order: SampleOrder, step: int) -> list[int]:
        """See `Rows`."""
        return order.rows(step).tolist()

    def tensors(self) -> dict[str, Tensor]:
        """The bank in use."""
        version, table = self._bank
        kept = {"x_0": table.x_0, "x_1": table.x_1, "version": torch.tensor(version)}
        return {**kept, **{f"condition.{key}": value for key, value in table.condition.items()}}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on with the bank of a checkpoint."""
        condition = {
            key.removeprefix("condition."): value for key, value in tensors.items() if key.startswith("condition.")
        }
        self._bank = (int(tensors["version"]), Batch(tensors["x_1"], condition, x_0=tensors["x_0"]))


def training_rows(data: FlowData, num_workers: int = 0) -> Rows:
    """The stream where there is one; else the training split in memory when it is small (up to 1 GiB), from disk otherwise."""
    if data.stream is not None:
        return StreamRows(data, num_workers)
    row = data.rows("train", [0])
    size = data.counts["train"] * sum(x.nbytes for x in (row.x_1, *row.condition.values()))
    return MemoryRows(data.rows("train")) if size <= IN_MEMORY_BYTES else LoaderRows(data, num_workers)


def drawn_batches(
    rows: Rows,
    order: SampleOrder,
    objective: Objective,
    start: int,
    seed: int,
    condition_dropout: ConditionDropout | None = None,
    augmentation: Augmentation | None = None,
) -> Iterator[Batch]:
    """The batches of the steps from `start` on with everything drawn for them: noise, times, pairs, corrupted and dropped conditions.

    Runs ahead in a background thread when the objective's draws are slow and there is a single process (a collective never runs in a thread).
    """
    shard = order.shard

    def draws() -> Iterator[Batch]:
        for step, batch in enumerate(rows.batches(order, start), start):
            if augmentation is not None:
                batch = augmentation(batch, keyed_generator(seed, "augment", step), shard)
            drawn = objective.draw(batch, keyed_generator(seed, "draw", step), shard)
            if condition_dropout is not None:
                drawn = condition_dropout(drawn, keyed_generator(seed, "dropout", step), shard)
            yield drawn

    return prefetched(draws()) if objective.prefetch and shard.world_size == 1 else draws()


NULLED, NEAR = ("class_labels", "condition"), 1e-3
"""Conditions of which one value may stand for "none", and how near to it a vector is taken for it."""


class Augmentation:
    """Worse sensors in training: each batch's observations with corruptions such as "gaussian:0.02+drop:0.05", drawn anew for every window.

    Args: `text`: as for `parse_corruptions`; `data`: whose observations are corrupted, states in their units and pictures.
    Raises: ValueError for data that are not of a robot, and for corruptions that are not understood, or of actions.
    """

    def __init__(self, text: str, data: FlowData):
        self.corruptions = parse_corruptions(text)
        require_sensors(self.corruptions)
        if "policy" not in data.facts:
            raise ValueError(
                f"train.augment {text!r} corrupts what a robot observes, but {data.name!r} are no demonstrations of one (data.name robot): leave it empty."
            )
        policy, observed = data.facts["policy"], data.facts["observation_normalisation"]
        self.horizon = policy["observation_horizon"]
        self.sizes = [len(observed[key]["mean"]) for key in policy["state_keys"]]

    def __call__(self, batch: Batch, generator: torch.Generator, shard: Shard) -> Batch:
        """The batch as worse sensors would have seen it; drawn for the effective batch, so that processes change nothing."""
        return batch.with_condition(
            {key: self._corrupted(key, value, generator, shard) for key, value in sorted(batch.condition.items())}
        )

    def _corrupted(self, key: str, value: Tensor, generator: torch.Generator, shard: Shard) -> Tensor:
        if key != "condition" and not key.startswith(IMAGE_PREFIX):
            return value
        everywhere = value.new_zeros(len(value) * shard.world_size, *value.shape[1:])
        shard.rows(everywhere)[:] = value
        if key == "condition":
            sizes = {"observation_horizon": self.horizon, "sensor_sizes": self.sizes}
            return shard.rows(augment(everywhere, self.corruptions, generator, **sizes))
        return shard.rows(augment_images(everywhere, self.corruptions, generator))


class ConditionDropout:
    """Replaces each sample's conditions, all together, by their null values with some probability: for classifier-free guidance.

    Samples of the base that stand beside the batch lose theirs too, so that the model without conditions is kept as well as the one with them.

    Args: `null_condition`: the number that stands for "none", by condition; None for one that is never dropped.
    """

    def __init__(self, probability: float, null_condition: dict[str, float | None]):
        if not 0 <= probability < 1:
            raise ValueError(f"condition_dropout must be a probability below 1, got {probability}.")
        self.probability, self.null_condition = probability, null_condition

    def __call__(self, batch: Batch, generator: torch.Generator, shard: Shard) -> Batch:
        """The batch, and what is replayed beside it, with some conditions dropped."""
        batch = self._dropped(batch, generator, shard)
        if batch.replay is None:
            return batch
        replay = self._dropped(batch.replay, generator, shard)
        return replace(batch, replay=replace(replay, v_t=None))  # a velocity that was kept is one under the condition

    def _dropped(self, batch: Batch, generator: torch.Generator, shard: Shard) -> Batch:
        drop = shard.rows(torch.rand(len(batch) * shard.world_size, generator=generator) < self.probability)
        missing = sorted(set(batch.condition) - set(self.null_condition))
        if missing or not batch.condition:
            raise ValueError(
                f"condition_dropout needs conditions and a null value for each (null_condition), but has none for {missing or 'any'}."
            )
        condition = {}
        for key, value in batch.condition.items():
            null = self.null_condition[key]
            dropped = value if null is None else torch.full_like(value, null)
            condition[key] = torch.where(drop.reshape(-1, *[1] * (value.ndim - 1)), dropped, value)
        return batch.with_condition(condition)


def require_free_nulls(data: FlowData, null_condition: dict[str, float | None]) -> None:
    """Raises: ValueError when what would stand for "no condition" is a condition of the training data: the two would be learned as one."""
    known = {key: null for key, null in null_condition.items() if null is not None and key in data.condition_columns}
    for key, values in data.conditions("train", [key for key in known if key in NULLED]).items():
        taken = (
            ((values.double() - known[key]).abs().flatten(1) < NEAR).all(dim=1).sum()
            if values.ndim > 1
            else (values == known[key]).sum()
        )
        if taken:
            raise ValueError(
                f'train.condition_dropout would train {key} {known[key]:g} as "none", but {int(taken)} rows of the data have it (of vectors: in the '
                "units of the model, where the mean is 0): the model needs a label more than the data, or set it to 0."
            )


def candidates_in_batches(data: FlowData, size: int) -> float:
    """Among how many rows of a batch of `size` an assignment can choose, on average; pictures, too large to be compared, are taken to differ."""
    if any(key.startswith(IMAGE_PREFIX) for key in data.condition_columns):
        return 1.0
    return candidates(data.conditions("train"), data.counts["train"], size)
