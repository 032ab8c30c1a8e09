"""A network trained elsewhere: its losses are those its owner states, and fine-tuning starts from exactly it."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from hf_flowft import FlowPipeline, Velocity
from hf_flowft.models import FourierUNet2DModel

SCRIPT = Path(__file__).parents[1] / "scripts" / "convert_mnist_unet.py"
STATED = {0.05: 0.426, 0.25: 0.262, 0.5: 0.158, 0.75: 0.171, 0.95: 0.733}
"""Time -> flow-matching loss, measured with the code it was trained by."""


def build(**options):
    """A small network."""
    return FourierUNet2DModel(
        **{"event_shape": [1, 8, 8], "channels": [4, 8], "layers_per_block": 1, "num_classes": 3, **options}
    )


@pytest.fixture(scope="module")
def converted(shared_data, tmp_path_factory):
    """The stranger's checkpoint, through the folder the script writes."""
    folder = tmp_path_factory.mktemp("converted")
    convert = runpy.run_path(str(SCRIPT))["convert"]
    convert(shared_data / "models" / "fm_mnist_unet_chookcurry.safetensors").save_pretrained(folder)
    return FlowPipeline.from_pretrained(folder)


def test_the_stated_losses(converted, shared_data):
    """On 500 digits at each time, to their sampling error; a sign, a time or a layer that is wrong would be far off."""
    with np.load(shared_data / "images" / "mnist.npz") as data:
        images, labels = data["x_train"][:500], torch.from_numpy(data["y_train"][:500].astype("int64"))
    x_1 = functional.interpolate(torch.from_numpy(images)[:, None] / 127.5 - 1, size=32, mode="bilinear")
    x_0 = torch.randn(x_1.shape, generator=torch.Generator().manual_seed(0))
    velocity = Velocity(converted.model)
    for t, stated in STATED.items():
        with torch.no_grad():
            v = velocity((1 - t) * x_0 + t * x_1, t, class_labels=labels)
        losses = (v - (x_1 - x_0)).square().flatten(1).mean(dim=1)
        assert abs(losses.mean() - stated) < 4 * losses.std() / len(losses) ** 0.5 + 0.01


def test_another_checkpoint_is_refused(shared_data, tmp_path):
    """A missing tensor is named."""
    weights = load_file(shared_data / "models" / "fm_mnist_unet_chookcurry.safetensors")
    del weights["final_conv.bias"]
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds another network: 1 tensors differ, such as 'output.bias'"):
        runpy.run_path(str(SCRIPT))["convert"](tmp_path / "other.safetensors")


def test_training_does_not_touch_the_statistics(generator):
    """Under model.train() the output is that of eval, and the statistics stay: the first step is taken from the base itself."""
    model = build()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, labels = 3 + torch.randn(5, 1, 8, 8, generator=generator), torch.arange(5) % 4
    fresh = model(x, 300.0, labels).sample
    expected = model.eval()(x, 300.0, labels).sample
    assert torch.equal(fresh, expected)
    assert torch.equal(model.train()(x, 300.0, labels).sample, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"event_shape": [1, 7, 8]}, r"divisible by 2 for 2 widths, got \[1, 7, 8\]"),
        ({"time_dim": 5}, "time_dim must be even"),
        ({"channels": []}, "must be positive"),
        ({"num_classes": 0}, "must be positive"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, named):
    """By name, with what is accepted."""
    with pytest.raises(ValueError, match=named):
        build(**options)


def test_labels_are_needed(generator):
    """Without them: said."""
    with pytest.raises(ValueError, match="num_classes is 3, so class_labels must be given"):
        build()(torch.randn(2, 1, 8, 8, generator=generator), 0.0)
