"""Reading what strangers have written: folders and Hub repositories, JSON, YAML and safetensors, every failure one sentence.

Links are followed, for the cache of the Hub is made of them: a folder may lie anywhere, and what it links to is read as JSON or
safetensors and as nothing else. Nothing is written but the cache, and names inside of files never become paths outside of their folder.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
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
MAX_YAML_BYTES = 256 << 10
MAX_YAML_ENTRIES = 10_000
MAX_DEPTH = 64
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 10_000
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
    if os.path.isdir(name_or_path):  # unlike Path.is_dir, False for every name that can be none
        return Path(name_or_path)
    name = f"{str(name_or_path)!r:.400} is no folder here, and "
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
    if isinstance(error, EntryNotFoundError):
        return f"the repository on the Hub lacks a file ({one_line(error)}): is it of another kind?"
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return "the Hub refuses this token: log in with `hf auth login`, or set HF_TOKEN to one that has access."
    return f"the connection to the Hub failed ({one_line(error)}); repeat it: what has been transferred is kept."


def one_line(error: Exception, length: int = 200) -> str:
    """What an error says, as a part of a sentence."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def shown(value: Any) -> str:
    """A value as a part of a sentence, in one short line whatever it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)[:120]


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object.  Raises: ValueError when it is missing, too large or nested too deeply, broken, or something else than an object."""
    text = _read_file(path, max_bytes)
    try:
        content = json.loads(text, parse_constant=_no_nan)
        _size_written_out(content, {})
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is broken: {one_line(error)}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def _read_file(path: Path, max_bytes: int) -> str:
    """A regular file of UTF-8.  Raises: ValueError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            raise ValueError(f"cannot read {path}: it is no file.")
        if status.st_size > max_bytes:
            raise ValueError(f"{path} is too large to be a description ({status.st_size} bytes; at most {max_bytes}).")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is broken: {error}.") from error


def _no_nan(word: str) -> float:
    if word == "NaN":
        raise ValueError("NaN is no value")
    return float(word)


def parse_yaml(text: str) -> Any:
    """Plain values from YAML: no tag builds anything else, no alias or merge key writes more than MAX_YAML_ENTRIES.

    Raises: ValueError whose text is the end of a sentence, also for a key that is given twice.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"it is too large ({len(text)} characters; at most {MAX_YAML_BYTES})")
    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _size_written_out(node, {})
        return None if node is None else loader.construct_document(node)
    except Exception as error:  # PyYAML's own errors, and whatever its conversions of numbers, dates and tags raise
        raise ValueError(str(error).strip().partition("\n")[0][:200] or type(error).__name__) from error
    finally:
        loader.dispose()


def _size_written_out(value: Any, known: dict[int, tuple[int, int]], depth: int = 0) -> tuple[int, int]:
    """The number of entries of nested values or YAML nodes with every alias written out, and their depth.

    Raises: ValueError when they are nested deeper than MAX_DEPTH (or in themselves); YAML also for too many entries and for a doubled key.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    items = _items(value)
    if not items:
        return 1, 0
    if id(value) not in known:
        parts = [_size_written_out(item, known, depth + 1) for item in items]
        known[id(value)] = 1 + sum(size for size, _ in parts), 1 + max(below for _, below in parts)
    size, below = known[id(value)]
    if depth + below > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, yaml.Node) and size > MAX_YAML_ENTRIES:
        raise ValueError(f"it holds more than {MAX_YAML_ENTRIES} entries (aliases written out)")
    return size, below


def _items(value: Any) -> list[Any]:
    """What a value directly holds."""
    if isinstance(value, yaml.MappingNode):
        keys = Counter(key.value for key, _ in value.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        twice = [key for key, number in keys.items() if number > 1]
        if twice:
            raise ValueError(f"the key {twice[0]!r:.60} is given twice")
        return [node for pair in value.value for node in pair]
    if isinstance(value, yaml.SequenceNode):
        return value.value
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; nothing when there is none.  Raises: ValueError when it is broken."""
    if not os.path.isfile(path):
        return {}
    tensor_shapes(path)
    try:
        return load_file(path)
    except Exception as error:  # its own errors, the system's, and KeyError for a type that torch does not have
        raise ValueError(f"{path} is broken: {one_line(error)}.") from error


class TensorShape(NamedTuple):
    """A tensor as its file's header describes it; `dtype` as safetensors names it (F32, BF16, I64 ...)."""

    shape: tuple[int, ...]
    path: Path
    dtype: str

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether it holds fractions."""
        return self.dtype.startswith(("F", "BF"))


def tensor_shapes(path: Path) -> dict[str, TensorShape]:
    """The tensors of a safetensors file by name, from its header: nothing is allocated.  Raises: ValueError when it is broken."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header is too large ({length} bytes; at most {MAX_HEADER_BYTES})")
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise ValueError(f"it holds {len(names)} tensors, more than {MAX_TENSORS}")
            slices = {name: file.get_slice(name) for name in names}
            return {name: TensorShape(tuple(s.get_shape()), path, s.get_dtype()) for name, s in slices.items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is broken: {one_line(error)}.") from error


def weight_shapes(folder: Path) -> dict[str, TensorShape]:
    """The tensors of a model folder by name, from the headers of the safetensors files that diffusers would load.

    Raises: ValueError when there are none (saying so when it offers a pickle instead), a file is broken, or two hold the same tensor.
    """
    shapes: dict[str, TensorShape] = {}
    for path in weight_files(folder):
        found = tensor_shapes(path)
        twice = sorted(shapes.keys() & found.keys())
        if twice:
            raise ValueError(f"{path} holds {twice[0]!r:.80} a second time.")
        shapes |= found
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The shards an index names, which must be safetensors beside it, or else the one file of weights.

    diffusers takes the index first where there is one, and unpickles a shard that is not called .safetensors.
    Raises: ValueError when there are no weights, or the index names other files.
    """
    whole, index = folder / WEIGHTS_FILE, folder / f"{WEIGHTS_FILE}.index.json"
    if not os.path.isfile(index):
        if os.path.isfile(whole):
            return [whole]
        raise ValueError(f"{folder} {_no_weights(folder)}")
    shards = read_json(index).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) and shards else [None]
    strange = [name for name in names if not (isinstance(name, str) and _is_safetensors(name))]
    if strange:
        raise ValueError(f"{index} must name .safetensors files beside it, got {strange[0]!r:.80}.")
    files = [folder / name for name in sorted(set(names))]
    missing = [path.name for path in files if not os.path.isfile(path)]
    if missing:
        raise ValueError(f"{folder} is incomplete: it has no {missing[0]!r:.80}, which its index names.")
    return files


def _is_safetensors(name: str) -> bool:
    return name.endswith(".safetensors") and os.path.basename(name) == name and "\0" not in name


def _no_weights(folder: Path) -> str:
    pickles = [path.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for path in folder.glob(suffix)]
    if pickles:
        return (
            f"offers its weights as a pickle ({pickles[0]}), which can run code when loaded; convert it to safetensors."
        )
    return f"has no weights: expected {WEIGHTS_FILE}."
