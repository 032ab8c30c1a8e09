"""Everything a bitwise resume needs: what of a run goes into a checkpoint, how it comes back, and which settings may change between."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..objectives import GradualObjective
from . import checkpoint
from .checkpoint import CheckpointError
from .ema import copy_into
from .guards import restore_rng, rng_states
from .sharding import gather, gather_moments, scatter, scatter_moments

if TYPE_CHECKING:
    from .trainer import FlowTrainer

MAY_CHANGE = (
    "output_dir",
    "hub",
    "train.num_steps",
    "train.gradient_accumulation_steps",
    "train.checkpoint_every",
    "train.checkpoints_total_limit",
    "train.resume_from_checkpoint",
    "train.num_workers",
    "train.report_to",
    "train.log_every",
    "eval.every",
    "eval.report_num_steps",
    "eval.path_numbers",
    "eval.kid",
    "eval.clip",
    "pairs.cache",
    "eval.min_delta",
    "eval.patience",
)
"""Settings a resumed run may change without becoming another run."""
NEWER = {
    "data.bucket_step": 0,
    "data.base_pipeline": "",
    "train.augment": "",
    "train.optimizer": "adamw",
    "eval.kid": False,
    "eval.clip": "",
    "pairs.cache": "",
    "model.fused": [],
    "objective.distance": "squared",
    "model.reference_device": "",
    "model.reference_dtype": "float32",
}
"""Settings that older checkpoints do not name, and what they were there."""

BEFORE = {"energy_score": "reconstruction"}
"""What `eval.metric auto` chose in the place of a metric, for checkpoints that do not name theirs."""


def save(trainer: FlowTrainer) -> None:
    """Write `checkpoints/checkpoint-<step>` of the run folder, from the main process; every process must call it."""
    processes, config, run_folder = trainer.processes, trainer.config, trainer.output_dir
    whole = trainer.whole.state_dict()
    groups = {
        "weights": gather(trainer.weights(), whole),
        "ema": gather(trainer.ema.shadow, whole) if trainer.ema is not None else {},
        "best": gather(trainer.best_weights, whole),
        "base": gather(trainer.base_weights, whole),
        "rng": rng_states(processes.gather),
    }
    optimizer = gather_moments(trainer.optimizer.state_dict(), [whole[name] for name in trainer.trained])
    if processes.is_main:
        scaler = trainer.accelerator.scaler
        groups["rows"] = trainer.rows.tensors()
        state = {
            "step": trainer.step,
            "history": trainer.history,
            "selection": trainer.selection.state(),
            "identity": trainer.identity,
            "frozen": trainer.frozen_digest,
            "data": trainer.data.identity,
            "metric": trainer.evaluator.metric_name,
            "seconds": trainer.seconds,
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        folder = checkpoint.checkpoint_path(run_folder, trainer.step)
        checkpoint.save_checkpoint(folder, groups, optimizer, state)
        checkpoint.prune_checkpoints(run_folder, config.checkpoints_total_limit, trainer.step)
    processes.accelerator.wait_for_everyone()


def restore(trainer: FlowTrainer) -> Path | None:
    """Go on from the checkpoint that `resume_from_checkpoint` names; every process must call it.

    Returns: its folder; None for `latest` where there is none yet: the run then starts from the beginning.
    Raises: CheckpointError when it is broken, of another run, or the processes do not see the same one.
    """
    processes, run_folder, wanted = trainer.processes, trainer.output_dir, trainer.config.resume_from_checkpoint
    if wanted == "latest" and run_folder is None:
        raise CheckpointError("there is no output_dir to look in for the latest checkpoint: name one, or a checkpoint.")
    if processes.is_main and run_folder is not None:
        checkpoint.recover(run_folder)
    processes.accelerator.wait_for_everyone()
    found = checkpoint.find_checkpoint(wanted, run_folder)
    steps = processes.numbers(-1 if found is None else found[1]["step"])
    if not (steps == steps[0]).all():
        raise CheckpointError(
            f"the processes see different checkpoints in {run_folder}: it must lie where all of them can read it."
        )
    if found is None:
        _say(trainer, f"There is no checkpoint in {run_folder} yet: training starts from the beginning.")
        return None
    folder, state = found
    changes = _check(trainer, folder, state)
    weights = trainer.weights()
    copy_into(weights, scatter(checkpoint.load_tensors(folder, "weights"), weights))
    if trainer.ema is not None:
        trainer.ema.load(scatter(checkpoint.load_tensors(folder, "ema"), weights))
    moments = scatter_moments(checkpoint.load_optimizer(folder), list(trainer.trained.values()))
    trainer.optimizer.load_state_dict(moments)
    if trainer.accelerator.scaler is not None and state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.best_weights = scatter(checkpoint.load_tensors(folder, "best"), weights)
    trainer.base_weights = scatter(checkpoint.load_tensors(folder, "base"), weights)
    trainer.selection.load(state["selection"])
    trainer.step, trainer.history = state["step"], state["history"]
    trainer.seconds_before = state["seconds"]
    trainer.rows.load(checkpoint.load_tensors(folder, "rows"))
    rng = checkpoint.load_tensors(folder, "rng")
    restore_rng(rng, processes.shard.rank)
    wrote = sum(name.startswith("cpu-") for name in rng)
    if wrote != processes.count:
        changes.append(f"processes: {wrote} -> {processes.count} (the same run to rounding, not to the bit)")
    _say(trainer, f"Going on after step {trainer.step}, from {folder}. {_told(changes)}".strip())
    return folder


def _check(trainer: FlowTrainer, folder: Path, state: dict[str, Any]) -> list[str]:
    """Refuse the checkpoint of another run.  Returns: the settings that have changed and may, in words."""
    changes = check_same_run(state["identity"], trainer.identity, folder)
    metric = trainer.evaluator.metric_name
    if state.get("metric", BEFORE.get(metric, metric)) != metric:
        raise CheckpointError(
            f"{folder} was selected by {state.get('metric', BEFORE.get(metric))}, and this run would be by {metric}: name the one it was in eval.metric, "
            "or start a new run from its pipeline."
        )
    if state["data"] != trainer.data.identity:
        raise CheckpointError(
            f"the data are {trainer.data.identity}, but {folder} was written with {state['data']}: they have changed. Give the old ones "
            "(of a Hub data set: that data.revision), or start a new run."
        )
    if state["frozen"] != trainer.frozen_digest:
        raise CheckpointError(
            f"the frozen weights are not those that {folder} was trained on: the base has changed. Give the old one, or start a new run."
        )
    planned = trainer.config.num_steps
    if state["step"] > planned:
        raise CheckpointError(f"{folder} is past the end: train.num_steps is {planned}, give at least {state['step']}.")
    if trainer.processes.is_main and any(change.startswith("train.num_steps:") for change in changes):
        _warn_of_schedules(trainer)
    return changes


def _warn_of_schedules(trainer: FlowTrainer) -> None:
    """What is spread over the length of a run is spread over the new length from here on."""
    spread = [] if trainer.config.lr_schedule == "constant" else [f"the learning rate ({trainer.config.lr_schedule})"]
    if any(isinstance(module, GradualObjective) for module in trainer.objective.modules()):
        spread.append("the temperature")
    if spread:
        warnings.warn(
            f"train.num_steps has changed, and {' and '.join(spread)} follow(s) it: from here on the run is on the new schedule, "
            "but the steps before were on the old one; no uninterrupted run is equal to it.",
            stacklevel=2,
        )


def _told(changes: list[str]) -> str:
    return f"Changed: {'; '.join(changes)}." if changes else ""


def _say(trainer: FlowTrainer, text: str) -> None:
    if trainer.processes.is_main:
        tqdm.write(text)


def check_same_run(saved: dict[str, Any], now: dict[str, Any], folder: Path) -> list[str]:
    """The settings that differ between a run and the one that wrote a folder, in words; output_dir and the resuming itself are not told.

    Raises: CheckpointError naming every difference that makes it another run.
    """
    before, after = NEWER | flatten(saved), NEWER | flatten(now)
    changed = {
        key: f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }
    refused = [text for key, text in changed.items() if not key.startswith(MAY_CHANGE)]
    if refused:
        raise CheckpointError(
            f"{folder} belongs to a run with other settings ({'; '.join(refused)}). Resume with the old ones, or start a new run from its pipeline."
        )
    return [text for key, text in changed.items() if key not in ("output_dir", "train.resume_from_checkpoint")]


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; values as JSON text would have them."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
