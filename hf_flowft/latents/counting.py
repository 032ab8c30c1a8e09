"""What a transformer will need, counted on tensors that have shapes and no memory: weights, activations and operations of one sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..repository import shown
from .family import LatentFamily
from .opening import INDEX, family_of, read_described


@dataclass(frozen=True)
class Needs:
    """Of a transformer: `frozen`, `trained`: numbers of weights; of one sample: `activations`: bytes kept for the backward (at the worst moment,
    when blocks are recomputed), `forward`, `backward`: floating-point operations, recomputing included.
    """

    frozen: int
    trained: int
    activations: int
    forward: int
    backward: int


class _Kept:
    """The bytes of what autograd saves, each storage once, but for weights."""

    def __init__(self, weights: set[int]):
        self.weights, self.seen = weights, dict[int, Tensor]()

    def add(self, x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in self.weights:
            self.seen[x.untyped_storage()._cdata] = x
        return x

    @property
    def size(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in self.seen.values())


def count_needs(
    path: str,
    revision: str,
    size: tuple[int, int],
    dtype: torch.dtype,
    recompute: bool,
    adapt: Callable[[Any, LatentFamily, tuple[int, ...]], None],
) -> Needs:
    """Count without downloading or allocating weights: the configurations alone are read.

    Args: `size`: height and width of an image; `recompute`: with gradient checkpointing; `adapt`: makes of the transformer what is trained,
    given its family and the shape of a latent.
    Raises: ValueError as `family_of`.
    """
    family = family_of(path, revision)
    config, vae = (read_described(path, revision, f"{part}/config.json") for part in ("transformer", "vae"))
    factor = family.downscaling(vae)
    shape = (family.channels(config), size[0] // factor, size[1] // factor)
    with torch.device("meta"):
        transformer = family.transformer_class().from_config(config)
        nn.Module.to(transformer, dtype)
        adapt(transformer, family, shape)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _pretend(transformer, mode)
    weights = {p.untyped_storage()._cdata for p in transformer.parameters()}
    kept, block = _Kept(weights), [0]
    if recompute:
        transformer.enable_gradient_checkpointing(_recomputed(kept, block))
    with mode:
        sample = torch.zeros(1, *shape, dtype=dtype)
        text = {key: x.to(dtype) if x.is_floating_point() else x for key, x in family.text_like(config).items()}
        with FlopCounterMode(display=False) as flops, saved_tensors_hooks(kept.add, lambda x: x):
            output = family.output(transformer, sample, torch.full((1,), 500.0), text, 1.0)
            forward = flops.get_total_flops()
        with FlopCounterMode(display=False) as flops:
            output.sum().backward()
    backward = flops.get_total_flops() + (forward if recompute else 0)
    counts = [sum(p.numel() for p in transformer.parameters() if p.requires_grad is flag) for flag in (False, True)]
    return Needs(counts[0], counts[1], kept.size + block[0], forward, backward)


def count_encoders(path: str, revision: str, dtype: torch.dtype) -> int:
    """Bytes of the weights that encode prompts, in `dtype`, and images, in float32, by the configurations alone.

    Raises: ValueError for a component that is no network of diffusers or transformers; those of `family_of`.
    """
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    index, total = read_described(path, revision, INDEX), 0
    for part in ("vae", *family_of(path, revision).readers):
        library, name = index.get(part) or (None, None)
        if name is None or part.startswith("tokenizer"):
            continue
        kind: Any = getattr(libraries.get(library), str(name), None)
        is_network = isinstance(kind, type) and issubclass(kind, nn.Module)
        if not is_network:
            raise ValueError(f"{part} of {path} is a {shown(name)}, which is no network of diffusers or transformers.")
        config = read_described(path, revision, f"{part}/config.json")
        with torch.device("meta"):
            network = kind.from_config(config) if part == "vae" else kind(kind.config_class.from_dict(config))
        size = torch.float32.itemsize if part == "vae" else dtype.itemsize
        total += size * sum(p.numel() for p in network.parameters())
    return total


def _recomputed(kept: _Kept, block: list[int]) -> Callable[..., Any]:
    """In place of checkpointing: a block keeps what goes into it, and the largest one, at its turn, what it computes."""

    def run(module: Callable[..., Any], *inputs: Any) -> Any:
        inside = _Kept(kept.weights)
        for x in inputs:
            if isinstance(x, Tensor):
                kept.add(x)
        with saved_tensors_hooks(inside.add, lambda x: x):
            output = module(*inputs)
        block[0] = max(block[0], inside.size)
        return output

    return run


def _pretend(transformer: nn.Module, mode: FakeTensorMode) -> None:
    """Tensors of the meta device as tensors of the CPU, so that attention is counted as it is computed there: without its matrix."""
    for module in transformer.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fake = FakeTensor(mode, p.detach().to("meta"), torch.device("cpu"))
                module._parameters[name] = nn.Parameter(fake, p.requires_grad)
        for name, x in module._buffers.items():
            if x is not None:
                module._buffers[name] = FakeTensor(mode, x.to("meta"), torch.device("cpu"))
