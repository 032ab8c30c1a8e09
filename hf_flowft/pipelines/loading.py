"""Loading pipelines by name from a fixed list of classes: nothing from a repository is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

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
    if not issubclass(cls, diffusers.ModelMixin):
        return cls.from_pretrained(str(folder / name))
    require_safe_weights(folder / name)
    options = {} if dtype is None else {"torch_dtype": dtype}
    return cls.from_pretrained(str(folder / name), use_safetensors=True, low_cpu_mem_usage=False, **options)


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
