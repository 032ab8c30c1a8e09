"""Saving, loading and pushing, the same for every pipeline of this package: safe files only, in one layout for disk and Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors.torch import save_file
from torch import Tensor

from ..data.normalisation import Normalisation
from ..hub import push_pipeline
from ..models import BaseReference
from ..repository import resolve_folder, shown
from .denoising import check_scheduler
from .description import check_agreement, check_description, load_conditions
from .loading import load_component, pipeline_class_name, read_index, try_out, write_stub

CONDITIONS_FILE = "conditions.safetensors"


class SavedPipeline(DiffusionPipeline):
    """A pipeline of a `model` and a `scheduler`, with a `description` in its index and the `conditions` it was trained under beside it."""

    conditions: dict[str, Tensor]
    needed_facts: tuple[str, ...] = ()
    """What the description of this kind must hold."""

    @property
    def description(self) -> dict[str, Any]:
        """The facts it was saved with."""
        return self.config.description or {}

    @property
    def condition_normalisation(self) -> Normalisation:
        """The units of its condition vectors."""
        return Normalisation(**self.description.get("condition_normalisation", {}))

    @property
    def normalisation(self) -> Normalisation:
        """Between model units and data units."""
        return Normalisation(**self.description.get("normalisation", {}))

    def known_conditions(self, num_rows: int = 4) -> dict[str, Tensor]:
        """Some of the conditions it was trained under, as it is called with them: vectors in the units of the data."""
        rows = {key: value[:num_rows] for key, value in self.conditions.items()}
        return rows | {key: self.condition_normalisation.undo(rows[key]) for key in rows if key == "condition"}

    @classmethod
    def kinds(cls) -> dict[str, type[SavedPipeline]]:
        """The classes `from_pretrained` may return, by the name in the index: this one, and those that are one."""
        return {cls.__name__: cls}

    def save_pretrained(self, save_directory: str | Path, base: BaseReference | None = None, **kwargs: Any) -> None:
        """Save the pipeline: safetensors, JSON, the conditions, and a stub by which diffusers loads it where this package is installed.

        Args: `base`: save a residual model without its frozen base, which is kept in this repository.
        Raises: ValueError when the base is not the model's; for a model that diffusers cannot save; for `push_to_hub=True`, which has its own method.
        """
        if not isinstance(self.model, ModelMixin):
            raise ValueError(
                f"a {type(self.model).__name__} is no model of diffusers (ModelMixin with ConfigMixin), so that nobody could load it again: derive it "
                "from these two, as hf_flowft.models.VelocityMLP does, or save its state_dict yourself."
            )
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained only saves; call push_to_hub(repo_id), which writes the card too.")
        folder = Path(save_directory)
        super().save_pretrained(str(folder), safe_serialization=True, **kwargs)
        if base is not None:
            self.model.save_residual(folder / "model", base)
        write_stub(folder)
        if self.conditions:
            save_file({key: value.contiguous() for key, value in self.conditions.items()}, folder / CONDITIONS_FILE)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the pipeline with a card that says how to load it (a card somebody edited is kept); returns the address.

        Args: `options`: private, revision, create_pr, token, commit_message; see `hub.push_pipeline`.  A run is pushed with its measured
        card by `hf-flowft push`.
        """
        return push_pipeline(self, repo_id, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype | None = None,
        **components: Any,
    ) -> Any:
        """Load from a folder, the cache or the Hub; `model=` or `scheduler=` replace a saved component.

        Only classes of `pipelines.loading.KNOWN_CLASSES` are loaded, and no code from the repository is run.
        Raises: ValueError for anything that is not such a pipeline.
        """
        hub: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        folder = resolve_folder(pretrained_model_name_or_path, revision, **hub)
        index = read_index(folder)
        unknown = sorted(set(components) - {"model", "scheduler"})
        if unknown:
            raise ValueError(
                f"from_pretrained knows no {unknown[0]!r}; it takes model, scheduler, dtype, revision, cache_dir, token and local_files_only."
            )
        name = pipeline_class_name(index)
        kind = cls.kinds().get(name) if isinstance(name, str) else None
        if kind is None:
            raise ValueError(f"{folder} holds a {shown(name)}, not a {cls.__name__}.")
        hub["local_files_only"] = local_files_only or Path(pretrained_model_name_or_path).is_dir()
        own = [name for name in ("model", "scheduler") if name not in components]
        components |= {name: load_component(folder, name, index.get(name), dtype, hub) for name in own}
        facts = check_description(index.get("description"), kind.needed_facts)
        if "model" in own:
            check_agreement(facts, components["model"])
        conditions = load_conditions(folder / CONDITIONS_FILE, components["model"] if "model" in own else None)
        pipeline = kind(**components, description=facts, conditions=conditions)
        if len(own) == 2:
            check_scheduler(pipeline.scheduler, facts.get("predicts", "velocity"))
            try_out(pipeline.scheduler, pipeline.event_shape)
        pipeline.model.eval()
        return pipeline
