"""Loading pipelines by name from a fixed list of classes: nothing from a repository is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..models import VelocityMLP, ViscousFlowModel
from ..schedulers import FlowODEScheduler, FlowSDEScheduler

KNOWN_CLASSES = {
    "VelocityMLP": VelocityMLP,
    "ViscousFlowModel": ViscousFlowModel,
    "UNet2DModel": diffusers.UNet2DModel,
    "FlowODEScheduler": FlowODEScheduler,
    "FlowSDEScheduler": FlowSDEScheduler,
    "FlowMatchEulerDiscreteScheduler": diffusers.FlowMatchEulerDiscreteScheduler,
    "FlowMatchHeunDiscreteScheduler": diffusers.FlowMatchHeunDiscreteScheduler,
    "UniPCMultistepScheduler": diffusers.UniPCMultistepScheduler,
    "DPMSolverMultistepScheduler": diffusers.DPMSolverMultistepScheduler,
}
"""The components a saved pipeline may name."""
SAFE_PATTERNS = ["*.json", "*.safetensors", "README.md"]


def resolve_folder(
    name_or_path: str | Path, revision: str | None = None, cache_dir: str | None = None, token: str | None = None
) -> Path:
    """A local folder as it is, or a Hub repository downloaded (JSON and safetensors only).

    Raises: ValueError when there is neither, in one sentence.
    """
    local = Path(name_or_path)
    if local.is_dir():
        return local
    try:
        folder = snapshot_download(
            str(name_or_path), revision=revision, cache_dir=cache_dir, token=token, allow_patterns=SAFE_PATTERNS
        )
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{name_or_path!r} is no folder here and is not in the cache, and the Hub cannot be reached."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{name_or_path!r} is no folder here, and the Hub says: {str(error).splitlines()[0]}"
        ) from error
    return Path(folder)


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` of a pipeline folder.  Raises: ValueError when it is missing or broken."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no pipeline: it has no model_index.json (of a run folder, load its `pipeline` folder)."
        )
    try:
        index = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is broken: {error}.") from error
    if not isinstance(index, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(index).__name__}.")
    return index


def load_component(folder: Path, name: str, entry: Any, dtype: Any = None) -> Any:
    """One component of a pipeline, by the class name in its index.

    Raises: ValueError for classes that are not known, naming the known ones, and for folders without safe weights.
    """
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
        raise ValueError(f"component {name!r} of {folder} is not described as [library, class]: {entry!r}.")
    if entry[1] not in KNOWN_CLASSES:
        raise ValueError(
            f"component {name!r} of {folder} is a {entry[1]!r}, which is not loaded here; known are {', '.join(KNOWN_CLASSES)}."
        )
    cls = KNOWN_CLASSES[entry[1]]
    if not (folder / name).is_dir():
        raise ValueError(f"{folder} is incomplete: it has no folder {name!r} for its {entry[1]}.")
    try:
        return _load(cls, folder / name, dtype)
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"cannot load the {entry[1]} in {folder / name}: {reason}") from error


def _load(cls: Any, folder: Path, dtype: Any) -> Any:
    """A component whose class is known; the path it came from is not kept, for it would be saved and published."""
    if issubclass(cls, diffusers.ModelMixin):
        require_safe_weights(folder)
        options = {} if dtype is None else {"torch_dtype": dtype}
        component, info = cls.from_pretrained(
            str(folder), use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True, **options
        )
        wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if wrong:
            raise ValueError(f"its weights are not those of its config ({len(wrong)} differ, such as {wrong[0]}).")
    else:
        component = cls.from_pretrained(str(folder))
    component.register_to_config(_name_or_path="")
    return component


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; nothing when there is none.  Raises: ValueError when it is broken."""
    try:
        return load_file(path) if path.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is broken: {error}.") from error


def require_safe_weights(folder: Path) -> None:
    """Raises ValueError when a model folder has no safetensors weights, and says so when it offers a pickle instead."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = [path.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for path in folder.glob(suffix)]
    if pickles:
        raise ValueError(
            f"{folder} offers its weights as a pickle ({pickles[0]}), which can run code when loaded; convert it to safetensors."
        )
    raise ValueError(f"{folder} has no weights: expected diffusion_pytorch_model.safetensors.")
