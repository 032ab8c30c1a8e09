"""Residuals on a frozen base: saved whole, or without the base, as adapters are, with a reference that is checked on loading."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors.torch import save_file

from ..repository import WEIGHTS_FILE, load_tensors, read_json, resolve_folder, shown, weight_files
from .bases import BASES, base_config
from .saved import HUB_OPTIONS, SafeModelMixin, check_weights, load_model, weights_digest

BASE_FILE = "base.json"
PATTERNS = {"repository": r"\w[\w.-]*/\w[\w.-]*", "revision": r"[0-9a-f]{40}", "digest": r"[0-9a-f]{64}"}


@dataclass(frozen=True)
class BaseReference:
    """The frozen base of a residual: a pipeline repository on the Hub at a commit, and the `weights_digest` of its model."""

    repository: str
    revision: str
    digest: str

    def write(self, folder: Path) -> None:
        """Save it beside the residual's config."""
        (folder / BASE_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> BaseReference:
        """Raises: ValueError when the file does not hold a repository, a commit and a digest."""
        content = read_json(folder / BASE_FILE)
        for key, pattern in PATTERNS.items():
            value = content.get(key)
            if not (isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII)):
                raise ValueError(f"{folder / BASE_FILE} must give {key} as {pattern}, got {shown(value)}.")
        return cls(**{key: content[key] for key in PATTERNS})

    def load(self, config: Mapping[str, Any], **hub: Any) -> ModelMixin:
        """The base, checked to be the one the residual was trained on.

        Args: `config`: the base's config as the residual keeps it; `hub`: arguments of `resolve_folder` but the revision.
        Raises: ValueError when it cannot be had, or has another config or other weights.
        """
        folder = resolve_folder(self.repository, self.revision, **hub) / "model"
        name = config.get("_class_name")
        if name not in BASES:
            raise ValueError(f"a base of class {name!r} is not accepted; known are {', '.join(BASES)}.")
        base = load_model(BASES[name], folder)
        where = f"the base {self.repository} at {self.revision[:8]}"
        if json.dumps(base_config(base), sort_keys=True) != json.dumps(dict(config), sort_keys=True):
            raise ValueError(f"{where} has another config than the base this residual was trained on.")
        if weights_digest(base) != self.digest:
            raise ValueError(f"{where} has other weights than the base this residual was trained on: it would harm it.")
        return base


class ResidualMixin(SafeModelMixin):
    """A model with a frozen `base_model`, whose config keeps the base's under `base`."""

    def save_residual(self, folder: Path, reference: BaseReference) -> None:
        """Save config and weights without the base.

        Raises: ValueError when the reference is not to the very base of this model (a base that was trained is no longer its own).
        """
        if weights_digest(self.base_model) != reference.digest:
            raise ValueError(
                f"{reference.repository} at {reference.revision[:8]} does not hold the base of this model, or the base was "
                "trained too: push the whole model instead."
            )
        self.save_config(folder)
        own = {name: x.contiguous() for name, x in self.state_dict().items() if not name.startswith("base_model.")}
        save_file(own, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        reference.write(folder)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """As `SafeModelMixin`; of a residual saved alone, the base is fetched from its repository and checked.

        A residual in a local folder looks for its base in the cache only, unless told local_files_only=False: a folder cannot
        make anyone go online.
        Raises: ValueError, also when the base is not the one the residual was trained on.
        """
        hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        folder = resolve_folder(pretrained_model_name_or_path, **hub) / (options.pop("subfolder", None) or "")
        if not (folder / BASE_FILE).is_file():
            return super().from_pretrained(folder, **options)
        hub.setdefault("local_files_only", Path(pretrained_model_name_or_path).is_dir())
        return cls._with_base(folder, hub, options.get("dtype", options.get("torch_dtype")))

    @classmethod
    def _with_base(cls, folder: Path, hub: dict[str, Any], dtype: torch.dtype | None) -> Any:
        config = check_weights(cls, folder, elsewhere="base_model.")
        hub = {key: value for key, value in hub.items() if key != "revision"}
        base = BaseReference.read(folder).load(config["base"], **hub)
        model = cls.from_config(config)
        model.base_model = base
        for path in weight_files(folder):
            model.load_state_dict(load_tensors(path), strict=False)
        model.freeze_base()
        return model.to(dtype).eval() if dtype is not None else model.eval()
