"""Loading the weights of a stranger: safetensors only, every shape checked against the config before memory is allocated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError
from torch import nn

from ..repository import read_json, resolve_folder, weight_shapes

COUNTS = ("num_layers", "layers_per_block", "num_terms")
"""Options that say how many modules are built: none may exceed the number of saved tensors."""
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")
"""Where and how a repository is looked for; the arguments of `resolve_folder`."""


class SafeModelMixin(ModelMixin):
    """diffusers' ModelMixin, with a `from_pretrained` that trusts nobody."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """As in diffusers (`subfolder=`, `revision=`, `dtype=` ...), from safetensors only.

        Raises: ValueError when there is no such folder or repository, or when the weights are not those of the config.
        """
        hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        folder = resolve_folder(pretrained_model_name_or_path, **hub) / (options.pop("subfolder", None) or "")
        check_weights(cls, folder)
        return super().from_pretrained(str(folder), **{**options, "use_safetensors": True})


def load_model(cls: type[ModelMixin], folder: Path, dtype: torch.dtype | None = None, **hub: Any) -> ModelMixin:
    """A model of a known class from a folder, on the CPU; the path it came from is not kept, for it would be published.

    Args: `hub`: where a base that is kept in another repository is looked for (`HUB_OPTIONS`).
    Raises: ValueError naming the class and what is wrong with the folder.
    """
    options = {"low_cpu_mem_usage": False, **({} if dtype is None else {"torch_dtype": dtype})}
    try:
        if not issubclass(cls, SafeModelMixin):
            check_weights(cls, folder)
        model = cls.from_pretrained(str(folder), use_safetensors=True, **options, **hub)
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"cannot load the {cls.__name__} in {folder}: {reason}") from error
    model.register_to_config(_name_or_path="")
    return model.eval()


def check_weights(cls: type[ModelMixin], folder: Path, elsewhere: str = "") -> None:
    """Compare the saved tensors with those the config asks for, on the meta device.

    Args: `elsewhere`: prefix of the tensors that are not saved here.
    Raises: ValueError naming the first tensor that is missing, superfluous or of another shape, or the option that is out of proportion.
    """
    config = read_json(folder / "config.json")
    saved = weight_shapes(folder)
    _check_counts(config, len(saved) if not elsewhere else None)
    try:
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in cls.from_config(config).state_dict().items()}
    except Exception as error:  # whatever a network's constructor makes of a stranger's options
        raise ValueError(
            f"its config does not describe a {cls.__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    if elsewhere:
        expected = {name: shape for name, shape in expected.items() if not name.startswith(elsewhere)}
    found = {name: entry.shape for name, entry in saved.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"its weights are not those of its config ({len(wrong)} differ, such as {wrong[0]}: "
            f"{found.get(wrong[0], 'missing')} where {expected.get(wrong[0], 'nothing')} is expected)."
        )


MAX_MODULES = 10_000


def _check_counts(config: Mapping[str, Any], num_tensors: int | None) -> None:
    """Refuse configs that would build far more modules than there are weights for, or too many in any case."""
    limit = MAX_MODULES if num_tensors is None else min(num_tensors, MAX_MODULES)
    for key, value in _entries(config):
        number = len(value) if isinstance(value, list) else value
        counted = key in COUNTS or isinstance(value, list)
        if counted and isinstance(number, int) and number > limit:
            raise ValueError(f"its config asks for {key} = {number}, with {limit} tensors saved at most.")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield str(key), value
        if isinstance(value, dict):
            yield from _entries(value)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {flat.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
