"""Write a class-conditional MNIST flow that was trained elsewhere as a pipeline: `python scripts/convert_mnist_unet.py CHECKPOINT FOLDER`.

CHECKPOINT: safetensors of the U-Net of `FourierUNet2DModel` under the names it was trained with, which predicts data - noise on 32 x 32 images in
[-1, 1]. An example of what a checkpoint of another code base needs: a module, the names of its tensors, and what is known of its data.
"""

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from hf_flowft import FlowODEScheduler, FlowPipeline
from hf_flowft.models import FourierUNet2DModel

NAMES = {
    r"^encoders\.": "down.",
    r"^decoders\.": "up.",
    r"^midcoder\.": "middle.",
    r"\.res_blocks\.": ".blocks.",
    r"\.block1\.": ".first.",
    r"\.block2\.": ".second.",
    r"\.time_adapter\.": ".time.",
    r"\.y_adapter\.": ".label.",
    r"\.downsample\.": ".leave.",
    r"\.upsample\.": ".enter.",
    r"^init_conv\.": "input.",
    r"^final_conv\.": "output.",
    r"^time_embedder\.weights$": "embed_time.frequencies",
    r"^y_embedder\.": "embed_label.",
}
"""What a part of a name is there -> what it is here."""
DESCRIPTION = {
    "event_shape": [1, 32, 32],
    "normalisation": {"mean": 127.5, "std": 127.5},
    "is_image": True,
    "value_range": [0.0, 255.0],
    "label_names": [str(digit) for digit in range(10)],
    "coupling": "independent",
    "null_condition": {"class_labels": 10.0},
}


def convert(checkpoint: Path) -> FlowPipeline:
    """The checkpoint as a pipeline.  Raises: ValueError for a file whose tensors are not those of the network."""
    weights = {}
    for name, tensor in load_file(checkpoint).items():
        for there, here in NAMES.items():
            name = re.sub(there, here, name)
        weights[name] = -tensor if name.startswith("output.") else tensor  # here a network predicts noise - data
    model = FourierUNet2DModel(DESCRIPTION["event_shape"])
    wanted = model.state_dict()
    wrong = sorted(
        n
        for n in wanted.keys() | weights.keys()
        if getattr(wanted.get(n), "shape", 0) != getattr(weights.get(n), "shape", 1)
    )
    if wrong:
        raise ValueError(f"{checkpoint} holds another network: {len(wrong)} tensors differ, such as {wrong[0]!r}.")
    model.load_state_dict(weights)
    return FlowPipeline(model.eval(), FlowODEScheduler(), DESCRIPTION, {"class_labels": torch.arange(10)})


if __name__ == "__main__":
    convert(Path(sys.argv[1])).save_pretrained(sys.argv[2])
