"""From settings to a run folder: build, train, evaluate on the test split, and write pipeline, results, figures and card."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ..batch import Batch
from ..cards import render_card
from ..data import DATA, FlowData
from ..data.flow_data import describe
from ..models import ViscousFlowModel
from ..objectives import Objective, ObjectiveContext
from ..pairs import PairBuilder
from ..pipelines import FlowPipeline, describe_data
from ..randomness import keyed_generator
from ..results import RESULTS_VERSION, environment, write_json
from ..velocity import FrozenVelocity, Velocity
from .batches import BankRows, Rows
from .callbacks import Callback
from .checkpoint import CheckpointError, check_same_run
from .config import RunConfig
from .models import Trainee
from .pictures import SamplePictures, run_figures
from .trainer import FlowTrainer, TrainResult


@dataclass
class RunResult:
    """What a run leaves: the pipeline with the best weights, everything it measured, and its folder."""

    pipeline: FlowPipeline
    results: dict[str, Any]
    folder: Path


class Run:
    """One run, assembled from its settings; `execute` trains it and writes its folder.

    Raises: ValueError for settings, data or models that do not fit together, before anything is written.
    """

    def __init__(self, config: RunConfig, callbacks: tuple[Callback, ...] = (), progress: bool = True):
        self.config, self.progress = config, progress
        self.folder = Path(config.output_dir)
        self.data = load_data(config)
        self.trainee: Trainee = config.model.build(self.data, self.data.num_classes, config.seed)
        self.base = self.trainee.base
        if self.base is not None:
            self.data.normalisation = self.base.normalisation
        self.reference = FrozenVelocity(self.base.model) if self.base is not None else None
        prepare_folder(self.folder, config)
        self.objective: Objective = config.objective.build(self._context())
        self.trainer = FlowTrainer(
            self.trainee.model,
            self.data,
            self.objective,
            config.train,
            config.eval,
            self.folder,
            seed=config.seed,
            rows=self._rows(),
            shift=self.shift,
            null_condition=self.null_condition,
            callbacks=(*callbacks, SamplePictures(self.data, self.folder / "figures", config.seed)),
            identity=config.as_dict(),
        )

    @property
    def shift(self) -> float:
        """The shift of the sampling grid, for training on reconstructions and for evaluation alike."""
        return float(self.trainee.scheduler.config.get("shift", 1.0))

    @property
    def null_condition(self) -> dict[str, float]:
        """What stands for "no condition": the label after the last, or a vector of zeros."""
        return {
            key: float(self.data.num_classes) if key == "class_labels" else 0.0 for key in self.data.condition_columns
        }

    @property
    def coupling(self) -> str:
        """The coupling the result will have been trained with, for its description: a base stays what it was only under the same one."""
        trained = (
            self.config.objective.coupling if hasattr(self.config.objective, "coupling") else self.config.pairs.name
        )
        before = self.base.description.get("coupling", "unknown") if self.base is not None else trained
        return trained if trained == before else f"{before}, then {trained}"

    def _context(self) -> ObjectiveContext:
        needs_variance = getattr(self.config.objective, "covariance", "") == "diagonal"
        return ObjectiveContext(
            event_shape=self.data.event_shape,
            num_steps=self.config.train.num_steps,
            reference=self.reference,
            conditions=self.base.conditions if self.base is not None else {},
            base_coupling=self.base.description.get("coupling", "unknown") if self.base is not None else "unknown",
            temperature=self.config.train.temperature,
            pairs=self.config.pairs,
            shift=self.shift,
            seed=self.config.seed,
            variance=self.data.rows("train").x_1.var(dim=0) if needs_variance else None,
            progress=self.progress,
        )

    def _rows(self) -> Rows | None:
        """A bank of pairs for reconstruction; None trains on the data set."""
        if self.objective.name != "mle" or not self.config.pairs.is_bank:
            return None
        if self.reference is None:
            raise ValueError(
                "objective mle makes its pairs with a pretrained base: set model.name to pretrained and model.path."
            )
        builder = PairBuilder(self.config.pairs, self.reference, self.shift, progress=self.progress)

        def build(version: int) -> Batch:
            generator = keyed_generator(self.config.seed, "pairs", version)
            return builder.build(self.data.rows("train"), self._all_conditions(), generator)

        return BankRows(build, self.config.pairs.refresh_epochs)

    def _all_conditions(self) -> dict[str, torch.Tensor]:
        """The base's own conditions and the training set's, as many of each: what the result is meant to serve."""
        new = self.data.rows("train").condition
        old = self.base.conditions if self.base is not None else {}
        if not old or not new:
            return new or old
        size = max(len(next(iter(new.values()))), len(next(iter(old.values()))))
        return {key: torch.cat([_cycled(old[key], size), _cycled(new[key], size)]) for key in new}

    def execute(self) -> RunResult:
        """Train and write the run folder: pipeline, results.json, config.yaml, README.md, figures, checkpoints."""
        started = time.perf_counter()
        result = self.trainer.train()
        seconds = time.perf_counter() - started
        pipeline = self._pipeline(result)
        if result.stopped or not self.trainer.accelerator.is_main_process:
            return RunResult(pipeline, {}, self.folder)
        results = self._results(result, seconds)
        pipeline.save_pretrained(self.folder / "pipeline")
        results["figures"] = run_figures(
            self.folder, self.data, self._models(result), results, self.config.seed, self.shift
        )
        write_json(self.folder / "results.json", results)
        (self.folder / "README.md").write_text(render_card(results, self.config.as_dict()))
        return RunResult(pipeline, results, self.folder)

    def _pipeline(self, result: TrainResult) -> FlowPipeline:
        description = describe_data(self.data, self.coupling)
        if self.config.train.condition_dropout or (
            self.base is not None and self.base.description.get("null_condition")
        ):
            description["null_condition"] = self.null_condition
        if self.base is not None:
            description = {
                **description,
                "value_range": self.base.description.get("value_range", description["value_range"]),
            }
        conditions = self._all_conditions()
        order = (
            torch.randperm(len(next(iter(conditions.values()))), generator=keyed_generator(self.config.seed, "kept"))
            if conditions
            else None
        )
        return FlowPipeline(
            result.model, self.trainee.scheduler, description, {key: value[order] for key, value in conditions.items()}
        )

    def _models(self, result: TrainResult) -> dict[str, Velocity]:
        """The fields that are compared: the base, where there is one, and the result."""
        base = {} if self.reference is None else {"base": self.reference.to(self.trainer.accelerator.device)}
        return {**base, "result": Velocity(result.model)}

    def _results(self, result: TrainResult, seconds: float) -> dict[str, Any]:
        evaluator = self.trainer.evaluator
        metrics = {name: evaluator.report(velocity) for name, velocity in self._models(result).items()}
        return {
            "format_version": RESULTS_VERSION,
            "name": self.folder.name,
            "method": self.objective.name,
            "model": type(result.model).__name__,
            "base": public_name(self.config.model.path) if self.base is not None else "",
            "data": dict(describe(self.data)),
            "conditions": sorted(self.data.condition_columns),
            "seed": self.config.seed,
            "selection": {
                "metric": evaluator.metric_name,
                "best_step": result.step,
                "improved": result.improved,
                "verdict": result.verdict
                if self.base is not None
                else result.verdict.replace("the base", "the untrained network"),
                **result.selection.state(),
            },
            "metrics": metrics,
            "train": {"steps": self.trainer.step, "seconds": seconds, "history": result.history},
            "certificate": _certificate(result.model),
            "environment": environment(),
            "figures": [],
        }


def _certificate(model: torch.nn.Module) -> list[str]:
    return model.certificate().sentences() if isinstance(model, ViscousFlowModel) else []


def _cycled(x: torch.Tensor, size: int) -> torch.Tensor:
    return x.repeat(-(-size // len(x)), *[1] * (x.ndim - 1))[:size]


def public_name(path: str) -> str:
    """The base as results and cards name it: a Hub id or a relative path as given, of an absolute path the last two parts."""
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


def load_data(config: RunConfig) -> FlowData:
    """The data a run names."""
    load = next(load for kind, load in DATA.values() if kind is type(config.data))
    return load(config.data)


def prepare_folder(folder: Path, config: RunConfig) -> None:
    """Make the run folder and write config.yaml into it.

    Raises: ValueError when it cannot be written, is not empty, or (when resuming) belongs to a run with other settings.
    """
    resuming = bool(config.train.resume_from_checkpoint)
    existing = folder / "config.yaml"
    if folder.is_dir() and any(folder.iterdir()) and not resuming:
        raise ValueError(
            f"the output folder {folder} is not empty: choose another output_dir, resume with --train.resume_from_checkpoint latest, or delete it."
        )
    if resuming and existing.is_file():
        try:
            check_same_run(yaml.safe_load(existing.read_text()), config.as_dict(), folder)
        except CheckpointError as error:
            raise ValueError(str(error)) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        existing.write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
    except OSError as error:
        raise ValueError(f"cannot write to the output folder {folder}: {error.strerror}.") from error
