"""Two-dimensional toy distributions, sampled on the spot, with an optional shift between the base's domain and the target's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from torch import Tensor

from ..choices import Choices
from ..randomness import keyed_generator
from .flow_data import FlowData

FIVE_CENTRES = ((0.0, 0.0), (2.0, 2.0), (-2.0, 2.0), (2.0, -2.0), (-2.0, -2.0))
FIVE_WEIGHTS = (0.3, 0.2, 0.2, 0.15, 0.15)
FIVE_STD = 0.1
ToyName = Literal["five_gaussians", "eight_gaussians", "moons"]


@dataclass(frozen=True)
class ToyConfig(Choices):
    """A 2-D distribution; a rotation, scale or move makes it the target of a fine-tune whose base knows the unmoved one."""

    distribution: ToyName = "five_gaussians"
    """five_gaussians: unequal weights, std 0.1; eight_gaussians: a ring of radius 2, std 0.1; moons: two half circles, std 0.07."""
    train_size: int = 4096
    """Training samples."""
    eval_size: int = 2000
    """Samples in each held-out split."""
    rotation: float = 0.0
    """Degrees by which the target is rotated against the base's domain."""
    scale: float = 1.0
    """Factor by which the target is scaled."""
    move: float = 0.0
    """Distance by which the target is moved along the first axis."""
    with_base: bool = False
    """Also make the unmoved distribution's splits, on which forgetting is measured."""
    seed: int = 0
    """Seed of the samples."""


def sample_toy(distribution: ToyName, size: int, generator: torch.Generator) -> Tensor:
    """(size, 2) samples.  Raises: ValueError for an unknown name."""
    noise = torch.randn(size, 2, generator=generator)
    if distribution == "five_gaussians":
        index = torch.multinomial(torch.tensor(FIVE_WEIGHTS), size, replacement=True, generator=generator)
        return torch.tensor(FIVE_CENTRES)[index] + FIVE_STD * noise
    if distribution == "eight_gaussians":
        angle = torch.randint(8, (size,), generator=generator) * (math.pi / 4)
        return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.1 * noise
    if distribution == "moons":
        angle = math.pi * torch.rand(size, generator=generator)
        upper = torch.rand(size, generator=generator) < 0.5
        x = torch.where(upper, angle.cos(), 1 - angle.cos())
        y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
        return 1.5 * (torch.stack([x, y], dim=1) - torch.tensor([0.5, 0.25])) + 0.07 * noise
    raise ValueError(f"unknown toy distribution {distribution!r}; choose five_gaussians, eight_gaussians or moons.")


def shift_domain(x: Tensor, rotation: float, scale: float, move: float) -> Tensor:
    """x rotated by `rotation` degrees, scaled, and moved along the first axis: (n, 2)."""
    angle = math.radians(rotation)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * x @ turn.T + torch.tensor([move, 0.0])


def _dataset(x: Tensor) -> Dataset:
    return Dataset.from_dict(
        {"sample": x.numpy().astype(np.float32)}, features=Features({"sample": Sequence(Value("float32"), 2)})
    )


def load_toy(config: ToyConfig = ToyConfig()) -> FlowData:
    """The distribution with fresh samples for each split."""
    if config.train_size < 1 or config.eval_size < 1:
        raise ValueError(
            f"train_size and eval_size must be at least 1, got {config.train_size} and {config.eval_size}."
        )
    splits = {}
    for split, size in (("train", config.train_size), ("validation", config.eval_size), ("test", config.eval_size)):
        x = sample_toy(config.distribution, size, keyed_generator(config.seed, "toy", split))
        splits[split] = _dataset(shift_domain(x, config.rotation, config.scale, config.move))
        if config.with_base:
            base = sample_toy(config.distribution, size, keyed_generator(config.seed, "toy", "base", split))
            splits[f"base_{split}"] = _dataset(base)
    facts = {
        "source": f"generated: {config.distribution}",
        "rotation": config.rotation,
        "scale": config.scale,
        "move": config.move,
    }
    return FlowData(name=config.distribution, splits=splits, event_shape=(2,), facts=facts)
