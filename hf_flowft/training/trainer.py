"""The one training loop: every objective, coupling, model and data set goes through `FlowTrainer`."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

from ..batch import Batch
from ..couplings import Shard
from ..data import FlowData
from ..objectives import Logs, Objective
from ..randomness import keyed_generator, keyed_seed
from ..velocity import Velocity
from . import checkpoint
from .batches import ConditionDropout, Rows, SampleOrder, drawn_batches, training_rows
from .callbacks import Callback
from .ema import EMA, copy_into
from .evaluation import Evaluator, SampleMetric, Score
from .guards import private_global_rng, restore_rng, rng_states, stop_signals
from .selection import Selection
from .settings import EvalConfig, TrainConfig
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
        null_condition: null values for `condition_dropout`.
        features, metric: for the evaluation, see `Evaluator`.
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
        null_condition: dict[str, float] | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        metric: SampleMetric | None = None,
        callbacks: Sequence[Callback] = (),
        identity: dict[str, Any] | None = None,
    ):
        self.model, self.data, self.config, self.seed = model, data, train, seed
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.callbacks = callbacks
        settings = {"train": asdict(train), "eval": asdict(evaluation)}
        self.identity = identity or {"seed": seed, "objective": objective.name, **settings}
        self.accelerator = Accelerator(
            mixed_precision=train.mixed_precision,
            log_with=train.report_to or None,
            project_dir=str(self.output_dir or "."),
        )
        self.shard = Shard(self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.gather)
        self.rows = rows if rows is not None else training_rows(data, train.num_workers)
        drop = train.condition_dropout
        self.dropout = ConditionDropout(drop, null_condition or {}) if drop else None
        self.evaluator = Evaluator(data, evaluation, seed, shift, features, metric)
        self.selection = Selection(evaluation)
        self.step, self.history = 0, list[dict[str, float]]()
        self._build(objective)

    def _build(self, objective: Objective) -> None:
        if self.config.gradient_checkpointing:
            if not getattr(self.model, "_supports_gradient_checkpointing", False):
                raise ValueError(
                    f"{type(self.model).__name__} cannot recompute; set train.gradient_checkpointing to false."
                )
            self.model.enable_gradient_checkpointing()  # type: ignore[operator]
        self.objective = objective
        step = TrainStep(Velocity(self.model), objective)
        self.trained = {name: p for name, p in step.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ValueError("no parameter of the model requires gradients: there is nothing to train.")
        step.to(self.accelerator.device)
        optimizer = torch.optim.AdamW(
            list(self.trained.values()),
            lr=self.config.learning_rate,
            betas=self.config.adam_betas,
            weight_decay=self.config.weight_decay,
            fused=all(p.dtype == torch.float32 for p in self.trained.values()),
        )
        self.ema = EMA(self.trained, self.config.ema_decay, self.config.ema_mode) if self.config.ema_decay else None
        self.velocity = step.velocity
        self.train_step, scaled = self.accelerator.prepare(step, optimizer)
        self.optimizer = scaled if self.config.mixed_precision == "fp16" else optimizer  # the wrapper searches the disk

    def train(self) -> TrainResult:
        """Train, evaluate along the way, and load the best weights into the model.

        Raises: CheckpointError when a checkpoint cannot be resumed; NonFiniteLossError with the step and rows; ValueError from objective and data.
        """
        if self.config.report_to:
            self.accelerator.init_trackers("hf_flowft", config={})
        with private_global_rng(keyed_seed(self.seed, "global", self.shard.rank)), stop_signals() as stop:
            if self.config.resume_from_checkpoint:
                self._resume()
            self.order = SampleOrder(len(self.rows), self.config.batch_size, self.seed, self.shard)
            if not self.selection.scores:
                self._evaluate()
            batches = drawn_batches(self.rows, self.order, self.objective, self.step, self.seed, self.dropout)
            stopped = self._loop(batches, stop)
        if self.config.report_to:
            self.accelerator.end_training()
        if (
            stopped and self.output_dir is None
        ):  # no folder for a checkpoint: a part of a run must not pass for a whole one
            raise KeyboardInterrupt
        return self._finish(stopped)

    def _loop(self, batches: Iterator[Batch], stop: threading.Event) -> bool:
        quiet = None if self.accelerator.is_main_process else True
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
                every, stopping = self.config.checkpoint_every, self._anywhere(stop.is_set())
                if stopping or (every and self.step % every == 0):
                    self.save_checkpoint()
                if stopping:
                    return True
        if not self.config.checkpoint_every or self.step % self.config.checkpoint_every:
            self.save_checkpoint()
        return False

    def _optimise(self, batch: Batch) -> Logs:
        """One optimiser step on one effective batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        parts = self.config.gradient_accumulation_steps
        total, logs = 0.0, {}
        late = self.accelerator.device.type == "cpu"  # there, memory freed before a forward is paged in again
        if not late:
            self.optimizer.zero_grad()
        for i, micro in enumerate(batch.split(parts), 1):
            with nullcontext() if i == parts else self.accelerator.no_sync(self.train_step):
                generator = keyed_generator(self.seed, "loss", self.step)
                loss, logs = self.train_step(micro.to(self.accelerator.device), self.step, generator)
                if i == 1 and late:
                    self.optimizer.zero_grad()
                self.accelerator.backward(loss / parts)
            total += loss.item() / parts
        limit = self.config.max_grad_norm or math.inf  # without a limit the norm is still looked at
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), limit)
        self._require_finite(total, norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.step)
        return {"loss": total, **logs}

    def _require_finite(self, loss: float, norm: Tensor) -> None:
        scaled = self.config.mixed_precision == "fp16"  # the gradient scaler skips steps whose gradients overflow
        if not self._anywhere(not math.isfinite(loss if scaled else loss + 0 * float(norm))):
            return
        self.save_checkpoint()
        rows = self.order.rows(self.step)[:8].tolist()
        saved = (
            f" The state before this step is in {checkpoint.checkpoint_path(self.output_dir, self.step)}."
            if self.output_dir
            else ""
        )
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite at step {self.step} (loss {loss}), in the batch of training rows "
            f"{rows} ... Lower the learning rate, or look at those rows.{saved}"
        )

    def _anywhere(self, flag: bool) -> bool:
        """Whether a flag is set on any process, so that all of them act alike."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.gather(torch.tensor([flag], device=self.accelerator.device)).any())

    def _mean(self, value: float) -> float:
        """The mean over the processes."""
        if self.accelerator.num_processes == 1:
            return value
        return float(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).mean())

    def _log(self, logs: Logs, bar: tqdm) -> None:
        numbers = {key: self._mean(float(value)) for key, value in logs.items()}
        entry = {"step": self.step, "lr": self.config.lr_at(self.step - 1), **numbers}
        self.history.append(entry)
        bar.set_postfix(loss=f"{numbers['loss']:.4f}", refresh=False)
        if self.config.report_to:
            self.accelerator.log(entry, step=self.step)
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                callback.on_log(self, self.step, numbers)

    def _evaluate(self) -> None:
        """Score the current (averaged) weights and keep them when they are the best so far."""
        with self.ema.applied() if self.ema is not None else nullcontext():
            box: list[Score | None] = [None]
            if self.accelerator.is_main_process:
                box[0] = self.evaluator.score(self.velocity, self.step)
            if self.accelerator.num_processes > 1:
                broadcast_object_list(box)
            is_best = self.selection.add(box[0])
            if is_best:
                self.best_weights = {name: tensor.detach().clone() for name, tensor in self._weights().items()}
            if self.step == 0:
                self.base_weights = self.best_weights
            if self.accelerator.is_main_process:
                for callback in self.callbacks:
                    callback.on_evaluate(self, box[0], is_best)
        self.train_step.train()
        if self.config.report_to:
            self.accelerator.log({"selection": box[0].value}, step=self.step)

    def _weights(self) -> dict[str, Tensor]:
        """What training changes: trained parameters and buffers, by name."""
        module = self.accelerator.unwrap_model(self.train_step)
        frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
        return {
            name: t
            for name, t in module.state_dict().items()
            if name not in frozen and not name.startswith("objective.reference")
        }

    def _finish(self, stopped: bool) -> TrainResult:
        improved = self.selection.improved
        copy_into(self._weights(), self.best_weights if improved else self.base_weights)
        self.model.eval()
        verdict = self.selection.verdict(self.evaluator.metric_name)
        if self.accelerator.is_main_process:
            tqdm.write("Stopped: go on with --train.resume_from_checkpoint latest." if stopped else verdict)
        step = self.selection.best.step if improved else 0
        return TrainResult(self.model, step, improved, verdict, self.selection, self.history, stopped)

    def save_checkpoint(self) -> None:
        """Write everything a bitwise resume needs to `checkpoints/checkpoint-<step>`; nothing without an output folder."""
        if self.output_dir is None:
            return
        rng = rng_states(lambda x: self.accelerator.gather(x.to(self.accelerator.device)))
        if self.accelerator.is_main_process:
            folder = checkpoint.checkpoint_path(self.output_dir, self.step)
            groups = {
                "weights": self._weights(),
                "ema": self.ema.shadow if self.ema is not None else {},
                "best": self.best_weights,
                "base": self.base_weights,
                "rows": self.rows.tensors(),
                "rng": rng,
            }
            state = {
                "step": self.step,
                "history": self.history,
                "selection": self.selection.state(),
                "identity": self.identity,
            }
            checkpoint.save_checkpoint(folder, groups, self.optimizer.state_dict(), state)
            checkpoint.prune_checkpoints(self.output_dir, self.config.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        folder, state = checkpoint.find_checkpoint(self.config.resume_from_checkpoint, self.output_dir or Path("."))
        checkpoint.check_same_run(state["identity"], self.identity, folder)
        copy_into(self._weights(), checkpoint.load_tensors(folder, "weights"))
        if self.ema is not None:
            self.ema.load(checkpoint.load_tensors(folder, "ema"))
        self.optimizer.load_state_dict(checkpoint.load_optimizer(folder))
        self.best_weights = checkpoint.load_tensors(folder, "best")
        self.base_weights = checkpoint.load_tensors(folder, "base")
        self.selection.load(state["selection"])
        self.step, self.history = state["step"], state["history"]
        self.rows.load(checkpoint.load_tensors(folder, "rows"))
        restore_rng(checkpoint.load_tensors(folder, "rng"), self.shard.rank)
