"""From settings to a run folder: build, train, evaluate on the test split, and write pipeline, results, figures and card."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from ..batch import Batch
from ..cards import write_card
from ..conventions import Prediction
from ..data import load_data
from ..latents import LatentPipeline
from ..models.bases import label_rows
from ..models.observation import IMAGE_PREFIX
from ..objectives import (
    NoisePredictionConfig,
    Objective,
    ObjectiveContext,
    ReconstructionConfig,
)
from ..pairs import PairBuilder
from ..pipelines import MAX_CONDITIONS, describe_data, make_pipeline
from ..pipelines.denoising import named_scheduler
from ..randomness import keyed_generator
from ..results import read_results, write_json
from ..sampling import draw_rows
from ..velocity import FrozenVelocity, SharedVelocity, Velocity
from .batches import BankRows, Rows, candidates_in_batches
from .callbacks import Callback
from .checkpoint import appearing
from .config import RunConfig
from .diversity import CollapseAlarm
from .folder import check_folder, write_config
from .outcome import run_results
from .pictures import SamplePictures, run_figures
from .processes import device_of_whole_models
from .publishing import Publisher
from .rollouts import Rollouts
from .step import NonFiniteLossError
from .trainee import Trainee
from .trainer import FlowTrainer, TrainResult


@dataclass
class RunResult:
    """What a run leaves: the pipeline with the best weights (of a text-to-image model a `LatentPipeline`), everything it measured, and its folder; `stopped`:
    by a signal, with a checkpoint to go on from and without results."""

    pipeline: Any
    results: dict[str, Any]
    folder: Path
    stopped: bool = False


class Run:
    """One run, assembled from its settings; `execute` trains it and writes its folder.

    Raises: ValueError for settings, data or models that do not fit together, before anything is written.
    """

    def __init__(self, config: RunConfig, callbacks: tuple[Callback, ...] = (), progress: bool = True):
        self.config, self.progress = config, progress
        self.folder = Path(config.output_dir)
        self.data = load_data(config.data)
        self.trainee: Trainee = config.model.build(self.data, self.data.num_classes, config.seed)
        self.base = self.trainee.base
        if self.trainee.data is not None:
            self.data = self.trainee.data
        elif self.data.caption_column:
            raise ValueError(
                "only text-to-image pipelines read captions: set model.name to lora, pretrained or viscosity, or data.name to images."
            )
        elif self.base is not None:
            self.data.adopt(self.base.description)
        self.reference = self._reference()
        check_folder(self.folder, config)
        self.publisher = Publisher(config.hub, self._pipeline)
        self.context = self._context()
        self.objective: Objective = config.objective.build(self.context)
        self._require_same_kind()
        if isinstance(self.reference, SharedVelocity):
            self.objective.prefetch = False  # pairs may be drawn by the network that is being trained
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
            base_coupling=self.base_coupling,
            callbacks=(*callbacks, *self._watchers()),
            identity=config.as_dict(),
            rollouts=Rollouts(config.eval, self._pipeline, config.seed) if config.eval.environment else None,
        )
        if self.trainer.accelerator.is_main_process:
            write_config(self.folder, config)

    def _watchers(self) -> list[Callback]:
        """What every run is watched by; the diversity of actions can only be lost by who had it."""
        alarm = [CollapseAlarm()] if self.base is not None else []
        return [SamplePictures(self.data, self.folder, self.config.seed), self.publisher, *alarm]

    def _require_same_kind(self) -> None:
        """Raises: ValueError when the objective teaches something else than the base has learned."""
        taught = self.objective.predicts
        if self.base is not None and self.base.predicts != taught:
            raise ValueError(
                f"the model at {self.config.model.path} predicts the {self.base.predicts}, but the objective {self.objective.name} teaches the "
                f"{taught}: choose another objective.name, or train from scratch."
            )

    def _reference(self) -> FrozenVelocity | None:
        """The frozen base: inside of the network where the model keeps it there, otherwise a copy."""
        reference = self.trainee.reference
        if reference is None and self.base is not None:
            reference = FrozenVelocity(self.base.model)
        return None if reference is None else reference.to(device_of_whole_models())

    @property
    def scheduler(self) -> Any:
        """What the result is sampled with: what it was judged with."""
        noise = self.objective.scheduler
        return self.trainee.scheduler if noise is None else named_scheduler("ddim", noise, "noise")

    @property
    def shift(self) -> float:
        """The shift of the sampling grid, for training on reconstructions and for evaluation alike."""
        return float(self.trainee.scheduler.config.get("shift", 1.0))

    @property
    def null_condition(self) -> dict[str, float | None]:
        """What stands for "no condition": what the base was trained with, or the label after the last and a vector of zeros."""
        known = self.base.description.get("null_condition") if self.base is not None else None
        last = float(label_rows(self.trainee.model) - 1)
        return known or {key: last if key == "class_labels" else 0.0 for key in self.data.condition_columns}

    @property
    def base_coupling(self) -> str:
        """The coupling the base was trained with, as it says itself."""
        return self.base.description.get("coupling", "unknown") if self.base is not None else "unknown"

    @property
    def coupling(self) -> str:
        """The coupling a changed model has been trained with: the base's only where this run kept to it."""
        objective = self.config.objective
        trained = self.config.pairs.name if isinstance(objective, ReconstructionConfig) else objective.coupling
        return (
            trained if self.base is None or trained == self.base_coupling else f"{self.base_coupling}, then {trained}"
        )

    def _context(self) -> ObjectiveContext:
        objective, base, size = self.config.objective, self.base, self.config.train.batch_size
        diagonal = isinstance(objective, ReconstructionConfig) and objective.covariance == "diagonal"
        needed = diagonal or isinstance(objective, NoisePredictionConfig)
        x_1 = self.data.samples("train") if needed else torch.ones(2, 1)
        predicts: Prediction = base.predicts if base is not None else "velocity"
        return ObjectiveContext(
            event_shape=self.data.event_shape,
            num_steps=self.config.train.num_steps,
            reference=self.reference if predicts == "velocity" else None,
            conditions=_own_conditions(base),
            base_coupling=self.base_coupling,
            base_predicts=predicts,
            base_scheduler=self.trainee.scheduler if predicts == "noise" else None,
            temperature=self.config.train.temperature,
            pairs=self.config.pairs,
            shift=self.shift,
            seed=self.config.seed,
            variance=x_1.var(dim=0) if diagonal else None,
            extent=float(x_1.abs().max()),
            progress=self.progress,
            batch_size=self.config.eval.batch_size,
            keep=self.trainee.keep,
            candidates=lambda: candidates_in_batches(self.data, size),
        )

    def _rows(self) -> Rows | None:
        """A bank of pairs for reconstruction; None trains on the data set."""
        if self.objective.name != "mle" or not self.config.pairs.is_bank:
            return None
        if self.reference is None:
            raise ValueError(
                "objective mle makes its pairs with a pretrained base: set model.name to pretrained and model.path."
            )
        size, meaning = self.config.eval.batch_size, self.data.facts.get("encoded", "")
        builder = PairBuilder(self.config.pairs, self.reference, self.shift, size, self.progress, meaning)

        def build(version: int) -> Batch:
            generator = keyed_generator(self.config.seed, "pairs", version)
            data = self.data.rows("train")
            seen = any(key.startswith(IMAGE_PREFIX) for key in data.condition)  # images are in no base's conditions
            return builder.build(data, data.condition if seen else self._all_conditions(), generator)

        return BankRows(build, self.config.pairs.refresh_epochs)

    def _all_conditions(self) -> dict[str, torch.Tensor]:
        """The base's own conditions and the training set's, as many of each: what the result is meant to serve. Images are too large to be kept."""
        known = self.base.conditions if self.base is not None else {}
        old = {key: value for key, value in known.items() if not key.startswith(IMAGE_PREFIX)}
        new = self.data.conditions(
            "train", [key for key in self.data.condition_columns if not key.startswith(IMAGE_PREFIX)]
        )
        if not old or not new:
            return new or old
        size = max(len(next(iter(new.values()))), len(next(iter(old.values()))))
        return {key: torch.cat([_cycled(old[key], size), _cycled(new[key], size)]) for key in new}

    @cached_property
    def kept_conditions(self) -> dict[str, torch.Tensor]:
        """The conditions that are saved with the pipeline."""
        return draw_rows(self._all_conditions(), MAX_CONDITIONS, keyed_generator(self.config.seed, "kept"))

    def execute(self) -> RunResult:
        """Train and write the run folder: pipeline, results.json, config.yaml, README.md, figures, checkpoints.

        Raises: NonFiniteLossError, after the pipeline with the best weights until then has been written; the others of `FlowTrainer.train`.
        """
        try:
            result = self.trainer.train()
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error} {self._keep(error.result)}", error.result) from error
        pipeline = self._pipeline(result.model, result.improved)
        if result.stopped or not self.trainer.accelerator.is_main_process:
            return RunResult(pipeline, {}, self.folder, result.stopped)
        with appearing(self.folder / "pipeline") as folder:
            pipeline.save_pretrained(folder)
        results = run_results(self, result)
        results |= run_figures(
            self.folder, self.data, self.models(result), results, self.config.seed, self.trainer.evaluator.sampler
        )
        results["figures"] += self._videos(result)
        write_json(self.folder / "results.json", results)
        results = read_results(self.folder / "results.json")
        write_card(results, self.config.as_dict(), self.folder)
        self.publisher.finish(self.folder)
        return RunResult(pipeline, results, self.folder)

    def _videos(self, result: TrainResult) -> list[str]:
        """A good and a bad episode of a policy, as figures."""
        rollouts = self.trainer.evaluator.rollouts
        if not isinstance(rollouts, Rollouts):
            return []
        paths = rollouts.film(Velocity(result.model), self.config.eval.select_num_steps[0], self.folder / "figures")
        return [f"figures/{path.name}" for path in paths]

    def _keep(self, result: TrainResult) -> str:
        """Save the best of a run that failed, if it beat the start.  Returns: where it is, in a sentence."""
        if not result.improved:
            return "Nothing better than the start had been found by then."
        folder = self.folder / "pipeline"
        if self.trainer.accelerator.is_main_process:
            with appearing(folder) as temporary:
                self._pipeline(result.model).save_pretrained(temporary)
        return f"The best model until then, of step {result.step}, is in {folder}: a new run can start from it with --model.path."

    def _pipeline(self, model: ModelMixin, changed: bool = True) -> Any:
        """A model of this run with what is known of it; a base that nothing beat keeps its own description and conditions."""
        if self.base is not None and not changed:
            return self._made(model, self.trainee.scheduler, self.base.description, self.base.conditions)
        description = describe_data(self.data, self.coupling)
        known = self.base.description if self.base is not None else {}
        if self.config.train.condition_dropout or "null_condition" in known:
            description["null_condition"] = self.null_condition
        if "value_range" in known:
            description["value_range"] = known["value_range"]
        if self.objective.predicts != "velocity":
            description["predicts"] = self.objective.predicts
        return self._made(model, self.scheduler, description, self.kept_conditions)

    def _made(self, model: ModelMixin, scheduler: Any, description: dict[str, Any], conditions: Any) -> Any:
        if isinstance(self.base, LatentPipeline):
            return self.base.renewed(model, description, conditions)
        return make_pipeline(model, scheduler, description, conditions)

    def models(self, result: TrainResult) -> dict[str, Velocity]:
        """The fields that are compared: the base, where there is one, and the result."""
        base = {} if self.reference is None else {"base": self.reference.to(self.trainer.accelerator.device)}
        return {**base, "result": Velocity(result.model)}


def _own_conditions(base: Any) -> dict[str, torch.Tensor] | None:
    """Conditions the base was trained under, where they are kept; {} where there is no base."""
    if base is None:
        return {}
    networks = [base.model.config, base.model.config.get("base") or {}]
    return None if any(config.get("images") for config in networks) else base.conditions


def _cycled(x: torch.Tensor, size: int) -> torch.Tensor:
    return x.repeat(-(-size // len(x)), *[1] * (x.ndim - 1))[:size]
