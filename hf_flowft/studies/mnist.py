"""A flow that somebody else trained, made better on its own data: class-conditional MNIST by every method, over training seeds.

The checkpoint, the digits and the network whose features the Frechet distance compares are given as one folder (`--data`): a pipeline in
`mnist_unet/` (scripts/convert_mnist_unet.py), `images/mnist.npz` and `models/mnist_feature_cnn.safetensors`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..conventions import time_grid
from ..figures import image_rows
from ..pipelines import FlowPipeline
from ..randomness import keyed_generator
from ..results import environment, write_json
from ..sampling import generate
from ..tables import markdown_table
from ..velocity import Velocity
from .cells import Cells
from .common import run_or_reuse, study_config
from .estimates import Estimate, over_seeds
from .mnist_judge import STEPS, TIMES, Judge, write_digits

OT: dict[str, Any] = {"pairs.name": "ot_output", "objective.num_steps": [4], "eval.select_num_steps": [4]}
METHODS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "plain": ("flow matching continued", "base", "mnist_unet_plain", {}),
    "gft": ("GFT, target measure", "base", "mnist_unet_gft", {}),
    "self": ("MLE, self, random N", "base", "mnist_unet_mle", {}),
    "plain_self": ("flow matching continued, then MLE, self, random N", "plain", "mnist_unet_mle", {}),
    "ot_output": ("MLE, ot_output, N = 4", "base", "mnist_unet_mle", OT),
    "viscosity": ("MLE + GAV, ot_output, N = 4", "base", "mnist_unet_mle", {"model.name": "viscosity", **OT}),
}
"""Name -> title, what it starts from, config, settings in place of the config's."""
TITLES = {"base": "base", **{name: method[0] for name, method in METHODS.items()}}
SMALL: dict[str, Any] = {"train.num_steps": 2, "eval.every": 2, "train.batch_size": 8, "eval.max_samples": 8}


def main(folder: Path, quick: bool = False, data: str = "", seeds: int = 3, num_samples: int = 1000) -> None:
    """Fine-tune and measure; everything that is there is reused.

    Args: `data`: the folder described above; `seeds`: of training and of noise; `num_samples`: of each Frechet distance.
    Raises: ValueError when something is missing in `data`.
    """
    given = Path(data)
    needed = [given / "mnist_unet", given / "images" / "mnist.npz", given / "models" / "mnist_feature_cnn.safetensors"]
    missing = [str(path) for path in needed if not data or not path.exists()]
    if missing:
        raise ValueError(f"the study mnist needs --data, a folder with {', '.join(map(str, missing))}.")
    seeds, num_samples = (1, 16) if quick else (seeds, num_samples)
    digits = write_digits(folder / "digits", needed[1], 100 if quick else 20_000)
    judge = Judge(needed[1], needed[2], num_samples)
    cells = Cells(folder / "cells", {"num_samples": num_samples, "quick": quick})
    cells.get_or_run("floor", judge.floor)
    for seed in range(seeds):
        cells.get_or_run(f"base-{seed}", partial(judge, needed[0], seed))
        for name, (_, start, config, options) in METHODS.items():
            run = folder / f"{name}-{seed}"
            source = needed[0] if start == "base" else folder / f"{start}-{seed}" / "pipeline"
            small = {**SMALL, **({"pairs.num_pairs": 16} if config == "mnist_unet_mle" else {})} if quick else {}
            settings = {"data.path": str(digits), "seed": seed, "output_dir": str(run), "model.path": str(source)}
            kept = {"pairs.cache": str(folder / "banks")} if config == "mnist_unet_mle" else {}
            run_or_reuse(study_config(config, {**settings, **options, **kept, **small}))
            cells.get_or_run(f"{name}-{seed}", partial(judge, run / "pipeline", seed))
    write_report(folder, cells, seeds, num_samples)
    draw(folder, needed[0])


def summary(cells: Cells, seeds: int) -> dict[str, dict[str, Estimate]]:
    """Row -> number -> mean over the seeds and its standard error."""
    found: dict[str, dict[str, Estimate]] = {}
    for name in TITLES:
        entries = [cells.get_or_run(f"{name}-{seed}", dict) for seed in range(seeds)]
        found[name] = {key: over_seeds([entry[key] for entry in entries]) for key in entries[0]}
    return found


def write_report(folder: Path, cells: Cells, seeds: int, num_samples: int) -> None:
    """mnist.md and results.json, from the cells."""
    found, floor = summary(cells, seeds), cells.get_or_run("floor", dict)["frechet"]
    columns = {f"{n} steps": f"frechet@{n}" for n in STEPS} | {
        "dopri5": "frechet@adaptive",
        "evaluations": "evaluations",
    }
    columns |= {f"loss at t = {t}": f"loss@{t}" for t in TIMES} | {"bits / pixel": "bits_per_dim"}

    def text(entry: Estimate) -> str:
        digits = 3 if entry.value < 10 else 1
        return f"{entry.value:.{digits}f} ± {entry.stderr:.{digits}f}"

    rows = [[TITLES[name], *(text(numbers[key]) for key in columns.values())] for name, numbers in found.items()]
    parts = [
        "# A flow of MNIST digits that somebody else trained",
        f"{seeds} seeds of training and noise, mean ± standard error. Frechet distance of classifier features, {num_samples} samples to the 10,000 test "
        f"digits (as many real digits: {floor:.1f}), by Euler steps and by dopri5; flow-matching loss by time; bits a pixel of 64 digits, uniformly dequantised, by one Hutchinson probe and 32 Heun steps.",
        markdown_table(["model", *columns], rows),
    ]
    (folder / "mnist.md").write_text("\n\n".join(parts) + "\n")
    numbers = {name: {key: entry._asdict() for key, entry in row.items()} for name, row in found.items()}
    write_json(folder / "results.json", {"seeds": seeds, "floor": floor, "rows": numbers, "environment": environment()})
    print("\n\n".join(parts))


def draw(folder: Path, base: Path) -> None:
    """Two digits of each label by base and fine-tunes of the first seed, from the same noise, in one step and in sixteen."""
    labels = torch.arange(10).repeat_interleave(2)
    x_0 = torch.randn(len(labels), 1, 32, 32, generator=keyed_generator(0, "pictures"))
    folders = {"base": base, **{name: folder / f"{name}-0" / "pipeline" for name in METHODS}}
    rows: dict[str, torch.Tensor] = {}
    for steps in (1, 16):
        for name, path in folders.items():
            velocity = Velocity(FlowPipeline.from_pretrained(path).model)
            x = generate(velocity, x_0, {"class_labels": labels}, time_grid(steps))
            rows[f"{TITLES[name]}, {steps}"] = (x / 2 + 0.5).clamp(0, 1)
    names = [str(int(label)) for label in labels]
    image_rows(rows, folder / "digits.png", names, "the same noise, one step and sixteen")
