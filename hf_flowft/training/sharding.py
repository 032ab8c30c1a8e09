"""A model divided over the processes (FSDP2): each keeps a part of every tensor, and the whole ones beside them only where they are used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..latents import LatentFlowModel
from ..objectives import Objective, ReconstructionObjective
from .step import TrainStep


def divide(step: TrainStep, device: torch.device, count: int) -> TrainStep:
    """A copy of a step of which every process holds a part, trained in place of it; `step` itself stays whole, on the CPU.

    Weights, frozen ones and a reference too, are gathered for a forward and a backward: together, or block by block where a model of diffusers
    names its blocks (`_no_split_modules`) and the loss does not solve. What an objective holds beside modules (a bank, a schedule) is shared.
    """
    step.to("cpu")
    parts = copy.deepcopy(step, {id(value): value for value in _held_beside_modules(step.objective)})
    mesh = init_device_mesh(device.type, (count,))
    for module in parts.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.ndim == 0:  # which cannot be divided: one row instead
                setattr(module, name, nn.Parameter(p.detach()[None], p.requires_grad))
    for block in reversed(_blocks(parts)):
        fully_shard(block, mesh=mesh)
    fully_shard(parts, mesh=mesh)
    return parts


def _held_beside_modules(objective: Objective) -> list[Any]:
    held = [value for part in objective.modules() for key, value in vars(part).items() if not key.startswith("_")]
    return [value for value in held if not isinstance(value, nn.Module)]


def _blocks(step: TrainStep) -> list[nn.Module]:
    """What is gathered by itself.

    Nothing for losses that solve: they differentiate by weights they look up between two calls.  Nor for latents of several sizes: processes
    that see other sizes call their blocks another number of times.
    """
    if any(isinstance(part, ReconstructionObjective) for part in step.objective.modules()):
        return []
    models = [part for part in step.modules() if isinstance(part, ModelMixin)]
    if any(isinstance(model, LatentFlowModel) and model.buckets is not None for model in models):
        return []
    names = {name for model in models for name in model._no_split_modules or ()}
    return [part for part in step.modules() if type(part).__name__ in names]


def gather(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divided tensors whole, on the CPU, in the shapes of `like`; others as they are.  Every process must call it."""
    return {
        name: x.full_tensor().cpu().reshape(like[name].shape) if isinstance(x, DTensor) else x
        for name, x in tensors.items()
    }


def scatter(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors divided as those of the same name in `like` are; others as they are.  Every process must call it."""
    return {name: _part(x, like.get(name)) for name, x in tensors.items()}


def _part(x: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor):
        return x
    x = x[None] if x.ndim == 0 else x
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)


def gather_moments(state: dict[str, Any], like: Sequence[Tensor]) -> dict[str, Any]:
    """The state dict of an optimiser with `gather` applied to the moments of each parameter; `like`: the parameters, whole."""
    return {**state, "state": {i: gather(m, dict.fromkeys(m, like[i])) for i, m in state["state"].items()}}


def scatter_moments(state: dict[str, Any], like: Sequence[Tensor]) -> dict[str, Any]:
    """`scatter` for the state dict of an optimiser, except for its counts of steps; `like`: the parameters, divided."""
    kept = {i: scatter(m, dict.fromkeys(m.keys() - {"step"}, like[i])) for i, m in state["state"].items()}
    return {**state, "state": kept}
