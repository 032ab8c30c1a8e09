"""From settings to a run folder: build, train, evaluate on the test split, and write pipeline, results, figures and card."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import try_to_load_from_cache

from ..batch import Batch
from ..cards import write_card
from ..data import DATA, FlowData
from ..data.flow_data import describe
from ..models import ViscousFlowModel
from ..models.bases import label_rows
from ..objectives import Objective, ObjectiveContext, ReconstructionConfig, ReconstructionObjective
from ..pairs import PairBuilder
from ..pipelines import MAX_CONDITIONS, FlowPipeline, describe_data, make_pipeline
from ..randomness import keyed_generator
from ..results import RESULTS_VERSION, changes, environment, public_name, read_results, write_json
from ..sampling import draw_rows
from ..velocity import FrozenVelocity, Velocity
from .batches import BankRows, Rows
from .callbacks import Callback
from .config import RunConfig
from .folder import check_folder, write_config
from .models import Trainee, ViscosityConfig
from .pictures import SamplePictures, run_figures
from .publishing import Publisher
from .rollouts import Rollouts
from .step import NonFiniteLossError
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
            self.data.adopt(self.base.description)
        self.reference = FrozenVelocity(self.base.model) if self.base is not None else None
        check_folder(self.folder, config)
        self.publisher = Publisher(config.hub, self._pipeline)
        self.context = self._context()
        self.objective: Objective = config.objective.build(self.context)
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
            callbacks=(*callbacks, SamplePictures(self.data, self.folder / "figures", config.seed), self.publisher),
            identity=config.as_dict(),
            rollouts=Rollouts(config.eval, self._pipeline, self.shift, config.seed)
            if config.eval.environment
            else None,
        )
        if self.trainer.accelerator.is_main_process:
            write_config(self.folder, config)

    @property
    def shift(self) -> float:
        """The shift of the sampling grid, for training on reconstructions and for evaluation alike."""
        return float(self.trainee.scheduler.config.get("shift", 1.0))

    @property
    def null_condition(self) -> dict[str, float]:
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
        objective = self.config.objective
        needs_variance = isinstance(objective, ReconstructionConfig) and objective.covariance == "diagonal"
        return ObjectiveContext(
            event_shape=self.data.event_shape,
            num_steps=self.config.train.num_steps,
            reference=self.reference,
            conditions=self.base.conditions if self.base is not None else {},
            base_coupling=self.base_coupling,
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
        new = self.data.conditions("train")
        old = self.base.conditions if self.base is not None else {}
        if not old or not new:
            return new or old
        size = max(len(next(iter(new.values()))), len(next(iter(old.values()))))
        return {key: torch.cat([_cycled(old[key], size), _cycled(new[key], size)]) for key in new}

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
            return RunResult(pipeline, {}, self.folder)
        results = self._results(result, result.seconds)
        pipeline.save_pretrained(self.folder / "pipeline")
        results["figures"] = run_figures(
            self.folder, self.data, self._models(result), results, self.config.seed, self.shift
        )
        write_json(self.folder / "results.json", results)
        results = read_results(self.folder / "results.json")
        write_card(results, self.config.as_dict(), self.folder)
        self.publisher.finish(self.folder)
        return RunResult(pipeline, results, self.folder)

    def _keep(self, result: TrainResult) -> str:
        """Save the best of a run that failed, if it beat the start.  Returns: where it is, in a sentence."""
        if not result.improved:
            return "Nothing better than the start had been found by then."
        folder = self.folder / "pipeline"
        if self.trainer.accelerator.is_main_process:
            self._pipeline(result.model).save_pretrained(folder)
        return f"The best model until then, of step {result.step}, is in {folder}: a new run can start from it with --model.path."

    def _pipeline(self, model: ModelMixin, changed: bool = True) -> FlowPipeline:
        """A model of this run with what is known of it; a base that nothing beat keeps its own description and conditions."""
        if self.base is not None and not changed:
            return make_pipeline(model, self.trainee.scheduler, self.base.description, self.base.conditions)
        description = describe_data(self.data, self.coupling)
        known = self.base.description if self.base is not None else {}
        if self.config.train.condition_dropout or "null_condition" in known:
            description["null_condition"] = self.null_condition
        if "value_range" in known:
            description["value_range"] = known["value_range"]
        conditions = draw_rows(self._all_conditions(), MAX_CONDITIONS, keyed_generator(self.config.seed, "kept"))
        return make_pipeline(model, self.trainee.scheduler, description, conditions)

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
            **self._method(),
            "model": type(result.model).__name__,
            "parameters": sum(p.numel() for p in result.model.parameters()),
            "base": public_name(self.config.model.path) if self.base is not None else "",
            "base_model": _base_model(self.config.model.path, self.config.model.revision)
            if self.base is not None
            else None,
            "data": dict(describe(self.data)),
            "conditions": sorted(self.data.condition_columns),
            "labels": self.data.labels("train") if "class_labels" in self.data.condition_columns else [],
            "seed": self.config.seed,
            "selection": {
                **result.selection.state(),
                "metric": evaluator.metric_name,
                "split": evaluator.selection_split,
                "num_steps": self.config.eval.select_num_steps,
                "best_step": result.step,
                "improved": result.improved,
                "verdict": self._verdict(result),
            },
            "test_split": evaluator.test_split,
            "evaluation": evaluator.settings(),
            "metrics": metrics,
            "changes": changes(metrics["base"], metrics["result"]) if self.base is not None else {},
            "baselines": {},
            "train": {"steps": self.trainer.step, "seconds": seconds, "history": result.history},
            "certificate": _certificate(result.model),
            "environment": environment(),
            "figures": [],
        }

    def _method(self) -> dict[str, Any]:
        """What was done, in words and with its papers (that of MLE is also that of GAV)."""
        gav = ReconstructionObjective.paper if isinstance(self.config.model, ViscosityConfig) else None
        papers = dict.fromkeys(paper for paper in (self.objective.paper, gav) if paper is not None)
        return {
            "method": self.objective.name,
            "method_title": self.objective.title or self.objective.name,
            "method_in_words": self.config.objective.describe(self.context),
            "trained_in_words": (inspect.getdoc(type(self.config.model)) or "").partition("\n")[0],
            "papers": [paper._asdict() for paper in papers],
        }

    def _verdict(self, result: TrainResult) -> str:
        return result.verdict if self.base is not None else result.verdict.replace("the base", "the untrained network")


def _certificate(model: torch.nn.Module) -> list[str]:
    return model.certificate().sentences() if isinstance(model, ViscousFlowModel) else []


def _base_model(path: str, revision: str) -> dict[str, str]:
    """Which model a run starts from: a name on the Hub at a commit, or the name of a folder, without the path to it."""
    if Path(path).is_dir():
        return {"id": public_name(path), "revision": "", "source": "local", "relation": "finetune"}
    index = try_to_load_from_cache(path, "model_index.json", revision=revision or "main")
    commit = Path(index).parent.name if isinstance(index, str) else revision  # snapshots/COMMIT/model_index.json
    return {"id": path, "revision": commit, "source": "hub", "relation": "finetune"}


def _cycled(x: torch.Tensor, size: int) -> torch.Tensor:
    return x.repeat(-(-size // len(x)), *[1] * (x.ndim - 1))[:size]


def load_data(config: RunConfig) -> FlowData:
    """The data a run names."""
    load = next(load for kind, load in DATA.values() if kind is type(config.data))
    return load(config.data)
