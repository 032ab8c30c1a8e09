"""The pictures of a run, and the samples drawn while it trains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import figures
from ..batch import Batch
from ..cards.changes import in_words
from ..data import FlowData
from ..pipelines.output import to_pil
from ..randomness import keyed_generator
from ..velocity import Velocity
from .callbacks import Callback
from .samplers import Sampler

if TYPE_CHECKING:
    from .evaluation import Score
    from .trainer import FlowTrainer

NUM_IMAGES = 10
NUM_POINTS = 2000


def pictured(data: FlowData, seed: int) -> Batch:
    """The conditions shown in pictures, with fixed noise: of images with labels one a label, those the data name, or those of the first rows."""
    if _one_a_label(data):
        labels = torch.tensor(data.labels()[:NUM_IMAGES])
        x_1, condition = torch.empty(len(labels), *data.event_shape), {"class_labels": labels}
    elif data.pictured:
        condition = data.pictured
        x_1 = torch.empty(len(next(iter(condition.values()))), *data.event_shape)
    else:
        size = min(NUM_IMAGES if data.is_image else NUM_POINTS, data.counts["train"])
        rows = data.rows("train", range(size))
        x_1, condition = rows.x_1, rows.condition
    return Batch(x_1, condition, x_0=torch.randn(x_1.shape, generator=keyed_generator(seed, "pictures")))


def _one_a_label(data: FlowData) -> bool:
    return data.is_image and set(data.condition_columns) == {"class_labels"}


def can_be_shown(data: FlowData) -> bool:
    """Images and two-dimensional points have pictures."""
    return data.is_image or data.event_shape == (2,)


class SamplePictures(Callback):
    """Draws samples from the same noise at every evaluation, one row a step: figures/samples_over_training.png of a run folder.

    They are kept beside the checkpoints, so that the picture of a resumed run begins where the run began.
    """

    def __init__(self, data: FlowData, run_folder: Path, seed: int, num_steps: int = 16):
        self.data, self.num_steps = data, num_steps
        self.path = run_folder / "figures" / "samples_over_training.png"
        self.kept = run_folder / "checkpoints" / "samples_over_training.safetensors"
        self.batch = pictured(data, seed) if can_be_shown(data) else None
        self.rows: dict[int, Tensor] = {}

    def on_evaluate(self, trainer: FlowTrainer, score: Score, is_best: bool) -> None:
        """Add a row and write the picture."""
        if self.batch is None:
            return
        if score.step and not self.rows and self.kept.is_file():
            earlier = {int(step): x for step, x in load_file(self.kept).items()}
            self.rows = {step: earlier[step] for step in sorted(earlier) if step < score.step}
        x_0, condition = self.batch.x_0, self.batch.condition
        self.rows[score.step] = trainer.evaluator.sampler(trainer.velocity, x_0, condition, self.num_steps)
        self._keep()
        steps = list(self.rows)
        shown = steps if len(steps) <= 8 else [*steps[:: -(-len(steps) // 7)], steps[-1]]
        rows = {f"step {step}": self.rows[step] for step in shown}
        show_samples(rows, condition, self.data, self.path, "the same noise over training")

    def _keep(self) -> None:
        temporary = self.kept.with_suffix(".tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        save_file({str(step): x.contiguous() for step, x in self.rows.items()}, temporary)
        os.replace(temporary, self.kept)


def show_samples(rows: dict[str, Tensor], condition: dict[str, Tensor], data: FlowData, path: Path, title: str) -> None:
    """Rows of images, or panels of points; each row was drawn under `condition`."""
    if data.is_image:
        names = (
            [data.label_names[i] for i in data.labels()[:NUM_IMAGES]] if _one_a_label(data) and data.label_names else ()
        )
        figures.image_rows({name: data.to_unit(x, condition) for name, x in rows.items()}, path, names, title)
    else:
        figures.scatter_panels({name: data.normalisation.undo(x) for name, x in rows.items()}, path, title=title)


def run_figures(
    folder: Path, data: FlowData, models: dict[str, Velocity], results: dict[str, Any], seed: int, sampler: Sampler
) -> dict[str, list[Any]]:
    """Write the figures of a finished run.

    `models`: "base" (where there is one) and "result", as fields; `sampler`: how they are sampled.
    Returns: `figures`, their paths within the folder, and `widget`, prompts each with the path of an image, for the page of the Hub.
    """
    out, widget = folder / "figures", list[dict[str, str]]()
    if can_be_shown(data):
        batch = pictured(data, seed)
        rows = {
            f"{name}, {n} step{'s' if n > 1 else ''}": sampler(velocity, batch.x_0, batch.condition, n)
            for name, velocity in models.items()
            for n in sampler.steps([1, 2, 16])
        }
        show_samples(rows, batch.condition, data, out / "samples.png", "")
        widget = (
            _write_prompted(list(rows.values())[-1], batch.condition, data, out / "prompts") if data.prompts else []
        )
    history = results["train"]["history"]
    figures.curves(
        {"loss": ([e["step"] for e in history], [e["loss"] for e in history])},
        out / "loss.png",
        xlabel="step",
        ylabel="training loss",
    )
    _selection_figure(results, out / "selection.png")
    _steps_figure(results, out / "steps.png")
    return {"figures": [f"figures/{path.name}" for path in sorted(out.glob("*.png"))], "widget": widget}


def _write_prompted(samples: Tensor, condition: dict[str, Tensor], data: FlowData, out: Path) -> list[dict[str, str]]:
    """An image of its own for each prompt."""
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for i, image in enumerate(data.images(samples, condition)):
        to_pil(image[None], (0, 1))[0].save(out / f"{i}.png")
        found.append({"text": data.prompts[int(condition["prompt"][i])], "image": f"figures/prompts/{i}.png"})
    return found


def _selection_figure(results: dict[str, Any], path: Path) -> None:
    scores = results["selection"]["scores"]
    steps = [score["step"] for score in scores]
    mean = [sum(score["target"]) / len(score["target"]) for score in scores]
    series: dict[str, Any] = {"target data": (steps, mean)}
    if scores[0]["base_domain"]:
        series["the base's data (forgetting)"] = (
            steps,
            [sum(s["base_domain"]) / len(s["base_domain"]) for s in scores],
        )
    positive = all(y > 0 for _, ys in series.values() for y in ys)
    figures.curves(
        series,
        path,
        xlabel="step",
        ylabel=f"{results['selection']['metric']} (validation, lower is better)",
        log_y=positive,
    )


def _steps_figure(results: dict[str, Any], path: Path) -> None:
    """Quality against the number of solver steps, base and result, on each domain."""
    series, errors, metric = {}, {}, results["evaluation"]["metric"]
    for model, metrics in results["metrics"].items():
        for domain in ("target", "base_domain"):
            begin = f"{domain}/{metric}@"
            points = {int(k.removeprefix(begin)): v for k, v in metrics.items() if k.startswith(begin)}
            if points:
                name = f"{model}, {'target data' if domain == 'target' else 'base data'}"
                series[name] = (sorted(points), [points[n]["value"] for n in sorted(points)])
                errors[name] = [points[n].get("stderr", 0) for n in sorted(points)]
    if series:
        positive = all(y > 0 for _, ys in series.values() for y in ys)
        figures.curves(
            series,
            path,
            xlabel="solver steps",
            ylabel=in_words(metric),
            log_x=True,
            log_y=positive,
            errors=errors,
        )
