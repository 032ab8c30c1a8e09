"""The verbs of policies: demonstrate ENV, rollout PIPELINE."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_policy_verbs(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them to the console command."""
    demonstrate = verb(verbs, "demonstrate", "plan demonstrations in a simulator, as a LeRobotDataset", _demonstrate)
    demonstrate.add_argument(
        "environment", nargs="+", help="pusht, pusht-pixels or metaworld/TASK; several are the tasks of one data set"
    )
    demonstrate.add_argument("--episodes", type=int, default=200, help="successful ones of each")
    demonstrate.add_argument("--noise", type=float, default=0.0, help="on the actions, in halves of their range")
    demonstrate.add_argument("--processes", type=int, default=1, help="processes for the simulators")
    demonstrate.add_argument("--out", required=True, help="a new folder")
    rollout = verb(verbs, "rollout", "run a policy in a simulator", _rollout)
    rollout.add_argument("pipeline", help="a policy: a pipeline folder, or a repository on the Hub")
    rollout.add_argument("--env", required=True, help="pusht, pusht-pixels, kitchen or metaworld/TASK")
    rollout.add_argument("--episodes", type=int, default=100, help="test starts, the same for every policy")
    rollout.add_argument("--steps", type=int, default=16, help="solver steps of a decision")
    rollout.add_argument(
        "--scheduler",
        help="another one than its own: ode, ode:heun, sde, sde:0.5; of a network that predicts noise ddpm, ddim, dpm",
    )
    rollout.add_argument("--task", type=int, help="the task's number, for a policy of several")
    rollout.add_argument("--noise", default="", help="corruptions such as gaussian:0.02+delay:2")
    rollout.add_argument("--processes", type=int, default=1, help="processes for the simulators")
    rollout.add_argument(
        "--num-envs", type=int, default=50, help="episodes at once; a decision is made for all of them"
    )
    rollout.add_argument("--seed", type=int, default=0)
    rollout.add_argument("--video", help="a folder for a good and a bad episode")
    rollout.add_argument("--out", help="write the numbers to this JSON file")


def _demonstrate(options: argparse.Namespace, settings: list[str]) -> None:
    from .environments.demonstrations import write_demonstrations

    attempts = write_demonstrations(
        options.out, options.environment, options.episodes, noise=options.noise, processes=options.processes
    )
    for name, number in attempts.items():
        print(f"{name}: {options.episodes} demonstrations, of {number} attempts, written to {options.out}.")


def _rollout(options: argparse.Namespace, settings: list[str]) -> None:
    from .environments.base import initial_seeds
    from .environments.rollout import rollout
    from .environments.videos import film
    from .pipelines import FlowPolicyPipeline
    from .results import environment, public_name, write_json
    from .tables import metrics_table
    from .training.processes import training_device

    pipeline = FlowPolicyPipeline.from_pretrained(options.pipeline).to(training_device())
    pipeline.set_progress_bar_config(disable=True)
    seeds = initial_seeds("test", options.episodes)
    common: dict[str, Any] = {
        "observation_horizon": pipeline.observation_horizon,
        "action_horizon": pipeline.action_horizon,
        "corruption": options.noise,
        "normalisation": pipeline.description["observation_normalisation"],
        "num_envs": options.num_envs,
        "num_processes": options.processes,
        "seed": options.seed,
    }
    policy = pipeline.as_policy(options.task, options.scheduler, num_inference_steps=options.steps)
    result = rollout(policy, options.env, seeds, **common)
    metrics = result.summary()
    print(metrics_table({public_name(options.pipeline): metrics}))
    if options.out:
        facts = {"environment": options.env, "noise": options.noise, "steps": options.steps, "seed": options.seed}
        facts["scheduler"] = options.scheduler or ""
        write_json(Path(options.out), {**facts, "metrics": metrics, "versions": environment()})
    if options.video:
        for path in film(policy, result, Path(options.video), pipeline.policy["fps"], **common):
            print(path)
