"""Any picture that Pillow opens as eight bits a channel, grey or colour."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIXTEEN_BITS = 65535


def eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """A picture in mode L (`channels` 1) or RGB (3): 16-bit grey levels are scaled by 1/257, transparent parts lie on white.

    Raises: ValueError for pictures of floating point or of more than 16 bits, which have no known white.
    """
    if image.mode == "F":
        raise ValueError(
            "it holds floating point numbers, of which nobody knows which is white: save it in 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # Pillow's own conversion cuts everything above 255
        image = _scaled(np.asarray(image))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def _scaled(levels: np.ndarray) -> Image.Image:
    if levels.min() < 0 or levels.max() > SIXTEEN_BITS:
        raise ValueError(
            f"its grey levels go from {levels.min()} to {levels.max()}, beyond 16 bits (0 to {SIXTEEN_BITS}): save it in 8 or 16 bits"
        )
    return Image.fromarray((levels / (SIXTEEN_BITS / 255)).round().astype(np.uint8))
