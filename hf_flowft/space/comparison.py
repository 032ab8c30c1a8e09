"""Base and result of a fine-tune drawn from the same noise: what the page shows, without the page."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conventions import time_grid
from ..pipelines import FlowPipeline
from ..randomness import keyed_generator
from ..results import read_results
from ..solvers import ADAPTIVE_METHODS, TABLEAUX, Field, Solution, UnsolvableError, integrate, integrate_adaptive

ADAPTIVE = "dopri5"
SOLVERS = (*TABLEAUX, ADAPTIVE)
MAX_STEPS = 64
MAX_SEED = 999_999_999
MAX_LABELS = 20
NUM_POINTS = 600
NUM_LINES = 150
LINE_TIMES = 32  # points of a line whose solver chooses its own steps
DATA_FILE = "data.npy"


@dataclass(frozen=True)
class Drawing:
    """What one model makes of the noise: `samples` (n, *event) and, for points in the plane, `lines` (times, lines, 2) from noise to sample,
    both in data units; `num_evaluations` of the network for each sample; `seconds` for all samples.
    """

    samples: Tensor
    lines: Tensor | None
    num_evaluations: int
    seconds: float


class Comparison:
    """The models of a run, side by side.

    Args: `models`: "base" (where there is one) and "result"; `results`: as in results.json; `cloud`: (n, 2) data points to show behind samples.
    Raises: ValueError when base and result make samples of different shapes.
    """

    def __init__(self, models: dict[str, FlowPipeline], results: dict[str, Any], cloud: Tensor | None = None):
        shapes = {name: pipeline.event_shape for name, pipeline in models.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"base and result cannot be compared: their samples have the shapes {shapes}.")
        self.models, self.results, self.cloud = models, results, cloud
        self.event_shape = models["result"].event_shape
        self.is_image = bool(models["result"].description.get("is_image"))

    @classmethod
    def from_folder(cls, folder: Path, base: str | Path | None = None, base_revision: str | None = None) -> Comparison:
        """The models of a folder that `write_space` made.

        Args: `base`: a folder or a repository on the Hub (at `base_revision`); None shows the result alone.
        Raises: ValueError when a pipeline, results.json or data.npy cannot be read.
        """
        models = {} if base is None else {"base": FlowPipeline.from_pretrained(base, revision=base_revision)}
        models["result"] = FlowPipeline.from_pretrained(folder / "result")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            {name: pipeline.to(device) for name, pipeline in models.items()},
            read_results(folder / "results.json"),
            read_cloud(folder / DATA_FILE),
        )

    @property
    def in_plane(self) -> bool:
        """Whether samples are points whose way can be drawn."""
        return self.event_shape == (2,)

    @property
    def labels(self) -> dict[int, str]:
        """The labels that base or result were trained under, with their names; empty without labels."""
        rows = [pipeline.conditions.get("class_labels") for pipeline in self.models.values()]
        known = [row for row in rows if row is not None]
        names = self.models["result"].description.get("label_names") or []
        found = torch.cat(known).unique().tolist() if known else []
        return {label: names[label] if label < len(names) else str(label) for label in found}

    def columns(self, labels: list[int]) -> list[int | None]:
        """The label of each column of a grid of images: each chosen label, several times when they are few."""
        wanted = 8 if math.prod(self.event_shape[1:]) <= 32 * 32 else 4
        if not self.labels:
            return [None] * wanted
        return [label for label in labels for _ in range(max(1, wanted // len(labels)))]

    def draw(self, num_steps: Any, solver: Any, seed: Any, labels: Any = ()) -> dict[str, Drawing]:
        """Every model from the same noise and under the same conditions.

        Args: `num_steps`: 1 to 64, of a fixed-step solver; `solver`: one of SOLVERS; `seed`: of the noise; `labels`: those to draw.
        Images come in rows of `columns(labels)`.  Raises: ValueError, a sentence for the page, for anything else.
        """
        steps = whole_number("number of steps", num_steps, 1, MAX_STEPS)
        seed = whole_number("seed", seed, 0, MAX_SEED)
        if solver not in SOLVERS:
            raise ValueError(f"The solver must be one of {', '.join(SOLVERS)}, got {solver!r}.")
        x_0, given = self.start(self.choose(labels), seed)
        drawings = {}
        for name, pipeline in self.models.items():
            try:
                drawings[name] = self._draw(pipeline, x_0, given, steps, solver)
            except UnsolvableError as error:
                raise ValueError(f"The {name} cannot be solved: {error}") from error
            if not bool(drawings[name].samples.isfinite().all()):
                raise ValueError(f"The {name} ran off to infinity with {solver} and {steps} steps: choose more steps.")
        return drawings

    def choose(self, labels: Any) -> list[int]:
        """The labels chosen, in order; none where the models know none.  Raises: ValueError for unknown ones, none or too many."""
        known = self.labels
        if not known:
            return []
        chosen = [int(label) if str(label).isdecimal() else label for label in labels or ()]
        unknown = [label for label in chosen if label not in known]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no label of this model; it knows {', '.join(known.values())}.")
        if not 1 <= len(chosen) <= MAX_LABELS:
            raise ValueError(f"Choose at least one label and at most {MAX_LABELS}, not {len(chosen)}.")
        return sorted(set(chosen))

    def start(self, labels: list[int], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Noise (n, *event) in model units, and the conditions of each row."""
        if self.is_image:
            rows = 4 if math.prod(self.event_shape[1:]) <= 32 * 32 else 2
            row_labels = self.columns(labels) * rows
        else:
            row_labels = [labels[i % len(labels)] if labels else None for i in range(NUM_POINTS)]
        x_0 = torch.randn(len(row_labels), *self.event_shape, generator=keyed_generator(seed, "space"))
        given = {} if row_labels[0] is None else {"class_labels": torch.tensor(row_labels)}
        stored = self.models["result"].conditions
        if "condition" in stored:
            given["condition"] = stored["condition"][_rows_with(stored, row_labels, seed)]
        return x_0, given

    def _draw(self, pipeline: FlowPipeline, x_0: Tensor, given: dict[str, Tensor], steps: int, solver: str) -> Drawing:
        velocity = pipeline.velocity()
        x_0, given = x_0.to(pipeline.device), {key: value.to(pipeline.device) for key, value in given.items()}
        with torch.no_grad():  # so that no model is charged with warming up
            velocity(x_0[:1], 0.0, **{key: value[:1] for key, value in given.items()})
        field = velocity.field(given)
        adaptive = solver in ADAPTIVE_METHODS
        times = [0.0, 1.0] if adaptive else time_grid(steps, pipeline.shift)
        started = time.perf_counter()
        solution = _solve(field, x_0, times, solver, trajectory=self.in_plane)
        samples = pipeline.normalisation.undo(solution.x).cpu()
        seconds = time.perf_counter() - started
        lines = None
        if self.in_plane:
            states = solution.trajectory[:, :NUM_LINES]
            if adaptive:
                states = _solve(field, x_0[:NUM_LINES], time_grid(LINE_TIMES), solver, trajectory=True).trajectory
            lines = pipeline.normalisation.undo(states).cpu()
        return Drawing(samples, lines, solution.num_evaluations, seconds)


@torch.no_grad()
def _solve(field: Field, x_0: Tensor, times: list[float], solver: str, trajectory: bool) -> Solution:
    method = integrate_adaptive if solver in ADAPTIVE_METHODS else integrate
    return method(field, x_0, times, solver, trajectory=trajectory)


def _rows_with(stored: dict[str, Tensor], labels: list[int | None], seed: int) -> Tensor:
    """For each row one of the stored conditions, of its label where there are labels: (n,) indices."""
    generator = keyed_generator(seed, "space", "conditions")
    everything = torch.arange(len(stored["condition"]))
    index = []
    for label in labels:
        rows = everything if label is None else everything[stored["class_labels"] == label]
        rows = rows if len(rows) else everything
        index.append(rows[torch.randint(len(rows), (1,), generator=generator)])
    return torch.cat(index)


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """A number as a page hands it over.  Raises: ValueError when it is not a whole number in [low, high]."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or value != int(value):
        got = "nothing" if value is None else repr(value)
        raise ValueError(f"The {name} must be a whole number from {low} to {high}, not {got}.")
    return int(value)


def read_cloud(path: Path) -> Tensor | None:
    """Data points (n, 2) from a .npy file; None when there is none.  Raises: ValueError when it holds something else."""
    if not path.is_file():
        return None
    try:
        points = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read the points in {path}: {error}.") from error
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold (n, 2) numbers, got shape {points.shape} of {points.dtype}.")
    return torch.from_numpy(points.astype(np.float32))
