"""Where a data set comes from: a file, a folder, or the Hub, always as one `datasets.Dataset`."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, load_dataset

FILE_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def load_source(path: str, split: str = "train", revision: str = "") -> tuple[Dataset, dict[str, str]]:
    """Open a data set.

    Args: `path`: a .parquet/.csv/.json/.jsonl file, a folder of such files or of images, or the id of a data set on the Hub.
    Returns: the split, and facts about where it came from.  Raises: ValueError when nothing is there or it cannot be read.
    """
    local = Path(path)
    if local.is_file() and local.suffix not in FILE_BUILDERS:
        raise ValueError(f"cannot read {path}: known files are {', '.join(FILE_BUILDERS)} (and .npz for vectors).")
    try:
        if local.exists():
            return _load_local(local), {"source": local.name}
        dataset = load_dataset(path, split=split, revision=revision or None)
        return dataset, {"source": path, "split": split, "revision": _revision(dataset) or revision or "unknown"}
    except Exception as error:  # datasets raises a dozen kinds; the user needs one sentence
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if local.exists():
            raise ValueError(f"cannot read {path}: it is empty, broken or of another kind ({reason}).") from error
        raise ValueError(
            f"cannot load the data set {path!r}: no such file or folder here, and the Hub says: {reason}"
        ) from error


def _load_local(path: Path) -> Dataset:
    """A file, a folder of tables of one kind, or a folder of images."""
    tables = sorted(f for f in path.rglob("*") if f.suffix in FILE_BUILDERS and f.stem != "metadata")
    if path.is_file() or tables:
        kind = path.suffix if path.is_file() else tables[0].suffix
        files = [path] if path.is_file() else [f for f in tables if f.suffix == kind]
        return load_dataset(FILE_BUILDERS[kind], data_files=[str(f) for f in files], split="train")
    return load_dataset("imagefolder", data_dir=str(path), split="train")


def _revision(dataset: Dataset) -> str:
    """The commit a Hub data set was read at, from its download addresses (hf://datasets/user/name@commit/...)."""
    for address in dataset.info.download_checksums or {}:
        if "@" in address:
            return address.split("@", 1)[1].split("/", 1)[0]
    return ""
