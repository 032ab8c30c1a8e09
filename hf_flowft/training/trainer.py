"""The one training loop: every objective, coupling, model and data set goes through `FlowTrainer`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from ..batch import Batch
from ..couplings import may_be_independent
from ..data import FlowData
from ..digests import tensors_digest
from ..objectives import Logs, Objective
from ..randomness import keyed_generator, keyed_seed
from ..velocity import ParkedVelocity, Velocity
from . import resume
from .batches import (
    Augmentation,
    BankRows,
    ConditionDropout,
    Rows,
    SampleOrder,
    drawn_batches,
    require_free_nulls,
    training_rows,
)
from .callbacks import Callback
from .checkpoint import CheckpointError, checkpoint_path, list_checkpoints
from .ema import EMA, copy_into
from .evaluation import Evaluator, SampleMetric
from .guards import private_global_rng, stop_signals
from .optimizers import make_optimizer
from .processes import Processes
from .selection import Selection
from .settings import EvalConfig, TrainConfig
from .sharding import divide, gather
from .step import NonFiniteLossError, TrainResult, TrainStep


class FlowTrainer:
    """Fine-tunes (or pretrains) a flow model and returns the best of what it saw, the base included.

    Args:
        model: any diffusers-style flow model, or a plain `nn.Module` v(x, t, **condition); what requires gradients is trained.
        data: its `train` split is trained on, `validation` selects, `base_validation` measures forgetting.
        objective: the loss; any object that obeys `Objective`.
        train, evaluation: settings; output_dir: where checkpoints go, None writes nothing.
        seed: of batch order, noise, times and evaluation noise; shift: of the sampler's grid.
        rows: where training batches come from instead of the training split, e.g. `BankRows` of pairs.
        null_condition: null values for `condition_dropout`; base_coupling: that of the base, whose loss says nothing when it is not independent.
        features, metric, rollouts: for the evaluation, see `Evaluator`.
        callbacks: objects that watch the run; identity: the resolved settings of the run, kept in checkpoints so that resuming under others is refused.
    """

    def __init__(
        self,
        model: nn.Module,
        data: FlowData,
        objective: Objective,
        train: TrainConfig = TrainConfig(),
        evaluation: EvalConfig = EvalConfig(),
        output_dir: str | Path | None = None,
        *,
        seed: int = 0,
        rows: Rows | None = None,
        shift: float = 1.0,
        null_condition: dict[str, float | None] | None = None,
        base_coupling: str = "unknown",
        features: Callable[[Tensor], Tensor] | None = None,
        metric: SampleMetric | None = None,
        rollouts: Callable[[Velocity, str, int, int], list[float]] | None = None,
        callbacks: Sequence[Callback] = (),
        identity: dict[str, Any] | None = None,
    ):
        for given, kind, how in ((data, FlowData, "from_tensors makes one"), (objective, Objective, "build it first")):
            if not isinstance(given, kind):
                raise ValueError(f"FlowTrainer takes a {kind.__name__}, got a {type(given).__name__}: {how}.")
        self.model, self.data, self.config, self.seed = model, data, train, seed
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.callbacks = callbacks
        settings = {"train": asdict(train), "eval": asdict(evaluation)}
        self.identity = identity or {"seed": seed, "objective": objective.name, **settings}
        self.processes = Processes(train, self.output_dir, model)
        self.accelerator = self.processes.accelerator
        self.rows = rows if rows is not None else training_rows(data, train.num_workers)
        self.dropout = self._condition_dropout(objective, null_condition or {}) if train.condition_dropout else None
        self.augmentation = Augmentation(train.augment, data) if train.augment else None
        unpaired = may_be_independent(base_coupling) and not isinstance(self.rows, BankRows)
        learned = (objective.predicts, objective.scheduler, objective.lowers_loss and unpaired)
        self.evaluator = Evaluator(data, evaluation, seed, shift, features, metric, rollouts, *learned)
        self.selection = Selection(evaluation)
        self.step, self.history = 0, list[dict[str, float]]()
        self.seconds_before, self.started = 0.0, time.perf_counter()
        self._saved: Path = None
        self._build(objective)

    def _condition_dropout(self, objective: Objective, null_condition: dict[str, float | None]) -> ConditionDropout:
        if not objective.drops_conditions:
            raise ValueError(
                f"train.condition_dropout does not go with {objective.name}, whose pairs were made under their conditions: set it to 0."
            )
        require_free_nulls(self.data, null_condition)
        return ConditionDropout(self.config.condition_dropout, null_condition)

    def _build(self, objective: Objective) -> None:
        if self.config.gradient_checkpointing:
            if not getattr(self.model, "_supports_gradient_checkpointing", False):
                raise ValueError(
                    f"{type(self.model).__name__} cannot recompute; set train.gradient_checkpointing to false."
                )
            self.model.enable_gradient_checkpointing()  # type: ignore[operator]
        self.objective = objective
        self.whole = TrainStep(Velocity(self.model), objective)
        if not any(p.requires_grad for p in self.whole.parameters()):
            raise ValueError("no parameter of the model requires gradients: there is nothing to train.")
        device, is_divided = self.accelerator.device, self.processes.divided
        step = divide(self.whole, device, self.processes.count) if is_divided else self.whole.to(device)
        self.trained = {name: p for name, p in step.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(self.config, list(self.trained.values()), is_divided)
        self.ema = EMA(self.trained, self.config.ema_decay, self.config.ema_mode) if self.config.ema_decay else None
        self.velocity = self.whole.velocity
        self.train_step = self.accelerator.prepare_model(step, device_placement=False, evaluation_mode=is_divided)
        scaled = self.accelerator.prepare_optimizer(optimizer)
        self.optimizer = scaled if self.config.mixed_precision == "fp16" else optimizer  # the wrapper searches the disk

    def train(self) -> TrainResult:
        """Train, evaluate along the way, and load the best weights into the model.

        Raises: CheckpointError when a checkpoint cannot be resumed, or would be mixed with those of another run; NonFiniteLossError with
        the step and rows; ValueError from objective and data.
        """
        self.started, shard = time.perf_counter(), self.processes.shard
        if self.config.report_to:
            self.accelerator.init_trackers("hf_flowft", config={})
        with private_global_rng(keyed_seed(self.seed, "global", shard.rank)), stop_signals() as stop:
            if self.config.resume_from_checkpoint:
                self._saved = resume.restore(self)
            elif self.output_dir is not None and list_checkpoints(self.output_dir):
                raise CheckpointError(
                    f"{self.output_dir} holds checkpoints of an earlier run: resume it with resume_from_checkpoint latest, or choose another output_dir."
                )
            self.order = SampleOrder(len(self.rows), self.config.batch_size, self.seed, shard)
            if not self.selection.scores:
                self._evaluate()
            changes = (self.dropout, self.augmentation)
            batches = drawn_batches(self.rows, self.order, self.objective, self.step, self.seed, *changes)
            stopped = self._loop(batches, stop)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if stopped and self.output_dir is None:  # no checkpoint: a part of a run must not pass for a whole one
            raise KeyboardInterrupt
        result = self._finish(stopped)
        if self.processes.is_main:
            tqdm.write("Stopped: go on with --train.resume_from_checkpoint latest." if stopped else result.verdict)
        return result

    def _loop(self, batches: Iterator[Batch], stop: threading.Event) -> bool:
        quiet = None if self.processes.is_main else True
        with tqdm(total=self.config.num_steps, initial=self.step, desc=self.objective.name, disable=quiet) as bar:
            self.train_step.train()
            while self.step < self.config.num_steps and not self.selection.exhausted:
                logs = self._optimise(next(batches))
                self.step += 1
                bar.update()
                if self.step % self.config.log_every == 0 or self.step == self.config.num_steps:
                    self._log(logs, bar)
                if self.step % self.evaluator.config.every == 0 or self.step == self.config.num_steps:
                    self._evaluate()
                every, stopping = self.config.checkpoint_every, self.processes.anywhere(stop.is_set())
                if stopping or (every and self.step % every == 0):
                    self.save_checkpoint()
                if stopping:
                    return True
        self.save_checkpoint()
        return False

    def _optimise(self, batch: Batch) -> Logs:
        """One optimiser step on one effective batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        parts = self.config.gradient_accumulation_steps
        total, logs = 0.0, dict[str, float | Tensor]()
        late = self.accelerator.device.type == "cpu"  # there, memory freed before a forward is paged in again
        if not late:
            self.optimizer.zero_grad()
        for i, micro in enumerate(batch.split(parts), 1):
            with nullcontext() if i == parts else self.accelerator.no_sync(self.train_step):
                generator = keyed_generator(self.seed, "loss", self.step)
                loss, part = self.train_step(micro.to(self.accelerator.device), self.step, generator)
                if i == 1 and late:
                    self.optimizer.zero_grad()
                self.accelerator.backward(loss / parts)
            total += loss.item() / parts
            logs = {key: value / parts + logs.get(key, 0.0) for key, value in part.items()} if parts > 1 else part
        limit = self.config.max_grad_norm or math.inf  # without a limit the norm is still looked at
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), limit)
        self._require_finite(total, float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.step)
        return {"loss": total, **logs}

    def _require_finite(self, loss: float, norm: float) -> None:
        scaled = self.config.mixed_precision == "fp16"  # the gradient scaler skips steps whose gradients overflow
        if not self.processes.anywhere(not math.isfinite(loss if scaled else loss + 0 * norm)):
            return
        self.save_checkpoint()
        rows = self.rows.row_numbers(self.order, self.step)[:8]
        saved = f" The state before this step is in {self._saved}." if self.output_dir else ""
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite at step {self.step} (loss {loss}), in the batch of training rows "
            f"{rows} ... Lower the learning rate, or look at those rows.{saved}",
            self._finish(stopped=True),
        )

    def _log(self, logs: Logs, bar: tqdm) -> None:
        numbers = {key: self.processes.mean(float(value)) for key, value in logs.items()}
        entry = {"step": self.step, "lr": self.config.lr_at(self.step - 1), **numbers}
        self.history.append(entry)
        bar.set_postfix(loss=f"{numbers['loss']:.4f}", refresh=False)
        if self.config.report_to:
            self.accelerator.log(entry, step=self.step)
        if self.processes.is_main:
            for callback in self.callbacks:
                callback.on_log(self, self.step, numbers)

    def _evaluate(self) -> None:
        """Score the current (averaged) weights and keep them when they are the best so far."""
        with self.ema.applied() if self.ema is not None else nullcontext():
            self._gather()
            main = self.processes.is_main
            score = self.processes.from_main(self.evaluator.score(self.velocity, self.step) if main else None)
            is_best = self.selection.add(score)
            if is_best:
                self.best_weights = {name: tensor.detach().clone() for name, tensor in self.weights().items()}
            if self.step == 0:
                self.base_weights = self.best_weights
            if main:
                for callback in self.callbacks:
                    callback.on_evaluate(self, score, is_best)
        if self.processes.divided:
            self.velocity.to("cpu")
        self.train_step.train()
        if self.config.report_to:
            spread = {} if score.action_diversity is None else {"action_diversity": score.action_diversity}
            self.accelerator.log({"selection": score.value, **spread}, step=self.step)

    def weights(self) -> dict[str, Tensor]:
        """What training changes: trained parameters and buffers, by name; this process's parts of them where they are divided."""
        return self.accelerator.unwrap_model(self.train_step).changing()

    def _gather(self) -> None:
        """Give a divided model's weights to the whole one: on every process, on the main one on the device that evaluates it."""
        if self.processes.divided:
            target = self.whole.changing()
            copy_into(target, gather(self.weights(), target))
            if self.processes.is_main:
                self.velocity.to(self.accelerator.device)

    @cached_property
    def frozen_digest(self) -> str:
        """What the run does not train (a frozen base, a reference), as a digest: a resumed run must find it unchanged."""
        trained = self.weights()
        parts = {name: x for name, x in self.whole.state_dict().items() if name not in trained}
        for name, part in self.whole.named_modules():
            if isinstance(part, ParkedVelocity):
                parts |= {f"{name}.{key}": x for key, x in part.model.state_dict().items()}
        return tensors_digest(parts)

    @property
    def seconds(self) -> float:
        """Time spent in training so far, in all parts of the run."""
        return self.seconds_before + time.perf_counter() - self.started

    def _finish(self, stopped: bool) -> TrainResult:
        """Load the best weights into the model."""
        improved = self.selection.improved
        copy_into(self.weights(), self.best_weights if improved else self.base_weights)
        self._gather()
        self.model.eval()
        verdict = self.selection.verdict(self.evaluator.metric_name, self.evaluator.selection_split)
        step = self.selection.best.step if improved else 0
        return TrainResult(self.model, step, improved, verdict, self.selection, self.history, stopped, self.seconds)

    def save_checkpoint(self) -> None:
        """Write everything a bitwise resume needs to `checkpoints/checkpoint-<step>`; nothing without an output folder, or twice."""
        if self.output_dir is None or checkpoint_path(self.output_dir, self.step) == self._saved:
            return
        resume.save(self)
        self._saved = checkpoint_path(self.output_dir, self.step)
