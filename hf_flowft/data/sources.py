"""Where a data set comes from: a file, a folder, or the Hub, as one table or as a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset_builder, load_from_disk

from ..choices import Choices
from .card_files import require_own_files
from .errors import reason
from .hub_source import open_hub
from .splits import require_columns, require_disjoint, require_label_column, select_labels, split_dataset
from .streams import Prepare, RowStream, split_stream

FILE_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
DIGEST_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Choices):
    """A data set in files or on the Hub, and how it is divided."""

    path: str = ""
    """A .parquet, .csv, .json, .jsonl or .arrow file, a folder of such files or of images, or the id of a data set on the Hub."""
    subset: str = ""
    """Which of several configurations of a Hub data set or folder ("config name"); empty for the only one."""
    split: str = "train"
    """Which split of a Hub data set or folder is used; validation and test are parts of it. Files that name no split are `train`."""
    revision: str = ""
    """The branch, tag or commit of a Hub data set; empty for the newest. The commit is recorded in results and card."""
    label_column: str = ""
    """A column of whole numbers or class labels the model is conditioned on; empty for none."""
    labels: list[int] = field(default_factory=list)
    """Train on these labels only; empty for all that are not base_labels."""
    base_labels: list[int] = field(default_factory=list)
    """The labels the base knows, on which forgetting is measured."""
    train_size: int = 0
    """Keep so many training rows of a table; 0 keeps all."""
    validation: float = 0.1
    """Fraction of a table held out for selecting the model."""
    test: float = 0.1
    """Fraction of a table held out for the reported numbers."""
    seed: int = 0
    """Seed of the split."""
    streaming: bool = False
    """Read rows while training, never holding or downloading all of them."""
    shuffle_buffer: int = 1000
    """Streaming: rows are shuffled within blocks of so many; up to three blocks are in memory."""
    epoch_size: int = 10_000
    """Streaming: samples that count as an epoch; so many of the first rows are also kept for statistics, labels and banks of pairs."""
    held_out: int = 1000
    """Streaming: rows held out for validation, and as many for test, drawn from the first `epoch_size` + 2 `held_out`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_disjoint(self.labels, self.base_labels, "labels")
        for key in ("shuffle_buffer", "epoch_size", "held_out"):
            if getattr(self, key) < 1:
                raise ValueError(f"data.{key} must be at least 1, got {getattr(self, key)}.")
        if self.streaming and self.train_size:
            raise ValueError(
                f"data.train_size {self.train_size} is for tables that are not streamed: set it to 0, or data.streaming to false."
            )

    @property
    def facts(self) -> dict[str, list[int]]:
        """The choice of rows, for results and card."""
        return {"labels": list(self.labels), "base_labels": list(self.base_labels)}


def open_source(config: SourceConfig) -> tuple[Dataset | IterableDataset, dict[str, str]]:
    """The rows a config names, an iterable data set when `streaming`, and facts about where they came from.

    Facts of a Hub data set hold the commit, those of files a digest of their content; none holds a path of this machine.
    Raises: ValueError when nothing is there or it cannot be read.
    """
    local = Path(config.path)
    if not local.exists() and local.suffix not in FILE_BUILDERS:
        return open_hub(config.path, config.subset, config.split, config.revision, config.streaming)
    if not local.exists() or (local.is_file() and local.suffix not in FILE_BUILDERS):
        problem = "known files are" if local.exists() else "there is no such file; known files are"
        raise ValueError(f"cannot read {config.path}: {problem} {', '.join(FILE_BUILDERS)} (and .npz for vectors).")
    if config.revision:
        raise ValueError(f"data.revision {config.revision!r} is for data sets on the Hub, but {config.path} is here.")
    try:
        rows = _saved(local, config) if _is_saved(local) else _built(local, config)
    except Exception as error:  # datasets raises a dozen kinds; the user needs one sentence
        raise ValueError(
            f"cannot read {config.path}: it is empty, broken or of another kind ({reason(error)})."
        ) from error
    named = {"subset": config.subset} if config.subset else {}
    return rows, {"source": local.resolve().name, **named, "split": config.split, "digest": digest(local)}


def _built(path: Path, config: SourceConfig) -> Dataset | IterableDataset:
    """A file, or a folder whose splits are found by the names of files and folders in it, as on the Hub."""
    if path.is_file():
        builder = load_dataset_builder(FILE_BUILDERS[path.suffix], data_files=str(path))
    else:
        require_own_files(path)
        builder = load_dataset_builder(str(path.resolve()), config.subset or None)
    if config.streaming:
        return builder.as_streaming_dataset(split=config.split)
    builder.download_and_prepare()
    return builder.as_dataset(split=config.split)


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _saved(path: Path, config: SourceConfig) -> Dataset | IterableDataset:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    saved = load_from_disk(str(path))
    if isinstance(saved, DatasetDict):
        if config.split not in saved:
            raise ValueError(f"it has no split {config.split!r}, only {', '.join(saved)}")
        saved = saved[config.split]
    rows = saved.with_format(None)
    return rows.to_iterable_dataset() if config.streaming else rows


def digest(path: Path) -> str:
    """What identifies a file or folder: the start of the SHA-256 of a file, or of the list of a folder's files with theirs.

    Beyond 1 GiB in all it is made of names and sizes only, and says so: "sizes:..." instead of "sha256:...". Hidden files do not count.
    """
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and not _is_hidden(f, path))
    small = sum(f.stat().st_size for f in files) <= DIGEST_BYTES
    parts = {f.relative_to(path).as_posix(): _sha256(f) if small else str(f.stat().st_size) for f in files}
    if path.is_file() and small:
        (content,) = parts.values()
    else:
        content = hashlib.sha256("".join(f"{part}  {name}\n" for name, part in parts.items()).encode()).hexdigest()
    return f"{'sha256' if small else 'sizes'}:{content[:16]}"


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_source(
    config: SourceConfig, rows: Dataset | IterableDataset, columns: Sequence[str], prepare: Prepare
) -> tuple[dict[str, Dataset], RowStream | None]:
    """The splits of a table, or of a stream and the stream itself, by the settings of its config.

    Args: `columns`: those that are used; `prepare`: makes of rows with these columns those of a `FlowData`, or says what is wrong with them.
    Raises: ValueError for a missing column, what `prepare` refuses, or empty splits.
    """
    require_label_column([*config.labels, *config.base_labels], config.label_column)
    if isinstance(rows, IterableDataset):
        stream = RowStream(
            rows,
            config.path,
            list(dict.fromkeys(columns)),
            prepare,
            epoch_size=config.epoch_size,
            shuffle_buffer=config.shuffle_buffer,
            label_column=config.label_column,
            labels=list(config.labels),
        )
        return split_stream(stream, config.held_out, config.seed, config.base_labels)
    require_columns(rows, columns, config.path)
    table = prepare(rows, range(len(rows)))
    fractions = (config.validation, config.test, config.seed)
    target = select_labels(table, config.label_column, config.labels, config.base_labels)
    splits = split_dataset(target, *fractions, train_size=config.train_size, name=config.path)
    if config.base_labels:
        base = select_labels(table, config.label_column, config.base_labels)
        splits |= split_dataset(base, *fractions, prefix="base_", name="the base's labels")
    return splits, None
