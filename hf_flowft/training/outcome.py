"""What results.json says of a finished run."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache

from ..data.flow_data import describe
from ..latents import LatentFlowModel, LatentPipeline
from ..models.residual import ViscousResidual
from ..objectives import ReconstructionObjective
from ..results import RESULTS_VERSION, changes, environment, public_name
from .diversity import collapse
from .models import ViscosityConfig
from .report import report
from .step import TrainResult

if TYPE_CHECKING:
    from .run import Run


def run_results(run: Run, result: TrainResult) -> dict[str, Any]:
    """The whole of it; the report on the test split is measured here. Figures are added by who draws them."""
    evaluator, base = run.trainer.evaluator, run.base
    metrics = {name: report(evaluator, velocity) for name, velocity in run.models(result).items()}
    return {
        "format_version": RESULTS_VERSION,
        "name": run.folder.name,
        **_method(run),
        "predicts": run.objective.predicts,
        "model": network_name(result.model),
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "base": public_name(run.config.model.path) if base is not None else "",
        "base_model": _base_model(run) if base is not None else None,
        "data": dict(describe(run.data)),
        "conditions": sorted(run.data.condition_columns),
        "labels": run.data.labels("train") if "class_labels" in run.data.condition_columns else [],
        "seed": run.config.seed,
        "selection": {
            "scores": result.selection.told(),
            "metric": evaluator.metric_name,
            "split": evaluator.selection_split,
            "num_steps": evaluator.select_steps,
            "best_step": result.step,
            "improved": result.improved,
            "collapse": collapse(result.selection.scores) if base is not None else "",
            "verdict": result.verdict
            if base is not None
            else result.verdict.replace("the base", "the untrained network"),
        },
        "test_split": evaluator.test_split,
        "evaluation": evaluator.settings(),
        "metrics": metrics,
        "changes": changes(metrics["base"], metrics["result"]) if base is not None else {},
        "baselines": {},
        "train": {"steps": run.trainer.step, "seconds": result.seconds, "history": result.history},
        "certificate": _certificate(result.model),
        "environment": environment(),
        "figures": [],
        "widget": [],
    }


def _method(run: Run) -> dict[str, Any]:
    """What was done, in words and with its papers (that of MLE is also that of GAV)."""
    model, title = run.config.model, run.objective.title or run.objective.name
    trained, gav = (inspect.getdoc(type(model)) or "").partition("\n")[0], None
    if isinstance(model, ViscosityConfig):
        trained, gav = model.describe(), ReconstructionObjective.paper
        title = title if model.structure == "mlp" else f"generalized artificial viscosity (GAV) by {title}"
    papers = dict.fromkeys(paper for paper in (run.objective.paper, gav) if paper is not None)
    return {
        "method": run.objective.name,
        "method_title": title,
        "method_in_words": run.config.objective.describe(run.context),
        "trained_in_words": trained,
        "papers": [paper._asdict() for paper in papers],
    }


def _certificate(model: torch.nn.Module) -> list[str]:
    acting = getattr(model.transformer, "viscosity", None) if isinstance(model, LatentFlowModel) else model
    return acting.certified().sentences() if isinstance(acting, ViscousResidual) else []


def network_name(model: torch.nn.Module) -> str:
    """The class of the network; of a text-to-image pipeline that of its transformer."""
    return type(model.transformer if isinstance(model, LatentFlowModel) else model).__name__


def _base_model(run: Run) -> dict[str, str]:
    """Which model a run starts from: a name on the Hub at a commit, or the name of a folder, without the path to it."""
    path, revision = run.config.model.path, run.config.model.revision
    relation = "adapter" if isinstance(run.base, LatentPipeline) and run.base.adapter else "finetune"
    if Path(path).is_dir():
        return {"id": public_name(path), "revision": "", "source": "local", "relation": relation}
    index = try_to_load_from_cache(path, "model_index.json", revision=revision or "main")
    commit = Path(index).parent.name if isinstance(index, str) else revision  # snapshots/COMMIT/model_index.json
    return {"id": path, "revision": commit, "source": "hub", "relation": relation}
