"""Finding a text-to-image pipeline and loading its halves one after the other: what encodes, then what is trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from ..repository import hub_problem, one_line, read_json, shown
from ..results import public_name
from .family import LatentFamily, require_flow
from .flux import Flux
from .lora import find_lora, fuse_lora
from .sana import Sana
from .sd3 import StableDiffusion3

FAMILIES: dict[str, LatentFamily] = {family.pipeline: family for family in (StableDiffusion3(), Flux(), Sana())}
"""The pipelines that can be fine-tuned, by their class in diffusers. A new family is a file of its own and its name here."""
INDEX = "model_index.json"


@dataclass(frozen=True)
class LatentBase:
    """A text-to-image pipeline of diffusers on this machine: its folder, what is known of its kind, what it is called, and the adapters that are
    a part of it, by their files and names."""

    folder: Path
    family: LatentFamily
    name: str
    fused: tuple[Path, ...] = ()
    fused_names: tuple[str, ...] = ()

    def encoders(self, dtype: torch.dtype = torch.float32) -> Any:
        """The pipeline without its transformer."""
        return self._load(dtype, transformer=None)

    def generator(self, dtype: torch.dtype = torch.float32) -> Any:
        """The pipeline without what reads text, its adapters added into its transformer.

        Raises: ValueError when its scheduler is none of a flow, or an adapter does not fit.
        """
        pipeline = self._load(dtype, **dict.fromkeys(self.family.readers))
        require_flow(pipeline.scheduler, self.name)
        for adapter in self.fused:
            fuse_lora(pipeline, adapter.parent)
        return pipeline

    def _load(self, dtype: torch.dtype, **without: None) -> Any:
        cls = self.family.pipeline_class()
        options = {"torch_dtype": {"vae": torch.float32, "default": dtype}, "use_safetensors": True}
        try:
            return cls.from_pretrained(self.folder, local_files_only=True, **options, **without)
        except Exception as error:  # diffusers, transformers and tokenizers raise a dozen kinds
            raise ValueError(f"cannot load the {cls.__name__} {self.name}: {one_line(error, 400)}") from error

    def fingerprint(self, *parts: str) -> list[Any]:
        """What must be the same for cached results to be right: the files of these parts, by default those that encode."""
        files = sorted(
            path
            for part in (parts or ("vae", *self.family.readers))
            for path in (self.folder / part).rglob("*")
            if path.is_file()
        )
        if "transformer" in parts:
            files += self.fused
        sizes = [(path, path.stat()) for path in files]
        return [[os.path.relpath(path, self.folder), stat.st_size, stat.st_mtime_ns] for path, stat in sizes]


def family_of(path: str, revision: str = "") -> LatentFamily:
    """What is known of the pipeline at a folder or in a repository, by its index alone.

    Raises: ValueError when no path is given, nothing is there, or it is a pipeline of another kind.
    """
    if not path:
        raise ValueError("model.path must name the pretrained pipeline: a folder, or a repository on the Hub.")
    kind = read_described(path, revision, INDEX).get("_class_name")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"{path} holds a {shown(kind)}; the text-to-image flows that can be fine-tuned are {', '.join(FAMILIES)}. (Stable Diffusion 1, 2 and "
            "XL are no flows: their networks predict noise.)"
        )
    return FAMILIES[kind]


def find_base(path: str, revision: str = "", fused: Sequence[str] = ()) -> LatentBase:
    """The pipeline at a folder or in a repository, downloaded where it must be: configurations, tokenizers and safetensors, no code.

    Args: `fused`: folders or repositories of adapters that are a part of it.
    Raises: ValueError when no path is given, nothing is there, it is a pipeline of another kind, or as `find_lora`.
    """
    family = family_of(path, revision)
    adapters = tuple(find_lora(adapter) for adapter in fused), tuple(public_name(adapter) for adapter in fused)
    if Path(path).is_dir():
        return LatentBase(Path(path), family, Path(path).resolve().name, *adapters)
    try:
        options = {"revision": revision or None, "use_safetensors": True}
        return LatentBase(Path(family.pipeline_class().download(path, **options)), family, path, *adapters)
    except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
        raise ValueError(f"{path!r}: {hub_problem(error, revision)}") from error


def read_described(path: str, revision: str, name: str) -> dict[str, Any]:
    """A JSON file of a pipeline in a folder or in a repository, by its name there, such as "vae/config.json".

    Raises: ValueError when there is neither, or the file is missing or broken.
    """
    if Path(path).is_dir():
        return read_json(Path(path) / name)
    try:
        file = hf_hub_download(path, name, revision=revision or None)
    except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
        raise ValueError(f"{path!r} is no folder here, and {hub_problem(error, revision)}") from error
    return read_json(Path(file))
