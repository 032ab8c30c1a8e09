"""Rows that are read one after another and never all at once: shuffled in blocks, in an order that only the seed decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset
from datasets.table import InMemoryTable
from torch import Tensor

from ..randomness import keyed_generator
from .errors import reason
from .splits import has_label

CHUNK_ROWS = 512
Prepare = Callable[[Dataset, Sequence[int]], Dataset]
"""prepare(rows, numbers) -> rows with the columns a `FlowData` names; raises ValueError naming a row that is wrong by its number."""


class Block(NamedTuple):
    """Consecutive wanted rows, images not decoded, and their numbers in the stream (n,), counted from 0."""

    rows: Dataset
    numbers: np.ndarray

    def take(self, positions: Sequence[int]) -> Block:
        """The rows at these positions, copied, so that they travel without the block."""
        table = self.rows.data.fast_gather(list(positions))
        return Block(in_memory(table.take(np.arange(len(table)))), self.numbers[list(positions)])


def in_memory(table: pa.Table) -> Dataset:
    """A table as a data set; its features are those in the schema."""
    return Dataset(InMemoryTable(table), fingerprint="rows")  # a given name saves hashing all bytes for one


def join_blocks(blocks: Sequence[Block]) -> Block:
    """The rows of several blocks, one after another."""
    if len(blocks) == 1:
        return blocks[0]
    tables = pa.concat_tables([block.rows.data.table for block in blocks], promote_options="permissive")
    return Block(in_memory(tables), np.concatenate([block.numbers for block in blocks]))


@dataclass(frozen=True, eq=False)
class RowStream:
    """The wanted rows of an iterable data set, as often as asked for.

    Rows are shuffled within consecutive blocks of `shuffle_buffer`, which is what is in memory at a time (up to three of them, one in use and two
    read ahead); every pass over the rows has blocks that begin elsewhere, and other orders within them. `epoch_size` is how many samples count
    as an epoch; the rows of the next epoch are the next ones, and after the last row comes the first.

    `source`: the rows; `name`: for errors; `columns`: those that are used; `prepare`: see `Prepare`; `labels` with `label_column`: rows of other
    labels are left out (none: only those of `others` are); `held_out`: numbers of rows that are never given.
    """

    source: IterableDataset
    name: str
    columns: list[str]
    prepare: Prepare
    epoch_size: int
    shuffle_buffer: int
    label_column: str = ""
    labels: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    held_out: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def head(self, size: int) -> Block:
        """The first `size` wanted rows, or as many as there are.  Raises: ValueError when there are none."""
        first = next(self._blocks(size), None)
        if first is None:
            chosen = f" with the labels {self.labels}" if self.labels else ""
            chosen += f" with other labels than {self.others}" if self.others else ""
            raise ValueError(f"the stream {self.name} is empty: there are no rows{chosen}; check the source.")
        return self._prepared(*first)

    def shuffled(self, seed: int, start: int = 0) -> Iterator[tuple[Block, Tensor]]:
        """Endlessly: a block, and the order in which its rows are given, from sample number `start` on.

        The order is a function of the seed and the rows alone. What lies before `start` is read, never
        more than two passes of it, but not decoded or prepared.
        """
        number, skip = 0, start
        while True:
            generator = keyed_generator(seed, "stream", number)
            first = int(torch.randint(1, self.shuffle_buffer + 1, (1,), generator=generator))
            count = 0
            for table, numbers in self._blocks(first):
                order = torch.randperm(len(numbers), generator=generator)
                count += len(numbers)
                if skip < len(numbers):
                    yield self._prepared(table, numbers), order[skip:]
                skip = max(skip - len(numbers), 0)
            if not count:
                raise ValueError(f"the stream {self.name} has no rows for training any more: has its source changed?")
            number, skip = number + 1 + skip // count, skip % count

    def _prepared(self, table: pa.Table, numbers: np.ndarray) -> Block:
        return Block(self.prepare(in_memory(table), numbers.tolist()), numbers)

    def _blocks(self, first: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """The wanted rows in blocks of `shuffle_buffer`, the first of them of another size, the last as large as it comes."""
        tables, numbers, size = list[pa.Table](), np.empty(0, dtype=np.int64), first
        for table, kept in self._chunks():
            tables, numbers = [*tables, table], np.concatenate([numbers, kept])
            while len(numbers) >= size:
                joined = self._joined(tables, numbers)
                yield joined.slice(0, size), numbers[:size]
                tables, numbers, size = [joined.slice(size)], numbers[size:], self.shuffle_buffer
        if len(numbers):
            yield self._joined(tables, numbers), numbers

    def _joined(self, tables: list[pa.Table], numbers: np.ndarray) -> pa.Table:
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(
                f"the columns of {self.name} change their type among the rows {numbers[0]} to {numbers[-1]}: {reason(error)}."
            ) from error

    def _chunks(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Wanted rows as they are read, a few hundred at a time, with their numbers."""
        count = 0
        chunks = self.source.with_format("arrow").iter(CHUNK_ROWS)  # of a new object: several threads may be at it
        while (table := self._next(chunks, count)) is not None:
            numbers = np.arange(count, count + len(table))
            count += len(table)
            kept = np.isin(numbers, self.held_out, invert=True)
            if self.labels or self.others:
                kept &= has_label(table[self.label_column].to_numpy(), self.labels, self.others)
            yield table.select(self.columns).filter(kept), numbers[kept]

    def _next(self, chunks: Iterator[pa.Table], count: int) -> pa.Table | None:
        try:
            table = next(chunks, None)
        except (
            Exception
        ) as error:  # datasets, pyarrow and the network raise dozens of kinds; the user needs one sentence
            raise ValueError(f"cannot read the stream {self.name} after row {count}: {reason(error)}.") from error
        missing = [] if table is None else [c for c in self.columns if c not in table.column_names]
        if missing:
            known = ", ".join(table.column_names)
            raise ValueError(f"{self.name} has no column {missing[0]!r}; its columns are {known}.")
        return table


def split_stream(
    stream: RowStream, held_out: int, seed: int, base_labels: Sequence[int] = ()
) -> tuple[dict[str, Dataset], RowStream | None]:
    """The splits of a stream, and what is left of it to train on.

    Of its first `epoch_size + 2 held_out` rows, `held_out` drawn at random are for validation and as many for test, the others are `train`. Of the
    first `2 held_out` rows with one of the `base_labels`, half are `base_validation` and half `base_test`; training sees no row with such a label.

    Returns: splits, and the stream, or None when `train` holds all there is.  Raises: ValueError for too few rows.
    """
    splits: dict[str, Dataset] = {}
    if base_labels:
        base = replace(stream, labels=list(base_labels)).head(2 * held_out)
        half = len(base.numbers) // 2
        if not half:
            raise ValueError(f"{stream.name} has a single row with one of the base's labels {list(base_labels)}.")
        order = torch.randperm(len(base.numbers), generator=keyed_generator(seed, "split", "base"))
        splits = {"base_validation": _select(base, order[:half]), "base_test": _select(base, order[half:])}
        stream = replace(stream, others=list(base_labels))
    wanted = stream.epoch_size + 2 * held_out
    head = stream.head(wanted + 1)
    size = min(wanted, len(head.numbers))
    if size <= 2 * held_out:
        raise ValueError(
            f"the stream {stream.name} has only {size} rows, but data.held_out takes {held_out} for validation and as many for test: lower it."
        )
    order = torch.randperm(size, generator=keyed_generator(seed, "split"))
    parts = {"test": order[:held_out], "validation": order[held_out : 2 * held_out], "train": order[2 * held_out :]}
    splits = {name: _select(head, index) for name, index in parts.items()} | splits
    if len(head.numbers) <= wanted:
        return splits, None
    return splits, replace(stream, held_out=np.concatenate([stream.held_out, head.numbers[order[: 2 * held_out]]]))


def _select(block: Block, index: Tensor) -> Dataset:
    """Some rows of a block, in the order of the stream."""
    return block.take(index.sort().values.tolist()).rows
