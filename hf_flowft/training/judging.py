"""Measuring what a run, or anybody, has saved: a pipeline, or an adapter on a text-to-image pipeline, on the test split of a config's data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..couplings import may_be_independent
from ..data import FlowData, load_data
from ..latents import LatentViscosity
from ..latents.opening import family_of
from ..objectives import ReconstructionConfig
from ..pipelines import FlowPipeline
from ..velocity import Velocity
from .bases import check_fits
from .config import RunConfig
from .evaluation import Evaluator
from .latents import LoRAConfig
from .models import PretrainedConfig, ViscosityConfig
from .processes import training_device
from .report import report
from .rollouts import Rollouts


def judge(path: str, config: RunConfig) -> dict[str, dict[str, Any]]:
    """The report of a run (see `report`) for the pipeline or adapter at `path`, by the data, eval and seed of a config.

    Of captioned data `path` is a pipeline of diffusers, or an adapter or a viscosity of the config's `model.path`.
    Raises: ValueError when there is neither, or it does not fit the data.
    """
    data = load_data(config.data)
    if data.caption_column:
        return _judge_latents(path, config, data)
    pipeline = FlowPipeline.from_pretrained(path).to(training_device())
    check_fits(pipeline, path, data)
    data.adopt(pipeline.description)
    rollouts = Rollouts(config.eval, lambda _: pipeline, config.seed) if config.eval.environment else None
    learned = {"predicts": pipeline.predicts, "scheduler": pipeline.scheduler, "rollouts": rollouts}
    coupling = pipeline.description.get("coupling", "unknown")
    return report(_evaluator(data, config, pipeline.shift, coupling, **learned), Velocity(pipeline.model))


def _judge_latents(path: str, config: RunConfig, data: FlowData) -> dict[str, dict[str, Any]]:
    if isinstance(config.model, LoRAConfig) and not _is_whole(path):
        trainee = replace(config.model, start=path).build(data, 0, config.seed)
    elif isinstance(config.model, ViscosityConfig) and not _is_whole(path):
        trainee = config.model.build(data, 0, config.seed)
        trainee.model.transformer.viscosity = LatentViscosity.from_pretrained(path).to(training_device())
        trainee.reference = None
    else:
        known = data
        if not data.base_pipeline:
            fused = config.model.fused if isinstance(config.model, LoRAConfig) else []
            known = replace(data, base_pipeline=config.model.path, base_fused=fused)
        trainee = PretrainedConfig(path=path).build(known, 0, config.seed)
    velocity = trainee.reference or Velocity(trainee.model)
    return report(_evaluator(trainee.data, config, trainee.base.shift), velocity)


def _evaluator(data: FlowData, config: RunConfig, shift: float, trained: str = "unknown", **learned: Any) -> Evaluator:
    """The one of the run; `trained`: the coupling of what is judged; `learned`: what else is known of it."""
    objective = config.objective
    lowers_loss = not isinstance(objective, ReconstructionConfig) and may_be_independent(objective.coupling)
    lowers_loss = lowers_loss and may_be_independent(trained)
    return Evaluator(data, config.eval, config.seed, shift, lowers_loss=lowers_loss, **learned)


def _is_whole(path: str) -> bool:
    try:
        return bool(family_of(path))
    except ValueError:
        return False
