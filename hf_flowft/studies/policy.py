"""Few-step policies on Push-T: what fine-tuning for one or two solver steps does to rollouts, over training seeds."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.robot import write_lerobot
from ..environments.base import initial_seeds
from ..environments.demonstrations import demonstrate
from ..environments.rollout import rollout
from ..pipelines import FlowPolicyPipeline
from ..results import write_json
from ..tables import markdown_table
from .cells import Cells
from .common import run_or_reuse, study_config

BASE = "pusht_base"
FINE_TUNES = {
    "plain, continued": "pusht_plain",
    "MLE, bank, N = 1": "pusht_bank",
    "MLE, self, random N": "pusht_few_steps",
}
STEPS = (1, 2, 4, 8, 16)
NUMBERS = ("success", "max_reward", "jerk")
SMALL = {
    "train.num_steps": 4,
    "eval.every": 2,
    "train.batch_size": 16,
    "train.lr_warmup_steps": 0,
    "eval.num_repeats": 2,
    "eval.episodes": 2,
    "eval.report_num_steps": [1],
}


def main(folder: Path, quick: bool = False, data: str = "", seeds: int = 3, episodes: int = 200) -> None:
    """Train, fine-tune and roll out; everything that is there is reused.

    Args: `data`: a LeRobotDataset of Push-T (folder or Hub id); empty plans 200 demonstrations; `seeds`: of training; `episodes`: test starts.
    """
    seeds, episodes, small = (1, 2, SMALL) if quick else (seeds, episodes, {})
    path = data or str(plan_demonstrations(folder / "demonstrations", 4 if quick else 200))
    cells = Cells(folder / "cells", {"data": Path(path).name, "episodes": episodes, "quick": quick})
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        common = {"data.path": path, "seed": seed, **small}
        runs = {"base": run_folder(folder, BASE, seed)}
        run_or_reuse(study_config(BASE, {**common, "output_dir": str(runs["base"])}))
        for row, name in FINE_TUNES.items():
            runs[row] = run_folder(folder, name, seed)
            bank = {"pairs.num_pairs": 32, "pairs.num_steps": 2} if quick and "MLE" in row else {}
            settings = {**common, **bank, "output_dir": str(runs[row]), "model.path": str(runs["base"] / "pipeline")}
            run_or_reuse(study_config(name, settings))
        for row, run in runs.items():
            found.setdefault(row, []).append(measure(cells, run, seed, episodes))
        write_report(folder, found, episodes)


def plan_demonstrations(folder: Path, number: int) -> Path:
    """Demonstrations of the scripted planner as a LeRobotDataset, planned once."""
    if not folder.is_dir():
        tqdm.write(f"planning {number} demonstrations of Push-T")
        episodes = demonstrate("pusht", number).episodes
        write_lerobot(folder, [episode.arrays for episode in episodes], fps=10, task="push the T onto the target")
    return folder


def run_folder(folder: Path, name: str, seed: int) -> Path:
    """Where a run lives."""
    return folder / f"{name}-{seed}"


def measure(cells: Cells, run: Path, seed: int, episodes: int) -> dict[str, Any]:
    """The rollouts of a run at each number of steps, on the same test starts for all: number of steps -> metric -> entry."""
    pipeline = FlowPolicyPipeline.from_pretrained(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)

    def roll(steps: int) -> dict[str, Any]:
        result = rollout(
            pipeline.as_policy(num_inference_steps=steps),
            "pusht",
            initial_seeds("test", episodes),
            observation_horizon=pipeline.observation_horizon,
            action_horizon=pipeline.action_horizon,
            num_envs=100,
            seed=seed,
        )
        return result.summary()

    numbers = {}
    for steps in tqdm(STEPS, desc=run.name, leave=False):
        numbers[str(steps)] = cells.get_or_run(f"{run.name}/{steps}", partial(roll, steps))
    return numbers


def over_seeds(entries: list[dict[str, Any]], steps: int, metric: str) -> tuple[float, float]:
    """Mean over the training seeds, and its standard error: between seeds where there are several, between episodes of a single one."""
    values = [entry[str(steps)][metric]["value"] for entry in entries]
    if len(values) == 1:
        return values[0], entries[0][str(steps)][metric].get("stderr", 0.0)
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def write_report(folder: Path, found: dict[str, list[dict[str, Any]]], episodes: int) -> None:
    """policy.md, results.json and the figure, from the cells so far."""
    tables = []
    for metric in NUMBERS:
        rows = [
            [row, *("{:.3f} \u00b1 {:.3f}".format(*over_seeds(entries, steps, metric)) for steps in STEPS)]
            for row, entries in found.items()
        ]
        tables.append(f"### {metric}\n\n" + markdown_table(["model", *(f"N = {s}" for s in STEPS)], rows))
    number = len(next(iter(found.values())))
    head = f"# Push-T, few steps\n\n{number} training seeds, {episodes} test starts each; mean and standard error over the seeds.\n\n"
    (folder / "policy.md").write_text(head + "\n\n".join(tables) + "\n")
    summary = {
        row: {str(s): dict(zip(("value", "stderr"), over_seeds(entries, s, metric), strict=True)) for s in STEPS}
        for metric in ("max_reward",)
        for row, entries in found.items()
    }
    write_json(folder / "results.json", {"episodes": episodes, "seeds": number, "max_reward": summary})
    print((folder / "policy.md").read_text())
