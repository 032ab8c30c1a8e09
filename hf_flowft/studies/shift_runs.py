"""One fine-tune of the shift study, with everything that is recorded along its way."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conventions import time_grid
from ..data import FlowData
from ..metrics import distances, flow, modes, stability
from ..models import VelocityMLP
from ..objectives import ObjectiveContext
from ..objectives.flow_matching import FlowMatchingConfig
from ..randomness import keyed_generator
from ..sampling import generate
from ..training import Callback, EvalConfig, FlowTrainer, TrainConfig
from ..training.models import MLPConfig
from ..velocity import FrozenVelocity, Velocity
from .cells import Cells
from .shift_settings import (
    BASE_CONDITION,
    END,
    INITIAL_TEMPERATURE,
    REFERENCE_RATE,
    Method,
    Run,
    Setting,
    Sizes,
    base_data,
    target_data,
)


class Recorder(Callback):
    """Records, at every evaluation, quality on the target and on the base's domain; at the reference rate also exact W2 to the target."""

    def __init__(self, study: ShiftRuns, seed: int, exact_every: int = 0):
        self.study, self.seed, self.exact_every = study, seed, exact_every
        self.points: list[dict[str, float]] = []
        self.exact: dict[int, float] = {}
        self.last: dict[str, float] = {}

    def on_evaluate(self, trainer: FlowTrainer, score: Any, is_best: bool) -> None:
        """One point of the curve, while the model carries the evaluated weights."""
        sizes, step = self.study.sizes, trainer.step
        point = self.study.point(trainer, trainer.velocity, self.seed)
        self.points.append({"step": step, "held_out": score.value, **point})
        if self.exact_every and step and step % self.exact_every == 0:
            self.exact[step] = self.study.exact(trainer.velocity, trainer.data, self.seed, sizes.solver_steps)
        if step == sizes.num_steps:
            self.last = self.study.measure(trainer, self.seed)
            if self.exact_every:
                self.last["w2_2_steps"] = self.study.exact(trainer.velocity, trainer.data, self.seed, 2)


class Between(nn.Module):
    """(1 - share) v_base + share v_tuned: what GFT at alpha = share has as its minimiser, without training for it, at twice the evaluations."""

    def __init__(self, base: Velocity, tuned: Velocity, share: float):
        super().__init__()
        self.base, self.tuned, self.share = base, tuned, share

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The velocity: (batch, *event)."""
        return (1 - self.share) * self.base(x, t, **condition) + self.share * self.tuned(x, t, **condition)


def interpolated(base: FrozenVelocity, tuned: VelocityMLP, share: float, kind: str) -> Velocity:
    """A model between the base (share 0) and the fine-tuned one: kind `velocities` (see `Between`) or `weights` (Wortsman et al. 2022)."""
    if kind == "velocities":
        return Velocity(Between(base, Velocity(tuned), share))
    between = copy.deepcopy(tuned)
    start, end = base.model.state_dict(), tuned.state_dict()
    between.load_state_dict({key: torch.lerp(start[key], end[key], share) for key in end})
    return Velocity(between)


def quality(samples: Tensor, truth: Tensor, seed: int) -> dict[str, float]:
    """The two distances of the study: energy distance, and sliced W2 in 64 directions that depend on the seed alone."""
    directions = keyed_generator(seed, "directions")
    return {
        "energy": distances.energy_distance(samples, truth),
        "sliced": distances.sliced_wasserstein_2(samples, truth, generator=directions, num_projections=64),
    }


class ShiftRuns:
    """Pretrains, fine-tunes and measures, cell by cell; every cell that is on disk is read instead."""

    def __init__(self, out: Path, sizes: Sizes, settings: dict[str, Setting], methods: dict[str, Method]):
        self.sizes, self.settings, self.methods = sizes, settings, methods
        common = {key: value for key, value in asdict(sizes).items() if key not in ("seeds", "rates", "percent")}
        self.cells = Cells(out / "cells", {**common, "end": END, "initial_temperature": INITIAL_TEMPERATURE})

    # -------------------------------------------------------------------------------------------------------------- the base
    def base(self, conditional: bool, seed: int) -> VelocityMLP:
        """A fresh copy of the base of a seed: independent coupling, pretrained once."""
        data = base_data(conditional, seed)
        model: Any = MLPConfig(128, 3, time="concat").build(data, 0, seed).model
        name = f"base/{'conditional' if conditional else 'unconditional'}/seed{seed}"
        model.load_state_dict(self.cells.get_or_run_tensors(name, lambda: self._pretrained(model, data, seed)))
        return model

    def _pretrained(self, model: VelocityMLP, data: FlowData, seed: int) -> dict[str, Tensor]:
        steps = self.sizes.pretrain_steps
        train = TrainConfig(steps, 256, learning_rate=2e-3, lr_schedule="cosine", ema_decay=0.999)
        with redirect_stdout(io.StringIO()):
            objective = FlowMatchingConfig().build(ObjectiveContext((2,), steps))
            FlowTrainer(model, data, objective, train, EvalConfig("energy", every=steps), seed=seed).train()
        return dict(model.state_dict())

    # ----------------------------------------------------------------------------------------------------------------- a run
    def cell(self, run: Run) -> dict[str, Any]:
        """The curve of one fine-tune and what it ends with, or the curve between it and the base."""
        between = self.methods[run.method].kind in ("weights", "velocities")
        return self.cells.get_or_run(run.name, lambda: self._between(run) if between else self._finetuned(run)[0])

    def samples(self, run: Run) -> dict[str, Tensor]:
        """Points for the scatter panels: data of the target, and samples of the base and of the selected model."""
        return self.cells.get_or_run_tensors(f"samples/{run.name}", lambda: self._finetuned(run)[1])

    def is_reference(self, run: Run) -> bool:
        """Whether the exact W2 is followed along the run."""
        method = self.methods[run.method]
        annealed = method.schedule == "alpha_linear" and method.final_temperature == 0 and method.kind != "replay"
        return run.setting == "few" and annealed and run.rate == REFERENCE_RATE

    def _finetuned(self, run: Run) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The numbers of a run, and points to show."""
        recorder = Recorder(self, run.seed, 2 * self.sizes.every if self.is_reference(run) else 0)
        trainer, reference = self._trainer(run, recorder)
        with redirect_stdout(io.StringIO()):
            result = trainer.train()
        selected = self.measure(trainer, run.seed)
        if run.setting == "few":
            selected["w2"] = self.exact(trainer.velocity, trainer.data, run.seed, self.sizes.solver_steps)
        points = recorder.points[1:]
        steps, energy = [p["step"] for p in points], [p["target_energy"] for p in points]
        numbers = {
            **self._curve(recorder.points, trainer.data, run),
            "exact": recorder.exact,
            "last": recorder.last,
            "instantaneous_variance": stability.instantaneous_variance(energy, min(3, len(energy))),
            "spearman": stability.spearman_correlation(steps, energy),
            "selected_step": result.step,
            "selected": selected,
            "improved": result.improved,
        }
        return numbers, self._shown(trainer.data, reference, trainer.velocity, run.seed)

    def _between(self, run: Run) -> dict[str, Any]:
        """The curve of the models between the base and the selected model of plain fine-tuning; its "step" is the share in percent."""
        trainer, reference = self._trainer(run)
        with redirect_stdout(io.StringIO()):
            trainer.train()
        rows = []
        for percent in range(0, 101, self.sizes.percent):
            tuned: Any = trainer.model
            velocity = interpolated(reference, tuned, percent / 100, self.methods[run.method].kind)
            score = trainer.evaluator.score(velocity, percent)
            rows.append({"step": percent, "held_out": score.value, **self.point(trainer, velocity, run.seed)})
        return self._curve(rows, trainer.data, run)

    def _curve(self, rows: list[dict[str, float]], data: FlowData, run: Run) -> dict[str, Any]:
        target, base = (data.rows(split, range(self.sizes.num_samples)).x_1 for split in ("test", "base_test"))
        curve = {key: [row[key] for row in rows] for key in rows[0]}
        return {"rate": run.rate, "curve": curve, "gap": quality(base, target, run.seed)}

    def _trainer(self, run: Run, *callbacks: Callback) -> tuple[FlowTrainer, FrozenVelocity]:
        setting, method, sizes = self.settings[run.setting], self.methods[run.method], self.sizes
        data, model = target_data(setting, sizes, run.seed), self.base(setting.conditional, run.seed)
        reference = FrozenVelocity(model)
        trainer = FlowTrainer(
            model,
            data,
            method.objective(self._context(method, data, reference, run.seed)),
            self._train_config(method, setting, run.rate),
            EvalConfig(
                "energy", every=sizes.every, num_repeats=-(-256 // setting.train_size), max_samples=sizes.num_samples
            ),
            seed=run.seed,
            callbacks=callbacks,
        )
        return trainer, reference

    def _train_config(self, method: Method, setting: Setting, rate: float) -> TrainConfig:
        return TrainConfig(
            self.sizes.num_steps,
            self.sizes.batch_size,
            learning_rate=rate,
            lr_schedule="alpha" if method.kind == "warmup" else "constant",
            temperature=method.temperature,
            ema_decay=setting.ema_decay,
        )

    def _context(self, method: Method, data: FlowData, reference: FrozenVelocity, seed: int) -> ObjectiveContext:
        known = {"condition": torch.tensor([BASE_CONDITION])} if data.condition_columns else {}
        return ObjectiveContext(
            (2,), self.sizes.num_steps, reference, known, "independent", method.temperature, seed=seed, progress=False
        )

    # ---------------------------------------------------------------------------------------------------------- measurements
    def point(self, trainer: FlowTrainer, velocity: Velocity, seed: int) -> dict[str, float]:
        """Both distances to held-out samples of both domains, and the distance of samples to the nearest training sample."""
        samples, numbers = None, {}
        for domain, split in (("target", "test"), ("base", "base_test")):
            held_out = trainer.evaluator.held_out(split)
            if samples is None or held_out.condition:  # without a condition both domains are judged on the same samples
                samples = trainer.evaluator.samples(velocity, held_out, self.sizes.solver_steps, 0)
            if domain == "target":
                numbers["nearest_train"] = modes.nearest_distance(samples, trainer.data.rows("train").x_1)
            numbers |= {f"{domain}_{name}": value for name, value in quality(samples, held_out.x_1, seed).items()}
        return numbers

    def measure(self, trainer: FlowTrainer, seed: int) -> dict[str, float]:
        """Few-step quality and the shape of the paths of the weights the trainer carries now."""
        held_out = trainer.evaluator.held_out("test")
        coarse = trainer.evaluator.samples(trainer.velocity, held_out, 2, 0)
        x_0 = torch.randn(held_out.x_1[:256].shape, generator=keyed_generator(seed, "paths"))
        condition = {key: value[:256] for key, value in held_out.condition.items()}
        shape = flow.path_geometry(trainer.velocity, x_0, condition, num_steps=self.sizes.solver_steps)
        return {
            "energy_2_steps": distances.energy_distance(coarse, held_out.x_1),
            "path_length": shape.path_length,
            "excess_path_length": shape.excess_path_length,
            "dopri5_evaluations": flow.adaptive_evaluations(trainer.velocity, x_0, condition),
        }

    def exact(self, velocity: Velocity, data: FlowData, seed: int, num_steps: int) -> float:
        """Exact W2 of as many samples as held-out target data."""
        truth = data.rows("test", range(self.sizes.num_exact)).x_1
        noise = torch.randn(truth.shape, generator=keyed_generator(seed, "exact"))
        return distances.wasserstein_2(generate(velocity, noise, {}, time_grid(num_steps)), truth)

    def _shown(self, data: FlowData, base: Velocity, tuned: Velocity, seed: int) -> dict[str, Tensor]:
        truth = data.rows("test", range(self.sizes.num_samples))
        noise = torch.randn(truth.x_1.shape, generator=keyed_generator(seed, "shown"))
        drawn = {
            name: generate(velocity, noise, truth.condition, time_grid(self.sizes.solver_steps))
            for name, velocity in (("base", base), ("selected", tuned))
        }
        return {"train": data.rows("train").x_1, "target": truth.x_1, **drawn}
