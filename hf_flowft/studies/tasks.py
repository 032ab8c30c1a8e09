"""Forgetting across tasks: a policy of four Meta-World tasks learns a fifth from ten demonstrations, by each method, over training seeds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..environments.base import initial_seeds
from ..environments.demonstrations import write_demonstrations
from ..environments.rollout import rollout
from ..pipelines import FlowPolicyPipeline
from ..results import environment, write_json
from ..tables import markdown_table
from .cells import Cells
from .common import run_or_reuse, study_config
from .estimates import Estimate, over_episodes
from .policy_report import Found

OLD = (
    "metaworld/reach-v3",
    "metaworld/drawer-open-v3",
    "metaworld/button-press-topdown-v3",
    "metaworld/window-open-v3",
)
NEW = "metaworld/door-close-v3"
TASKS = (*OLD, NEW)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("metaworld_plain", {}),
    "gft_target": ("metaworld_gft", {"objective.measure": "target"}),
    "gft_replay": ("metaworld_gft", {}),
}
TITLES = {"base": "base", "plain": "plain", "gft_target": "GFT, target measure", "gft_replay": "GFT, replay"}
STEPS, MAX_STEPS, NOISE = 4, 250, 0.1
SMALL = {
    "train.num_steps": 4,
    "eval.every": 4,
    "train.batch_size": 16,
    "train.lr_warmup_steps": 0,
    "eval.max_samples": 16,
}


def main(folder: Path, quick: bool = False, seeds: int = 3, episodes: int = 50, demonstrations: int = 50) -> None:
    """Demonstrate, train and roll out; everything that is there is reused.

    Args: `seeds`: of training; `episodes`: test starts of each task; `demonstrations`: of each task, of which ten of the new one are learned from.
    """
    seeds, episodes, demonstrations = (1, 1, 14) if quick else (seeds, episodes, demonstrations)
    path = folder / "demonstrations"
    if not path.is_dir():
        write_demonstrations(path, TASKS, demonstrations, noise=NOISE)
    cells = Cells(folder / "cells", {"episodes": episodes, "demonstrations": demonstrations, "quick": quick})
    for seed in range(seeds):
        common = {"data.path": str(path), "seed": seed, **(SMALL if quick else {})}
        base = folder / f"base-{seed}"
        run_or_reuse(study_config("metaworld_base", {**common, "output_dir": str(base)}))
        roll_out_tasks(cells, base, episodes, seed)
        for name, (config, options) in METHODS.items():
            run = folder / f"{name}-{seed}"
            small = {"objective.replay_samples": 16} if quick and name == "gft_replay" else {}
            settings = {"output_dir": str(run), "model.path": str(base / "pipeline"), **options, **small}
            run_or_reuse(study_config(config, {**common, **settings}))
            roll_out_tasks(cells, run, episodes, seed)
    write_report(folder, Found(cells, seeds), episodes)


def roll_out_tasks(cells: Cells, run: Path, episodes: int, seed: int) -> None:
    """A policy in every task: cells NAME-SEED/TASK/STEPS."""
    pipeline = FlowPolicyPipeline.from_pretrained(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    for number, task in enumerate(tqdm(TASKS, desc=run.name, leave=False)):
        cells.get_or_run(f"{run.name}/{short(task)}/{STEPS}", partial(roll_out, pipeline, number, episodes, seed))


def roll_out(pipeline: FlowPolicyPipeline, task: int, episodes: int, seed: int) -> dict[str, Any]:
    """One cell: the task's test episodes."""
    result = rollout(
        pipeline.as_policy(task, num_inference_steps=STEPS),
        TASKS[task],
        initial_seeds("test", episodes),
        observation_horizon=pipeline.observation_horizon,
        action_horizon=pipeline.action_horizon,
        max_steps=MAX_STEPS,
        num_envs=episodes,
        seed=seed,
    )
    return result.summary()


def short(task: str) -> str:
    """The task without the name of the suite."""
    return task.removeprefix("metaworld/")


def old_tasks(found: Found, name: str, base: str = "") -> Estimate:
    """Success over all old tasks, or the difference to a base's on the same starts."""
    tasks = [found.episodes(name, short(task), STEPS, "success") for task in OLD]
    known = [found.episodes(base, short(task), STEPS, "success") for task in OLD] if base else []
    ours = [np.concatenate([task[seed] for task in tasks]) for seed in range(found.seeds)]
    theirs = [np.concatenate([task[seed] for task in known]) if base else 0.0 for seed in range(found.seeds)]
    return over_episodes([a - b for a, b in zip(ours, theirs, strict=True)])


def write_report(folder: Path, found: Found, episodes: int) -> None:
    """tasks.md and results.json, from the cells."""
    columns = [short(NEW), *map(short, OLD)]
    rows, numbers = [], {}
    for name, title in TITLES.items():
        rates = {task: found.estimate(name, task, STEPS, "success") for task in columns}
        kept, change = old_tasks(found, name), old_tasks(found, name, "base")
        rows.append(
            [
                title,
                *(str(rates[task]) for task in columns),
                str(kept),
                "-" if name == "base" else f"{change.value:+.3f} ± {change.stderr:.3f}",
            ]
        )
        numbers[name] = {
            "success": {task: rate._asdict() for task, rate in rates.items() if rate},
            "old_tasks": kept._asdict(),
            "change_of_old_tasks": change._asdict(),
        }
    text = (
        f"# Learning {short(NEW)} from ten demonstrations\n\n{found.seeds} training seeds, {episodes} test starts of each task, success with {STEPS} solver "
        f"steps within {MAX_STEPS} steps of the environment; mean ± standard error. No demonstration of the old tasks is used in fine-tuning: replay takes "
        "the observations the base has kept and the base's own chunks under them.\n\n"
        + markdown_table(["method", f"{short(NEW)} (new)", *columns[1:], "old tasks", "change"], rows)
        + "\n"
    )
    (folder / "tasks.md").write_text(text)
    write_json(
        folder / "results.json",
        {"seeds": found.seeds, "episodes": episodes, "methods": numbers, "environment": environment()},
    )
    print(text)
