"""How a run trains and how it is judged: the two typed sections every method shares."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ..choices import Choices
from ..environments.corruptions import parse_corruptions
from ..solvers import FixedMethod
from ..times import TemperatureSchedule

Metric = Literal["auto", "energy", "frechet", "kid", "held_out_loss", "energy_score", "reconstruction"]


@dataclass(frozen=True)
class TrainConfig(Choices):
    """The training loop."""

    num_steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Samples of an optimiser step, over all processes and micro-steps."""
    gradient_accumulation_steps: int = 1
    """Micro-steps the batch is divided into; changes memory, not the result."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps the moments of tensors of 4096 numbers or more in eight bits (bitsandbytes): a quarter of their memory."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "cosine", "linear", "alpha"] = "constant"
    """constant; cosine or linear to zero; alpha: the learning rate follows alpha of `temperature`, the honest baseline of GFT."""
    lr_warmup_steps: int = 0
    """Steps of linear warm-up before any schedule."""
    temperature: TemperatureSchedule = field(default_factory=TemperatureSchedule)
    """The temperature of gradual fine-tuning over the run; also the shape of `lr_schedule: alpha`."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    ema_decay: float = 0.99
    """Decay of the float32 average of the weights that is evaluated and returned; 0 turns it off."""
    ema_mode: Literal["constant", "warmup", "power"] = "warmup"
    """How the decay grows over the first steps."""
    condition_dropout: float = 0.0
    """Probability of training without the condition, for classifier-free guidance."""
    augment: str = ""
    """For robots: corruptions of the observations in training, such as gaussian:0.02+drop:0.05, drawn anew for every batch; empty for none."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast of the network; times and solver states stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, where the model supports it."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one only at the end and when the run is stopped."""
    checkpoints_total_limit: int = 2
    """Keep so many checkpoints; 0 keeps all."""
    resume_from_checkpoint: str = ""
    """`latest` (from the beginning, where there is none yet), or the folder of a checkpoint anywhere; empty starts afresh."""
    num_workers: int = 0
    """Processes that read data sets that do not fit in memory."""
    report_to: list[str] = field(default_factory=list)
    """Trackers of accelerate: tensorboard, wandb, trackio ..."""
    log_every: int = 20
    """Steps between entries in the log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("num_steps", "batch_size", "gradient_accumulation_steps", "log_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"train.{key} must be at least 1, got {getattr(self, key)}.")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"train.batch_size {self.batch_size} must be a multiple of gradient_accumulation_steps {self.gradient_accumulation_steps}."
            )
        parse_corruptions(self.augment)
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"train.learning_rate must be positive, got {self.learning_rate}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay must be in [0, 1), where 0 turns it off, got {self.ema_decay}.")
        for key in (
            "lr_warmup_steps",
            "max_grad_norm",
            "weight_decay",
            "checkpoint_every",
            "checkpoints_total_limit",
            "num_workers",
        ):
            if getattr(self, key) < 0:
                raise ValueError(f"train.{key} must be >= 0, got {getattr(self, key)}.")

    def lr_at(self, step: int) -> float:
        """The learning rate of optimiser step `step` (from 0): a pure function, so a resumed run cannot get it wrong."""
        progress = step / self.num_steps
        shape = {
            "constant": lambda: 1.0,
            "cosine": lambda: (1 + math.cos(math.pi * progress)) / 2,
            "linear": lambda: 1 - progress,
            "alpha": lambda: self.temperature.alpha(progress),
        }[self.lr_schedule]()
        warmup = min(1.0, (step + 1) / self.lr_warmup_steps) if self.lr_warmup_steps else 1.0
        return self.learning_rate * shape * warmup


@dataclass(frozen=True)
class EvalConfig(Choices):
    """How models are compared. Lower is better for every selection metric; the base is always a candidate."""

    metric: Metric = "auto"
    """What selects the model, on the validation split. energy: energy distance of samples to held-out data, within labels where there are labels;
    frechet: Frechet distance on the features handed to the trainer; kid: of images, kernel distance on the features of EfficientNet-lite0
    (`hf_flowft[metrics]`); held_out_loss: flow-matching loss at fixed noise and times; energy_score: of two samples under each held-out condition, whose
    law it judges; reconstruction: mean squared error of one, which is lowest for who draws the mean alone. auto: frechet where features are given,
    energy for vectors and images of up to 256 numbers, held_out_loss otherwise; where that says nothing, after MLE, with OT pairs or of what is no
    flow, energy, or energy_score under vectors and observations."""
    environment: str = ""
    """For policies: select and report by rollouts in this environment (pusht, metaworld/TASK ...) instead of `metric`; one minus the mean
    reached reward, from validation starts, and from test starts in the report. Reconstruction and loss are no proxies for control."""
    episodes: int = 25
    """Rollouts of one repeat; policies are compared episode by episode, from the same starts."""
    every: int = 100
    """Steps between evaluations."""
    solver: FixedMethod = "euler"
    """Solver of the samples that are judged."""
    select_num_steps: list[int] = field(default_factory=lambda: [16])
    """The selection metric is the mean over these numbers of solver steps: name the ones the model will be used with."""
    report_num_steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    """Numbers of solver steps in the report."""
    num_repeats: int = 4
    """Independent noise draws, the same for every candidate; their spread gives the standard errors."""
    kid: bool = False
    """Of images, report `kid` too, whatever selects."""
    clip: str = ""
    """For text-to-image models: a CLIP model (folder or repository) whose score of samples and captions is reported too; empty for none."""
    path_numbers: bool = True
    """Report the shape of the sampling paths and the evaluations of an adaptive solver too: hundreds of evaluations of the network a sample.
    Not for images of several sizes."""
    max_samples: int = 2000
    """Held-out rows used at most."""
    batch_size: int = 1024
    """Samples generated at once."""
    min_delta: float = 2.0
    """A candidate replaces the base only when it is better by more than so many standard errors of the paired difference: over noise draws and over
    held-out rows (frechet, kid and metrics of your own: over noise draws alone). The best of many candidates is somewhat lucky: on few held-out rows ask for 3."""
    forgetting_limit: float = 0.0
    """Candidates whose metric on the base's data exceeds so many times the base's are not eligible, unless it has risen by no more than the standard
    error of the paired difference; 0 for no limit."""
    patience: int = 0
    """Stop after so many evaluations without a new best; 0 never stops early."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("select_num_steps", "report_num_steps"):
            if not getattr(self, key) or min(getattr(self, key)) < 1:
                raise ValueError(f"eval.{key} must name numbers of steps >= 1, got {getattr(self, key)}.")
        for key in ("every", "num_repeats", "max_samples", "batch_size", "episodes"):
            if getattr(self, key) < 1:
                raise ValueError(f"eval.{key} must be at least 1, got {getattr(self, key)}.")
        for key in ("min_delta", "patience"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"eval.{key} must be >= 0, got {getattr(self, key)}.")
        if self.forgetting_limit < 0 or (0 < self.forgetting_limit < 1):
            raise ValueError(f"eval.forgetting_limit is a factor >= 1 (or 0 for none), got {self.forgetting_limit}.")

    @property
    def measures_kid(self) -> bool:
        """Whether the kernel distance is asked for, to select or beside another metric."""
        return self.kid or self.metric == "kid"
