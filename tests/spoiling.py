"""Saved pipelines to be spoilt, and what comes of loading them; for the tests of safety."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin, UNet2DModel
from traps import outcome

from hf_flowft import FlowODEScheduler, FlowPipeline, VelocityMLP
from hf_flowft.pipelines.loading import KNOWN_CLASSES

WEIGHTS = "model/diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
LABELS = {"class_labels": torch.tensor([0, 1, 2])}


def mlp(**options):
    """A small network of labelled vectors."""
    return VelocityMLP(**{"event_shape": [2], "hidden_dim": 4, "num_layers": 1, "num_classes": 3, **options})


def unet(**options):
    """A small network of grey images."""
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (4,)}
    return UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=2, attention_head_dim=2, **blocks, **options)


@pytest.fixture(scope="session")
def first_use():
    """diffusers imports the relatives of a scheduler when its first config is read; that is not the stranger's doing."""
    for cls in KNOWN_CLASSES.values():
        if issubclass(cls, SchedulerMixin):
            cls.from_config({})


@pytest.fixture
def vectors(tmp_path, first_use):
    """A saved pipeline of labelled vectors, to be spoilt."""
    FlowPipeline(mlp(), FlowODEScheduler(), {"event_shape": [2]}, LABELS).save_pretrained(tmp_path / "vectors")
    FlowPipeline.from_pretrained(tmp_path / "vectors")
    return tmp_path / "vectors"


@pytest.fixture
def images(tmp_path, first_use):
    """A saved pipeline of images with diffusers' own parts, to be spoilt."""
    FlowPipeline(unet(), FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "images")
    FlowPipeline.from_pretrained(tmp_path / "images")
    return tmp_path / "images"


def edit(path, **changes):
    """Change some entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder):
    """The pipeline, or the message of its refusal."""
    return outcome(FlowPipeline.from_pretrained, folder)
