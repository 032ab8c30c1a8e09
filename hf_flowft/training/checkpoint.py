"""Checkpoints: folders that appear atomically, say what is in them, and are checked before they are believed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 1
STATE_FILE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken, or not of this run."""


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return run_folder / "checkpoints" / f"checkpoint-{step}"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [
        p for p in (run_folder / "checkpoints").glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()
    ]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def save_checkpoint(
    folder: Path, tensors: dict[str, dict[str, Tensor]], optimizer: dict[str, Any], state: dict[str, Any]
) -> None:
    """Write a checkpoint: into a temporary folder first, which is renamed when everything is on disk.

    Args: `tensors`: file stem -> tensors, one safetensors file each (empty ones are left out); `optimizer`: its state dict; `state`: JSON-able.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for stem, group in tensors.items():
        if group:
            save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, temporary / f"{stem}.safetensors")
    torch.save(optimizer, temporary / "optimizer.pt")
    files = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
    text = json.dumps({"format_version": FORMAT_VERSION, **state, "files": files}, indent=1)
    (temporary / STATE_FILE).write_text(text)
    for path in temporary.iterdir():
        _flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    _flush(folder.parent)


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


def prune_checkpoints(run_folder: Path, limit: int) -> None:
    """Delete the oldest checkpoints beyond `limit` (0 keeps all)."""
    if limit:
        for folder in list_checkpoints(run_folder)[:-limit]:
            shutil.rmtree(folder)


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are all there and whole.

    Raises: CheckpointError naming the folder and the file that is missing, truncated or of another format version.
    """
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {STATE_FILE}.")
    try:
        state = json.loads((folder / STATE_FILE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / STATE_FILE} is broken: {error}.") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has format version {version}; this version reads {FORMAT_VERSION}.")
    missing = [key for key in ("step", "history", "selection", "identity", "files") if key not in state]
    if missing:
        raise CheckpointError(f"{folder / STATE_FILE} is broken: it says nothing of {', '.join(missing)}.")
    for name, digest in state["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks {name}: the checkpoint is incomplete, use an earlier one.")
        if file_digest(path) != digest:
            raise CheckpointError(f"{path} is damaged (truncated or changed): use an earlier checkpoint.")
    return state


def find_checkpoint(resume: str, run_folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to resume from, and its state.

    Args: `resume`: `latest`, or the path of a checkpoint anywhere.  With `latest`, broken ones are named in a warning and the one before is used.
    Raises: CheckpointError when there is none.
    """
    if resume != "latest":
        return Path(resume), read_state(Path(resume))
    for folder in reversed(list_checkpoints(run_folder)):
        try:
            return folder, read_state(folder)
        except CheckpointError as error:
            warnings.warn(f"skipping a broken checkpoint: {error}", stacklevel=2)
    raise CheckpointError(
        f"there is no usable checkpoint in {run_folder / 'checkpoints'}; start without resume_from_checkpoint."
    )


def load_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """One group of tensors of a checkpoint; empty when it was not saved."""
    path = folder / f"{stem}.safetensors"
    return load_file(path) if path.is_file() else {}


def load_optimizer(folder: Path) -> dict[str, Any]:
    """The optimiser's state.  Raises: CheckpointError for anything but tensors and plain containers."""
    try:
        return torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder / 'optimizer.pt'} holds more than tensors, or is broken: {reason}") from error


MAY_CHANGE = (
    "output_dir",
    "hub",
    "train.num_steps",
    "train.gradient_accumulation_steps",
    "train.checkpoint_every",
    "train.checkpoints_total_limit",
    "train.resume_from_checkpoint",
    "train.num_workers",
    "train.report_to",
    "train.log_every",
)
"""Settings a resumed run may change without becoming another run."""


def check_same_run(saved: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError naming every setting in which a run differs from the one that wrote the checkpoint."""
    before, after = flatten(saved), flatten(now)
    changed = [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise CheckpointError(
            f"{folder} belongs to a run with other settings ({'; '.join(changed)}). Resume with the old ones, or start a new run from its pipeline."
        )


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; values as JSON text would have them."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
