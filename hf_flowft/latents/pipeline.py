"""What a run on a text-to-image pipeline gives back: the transformer as it was trained, saved so that diffusers alone can use it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ..repository import read_json
from ..velocity import Velocity
from .lora import save_lora
from .model import LatentFlowModel
from .opening import INDEX, LatentBase


class LatentPipeline:
    """A trained transformer with the pipeline it belongs to.

    Args: `model`; `scheduler`: the grid it is sampled on here; `description`, `conditions`: as those of `FlowPipeline`; `base`: the pipeline it
    was trained from; `is_adapter`: whether what was trained is an adapter, which is then all that is saved.
    """

    predicts = "velocity"

    def __init__(
        self,
        model: LatentFlowModel,
        scheduler: Any,
        description: dict[str, Any],
        conditions: dict[str, Tensor],
        base: LatentBase,
        is_adapter: bool,
    ):
        self.model, self.scheduler, self.description, self.conditions = model, scheduler, description, conditions
        self.base, self.is_adapter = base, is_adapter

    def renewed(
        self, model: LatentFlowModel, description: dict[str, Any], conditions: dict[str, Tensor]
    ) -> LatentPipeline:
        """The same pipeline with a model as it is now."""
        return LatentPipeline(model, self.scheduler, description, conditions, self.base, self.is_adapter)

    @property
    def shift(self) -> float:
        """The shift of the grid."""
        return float(self.scheduler.config.shift)

    def velocity(self) -> Velocity:
        """The model as a velocity field of latents under numbered prompts."""
        return Velocity(self.model)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what diffusers loads without this package: the adapter for `load_lora_weights`, or else the whole pipeline."""
        if self.is_adapter:
            Path(folder).mkdir(parents=True, exist_ok=True)
            save_lora(self.base.family.pipeline_class(), self.model.transformer, Path(folder))
            return
        for part in read_json(self.base.folder / INDEX):
            if part != "transformer" and (self.base.folder / part).is_dir():
                shutil.copytree(self.base.folder / part, Path(folder) / part, dirs_exist_ok=True, ignore=_no_code)
        shutil.copy(self.base.folder / INDEX, folder)
        self.model.transformer.save_pretrained(Path(folder) / "transformer")


def _no_code(where: str, names: list[str]) -> list[str]:
    """What is not copied: everything but configurations, tokenizers and safetensors."""
    return [name for name in names if not name.endswith((".json", ".safetensors", ".txt", ".model"))]
