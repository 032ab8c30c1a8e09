"""Small networks of action chunks for every kind of observation, and small data for them."""

import numpy as np
import torch
from datasets import Dataset
from tiny import network
from torch import nn

from hf_flowft import (
    ActionTransformer,
    ConditionalUNet1D,
    FlowODEScheduler,
    FlowPolicyPipeline,
    RobotConfig,
    load_robot,
    write_lerobot,
)
from hf_flowft.data import FlowData
from hf_flowft.pipelines import describe_data

SMALL = {
    ConditionalUNet1D: {"channels": [8, 16], "groups": 4, "embedding_dim": 8},
    ActionTransformer: {"hidden_dim": 8, "num_layers": 2, "num_heads": 2},
}
TWO = {"wrist": [2, 3, 32, 32], "front": [2, 3, 24, 32]}
OBSERVED = {
    "nothing": {},
    "states": {"condition_dim": 5},
    "task": {"condition_dim": 5, "num_classes": 3},
    "images": {"images": {"top": [1, 1, 32, 32]}},
    "all": {"condition_dim": 5, "num_classes": 3, "images": TWO},
    "shared": {"images": TWO, "share_image_encoder": True},
}


def build(cls, observed="states", seed=0, **options):
    """A small network with no weight left at zero."""
    torch.manual_seed(seed)
    chosen = {"event_shape": [8, 2], "image_widths": [8, 16], **SMALL[cls], **OBSERVED[observed], **options}
    return _fill(cls(**chosen)).eval()


def _fill(model):
    """The model with noise in place of weights that are zero."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def inputs(model, generator, batch=4):
    """A sample and everything the network observes."""
    config, seen = model.config, {}
    if config.num_classes:
        seen["class_labels"] = torch.randint(0, config.num_classes + 1, (batch,), generator=generator)
    if config.condition_dim:
        seen["condition"] = torch.randn(batch, config.condition_dim, generator=generator)
    for name, shape in (config.images or {}).items():
        image = torch.randint(0, 256, (batch, *shape), generator=generator, dtype=torch.uint8)
        seen[f"image_{name}"] = image
    return torch.randn(batch, *config.event_shape, generator=generator), seen


def chunks(cameras=("top",), size=32, num_classes=0) -> FlowData:
    """Straight strokes of eight steps from the origin; the state is where a stroke ends, seen twice, and a picture shows it as a bright square."""
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for split in ("train", "validation", "test"):
        ends = 2 * torch.rand(size, 2, generator=generator) - 1
        strokes = torch.linspace(0, 1, 8)[:, None] * ends[:, None] + 0.05 * torch.randn(size, 8, 2, generator=generator)
        rows = {"sample": strokes.tolist(), "condition": ends.repeat(1, 2).tolist()}
        for name in cameras:
            rows[f"image_{name}"] = [_picture(end).tolist() for end in ends]
        if num_classes:
            rows["class_labels"] = torch.randint(0, num_classes, (size,), generator=generator).tolist()
        splits[split] = Dataset.from_dict(rows)
    return FlowData(
        name="strokes",
        splits=splits,
        event_shape=(8, 2),
        condition_columns={key: key for key in rows if key != "sample"},
        facts={"source": "tests"},
    )


def _picture(end: torch.Tensor) -> torch.Tensor:
    """One grey picture: (1, 1, 32, 32)."""
    picture = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    x, y = (16 + 12 * end).long().tolist()
    picture[:, :, y - 2 : y + 3, x - 2 : x + 3] = 255
    return picture


def pusht_policy(folder) -> FlowPolicyPipeline:
    """An untrained policy of Push-T, and in `folder` the demonstrations (of random numbers) it stands to be trained on."""
    data = load_robot(RobotConfig(path=str(stand_in(folder))))
    conditions = data.rows("train").condition
    model = network(data, condition_dim=conditions["condition"].shape[1])
    return FlowPolicyPipeline(model, FlowODEScheduler(), describe_data(data, "independent"), conditions)


def stand_in(folder, tasks=("push",), cameras=()):
    """Twenty demonstrations of random numbers, in the sizes of Push-T or Meta-World by the name of the tasks, and with pictures of cameras."""
    random = np.random.default_rng(0)
    arm = tasks[0].startswith("metaworld/")
    sizes = {"observation.state": 4, "observation.environment_state": 39, "action": 4}
    shapes = sizes if arm else {"observation.state": 2, "observation.environment_state": 16, "action": 2}
    episodes = []
    for _ in range(20):
        episode = {key: random.uniform(0, 512, (20, size)).astype(np.float32) for key, size in shapes.items()}
        pictures = {key: random.integers(0, 256, (20, 96, 96, 3), dtype=np.uint8) for key in cameras}
        episodes.append(episode | pictures)
    return write_lerobot(folder, episodes, fps=80 if arm else 10, tasks=[tasks[n % len(tasks)] for n in range(20)])


def untrained(config) -> FlowPolicyPipeline:
    """The policy a run of this config would start with, with no weight left at zero."""
    data = load_robot(config.data)
    trainee = config.model.build(data, data.num_classes, 0)
    _fill(trainee.model)
    conditions = data.conditions("train")
    return FlowPolicyPipeline(trainee.model, trainee.scheduler, describe_data(data, "independent"), conditions)
