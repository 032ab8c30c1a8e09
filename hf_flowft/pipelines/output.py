"""What a flow pipeline gives back, and the description it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..data import FlowData
from ..solvers import ADAPTIVE_METHODS

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class FlowPipelineOutput(BaseOutput):
    """`samples`: PIL images, an array or a tensor, in data units; `num_evaluations` of the network for each sample."""

    samples: list[Image.Image] | np.ndarray | Tensor
    num_evaluations: int

    @property
    def images(self) -> list[Image.Image] | np.ndarray | Tensor:
        """The samples, under the name image pipelines use."""
        return self.samples


def check_output_type(output_type: str | None, event_shape: Sequence[int], is_image: bool) -> str:
    """The output type asked for, or the natural one.  Raises: ValueError for an unknown one, or images of what is none."""
    chosen = output_type or ("pil" if is_image else "np")
    if chosen not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    if chosen == "pil" and len(event_shape) != 3:
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


def to_pil(data: Tensor, value_range: Sequence[float]) -> list[Image.Image]:
    """Images in data units (batch, channels, height, width) as PIL, `value_range` mapped to 0..255."""
    low, high = value_range
    pixels = ((data - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)) for image in pixels]


def describe_data(data: FlowData, coupling: str) -> dict[str, Any]:
    """The description of a pipeline trained on a data set with a coupling."""
    return {
        "event_shape": list(data.event_shape),
        "normalisation": {"mean": data.normalisation.mean, "std": data.normalisation.std},
        "is_image": data.is_image,
        "value_range": data.facts.get("value_range", [0.0, 1.0]),
        "label_names": data.label_names,
        "coupling": coupling,
    }
