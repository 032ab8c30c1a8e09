"""Reading what strangers have written: folders and Hub repositories, JSON and safetensors, every failure one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

SAFE_PATTERNS = ["*.json", "*.safetensors", "README.md"]
MAX_JSON_BYTES = 4 << 20
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def resolve_folder(
    name_or_path: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """A local folder as it is, or a Hub repository downloaded (JSON and safetensors only: no code ever reaches the disk).

    Raises: ValueError when there is neither, when it may not be read, or when the connection breaks (a repeated call goes on from there).
    """
    local = Path(name_or_path)
    if local.is_dir():
        return local
    name = f"{str(name_or_path)!r} is no folder here, and "
    try:
        return Path(
            snapshot_download(
                str(name_or_path),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=SAFE_PATTERNS,
            )
        )
    except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
        raise ValueError(name + hub_problem(error, revision)) from error


def hub_problem(error: Exception, revision: str | None = None) -> str:
    """What went wrong at the Hub and what to do, as the end of a sentence; never with a token in it."""
    if isinstance(error, HFValidationError):
        return "it is no name of a repository either (user/name)."
    if isinstance(error, GatedRepoError):
        return "the repository on the Hub is gated: accept its terms on its page, then log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the Hub has no such repository that you may read or write: check the name; for a private one log in with "
            "`hf auth login`, or set HF_TOKEN to a token that has access."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the repository on the Hub has no revision {revision or 'main'!r}: give a branch, a tag or a commit."
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return "it is not in the cache (or not at this revision), and the Hub cannot be reached: go online once."
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return "the Hub refuses this token: log in with `hf auth login`, or set HF_TOKEN to one that has access."
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the connection to the Hub failed ({reason}); repeat it: what has been transferred is kept."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.  Raises: ValueError when it is missing, too large (4 MiB), broken, or something else than an object."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"{path} is too large to be a description ({size} bytes; at most {MAX_JSON_BYTES}).")
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is broken: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; nothing when there is none.  Raises: ValueError when it is broken."""
    try:
        return load_file(path) if path.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is broken: {error}.") from error


class TensorShape(NamedTuple):
    """A tensor as its file's header describes it."""

    shape: tuple[int, ...]
    path: Path

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def weight_shapes(folder: Path) -> dict[str, TensorShape]:
    """The tensors of a model folder by name, from the headers of its safetensors files: nothing is allocated.

    Raises: ValueError when there are none (saying so when it offers a pickle instead), or a file is broken.
    """
    shapes: dict[str, TensorShape] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: TensorShape(tuple(file.get_slice(name).get_shape()), path) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is broken: {error}.") from error
    return shapes


def _weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or the shards its index names, which must lie beside it."""
    whole, index = folder / WEIGHTS_FILE, folder / f"{WEIGHTS_FILE}.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise ValueError(f"{folder} {_no_weights(folder)}")
    shards = read_json(index).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else {None}
    strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if strange:
        raise ValueError(f"{index} must name files beside it, got {strange[0]!r}.")
    return [folder / name for name in sorted(names)]


def _no_weights(folder: Path) -> str:
    pickles = [path.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for path in folder.glob(suffix)]
    if pickles:
        return (
            f"offers its weights as a pickle ({pickles[0]}), which can run code when loaded; convert it to safetensors."
        )
    return f"has no weights: expected {WEIGHTS_FILE}."
