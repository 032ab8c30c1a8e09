"""Fine-tuned policies on Push-T: clean, with worse sensors and in few steps, over training seeds.

`policy_rows` says what is trained, this file trains and rolls out, `policy_report` writes what was found.
"""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from ..environments.base import initial_seeds
from ..environments.demonstrations import write_demonstrations
from ..environments.rollout import rollout
from ..pipelines import FlowPolicyPipeline
from ..training import Callback, FlowTrainer
from ..training.selection import Score
from .cells import Cells
from .common import run_or_reuse, study_config
from .policy_report import write_report
from .policy_rows import CONDITIONS, ROWS, WITH_PAIRS

SMALL = {
    "train.num_steps": 4,
    "eval.every": 4,
    "train.batch_size": 16,
    "train.lr_warmup_steps": 0,
    "eval.episodes": 2,
    "eval.report_num_steps": [1],
}
SMALL_BANK = {"pairs.num_pairs": 32, "pairs.num_steps": 1, "pairs.num_candidates": 1}
LAST = "last.safetensors"


class PolicyStudy(NamedTuple):
    """Where it lives, the demonstrations, test starts of every cell, and whether it is the small version."""

    folder: Path
    data: str
    episodes: int
    quick: bool

    def run_folder(self, name: str, seed: int) -> Path:
        """Where the run of a row lives."""
        return self.folder / f"{name}-{seed}"

    def cells(self) -> Cells:
        """The store of the rollouts."""
        settings = {"data": Path(self.data).name, "episodes": self.episodes, "quick": self.quick}
        return Cells(self.folder / "cells", settings)


def main(folder: Path, quick: bool = False, data: str = "", seeds: int = 3, episodes: int = 200, jobs: int = 1) -> None:
    """Train, fine-tune and roll out; everything that is there is reused.

    Args: `data`: a LeRobotDataset of Push-T (folder or Hub id); empty plans 200 demonstrations; `seeds`: of training; `episodes`: test starts;
    `jobs`: processes, each with one thread.
    """
    seeds, episodes = (1, 2) if quick else (seeds, episodes)
    path = data or str(plan_demonstrations(folder / "demonstrations", 4 if quick else 200))
    study = PolicyStudy(folder, path, episodes, quick)
    study.cells()
    for wave in waves():
        work = [(name, seed) for name in wave for seed in range(seeds)]
        if jobs == 1:
            for name, seed in work:
                measure(study, name, seed)
        else:
            with multiprocessing.get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as pool:
                pool.starmap(partial(measure, study), work, chunksize=1)
    for steps in ROWS["base"].steps:
        study.cells().get_or_run(f"latency/{steps}", partial(latency, study.run_folder("base", 0), steps))
    write_report(folder, ROWS, seeds, study.cells(), episodes)


def waves() -> list[list[str]]:
    """The rows in their order, cut where one starts from another of the same part: the rows of a part can be made side by side."""
    found: list[list[str]] = [[]]
    for name, row in ROWS.items():
        if row.start in found[-1]:
            found.append([])
        found[-1].append(name)
    return found


def plan_demonstrations(folder: Path, number: int) -> Path:
    """Demonstrations of the scripted planner as a LeRobotDataset, planned once."""
    if not folder.is_dir():
        tqdm.write(f"planning {number} demonstrations of Push-T")
        write_demonstrations(folder, ["pusht"], number)
    return folder


def measure(study: PolicyStudy, name: str, seed: int) -> None:
    """Train a row of a seed and roll it out, all on the same test starts: cells NAME-SEED/CONDITION/STEPS, and NAME-SEED/training."""
    row, cells = ROWS[name], study.cells()
    trained = name if row.config else row.start
    if row.config:
        cells.get_or_run(f"{name}-{seed}/training", lambda: train(study, name, seed))
    worse = [condition for condition in CONDITIONS if condition != "clean" and row.groups != ("few steps",)]
    wanted = [("clean", steps) for steps in row.steps] + [(condition, row.steps[0]) for condition in worse]
    pipeline = trained_policy(study.run_folder(trained, seed), bool(row.config and row.start))
    for condition, steps in tqdm(wanted, desc=f"{name}-{seed}", leave=False):
        roll = partial(roll_out, pipeline, condition, steps, seed, study.episodes, row.sampling)
        cells.get_or_run(f"{name}-{seed}/{condition}/{steps}", roll)


def train(study: PolicyStudy, name: str, seed: int) -> dict[str, Any]:
    """The run of a row: how long it took, and whether rollouts from validation starts prefer its end to its start."""
    row = ROWS[name]
    small = SMALL | (SMALL_BANK if row.config != "pusht_base" else {}) if study.quick else {}
    start = {"model.path": str(study.run_folder(row.start, seed) / "pipeline")} if row.start else {}
    folder = study.run_folder(name, seed)
    settings = {"data.path": study.data, "seed": seed, "output_dir": str(folder), **start, **row.options, **small}
    if row.config in WITH_PAIRS and row.options.get("pairs.name") != "independent":
        settings["pairs.cache"] = str(study.folder / "banks")
    result = run_or_reuse(study_config(row.config, settings), (KeepLast(folder),) if row.start else ())
    return {"seconds": result.results["train"]["seconds"], "improved": result.results["selection"]["improved"]}


class KeepLast(Callback):
    """Keeps the weights a run ends with: the study tells what a method does, also where the run then returns its base."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_evaluate(self, trainer: FlowTrainer, score: Score, is_best: bool) -> None:
        """The (averaged) weights of the model, at the last evaluation."""
        if score.step == trainer.config.num_steps:
            weights = {name: tensor.detach().cpu() for name, tensor in trainer.model.state_dict().items()}
            save_file(weights, self.folder / LAST)


def trained_policy(run: Path, last: bool) -> FlowPolicyPipeline:
    """The policy of a run: with the weights it ended with, or the best."""
    pipeline = FlowPolicyPipeline.from_pretrained(run / "pipeline")
    if last:
        pipeline.model.load_state_dict(load_file(run / LAST))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latency(run: Path, steps: int) -> dict[str, Any]:
    """How long the policy of a run takes for a decision: the median of an episode that is played alone."""
    entry = roll_out(trained_policy(run, last=False), "clean", steps, 0, 1, {}, num_envs=1)
    return {"milliseconds": 1e3 * entry["seconds_per_call"]["value"]}


def roll_out(
    pipeline: FlowPolicyPipeline,
    condition: str,
    steps: int,
    seed: int,
    episodes: int,
    sampling: dict[str, Any],
    num_envs: int = 100,
) -> dict[str, Any]:
    """One cell: success, reached reward and jerk of the test episodes."""
    result = rollout(
        pipeline.as_policy(num_inference_steps=steps, **sampling),
        "pusht",
        initial_seeds("test", episodes),
        observation_horizon=pipeline.observation_horizon,
        action_horizon=pipeline.action_horizon,
        corruption=CONDITIONS[condition],
        normalisation=pipeline.description["observation_normalisation"],
        num_envs=num_envs,
        seed=seed,
    )
    return result.summary()
