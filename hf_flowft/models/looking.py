"""Looking once: the images of a condition encoded before a solver asks for the velocity again and again."""

from __future__ import annotations

from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from .action import ActionModel
from .observation import IMAGE_PREFIX
from .viscosity import ViscousFlowModel


@apply_forward_hook  # a pipeline may keep the model on the CPU until it is called (CPU offload), and this is no call of its forward
def look(model: nn.Module, condition: dict[str, Tensor]) -> dict[str, Tensor]:
    """The condition with `image_features` in place of its images, for a model that encodes images; any other condition as it is.

    Raises: ValueError for images of another shape or kind than the model sees.
    """
    inner = model.base_model if isinstance(model, ViscousFlowModel) else model
    images = {key: value for key, value in condition.items() if key.startswith(IMAGE_PREFIX)}
    if not isinstance(inner, ActionModel) or not images or "image_features" in images:
        return condition
    rest = {key: value for key, value in condition.items() if key not in images}
    return {**rest, "image_features": inner.encode_images(**images)}
