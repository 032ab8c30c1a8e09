"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by peft on a transformer of diffusers: added, switched off, saved as pipelines load them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..randomness import keyed_seed
from ..repository import hub_problem, one_line, shown, tensor_shapes
from .model import freeze

ADAPTER = "default"
"""What is trained."""
START = "start"
"""The frozen copy of an adapter that a run goes on from."""
WEIGHTS = "pytorch_lora_weights.safetensors"
BESIDE = "fused_adapters"
"""Where the file of an adapter names those that were a part of its base."""


def add_lora(transformer: Any, targets: Sequence[str], rank: int, alpha: int, dropout: float, seed: int) -> None:
    """Freeze a transformer and put an adapter on its layers, which alone is trained, in float32; at the start it changes nothing.

    Args: `targets`: endings of names of linear layers; `alpha`: the adapter counts alpha / rank times; `seed`: of its weights.
    Raises: ValueError when no layer has such a name, or peft is not there.
    """
    LoraConfig = _peft().LoraConfig
    freeze(transformer)
    options: dict[str, Any] = {"lora_alpha": alpha, "lora_dropout": dropout, "init_lora_weights": "gaussian"}
    config = LoraConfig(r=rank, target_modules=list(targets), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "adapter"))
        try:
            transformer.add_adapter(config, ADAPTER)
        except ValueError as error:
            layers = {name.rpartition(".")[2] for name, m in transformer.named_modules() if isinstance(m, nn.Linear)}
            raise ValueError(
                f"model.target_modules {list(targets)} name no layer of the {type(transformer).__name__}; its linear layers end in "
                f"{', '.join(sorted(layers))}."
            ) from error
    _in_float32(transformer)


def continue_lora(pipeline_class: Any, transformer: Any, start: str) -> None:
    """Freeze a transformer and put an adapter on it that exists already, twice: as it is, frozen, and to be trained further, in float32.

    Args: `start`: a folder or repository with weights that `pipeline.load_lora_weights` takes.  Raises: ValueError when there are none.
    """
    peft = _peft()
    freeze(transformer)
    try:
        weights, settings = pipeline_class.lora_state_dict(
            start, return_lora_metadata=True, use_safetensors=True, weight_name=WEIGHTS
        )
        for name in (START, ADAPTER):
            pipeline_class.load_lora_into_transformer(dict(weights), transformer, adapter_name=name, metadata=settings)
        transformer.set_adapter(ADAPTER)
        _in_float32(transformer)
        own = {key.removeprefix("transformer."): x for key, x in weights.items()}
        for name in (START, ADAPTER):  # again: until here they have been in the precision of the frozen weights
            peft.set_peft_model_state_dict(transformer, own, adapter_name=name)
    except Exception as error:  # diffusers, peft and the Hub's client raise their own
        raise ValueError(f"cannot go on from the adapter {start}: {one_line(error, 300)}") from error


def find_lora(path: str) -> Path:
    """The file of an adapter in a folder or a repository.

    Raises: ValueError when there is none, or it changes what reads the prompts too, which are encoded without it.
    """
    if Path(path).is_dir():
        file = Path(path) / WEIGHTS
    else:
        try:
            file = Path(hf_hub_download(path, WEIGHTS))
        except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
            raise ValueError(f"{path!r} is no folder here, and {hub_problem(error, '')}") from error
    if not file.is_file():
        raise ValueError(f"there is no adapter in {path}: it must hold {WEIGHTS}.")
    readers = sorted(name for name in tensor_shapes(file) if name.startswith(("text_encoder", "lora_te")))
    if readers:
        raise ValueError(
            f"the adapter {path} changes a text encoder too ({shown(readers[0])}); prompts are encoded without it, so leave it out."
        )
    return file


def fuse_lora(pipeline: Any, adapter: str | Path) -> None:
    """Add an adapter into the weights of a pipeline's transformer.

    Args: `adapter`: a folder or repository that `load_lora_weights` takes.  Raises: ValueError when it is none, or does not fit.
    """
    _peft()
    try:
        pipeline.load_lora_weights(adapter, weight_name=WEIGHTS, use_safetensors=True)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    except Exception as error:  # diffusers, peft and the Hub's client raise their own
        raise ValueError(
            f"cannot merge {adapter} into the {type(pipeline).__name__}: {one_line(error, 300)}"
        ) from error


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("model.name lora needs peft: pip install hf_flowft[lora].") from error
    return peft


def _in_float32(transformer: Any) -> None:
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


@contextmanager
def adapters_off(transformer: Any) -> Iterator[None]:
    """Inside, the transformer computes what it did before it had adapters, bit for bit.

    What is trained stays what it was, also where an optimiser or an average looks at it afterwards.
    """
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


@contextmanager
def start_adapter(transformer: Any) -> Iterator[None]:
    """Inside, the transformer computes what it did under the adapter that the run went on from (see `continue_lora`)."""
    transformer.set_adapter(START)
    try:
        yield
    finally:
        transformer.set_adapter(ADAPTER)


def save_lora(pipeline_class: Any, transformer: Any, folder: Path, fused: Sequence[str] = ()) -> None:
    """Write the adapter as `pipeline.load_lora_weights(folder)` of diffusers reads it, with its settings in the file.

    Args: `fused`: names of the adapters that were a part of its base; see `trained_beside`.
    """
    from peft.utils import get_peft_model_state_dict

    weights = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    settings = transformer.peft_config[ADAPTER].to_dict()
    kept = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    pipeline_class.save_lora_weights(folder, transformer_lora_layers=kept, transformer_lora_adapter_metadata=settings)
    if fused:
        file = folder / WEIGHTS
        save_file(load_file(file), file, {**_metadata(file), BESIDE: json.dumps(list(fused))})


def trained_beside(file: Path) -> list[str]:
    """Names of the adapters that were a part of the base of the one in `file`, as that says itself."""
    return json.loads(_metadata(file).get(BESIDE, "[]"))


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}
