"""A small text-to-image pipeline learns a digit it has never seen from a few captioned images: by every method, with adapters and without.

The base is Stable Diffusion 3 in every part, with 2.3 million parameters in its transformer (`captions_base`), and draws the digits zero to eight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyarrow.parquet import ParquetFile

from .. import figures
from ..latents import load_viscosity
from ..randomness import keyed_generator
from ..results import environment, read_results, write_json
from ..tables import markdown_table
from ..training import load_config
from ..training.checkpoint import appearing
from .captions_base import MAX_TOKENS, SIDE, caption, read_digits, strokes, untrained_pipeline, write_captioned
from .cells import Cells
from .common import is_finished, run_or_reuse
from .estimates import Estimate, over_seeds

NEW, OLD = 9, range(9)
SHOTS, HELD_OUT = 48, 480
STEPS = (1, 2, 4, 8, 28)
LORA: dict[str, Any] = {"model.name": "lora", "model.rank": 8, "train.learning_rate": 1e-3}
GAV: dict[str, Any] = {"model.name": "viscosity", "train.learning_rate": 1e-3}
FULL: dict[str, Any] = {"model.name": "pretrained", "train.learning_rate": 2e-4}
TARGET: dict[str, Any] = {"objective.name": "gft", "objective.measure": "target"}
REPLAY: dict[str, Any] = {"objective.name": "gft", "objective.measure": "replay", "objective.replay_samples": 512}
SELF: dict[str, Any] = {
    "objective.name": "mle",
    "objective.num_steps": [1, 2, 4, 8],
    "pairs.name": "self",
    "pairs.num_pairs": 2048,
    "pairs.num_steps": 28,
    "pairs.solver": "euler",
    "eval.select_num_steps": [1, 2, 4],
}
BANK: dict[str, Any] = {
    "objective.name": "mle",
    "objective.num_steps": [4],
    "pairs.name": "best_of_k",
    "pairs.num_steps": 4,
    "pairs.solver": "euler",
    "pairs.repeats": 4,
    "eval.select_num_steps": [4],
}


@dataclass(frozen=True)
class Row:
    """A fine-tune: its title, its settings, and the row it goes on from."""

    title: str
    options: dict[str, Any] = field(default_factory=dict)
    start: str = ""


ROWS = {
    "plain": Row("plain", LORA),
    "replay": Row("GFT, replay", LORA | REPLAY),
    "prior": Row("prior preservation", LORA | {"objective.name": "prior", "objective.samples": 512}),
    "target": Row("GFT, target measure", LORA | TARGET),
    "replay_self": Row("GFT, replay, then MLE, self", LORA | SELF, "replay"),
    "mle": Row("MLE, best of 16, N = 4", LORA | BANK),
    "warmup": Row("plain, warm-up", LORA | {"train.lr_warmup_steps": 200}),
    "target_final": Row("GFT, target measure, to tau = 1", LORA | TARGET | {"train.temperature.final_temperature": 1.0}),
    "mle_gft": Row("MLE, best of 16, N = 4, anchored by GFT", LORA | BANK | {"objective.anchor_weight": 1.0}),
    "replay_huber": Row("GFT, replay, then MLE, self, pseudo-Huber", LORA | SELF | {"objective.distance": "huber"}, "replay"),
    "gav": Row("MLE + GAV (P1), best of 16, N = 4", GAV | BANK),
    "mlp_residual": Row("MLE + MLP residual, best of 16, N = 4", GAV | BANK | {"model.structure": "mlp"}),
    "full": Row("all weights, plain", FULL),
    "full_replay": Row("all weights, GFT, replay", FULL | REPLAY),
    "full_self": Row("all weights, GFT, replay, then MLE, self", FULL | SELF, "full_replay"),
}  # fmt: skip
"""In the order in which they are trained."""
COMMON: dict[str, Any] = {
    "data.name": "captioned",
    "data.resolution": 32,
    "objective.name": "fm",
    "train.batch_size": 32,
    "train.num_steps": 300,
    "train.ema_decay": 0.98,
    "eval.metric": "energy",
    "eval.every": 150,
    "eval.num_repeats": 2,
    "eval.max_samples": 128,
    "eval.select_num_steps": [28],
    "eval.report_num_steps": list(STEPS),
    "eval.path_numbers": False,
}
BASE: dict[str, Any] = {
    "model.name": "pretrained",
    "data.base_samples": 0,
    "data.validation": 0.02,
    "data.test": 0.02,
    "train.num_steps": 3000,
    "train.batch_size": 64,
    "train.learning_rate": 1e-3,
    "train.lr_schedule": "cosine",
    "train.lr_warmup_steps": 100,
    "train.ema_decay": 0.999,
    "train.condition_dropout": 0.1,
    "train.checkpoint_every": 500,
    "eval.every": 1000,
    "eval.num_repeats": 4,
    "eval.max_samples": 256,
}
SMALL: dict[str, Any] = {
    "train.num_steps": 2,
    "train.batch_size": 4,
    "train.lr_warmup_steps": 0,
    "train.checkpoint_every": 0,
    "eval.every": 2,
    "eval.select_num_steps": [2],
    "eval.max_samples": 8,
    "eval.report_num_steps": [1, 2],
}
SMALL_BANKS: dict[str, Any] = {"pairs.num_pairs": 8, "pairs.num_steps": 2, "pairs.num_candidates": 2}


def main(folder: Path, quick: bool = False, data: str = "", seeds: int = 3) -> None:
    """Train the base, fine-tune it, and write the table and pictures; everything that is there is reused.

    Args: `data`: a folder with images/mnist.npz; empty takes the small digits of scikit-learn; `seeds`: of the choice of images and of the fine-tuning.
    """
    seeds = 1 if quick else seeds
    Cells(folder / "cells", {"data": Path(data).name, "quick": quick})
    prepare(folder, data, 600 if quick else 20_000, 10 if quick else 1500)
    small = SMALL if quick else {}
    base = {"data.path": folder / "old.parquet", "model.path": folder / "untrained", "output_dir": folder / "base"}
    run(COMMON | BASE | base | small)
    for seed in range(seeds):
        for name, row in ROWS.items():
            settings = COMMON | row.options | settings_of(folder, row, seed) | {"output_dir": folder / f"{name}-{seed}"}
            banks = SMALL_BANKS if quick and row.options.get("objective.name") == "mle" else {}
            replay = {key: 8 for key in ("objective.replay_samples", "objective.samples") if quick and key in settings}
            run(settings | small | banks | replay | ({"data.base_samples": 4, "data.train_size": 4} if quick else {}))
    write_report(folder, seeds)
    draw(folder)


def prepare(folder: Path, data: str, number: int, vae_steps: int) -> None:
    """The captioned digits, old and new, the prompts of the old ones, and the pipeline with fresh weights."""
    if (folder / "untrained").is_dir():
        return
    images, labels = (x[:number] for x in read_digits(data))
    style = strokes(images, labels)
    old, new = labels != NEW, (labels == NEW).nonzero().flatten()[: SHOTS + HELD_OUT]
    write_captioned(folder / "old.parquet", images[old], labels[old], style[old])
    write_captioned(folder / "new.parquet", images[new], labels[new], style[new])
    prompts = [caption(digit, (digit + shift) % 3) for shift in range(3) for digit in OLD]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    with appearing(folder / "untrained") as place:
        untrained_pipeline(images, vae_steps).save_pretrained(place)


def settings_of(folder: Path, row: Row, seed: int) -> dict[str, Any]:
    """What a row takes from where: the new digits, the prompts of the old ones, and its start."""
    given = {"data.path": folder / "new.parquet", "data.base_prompts": folder / "prompts.txt", "data.base_samples": 128}
    given |= {"data.base_pipeline": folder / "base" / "pipeline", "data.seed": seed}
    rows = ParquetFile(folder / "new.parquet").metadata.num_rows
    spare = 1 - 1.1 * SHOTS / rows
    split = {"data.train_size": SHOTS, "data.validation": 0.45 * spare, "data.test": 0.55 * spare}
    start = folder / f"{row.start}-{seed}" / "pipeline" if row.start else folder / "base" / "pipeline"
    if row.start and row.options["model.name"] == "lora":
        model = {"model.path": folder / "base" / "pipeline", "model.start": start}
    else:
        model = {"model.path": start}
    return {**given, **split, **model, "seed": seed}


def run(settings: dict[str, Any]) -> None:
    """Execute, resume or reuse a run."""
    config = load_config(None, [f"--{key}={value}" for key, value in settings.items()])
    if not is_finished(config):
        run_or_reuse(config)


def results_of(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """What a run has measured."""
    return read_results(folder / f"{name}-{seed}" / "results.json")


def summary(folder: Path, seeds: int) -> dict[str, dict[str, Estimate]]:
    """Row -> number -> mean over the seeds and its standard error; the base is judged in every run, with the same noise."""
    found: dict[str, dict[str, Estimate]] = {}
    for name in ("base", *ROWS):
        runs = [results_of(folder, "plain" if name == "base" else name, seed) for seed in range(seeds)]
        measured = [run["metrics"]["base" if name == "base" else "result"] for run in runs]
        found[name] = {key: over_seeds([entry[key]["value"] for entry in measured]) for key in measured[0]}
        if name != "base":
            found[name]["best_step"] = over_seeds([run["selection"]["best_step"] for run in runs])
            found[name]["seconds"] = over_seeds([run["train"]["seconds"] for run in runs])
    return found


def write_report(folder: Path, seeds: int) -> None:
    """captions.md and results.json, from the runs."""
    found = summary(folder, seeds)
    counts = [n for n in STEPS if f"target/energy@{n}" in found["base"]]
    columns = {f"new, {n}": f"target/energy@{n}" for n in reversed(counts)}
    columns |= {f"old, {n}": f"base_domain/energy@{n}" for n in reversed(counts)}
    columns |= {"diversity": "diversity", "best step": "best_step", "seconds": "seconds"}
    titles = {"base": "base", **{name: row.title for name, row in ROWS.items()}}
    rows = [
        [titles[name], *(str(numbers.get(key, "-")) for key in columns.values())] for name, numbers in found.items()
    ]
    parts = [
        "# A small text-to-image pipeline learns a new digit",
        f"{SHOTS} captioned images, {seeds} seeds of images and training, mean ± standard error. Energy distance of latents within prompts, lower is "
        "better, by Euler steps: of the new digit to held-out images, and under prompts of the old ones that replay does not use to the base's own "
        "samples (28 steps).",
        markdown_table(["model", *columns], rows),
    ]
    (folder / "captions.md").write_text("\n\n".join(parts) + "\n")
    numbers = {name: {key: entry._asdict() for key, entry in row.items()} for name, row in found.items()}
    write_json(folder / "results.json", {"seeds": seeds, "rows": numbers, "environment": environment()})
    print("\n\n".join(parts))


def draw(folder: Path) -> None:
    """New and old digits by diffusers alone, from the same noise, in 28 steps and in one."""
    prompts = [caption(NEW, stroke) for stroke in (0, 1, 2, 0)] + [caption(digit, 0) for digit in (0, 2, 3, 4, 5, 7)]
    noise = torch.randn(len(prompts), 4, 8, 8, generator=keyed_generator(0, "pictures"))
    for steps in (28, 1):
        rows = {"base": pictures(folder, "", prompts, noise, steps)}
        rows |= {row.title: pictures(folder, name, prompts, noise, steps) for name, row in ROWS.items()}
        names = [prompt.removeprefix("a handwritten ").replace(", ", ",\n") for prompt in prompts]
        title = f"the same noise, {steps} step{'s' if steps > 1 else ''}"
        figures.image_rows(rows, folder / f"captions_{steps}.png", names, title)


def pictures(folder: Path, name: str, prompts: list[str], noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Images (n, 3, 32, 32) in [0, 1] of a row's first seed, or of the base."""
    from diffusers import StableDiffusion3Pipeline

    trained = ROWS[name].options["model.name"] if name else ""
    place = folder / f"{name}-0" / "pipeline"
    whole = place if trained == "pretrained" else folder / "base" / "pipeline"
    pipeline = StableDiffusion3Pipeline.from_pretrained(whole)
    if trained == "lora":
        pipeline.load_lora_weights(place)
    if trained == "viscosity":
        load_viscosity(pipeline, place)
    pipeline.set_progress_bar_config(disable=True)
    options = {"height": SIDE, "width": SIDE, "max_sequence_length": MAX_TOKENS, "guidance_scale": 1.0}
    sigmas = [1 - i / steps for i in range(steps)]  # the grid of the table
    drawn = pipeline(prompts, latents=noise, sigmas=sigmas, num_inference_steps=steps, output_type="pt", **options)
    return drawn.images.float().cpu()
