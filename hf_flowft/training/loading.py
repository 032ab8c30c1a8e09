"""Training rows that are not held in memory: read, and decoded in as many processes as wanted, while training goes on."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..batch import Batch
from ..couplings import Shard
from ..data import FlowData
from ..data.reading import RowReader, require_labels
from ..data.streams import Block, join_blocks
from .order import SampleOrder

Item = TypeVar("Item")
REMEMBERED_STEPS = 64


class LoaderRows:
    """Rows read from the data set when they are needed, by a `DataLoader`: images on disk, large sets."""

    def __init__(self, data: FlowData, num_workers: int = 0):
        self.data, self.num_workers = data, num_workers

    def __len__(self) -> int:
        return self.data.counts["train"]

    def batches(self, order: SampleOrder, start: int) -> Iterator[Batch]:
        """See `Rows`; the number of workers changes nothing but the speed."""
        place = f"split 'train' of {self.data.name!r}"
        read = partial(_read_rows, self.data.reader, self.data.splits["train"], place)
        yield from _loaded(read, (order.rows(step).tolist() for step in itertools.count(start)), self.num_workers)

    def row_numbers(self, order: SampleOrder, step: int) -> list[int]:
        """See `Rows`."""
        return order.rows(step).tolist()

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the rows are read from the data set."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to restore."""


class StreamRows:
    """Rows of a stream, read ahead by a thread and decoded by a `DataLoader`.

    Step k sees the samples k B to (k + 1) B of `RowStream.shuffled`: every process reads all rows and decodes those of its own slice. Going on at
    a step reads the stream up to there again, without decoding.
    """

    def __init__(self, data: FlowData, num_workers: int = 0):
        self.data, self.num_workers = data, num_workers
        self._numbers: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self.data.stream.epoch_size

    def batches(self, order: SampleOrder, start: int) -> Iterator[Batch]:
        """See `Rows`; the number of workers changes nothing but the speed."""
        decode = partial(_decode_block, self.data.reader, self.data.num_classes, f"the stream {self.data.name!r}")
        yield from _loaded(decode, self._blocks(order, start), self.num_workers)

    def _blocks(self, order: SampleOrder, start: int) -> Iterator[Block]:
        """This process's rows of the steps from `start` on, not decoded."""
        ahead = prefetched(self.data.stream.shuffled(order.seed, start * order.batch_size), depth=1)
        for step, parts in enumerate(_steps(ahead, order.batch_size), start):
            block = _slice(parts, order.shard, order.batch_size)
            self._numbers[step] = block.numbers.tolist()
            self._numbers.pop(step - REMEMBERED_STEPS, None)
            yield block

    def row_numbers(self, order: SampleOrder, step: int) -> list[int]:
        """See `Rows`; the numbers of the last steps are known."""
        return self._numbers.get(step, [])

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the rows are read from the stream again."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to restore."""


def _steps(blocks: Iterator[tuple[Block, Tensor]], size: int) -> Iterator[list[tuple[Block, Tensor]]]:
    """The stream in pieces of `size` rows, each made of parts of one block or more."""
    parts, room = list[tuple[Block, Tensor]](), size
    for block, positions in blocks:
        while len(positions):
            parts.append((block, positions[:room]))
            positions, room = positions[room:], room - len(parts[-1][1])
            if not room:
                yield parts
                parts, room = [], size


def _slice(parts: list[tuple[Block, Tensor]], shard: Shard, size: int) -> Block:
    """The rows of this process among those of a step."""
    mine, start, taken = shard.rows(torch.arange(size)), 0, list[Block]()
    for block, positions in parts:
        inside = mine[(mine >= start) & (mine < start + len(positions))] - start
        start += len(positions)
        if len(inside):
            taken.append(block.take(positions[inside].tolist()))
    return join_blocks(taken)


def _read_rows(reader: RowReader, dataset: Any, place: str, index: list[int]) -> Batch:
    return reader.batch(dataset, index, place)


def _decode_block(reader: RowReader, num_classes: int, place: str, block: Block) -> Batch:
    numbers = block.numbers.tolist()
    batch = reader.batch(block.rows, range(len(numbers)), place, numbers)
    if "class_labels" in batch.condition:
        require_labels(batch.condition["class_labels"], num_classes, numbers, place)
    return batch


def _loaded(read: Callable[[Any], Batch], items: Iterator[Any], num_workers: int) -> Iterator[Batch]:
    """`read(item)` for each item, in order, in `num_workers` processes (0: in this one)."""
    return iter(
        DataLoader(
            _Reading(read),
            batch_size=None,
            sampler=_Items(items),
            num_workers=num_workers,
            generator=torch.Generator(),
            multiprocessing_context="spawn" if num_workers else None,
        )
    )


class _Reading(Dataset):
    def __init__(self, read: Callable[[Any], Batch]):
        self.read = read

    def __getitem__(self, item: Any) -> Batch:
        return self.read(item)


class _Items(Sampler):
    def __init__(self, items: Iterator[Any]):
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return self.items


def prefetched(iterator: Iterator[Item], depth: int = 3) -> Iterator[Item]:
    """The same items, computed ahead in a daemon thread; an exception there is raised here."""
    items: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def hand_over(item: Item | BaseException) -> None:
        while not stop.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in iterator:
                hand_over(item)
                if stop.is_set():
                    return
        except BaseException as error:  # handed to the consumer, who raises it
            hand_over(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item = items.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
