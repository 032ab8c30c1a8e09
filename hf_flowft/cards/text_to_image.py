"""The use of a fine-tuned text-to-image pipeline, with diffusers alone."""

from __future__ import annotations

import json
from typing import Any


def image_usage(source: str, drawn: dict[str, Any], base: str, num_steps: int) -> str:
    """A section of code that draws an image.

    Args: `source`: the folder or repository with what was trained; `drawn`: the fact `text_to_image` of the data; `base`: the pipeline an adapter
    is loaded into.
    """
    name, (height, width) = drawn["pipeline"], drawn["size"]
    whole, adapter = (base, [f'pipeline.load_lora_weights("{source}")']) if drawn["adapter"] else (source, [])
    code = [
        "import torch",
        f"from diffusers import {name}",
        "",
        f'pipeline = {name}.from_pretrained("{whole}", torch_dtype=torch.bfloat16).to("cuda")',
        *adapter,
        f"steps = {num_steps}",
        "sigmas = [1 - i / steps for i in range(steps)]  # the grid it was trained and measured on; the scheduler shifts it once",
        f"image = pipeline({json.dumps(drawn['prompt'], ensure_ascii=False)}, sigmas=sigmas, num_inference_steps=steps, height={height}, width={width}).images[0]",
    ]
    told = "No package but diffusers is needed" + (" (and peft, for the adapter)." if adapter else ".")
    return "## Use\n\n" + told + "\n\n```python\n" + "\n".join(code) + "\n```"
