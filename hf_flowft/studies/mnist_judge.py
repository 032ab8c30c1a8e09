"""How good a flow of MNIST digits is: Frechet distances of features, flow-matching loss by time, likelihood."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ..conventions import time_grid
from ..likelihood import log_likelihood
from ..metrics.distances import frechet_distance
from ..metrics.flow import evaluate
from ..pipelines import FlowPipeline
from ..randomness import keyed_generator
from ..sampling import generate, in_batches
from ..solvers import integrate_adaptive, uniform_times
from ..velocity import Velocity

STEPS = (1, 2, 4, 16, 100)
TIMES = (0.05, 0.25, 0.5, 0.75, 0.95)
TOLERANCE = 1e-3
BATCH = 250
"""Samples drawn at once: larger ones leave the caches of a CPU; an adaptive solver's count depends on it."""
LOSS_IMAGES, LIKELY_IMAGES, LIKELY_STEPS = 1000, 64, 32
SIDE = 32


def read_digits(source: Path, split: str, number: int) -> tuple[Tensor, Tensor]:
    """The first images of a split, (number, 1, 32, 32) in [-1, 1] (bilinear, as the base saw them), and their labels."""
    with np.load(source) as arrays:
        images, labels = arrays[f"x_{split}"][:number], arrays[f"y_{split}"][:number]
    x = torch.from_numpy(images)[:, None] / 127.5 - 1
    return functional.interpolate(x, size=SIDE, mode="bilinear"), torch.from_numpy(labels.astype("int64"))


def write_digits(folder: Path, source: Path, number: int) -> Path:
    """The first training digits as a parquet file of images and labels, written once."""
    path = folder / "train.parquet"
    if not path.is_file():
        images, labels = read_digits(source, "train", number)
        grey = [PILImage.fromarray(image) for image in ((images[:, 0] + 1) * 127.5).round().byte().numpy()]
        features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
        folder.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"image": grey, "label": labels.tolist()}, features).to_parquet(path)
    return path


def feature_network(path: Path) -> nn.Module:
    """A digit classifier up to its last hidden layer: (n, 1, 28, 28) in [-1, 1] -> (n, 64)."""
    layers = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU()]
    network = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10))
    weights = load_file(path)
    in_order = sorted(weights, key=lambda name: (name.rpartition(".")[0], name.endswith("bias")))
    values = (weights[name] for name in in_order)
    network.load_state_dict(OrderedDict(zip(network.state_dict(), values, strict=True)))
    return network[:-1].eval()


class Judge:
    """Measures pipelines against test digits.

    Args: `digits`: an npz file of x_train, y_train, x_test, y_test; `features`: weights of `feature_network`; `num_samples`: of a distance.
    """

    def __init__(self, digits: Path, features: Path, num_samples: int):
        self.network, self.num_samples = feature_network(features), num_samples
        self.test, self.labels = read_digits(digits, "test", 10_000)
        self.truth = self.features(self.test)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Of images of 32 x 32, reduced to the 28 x 28 the classifier knows."""
        small = functional.interpolate(x.clamp(-1, 1), size=28, mode="bilinear")
        return torch.cat([self.network(part) for part in small.split(1000)])

    def floor(self) -> dict[str, Any]:
        """What as many real digits reach, against the other ones."""
        return {"frechet": frechet_distance(self.truth[: self.num_samples], self.truth[self.num_samples :])}

    def __call__(self, folder: Path, seed: int) -> dict[str, Any]:
        """Every number of a pipeline, with the noise of a seed."""
        velocity = Velocity(FlowPipeline.from_pretrained(folder).model)
        x_0 = torch.randn(self.num_samples, 1, SIDE, SIDE, generator=keyed_generator(seed, "samples"))
        condition = {"class_labels": torch.arange(self.num_samples) % 10}
        found: dict[str, Any] = {}
        for steps in tqdm(STEPS, desc=f"judging {folder.parent.name}", leave=False):
            found[f"frechet@{steps}"] = self._distance(
                generate(velocity, x_0, condition, time_grid(steps), batch_size=BATCH)
            )
        counts = []

        def solve(x: Tensor, given: dict[str, Tensor]) -> Tensor:
            solution = integrate_adaptive(velocity.field(given), x, rtol=TOLERANCE, atol=TOLERANCE)
            counts.append(solution.num_evaluations)
            return solution.x

        found["frechet@adaptive"] = self._distance(in_batches(velocity, x_0, condition, solve, batch_size=BATCH))
        found["evaluations"] = sum(counts) / len(counts)
        return found | self._losses(velocity, seed) | {"bits_per_dim": self._bits(velocity, seed)}

    def _distance(self, x: Tensor) -> float:
        return frechet_distance(self.features(x), self.truth)

    def _losses(self, velocity: Velocity, seed: int) -> dict[str, float]:
        """Flow-matching loss at each time, with the same noise for every model of a seed."""
        x_1, condition = self.test[:LOSS_IMAGES], {"class_labels": self.labels[:LOSS_IMAGES]}
        x_0 = torch.randn(x_1.shape, generator=keyed_generator(seed, "losses"))
        found = {}
        for t in TIMES:
            v = evaluate(velocity, (1 - t) * x_0 + t * x_1, t, condition)
            found[f"loss@{t}"] = (v - (x_1 - x_0)).square().mean().item()
        return found

    def _bits(self, velocity: Velocity, seed: int) -> float:
        """Bits per pixel of digits with uniform noise on their 256 levels (Theis et al. 2016): one Hutchinson probe each."""
        generator = keyed_generator(seed, "likelihood")
        x, labels = self.test[:LIKELY_IMAGES], self.labels[:LIKELY_IMAGES]
        levels = ((x + 1) * 127.5).round() + torch.rand(x.shape, generator=generator)
        x = levels / 128 - 1
        velocity.eval()
        field = velocity.field({"class_labels": labels.to(velocity.device)})
        times = uniform_times(LIKELY_STEPS, 0.0, 1.0)
        nats = log_likelihood(field, x.to(velocity.device), times, "heun", num_probes=1, generator=generator)
        return (
            (math.log2(128) - nats.mean().item() / (x[0].numel() * math.log(2))) if nats.isfinite().all() else math.nan
        )
