"""Checks of what a pipeline is called with: every wrong argument ends in one sentence before anything is computed."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..solvers import ADAPTIVE_METHODS

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_output_type(output_type: str | None, event_shape: Sequence[int], is_image: bool) -> str:
    """The output type asked for, or the natural one.  Raises: ValueError for an unknown one, or images of what is none."""
    chosen = output_type or ("pil" if is_image else "np")
    if chosen not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    if chosen == "pil" and (len(event_shape) != 3 or event_shape[0] not in (1, 3)):
        raise ValueError(f"samples of shape {tuple(event_shape)} are not images; use output_type 'np' or 'pt'.")
    return chosen


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Raises: ValueError when a callback asks for tensors that are not offered."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs must be among {list(known)}, got {unknown}.")


def adaptive_method(solver: str) -> str:
    """The name of an adaptive solver.  Raises: ValueError for a fixed-step one, which belongs to the scheduler."""
    if solver not in ADAPTIVE_METHODS:
        raise ValueError(
            f"solver takes an adaptive method ({', '.join(ADAPTIVE_METHODS)}), got {solver!r}; "
            "fixed-step solvers belong to the scheduler: FlowODEScheduler(solver=...)."
        )
    return solver


def grid_arguments(scheduler: Any, num_steps: int, sigmas: Sequence[float] | None) -> dict[str, Any]:
    """What `set_timesteps` is called with.  Raises: ValueError for fewer than one step, or sigmas that the scheduler does not take."""
    if sigmas is None:
        if num_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_steps}.")
        return {"num_inference_steps": num_steps}
    if "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(
            f"{type(scheduler).__name__} takes no sigmas; give num_inference_steps, or use FlowODEScheduler."
        )
    return {"sigmas": list(sigmas)}


def refuse_noise(*given: Any) -> None:
    """Raises: ValueError when latents, sigmas or a solver are given to a model that predicts the mean, which knows no noise."""
    if any(value is not None for value in given):
        raise ValueError("this model predicts the mean, in one step from zeros: give no latents, sigmas or solver.")


def condition_tensors(
    size: int, class_labels: Any, condition: Any, wanted: Collection[str], num_labels: int
) -> dict[str, Tensor]:
    """Labels and condition vectors as tensors of one row a sample; one label for all becomes `size` rows of it (or one a condition vector).

    Args: `wanted`: the conditions the model was trained under (empty when that is not known); `num_labels`: of the model, 0 when not known.
    Raises: ValueError for other conditions than `wanted`, for rows that do not match, and for labels the model does not have.
    """
    given: dict[str, Tensor] = {}
    if condition is not None:
        given["condition"] = torch.as_tensor(condition, dtype=torch.float32)
        if given["condition"].ndim != 2:
            raise ValueError(
                f"condition must be (batch, condition_dim) vectors, got shape {tuple(given['condition'].shape)}."
            )
    if class_labels is not None:
        labels = torch.as_tensor(class_labels)
        rows = len(given["condition"]) if given else size
        given["class_labels"] = (labels.expand(rows) if labels.ndim == 0 else labels).long()
        outside = [label for label in given["class_labels"].flatten().tolist() if not 0 <= label < num_labels]
        if num_labels and outside:
            raise ValueError(f"the labels of this model are 0 to {num_labels - 1}, got {outside[0]}.")
    if wanted and set(wanted) != set(given):
        raise ValueError(f"this pipeline is conditioned on {sorted(wanted)}, got {sorted(given) or 'none of them'}.")
    counts = {key: len(value) for key, value in given.items()} or {"batch_size": size}
    if len(set(counts.values())) > 1 or min(counts.values()) < 1:
        raise ValueError(f"give as many labels as conditions, at least one sample: got {counts}.")
    return given


def starting_noise(
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Tensor | None,
    device: torch.device,
) -> Tensor:
    """`latents`, or fresh noise of `shape` (batch, *event), in float32.

    Raises: ValueError for latents of another shape, or a list of generators of another length.
    """
    if latents is not None:
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}.")
        return latents.to(device, torch.float32)
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(f"give one generator, or one a sample: got {len(generator)} for {shape[0]} samples.")
    return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
