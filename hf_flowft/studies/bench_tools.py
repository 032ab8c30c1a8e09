"""Measuring tools of the benchmark: contestants that advance block by block, their pairwise ratios, peak memory, and the table."""

from __future__ import annotations

import io
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..batch import Batch
from ..data import from_tensors
from ..objectives import Objective
from ..tables import markdown_table
from ..training import BankRows, Callback, EvalConfig, FlowTrainer, TrainConfig
from ..training.evaluation import Score

ENDLESS = 10**6


@dataclass(frozen=True)
class Row:
    """One measured ratio: the median of the pairs with their spread, what theory allows, what we aim at."""

    name: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    repetitions: int = 0
    limit: float | None = None
    goal: float | None = None
    milliseconds: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal or a value."""
        return None if self.goal is None or self.value is None else self.value <= self.goal

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "met": self.met}


class _Enough(Exception):
    """Ends a contestant's thread from within."""


class Contestant:
    """Does the same block of work whenever it is asked to, and says how long it took.

    Each works in a thread of its own, and waits there while others have their turn: one that begins in the freed memory of another would
    be spared the page faults that it pays alone. A subclass's `_run` calls `_pause` before its first block and after each.
    """

    def __init__(self) -> None:
        self._turn, self._ready = threading.Semaphore(0), threading.Semaphore(0)
        self._closing = False
        self._error: BaseException | None = None
        self._start = self._seconds = 0.0

    def _begin(self) -> None:
        threading.Thread(target=self._guarded, daemon=True).start()
        self._wait()

    def _guarded(self) -> None:
        try:
            self._run()
        except _Enough:
            pass
        except BaseException as error:  # handed to the thread that waits
            self._error = error
        self._ready.release()

    def _run(self) -> None:
        raise NotImplementedError

    def _pause(self) -> None:
        self._seconds = perf_counter() - self._start
        self._ready.release()
        self._turn.acquire()
        if self._closing:
            raise _Enough
        self._start = perf_counter()

    def _wait(self) -> None:
        self._ready.acquire()
        if self._error is not None:
            raise self._error

    def advance(self) -> float:
        """Do one block.  Returns: its seconds."""
        self._turn.release()
        self._wait()
        return self._seconds

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._turn.release()
        self._wait()


class CallLoop(Contestant):
    """A function called `times` times a block."""

    def __init__(self, function: Callable[[], Any], times: int = 1):
        super().__init__()
        self.function, self.times = function, times
        self._begin()

    def _run(self) -> None:
        while True:
            self._pause()
            for _ in range(self.times):
                self.function()


class BareLoop(CallLoop):
    """The loop one writes by hand: indexing, noise and times, one forward and backward, clipping, fused AdamW, foreach EMA."""

    def __init__(self, model: nn.Module, data: Tensor, batch_size: int, block: int):
        self.model, self.data, self.batch_size = model.train(), data, batch_size
        self.live: list[Tensor] = list(model.parameters())
        self.ema = [p.detach().clone() for p in self.live]
        self.optimizer = torch.optim.AdamW(self.live, lr=3e-4, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
        self.generator = torch.Generator().manual_seed(0)
        self.order = torch.empty(0, dtype=torch.int64)
        super().__init__(self._step, block)

    def _step(self) -> None:
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.data), generator=self.generator)
        rows, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        x_1 = self.data[rows]
        x_0 = torch.randn(x_1.shape, generator=self.generator)
        sigma = torch.rand(self.batch_size, generator=self.generator)
        weight = sigma.reshape(-1, *[1] * (x_1.ndim - 1))
        output = self.model(weight * x_0 + (1 - weight) * x_1, 1000 * sigma, return_dict=False)[0]
        self.optimizer.zero_grad()
        nn.functional.mse_loss(output, x_0 - x_1).backward()
        nn.utils.clip_grad_norm_(self.live, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.live, 0.01)


class TrainerLoop(Contestant, Callback):
    """The real `FlowTrainer.train()`, let run `block` steps at a time: the clock holds all a user's step pays, progress bar and log included.

    Args: `model`, `objective`; `data`: (n, *event); `batch_size`; `block`: optimiser steps a block; `x_0`: makes the data a bank of pairs.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: Tensor,
        batch_size: int,
        block: int,
        x_0: Tensor | None = None,
    ):
        super().__init__()
        self.trainer = FlowTrainer(
            model,
            from_tensors("benchmark", data, data[:2], data[:2]),
            objective,
            TrainConfig(num_steps=ENDLESS, batch_size=batch_size, log_every=block),
            EvalConfig(metric="reconstruction", select_num_steps=[1], every=ENDLESS, num_repeats=1),
            rows=BankRows(lambda version: Batch(data, x_0=x_0)),
            callbacks=[self],
        )
        self._begin()

    def _run(self) -> None:
        self.trainer.train()

    def on_evaluate(self, trainer: FlowTrainer, score: Score, is_best: bool) -> None:
        """The base has been scored and the loop is about to begin."""
        self._pause()

    def on_log(self, trainer: FlowTrainer, step: int, logs: dict[str, float]) -> None:
        """A block is done."""
        self._pause()


def compare(name: str, candidate: Contestant, baseline: Contestant, repetitions: int, **facts: Any) -> Row:
    """The time of a block of `candidate` over that of `baseline`, in alternating pairs after one block of warm-up each."""
    pairs = []
    for k in range(-1, repetitions):
        if k % 2:
            a, b = candidate.advance(), baseline.advance()
        else:
            b, a = baseline.advance(), candidate.advance()
        if k >= 0:
            pairs.append((a, b))
    candidate.close()
    baseline.close()
    ratios = [a / b for a, b in pairs]
    times = tuple(1e3 * statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    return Row(
        name,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        repetitions,
        milliseconds=(times[0], times[1]),
        **facts,
    )


def small_unet(quick: bool = False) -> UNet2DModel:
    """About a million parameters on 1 x 16 x 16 images (a few thousand when `quick`)."""
    widths = (8, 8) if quick else (32, 64, 64)
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
        add_attention=False,
    )
    torch.set_rng_state(torch_state)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Progress bars are drawn, as for a user, but not shown."""
    with redirect_stderr(io.StringIO()):
        yield


def render(rows: list[Row]) -> str:
    """The rows as a Markdown table."""

    def shown(value: float | None, digits: int = 3) -> str:
        return "" if value is None else f"{value:.{digits}g}" if value < 0.1 else f"{value:.{digits}f}"

    answers = {None: "", True: "yes", False: "NO"}
    header = ["ratio", "median", "min - max", "pairs", "ms", "theory", "goal", "met", ""]
    cells = [
        [
            row.name,
            shown(row.value) or "-",
            "" if row.low is None else f"{shown(row.low)} - {shown(row.high)}",
            str(row.repetitions or ""),
            "" if row.milliseconds is None else " / ".join(f"{t:.1f}" for t in row.milliseconds),
            shown(row.limit, 2),
            shown(row.goal, 2),
            answers[row.met],
            row.note,
        ]
        for row in rows
    ]
    return markdown_table(header, cells)
