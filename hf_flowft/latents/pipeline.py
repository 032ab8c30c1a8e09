"""What a run on a text-to-image pipeline gives back: the transformer as it was trained, saved so that diffusers alone can use it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..repository import read_json, weight_shapes
from ..velocity import Velocity
from .lora import find_lora, fuse_lora, save_lora, trained_beside
from .model import LatentFlowModel
from .opening import INDEX, LatentBase

Adapter = Literal["", "lora", "viscosity"]
"""What was trained beside a frozen transformer; nothing: the transformer itself."""


class LatentPipeline:
    """A trained transformer with the pipeline it belongs to.

    Args: `model`; `scheduler`: the grid it is sampled on here; `description`, `conditions`: as those of `FlowPipeline`; `base`: the pipeline it
    was trained from; `adapter`: what was trained beside its transformer, which is then all that is saved.
    """

    predicts = "velocity"

    def __init__(
        self,
        model: LatentFlowModel,
        scheduler: Any,
        description: dict[str, Any],
        conditions: dict[str, Tensor],
        base: LatentBase,
        adapter: Adapter,
    ):
        self.model, self.scheduler, self.description, self.conditions = model, scheduler, description, conditions
        self.base, self.adapter = base, adapter

    def renewed(
        self, model: LatentFlowModel, description: dict[str, Any], conditions: dict[str, Tensor]
    ) -> LatentPipeline:
        """The same pipeline with a model as it is now."""
        return LatentPipeline(model, self.scheduler, description, conditions, self.base, self.adapter)

    @property
    def shift(self) -> float:
        """The shift of the grid."""
        return float(self.scheduler.config.shift)

    def velocity(self) -> Velocity:
        """The model as a velocity field of latents under numbered prompts."""
        return Velocity(self.model)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what diffusers loads without this package: the adapter for `load_lora_weights`, or the whole pipeline; a viscosity for
        `load_viscosity`."""
        if self.adapter == "viscosity":
            self.model.transformer.viscosity.save_pretrained(folder)
            return
        if self.adapter == "lora":
            Path(folder).mkdir(parents=True, exist_ok=True)
            save_lora(self.base.family.pipeline_class(), self.model.transformer, Path(folder), self.base.fused_names)
            return
        write_whole(self.base, self.model.transformer, Path(folder))


def write_whole(base: LatentBase, transformer: Any, folder: Path) -> None:
    """A pipeline with another transformer: everything else is copied, but for code."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in read_json(base.folder / INDEX):
        if part != "transformer" and (base.folder / part).is_dir():
            shutil.copytree(base.folder / part, folder / part, dirs_exist_ok=True, ignore=_no_code)
    shutil.copy(base.folder / INDEX, folder)
    transformer.save_pretrained(folder / "transformer")


def merge(adapter: str, base: LatentBase, folder: Path) -> None:
    """Write the pipeline an adapter belongs to, whole, with the adapter added into its weights (in float32; stored as the base's are).

    Args: `adapter`: a folder or repository that `load_lora_weights` takes.  Raises: ValueError when it is none, or does not fit.
    """
    require_fused(adapter, base)
    pipeline = base.generator()
    stored = next(iter(weight_shapes(base.folder / "transformer").values())).dtype
    fuse_lora(pipeline, adapter)
    precision = {"BF16": torch.bfloat16, "F16": torch.float16}.get(stored, torch.float32)
    write_whole(base, pipeline.transformer.to(precision), folder)


def require_fused(adapter: str, base: LatentBase) -> None:
    """Raises: ValueError when an adapter was trained beside others that were a part of its base, and are none of this one; or as `find_lora`."""
    told = trained_beside(find_lora(adapter))
    if len(base.fused) < len(told):
        raise ValueError(
            f"the adapter {adapter} was trained on a base with {', '.join(told)} added to it, and is of use with that alone: name it too, as "
            "model.fused (in `export`: --fused)."
        )


def _no_code(where: str, names: list[str]) -> list[str]:
    """What is not copied: everything but configurations, tokenizers and safetensors."""
    return [name for name in names if not name.endswith((".json", ".safetensors", ".txt", ".model"))]
