"""What a flow pipeline gives back, and the description it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ..data import FlowData, Normalisation


@dataclass
class FlowPipelineOutput(BaseOutput):
    """`samples`: PIL images, an array or a tensor, in data units; `num_evaluations` of the network for each sample."""

    samples: list[Image.Image] | np.ndarray | Tensor
    num_evaluations: int

    @property
    def images(self) -> list[Image.Image] | np.ndarray | Tensor:
        """The samples, under the name image pipelines use."""
        return self.samples


def to_output(
    x: Tensor, output_type: str, normalisation: Normalisation, value_range: Sequence[float]
) -> list[Image.Image] | np.ndarray | Tensor:
    """Samples in model units (batch, *event) as `output_type` says: latent (as they are), pt, np or pil in data units."""
    if output_type == "latent":
        return x
    data = normalisation.undo(x)
    if output_type == "pt":
        return data
    return data.cpu().numpy() if output_type == "np" else to_pil(data, value_range)


def to_pil(data: Tensor, value_range: Sequence[float]) -> list[Image.Image]:
    """Images in data units (batch, channels, height, width) as PIL, `value_range` mapped to 0..255."""
    low, high = value_range
    pixels = ((data - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)) for image in pixels]


POLICY_FACTS = ("policy", "observation_normalisation")
"""What the data of a robot say about what a policy sees and does, and in what units it sees."""
CARRIED = (*POLICY_FACTS, "text_to_image")
"""Facts of the data that belong to the description of what was trained on them; the last says which pipeline of diffusers draws the samples."""


def describe_data(data: FlowData, coupling: str) -> dict[str, Any]:
    """The description of a pipeline trained on a data set with a coupling."""
    seen = data.condition_normalisation.get("condition") if "policy" not in data.facts else None
    return {
        "event_shape": list(data.event_shape),
        "normalisation": {"mean": data.normalisation.mean, "std": data.normalisation.std},
        "is_image": data.is_image,
        "value_range": data.facts.get("value_range", [0.0, 1.0]),
        "label_names": data.label_names,
        "coupling": coupling,
        **({"condition_normalisation": asdict(seen)} if seen is not None else {}),
        **{key: data.facts[key] for key in CARRIED if key in data.facts},
    }
