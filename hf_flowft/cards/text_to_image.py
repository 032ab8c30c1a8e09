"""The use of a fine-tuned text-to-image pipeline, with diffusers alone."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Added(NamedTuple):
    """What a card's code does with an adapter: lines of import, lines after the pipeline is there, and the packages it takes."""

    imports: tuple[str, ...]
    lines: tuple[str, ...]
    packages: str


ADDED = {
    "": Added((), (), "diffusers and transformers alone"),
    "lora": Added((), ('pipeline.load_lora_weights("{source}")',), "diffusers, transformers and peft alone"),
    "viscosity": Added(
        ("from hf_flowft import load_viscosity",),
        ('load_viscosity(pipeline, "{source}")',),
        "diffusers and transformers, with hf_flowft for the viscosity",
    ),
}

FUSED = ('pipeline.load_lora_weights("{source}")', "pipeline.fuse_lora()", "pipeline.unload_lora_weights()")
"""How an adapter becomes a part of the base, as in training."""


def image_usage(source: str, drawn: dict[str, Any], base: str, num_steps: int) -> str:
    """A section of code that draws an image.

    Args: `source`: the folder or repository with what was trained; `drawn`: the fact `text_to_image` of the data; `base`: the pipeline an adapter
    is loaded into; `num_steps`: of the solver.
    """
    name, (height, width) = drawn["pipeline"], drawn["size"]
    adapter = "lora" if drawn["adapter"] is True else drawn["adapter"]  # facts of earlier versions say whether only
    whole, added = base if adapter else source, ADDED[adapter or ""]
    classes, scheduler, shift = [name], [], drawn.get("replaced_shift")
    if shift is not None:
        classes.append("FlowMatchEulerDiscreteScheduler")
        scheduler = [f"pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift={shift:g})  # its own takes no grid"]
    options = {"sigmas": "sigmas", "num_inference_steps": "steps", "height": height, "width": width}
    options |= drawn.get("call", {})  # facts of earlier versions have none
    told = json.dumps(drawn["prompt"], ensure_ascii=False)
    code = [
        "import torch",
        f"from diffusers import {', '.join(sorted(classes))}",
        *added.imports,
        "",
        f'pipeline = {name}.from_pretrained("{whole}", torch_dtype=torch.bfloat16).to("cuda")',
        *(line.format(source=other) for other in drawn.get("fused", ()) for line in FUSED),
        *(line.format(source=source) for line in added.lines),
        *scheduler,
        f"steps = {num_steps}",
        "sigmas = [1 - i / steps for i in range(steps)]  # the grid it was trained and measured on; the scheduler shifts it once",
        "image = pipeline(",
        f"    {told},",
        *(f"    {key}={value}," for key, value in options.items()),
        ").images[0]",
    ]
    return f"## Use\n\nBy {added.packages}:\n\n```python\n" + "\n".join(code) + "\n```"
