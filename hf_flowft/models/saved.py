"""Loading the weights of a stranger: safetensors only, every shape checked against the config before memory is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn

from ..digests import tensors_digest
from ..repository import MAX_TENSORS, one_line, read_json, resolve_folder, weight_shapes
from .options import TooManyTensorsError, at_most, check_known, check_options

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")
"""Where and how a repository is looked for; the arguments of `resolve_folder`."""


class SafeModelMixin(ModelMixin):
    """diffusers' ModelMixin, with a `from_pretrained` that trusts nobody."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """As in diffusers (`subfolder=`, `revision=`, `dtype=` ...), from safetensors only; the path it came from is not kept, for it would
        be published.

        Raises: ValueError when there is no such folder or repository, or when the weights are not those of the config.
        """
        hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        folder = resolve_folder(pretrained_model_name_or_path, **hub) / (options.pop("subfolder", None) or "")
        check_weights(cls, folder)
        return _load_checked(super().from_pretrained, folder, options)


def load_model(cls: type[ModelMixin], folder: Path, dtype: torch.dtype | None = None, **hub: Any) -> ModelMixin:
    """A model of a known class from a folder, on the CPU; the path it came from is not kept.

    Args: `hub`: where a base that is kept in another repository is looked for (`HUB_OPTIONS`).
    Raises: ValueError naming the class and what is wrong with the folder.
    """
    options = {"low_cpu_mem_usage": False, **({} if dtype is None else {"torch_dtype": dtype})}
    try:
        if issubclass(cls, SafeModelMixin):
            return cls.from_pretrained(folder, **options, **hub).eval()
        check_weights(cls, folder)
        return _load_checked(cls.from_pretrained, folder, options).eval()
    except ValueError as error:
        raise ValueError(f"cannot load the {cls.__name__} in {folder}: {one_line(error, 400)}") from error


def _load_checked(load: Any, folder: Path, options: dict[str, Any]) -> ModelMixin:
    """What diffusers makes of a folder of which everything has been checked but the bytes."""
    if options.get("variant"):
        raise ValueError(f"variants of the weights are not loaded here, got variant={options['variant']!r}.")
    try:
        model = load(str(folder), **{**options, "use_safetensors": True})
    except Exception as error:
        raise ValueError(f"it could not be loaded: {one_line(error, 300)}") from error
    model.register_to_config(_name_or_path="")
    return model


def check_weights(cls: type[ModelMixin], folder: Path, elsewhere: str = "") -> dict[str, Any]:
    """Compare the saved tensors with those the config asks for, on the meta device.

    Args: `elsewhere`: prefix of the tensors that are not saved here.  Returns: the config.
    Raises: ValueError naming the first tensor that is missing, superfluous, of another shape or of no floating type where one is expected,
    or the option that is wrong or out of proportion.
    """
    config = read_json(folder / "config.json")
    check_options(cls, config)
    check_known(cls, config)
    saved = weight_shapes(folder)
    try:
        with torch.device("meta"), at_most(MAX_TENSORS if elsewhere else 2 * len(saved) + 8):  # some are made twice
            tensors = cls.from_config(config).state_dict()
    except TooManyTensorsError as error:
        raise ValueError(f"its weights are not those of its config: {error}") from error
    except Exception as error:  # whatever a network's constructor makes of a stranger's options
        raise ValueError(f"its config does not describe a {cls.__name__}: {one_line(error)}") from error
    expected = {
        name: (tuple(tensor.shape), tensor.is_floating_point())
        for name, tensor in tensors.items()
        if not (elsewhere and name.startswith(elsewhere))
    }
    found = {name: (entry.shape, entry.is_floating) for name, entry in saved.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        have, want = (_told(group.get(wrong[0])) for group in (found, expected))
        raise ValueError(
            f"its weights are not those of its config ({len(wrong)} differ, such as {wrong[0]!r:.100}: {have} where {want} is expected)."
        )
    return config


def _told(entry: tuple[tuple[int, ...], bool] | None) -> str:
    return "nothing" if entry is None else f"{entry[0]!s:.60}{'' if entry[1] else ' of whole numbers'}"


def weights_digest(model: nn.Module) -> str:
    """The digest of all parameters and buffers: the same for the same weights in any file."""
    return tensors_digest(model.state_dict())
