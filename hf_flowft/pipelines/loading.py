"""Loading pipelines by name from a fixed list of classes: nothing from a repository is ever executed."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..conventions import NUM_TRAIN_TIMESTEPS
from ..models import ActionTransformer, ConditionalUNet1D, FourierUNet2DModel, VelocityMLP, ViscousFlowModel
from ..models.options import check_options
from ..models.saved import load_model
from ..repository import one_line, read_json, shown
from ..schedulers import FlowODEScheduler, FlowSDEScheduler

OWN_CLASSES = {
    cls.__name__: cls
    for cls in (
        VelocityMLP,
        FourierUNet2DModel,
        ConditionalUNet1D,
        ActionTransformer,
        ViscousFlowModel,
        FlowODEScheduler,
        FlowSDEScheduler,
    )
}
"""The components of this package."""
KNOWN_CLASSES = OWN_CLASSES | {
    name: getattr(diffusers, name)
    for name in (
        "UNet2DModel",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "UniPCMultistepScheduler",
        "DDPMScheduler",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
    )
}
"""The components a saved pipeline may name."""
KINDS = {"model": diffusers.ModelMixin, "scheduler": diffusers.SchedulerMixin}
"""What each component must be."""
MAX_NUMBER = 100_000
TRIAL_STEPS = 4
INDEX_FILE = "model_index.json"
STUB = "hf_flowft_stub"
STUB_TEXT = '''"""Lets diffusers load this repository (trust_remote_code=True) where hf_flowft is installed; hf_flowft itself never runs it."""

try:
    from hf_flowft.pipelines.loading import OWN_CLASSES
except ImportError as error:
    raise ImportError("This model needs the package hf_flowft: pip install hf_flowft") from error

from hf_flowft import FlowPipeline, FlowPolicyPipeline

globals().update(OWN_CLASSES)
'''


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` of a pipeline folder.  Raises: ValueError when it is missing or broken."""
    path = folder / INDEX_FILE
    if not path.is_file() and (folder / "pytorch_lora_weights.safetensors").is_file():
        raise ValueError(
            f"{folder} holds an adapter (LoRA), no pipeline: load its base in diffusers and call load_lora_weights, or write the two as one with "
            "`hf-flowft export ADAPTER --merge-into BASE`."
        )
    if not path.is_file() and _class_in(folder) == "LatentViscosity":
        raise ValueError(
            f"{folder} holds a viscosity, no pipeline: load its base in diffusers and call hf_flowft.load_viscosity."
        )
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no pipeline: it has no {INDEX_FILE} (of a run folder, load its `pipeline` folder)."
        )
    return read_json(path)


def _class_in(folder: Path) -> str:
    """The class a model folder says it holds; "" for none."""
    config = folder / "config.json"
    return str(read_json(config).get("_class_name", "")) if config.is_file() else ""


def write_stub(folder: Path) -> None:
    """Make a saved pipeline loadable by `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`: put the stub at the root and beside each
    component of this package, and name it in the index.
    """
    index = read_index(folder)
    (folder / f"{STUB}.py").write_text(STUB_TEXT)
    index["_class_name"] = [STUB, pipeline_class_name(index)]
    for name, entry in index.items():
        if isinstance(entry, list) and entry[-1] in OWN_CLASSES:
            index[name] = [STUB, entry[1]]
            (folder / name / f"{STUB}.py").write_text(STUB_TEXT)
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def pipeline_class_name(index: dict[str, Any]) -> Any:
    """The class an index names: "FlowPipeline", or [stub, "FlowPipeline"]."""
    name = index.get("_class_name")
    return name[1] if isinstance(name, list) and len(name) == 2 and name[0] == STUB else name


def load_component(
    folder: Path, name: str, entry: Any, dtype: torch.dtype | None = None, hub: dict[str, Any] | None = None
) -> Any:
    """One component of a pipeline, by the class name in its index.

    Args: `hub`: where a base that is kept in another repository is looked for.
    Raises: ValueError for classes that are not known, naming the known ones, and for folders without safe weights.
    """
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
        raise ValueError(f"component {name!r} of {folder} is not described as [library, class]: {shown(entry)}.")
    if entry[1] not in KNOWN_CLASSES:
        raise ValueError(
            f"component {name!r} of {folder} is a {shown(entry[1])}, which is not loaded here; known are {', '.join(KNOWN_CLASSES)}."
        )
    cls = KNOWN_CLASSES[entry[1]]
    if not issubclass(cls, KINDS[name]):
        raise ValueError(f"component {name!r} of {folder} is a {entry[1]}, which is no {name}.")
    if not (folder / name).is_dir():
        raise ValueError(f"{folder} is incomplete: it has no folder {name!r} for its {entry[1]}.")
    if issubclass(cls, diffusers.ModelMixin):
        return load_model(cls, folder / name, dtype, **(hub or {}))
    return _load_scheduler(cls, folder / name)


def _load_scheduler(cls: Any, folder: Path) -> Any:
    try:
        config = read_json(folder / "scheduler_config.json")
        check_options(cls, config)
        _check_numbers(config)
        scheduler = cls.from_config(config)
    except Exception as error:  # whatever a scheduler makes of a stranger's options
        raise ValueError(f"cannot load the {cls.__name__} in {folder}: {one_line(error, 400)}") from error
    scheduler.register_to_config(_name_or_path="")
    return scheduler


def _check_numbers(config: dict[str, Any]) -> None:
    """Raises: ValueError for numbers out of proportion, of which a scheduler would make lists."""
    steps = config.get("num_train_timesteps", NUM_TRAIN_TIMESTEPS)
    if config.get("prediction_type") == "epsilon":
        _check_noise_schedule(steps, config)
    elif steps != NUM_TRAIN_TIMESTEPS:
        raise ValueError(
            f"num_train_timesteps must be {NUM_TRAIN_TIMESTEPS}, as for every flow here, got {shown(steps)}."
        )
    for key, value in config.items():
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise ValueError(f"its config gives {key} as {shown(value)}; at most {MAX_NUMBER} is accepted.")
    for key in ("shift", "flow_shift"):
        if not 0 < config.get(key, 1) < math.inf:
            raise ValueError(f"{key} must be a number > 0, got {config[key]}.")


def _check_noise_schedule(steps: int, config: dict[str, Any]) -> None:
    """Raises: ValueError for timesteps that the lists of a scheduler of noise might not reach."""
    if not 2 <= steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_train_timesteps must be 2 to {NUM_TRAIN_TIMESTEPS}, got {shown(steps)}.")
    for key in ("trained_betas", "steps_offset"):
        if config.get(key):
            raise ValueError(f"{key} is given as {shown(config[key])}; noise schedules with one are not loaded here.")


def try_out(scheduler: Any, event_shape: tuple[int, ...]) -> None:
    """Take a few steps of a copy of a scheduler on a sample of zeros, so that options that cannot be run are known on loading.

    With dynamic shifting the grid depends on a number that only the caller has: nothing is tried.  Raises: ValueError.
    """
    if scheduler.config.get("use_dynamic_shifting"):
        return
    copy, x, options = type(scheduler).from_config(scheduler.config), torch.zeros(1, *event_shape), {}
    if "generator" in inspect.signature(copy.step).parameters:
        options["generator"] = torch.Generator()
    try:
        copy.set_timesteps(min(TRIAL_STEPS, copy.config.num_train_timesteps))
        for timestep in copy.timesteps:
            x = copy.step(torch.zeros_like(x), timestep, x, **options, return_dict=False)[0]
    except Exception as error:  # whatever a scheduler makes of a stranger's options
        raise ValueError(f"the {type(scheduler).__name__} cannot take a step: {one_line(error, 300)}") from error
