"""Checkpoints: folders that appear atomically, say what is in them, and are checked before they are believed.

A process may be killed between any two operations on files. Whatever is being written or deleted is called `.<name>.tmp`, and a folder that
is about to be replaced `.<name>.old`; `recover` clears up after a kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 2
STATE_FILE = "state.json"
STATE_TYPES: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "history": list,
    "selection": dict,
    "identity": dict,
    "frozen": str,
    "data": dict,
    "seconds": (int, float),
    "scaler": dict,
    "files": dict,
}
"""What state.json holds beside `format_version`: written by `resume.save`, `files` by `save_checkpoint`."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken, or not of this run."""


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return run_folder / "checkpoints" / f"checkpoint-{step}"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [p for p in (run_folder / "checkpoints").glob("checkpoint-*") if p.name.partition("-")[2].isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(folder.name.partition("-")[2])


def recover(run_folder: Path) -> None:
    """Clear up after a kill: a checkpoint that was about to be replaced is put back, what was half written or half deleted goes."""
    for hidden in sorted((run_folder / "checkpoints").glob(".checkpoint-*")):
        _recover(hidden.with_name(hidden.stem[1:]))


def _recover(folder: Path) -> None:
    temporary, old = _hidden(folder)
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for left in (temporary, old):
        if left.exists():
            shutil.rmtree(left)


def _hidden(folder: Path) -> tuple[Path, Path]:
    """What a folder is called while it is written or deleted, and while it is replaced."""
    return folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, which takes the place of `folder` when the block ends and everything is on disk."""
    _recover(folder)
    temporary, old = _hidden(folder)
    temporary.mkdir(parents=True)
    yield temporary
    for path in (*temporary.rglob("*"), temporary):
        _flush(path)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    _flush(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def save_checkpoint(
    folder: Path, tensors: dict[str, dict[str, Tensor]], optimizer: dict[str, Any], state: dict[str, Any]
) -> None:
    """Write a checkpoint.

    Args: `tensors`: file stem -> tensors, one safetensors file each (empty ones are left out); `optimizer`: its state dict; `state`: JSON-able.
    """
    recover(folder.parents[1])
    with appearing(folder) as temporary:
        for stem, group in tensors.items():
            if group:
                save_file(_apart(group), temporary / f"{stem}.safetensors")
        torch.save(optimizer, temporary / "optimizer.pt")
        files = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
        text = json.dumps({"format_version": FORMAT_VERSION, **state, "files": files}, indent=1)
        (temporary / STATE_FILE).write_text(text)


def _apart(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, each in memory of its own: safetensors refuses those that share it, as tied weights do."""
    apart, taken = dict[str, Tensor](), set[int]()
    for name, tensor in group.items():
        x = tensor.detach().cpu().contiguous()
        memory = x.untyped_storage().data_ptr()
        apart[name] = x.clone() if memory in taken else x
        taken.add(memory)
    return apart


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prune_checkpoints(run_folder: Path, limit: int, step: int) -> None:
    """Delete the oldest checkpoints beyond `limit` (0 keeps all).

    Those of later steps than `step`, the one just written, do not count: broken ones, or of a part of the run that is being done again.
    """
    earlier = [folder for folder in list_checkpoints(run_folder) if step_of(folder) <= step]
    for folder in earlier[:-limit] if limit else []:
        temporary, _ = _hidden(folder)
        os.replace(folder, temporary)
        shutil.rmtree(temporary)


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are all there and whole.

    Raises: CheckpointError naming the folder and the file that is missing, truncated or of another format version.
    """
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {STATE_FILE}. Name a folder RUN/checkpoints/checkpoint-STEP."
        )
    try:
        state = json.loads((folder / STATE_FILE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{folder / STATE_FILE} is broken: {error}.") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has format version {version}; this version reads {FORMAT_VERSION}.")
    missing = [key for key, kind in STATE_TYPES.items() if not isinstance(state.get(key), kind)]
    if missing:
        raise CheckpointError(f"{folder / STATE_FILE} is broken: it says nothing of {', '.join(missing)}.")
    for name, digest in state["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks {name}: the checkpoint is incomplete, use an earlier one.")
        if file_digest(path) != digest:
            raise CheckpointError(f"{path} is damaged (truncated or changed): use an earlier checkpoint.")
    return state


def find_checkpoint(resume: str, run_folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to resume from, and its state; None for `latest` where there is no checkpoint yet.

    Args: `resume`: `latest`, or the path of a checkpoint anywhere.  With `latest`, broken ones are named in a warning and the one before is used.
    Raises: CheckpointError when a path is not a whole checkpoint, or all there are are broken.
    """
    if resume != "latest":
        return Path(resume), read_state(Path(resume))
    errors = []
    for folder in reversed(list_checkpoints(run_folder)):
        try:
            state = read_state(folder)
        except CheckpointError as error:
            errors.append(str(error))
            continue
        for text in errors:
            warnings.warn(f"skipping a broken checkpoint: {text}", stacklevel=2)
        return folder, state
    if errors:
        raise CheckpointError(
            f"there is no usable checkpoint in {run_folder / 'checkpoints'}: {' '.join(errors)} Start again in another output_dir."
        )
    return None


def load_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """One group of tensors of a checkpoint; empty when it was not saved."""
    path = folder / f"{stem}.safetensors"
    return load_file(path) if path.is_file() else {}


def load_optimizer(folder: Path) -> dict[str, Any]:
    """The optimiser's state.  Raises: CheckpointError for anything but tensors and plain containers."""
    try:
        return torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder / 'optimizer.pt'} holds more than tensors, or is broken: {reason}") from error
