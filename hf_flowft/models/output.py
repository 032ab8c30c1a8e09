"""What the networks of this package take and return."""

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class FlowModelOutput(BaseOutput):
    """`sample`: (batch, *event), dx/dsigma = noise - data, as diffusers' flow schedulers take it."""

    sample: Tensor


def check_inputs(config: Any, sample: Tensor, class_labels: Tensor | None, condition: Tensor | None) -> None:
    """Raises: ValueError for a sample of another shape than the config's `event_shape`, a condition that is missing, not known to its
    `num_classes` and `condition_dim`, or of another shape.
    """
    shape = list(config.event_shape)
    if list(sample.shape[1:]) != shape:
        raise ValueError(f"this model takes samples of shape (batch, *{shape}), got {tuple(sample.shape)}.")
    given = {"num_classes": ("class_labels", class_labels), "condition_dim": ("condition", condition)}
    for option, (key, value) in given.items():
        if (value is not None) != bool(config.get(option)):
            verb = "be" if value is None else "not be"
            raise ValueError(f"{option} is {config.get(option, 0)}, so {key} must {verb} given.")
    wanted = (len(sample), config.get("condition_dim"))
    if condition is not None and condition.shape != wanted:
        raise ValueError(f"condition must have shape {wanted}, got {tuple(condition.shape)}.")
