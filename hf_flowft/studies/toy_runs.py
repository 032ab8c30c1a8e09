"""Trains and measures the flows of the toy study: its methods, their models, their cells."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..conventions import time_grid
from ..couplings import OTCoupling
from ..data import FlowData, ToyConfig, load_toy
from ..data.toy import sample_toy
from ..metrics import distances
from ..metrics.gap import gap_table
from ..models import ViscousFlowModel
from ..objectives import FlowMatchingObjective, Objective, ReconstructionObjective
from ..pairs import PairBuilder, PairsConfig
from ..randomness import keyed_generator, keyed_seed
from ..sampling import generate
from ..training import Callback, EvalConfig, FlowTrainer, TrainConfig
from ..training.batches import BankRows, Rows
from ..training.models import MLPConfig
from ..velocity import FrozenVelocity, Velocity
from .cells import Cells
from .toy_metrics import around_centres, share_matched_w2

TABLE_STEPS = 16
"""The number of Euler steps at which the full table is made."""


@dataclass(frozen=True)
class Sizes:
    """How large the study is; part of every cell's identity."""

    seeds: int = 5
    fm_steps: int = 2000
    """The baseline; the base of all fine-tuning is another run of half of it, and fine-tuning takes the other half."""
    batch_size: int = 512
    train_size: int = 65536
    bank_size: int = 4096
    num_samples: int = 5000
    num_exact: int = 2000
    """Samples of each exact W2 ..."""
    exact_repeats: int = 3
    """... which is the mean over so many draws of noise and data."""
    num_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 64)

    @property
    def half(self) -> int:
        """Steps of the base, and of fine-tuning."""
        return self.fm_steps // 2


QUICK = Sizes(2, 20, 64, 512, 128, 200, 100, 2)


@dataclass(frozen=True)
class Variant:
    """One way to fine-tune by reconstructions."""

    title: str
    pairs: PairsConfig = field(default_factory=PairsConfig)
    num_steps: tuple[int, ...] = (10,)
    flow_matching_weight: float = 0.0
    structure: str = ""
    """Of a residual on the base; empty trains the base itself."""
    train_base: bool = False
    """Train the base under a residual too; otherwise it is frozen."""


VARIANTS = {
    "sorted": Variant("MLE, minibatch OT re-drawn every step", PairsConfig("sorted")),
    "fixed": Variant("MLE, fixed bank (noise to data)", PairsConfig("fixed")),
    "ot_output": Variant("MLE, ot_output bank"),
    "inverse": Variant("MLE, inverse ODE", PairsConfig("inverse", num_steps=64, solver="rk4")),
    "best_of_k": Variant("MLE, best of 16 noises", PairsConfig("best_of_k")),
    "self": Variant("MLE, self (the base's fine solutions)", PairsConfig("self", num_steps=64, solver="rk4")),
    "with_fm": Variant("MLE, ot_output + 1.0 x FM loss", flow_matching_weight=1.0),
    "random_n": Variant("MLE, ot_output, random N of 1 to 16", num_steps=(1, 2, 4, 8, 16)),
    "gav": Variant("MLE + GAV, ot_output, base frozen", structure="gradient"),
    "gav_joint": Variant("MLE + GAV, ot_output, base trained", structure="gradient", train_base=True),
    "mlp_residual": Variant("MLE + MLP residual, ot_output, base frozen", structure="mlp"),
}
BASELINES = {"fm_1000": "FM, half the steps (the base)", "fm_2000": "FM, all steps (the baseline)"}
TITLES = {"data": "fresh data (the floor)", **BASELINES, **{name: v.title for name, v in VARIANTS.items()}}


class EndPoint(Callback):
    """Keeps the weights after the last step, whichever model the run then returns."""

    weights: dict[str, Tensor]

    def on_evaluate(self, trainer: FlowTrainer, score: Any, is_best: bool) -> None:
        """The last evaluation comes after the last step."""
        if trainer.step == trainer.config.num_steps:
            self.weights = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


class ToyStudy:
    """Trains and measures, cell by cell; every cell that is on disk is read instead."""

    def __init__(self, out: Path, sizes: Sizes):
        self.sizes = sizes
        self.cells = Cells(out / "cells", asdict(sizes))
        self._data: dict[int, FlowData] = {}

    # ------------------------------------------------------------------------------------------------------------ the models
    def data(self, seed: int) -> FlowData:
        """The training data of a seed."""
        if seed not in self._data:
            self._data = {seed: load_toy(ToyConfig(train_size=self.sizes.train_size, eval_size=1000, seed=seed))}
        return self._data[seed]

    def velocity(self, method: str, seed: int) -> Velocity:
        """The end point of a method, trained if it is not there yet."""
        self.training(method, seed)
        model = self._network(method, seed)
        model.load_state_dict(self.cells.get_or_run_tensors(f"{method}/seed={seed}", dict))
        return FrozenVelocity(model)

    def training(self, method: str, seed: int) -> dict[str, Any]:
        """What the training of a method said: `steps`, `seconds`, `verdict`, `selected`, `history`; its weights are kept beside it."""

        def train() -> dict[str, Any]:
            weights, facts = self._train(*self._parts(method, seed), method, seed)
            self.cells.get_or_run_tensors(f"{method}/seed={seed}", lambda: weights)
            return facts

        return self.cells.get_or_run(f"{method}/seed={seed}-training", train)

    def _network(self, method: str, seed: int) -> nn.Module:
        """The network a method starts from."""
        if method in BASELINES:
            shape = MLPConfig(hidden_dim=128, num_layers=3, time="concat", activation="relu")
            return shape.build(self.data(seed), 0, seed).model
        base = self.velocity("fm_1000", seed).model.requires_grad_(True)
        variant = VARIANTS[method]
        if not variant.structure:
            return base
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, "initialisation"))
            model = ViscousFlowModel.from_base(base, event_shape=[2], structure=variant.structure, num_terms=2)
        if variant.train_base:
            model.unfreeze_base()
        return model

    def _parts(self, method: str, seed: int) -> tuple[nn.Module, Objective, Rows | None]:
        model = self._network(method, seed)
        if method in BASELINES:
            return model, FlowMatchingObjective(coupling=OTCoupling()), None
        variant = VARIANTS[method]
        weight = variant.flow_matching_weight
        objective = ReconstructionObjective(
            variant.num_steps,
            coupling=None if variant.pairs.is_bank else OTCoupling(),
            mixture=FlowMatchingObjective(coupling=OTCoupling()) if weight else None,
            mixture_weight=weight,
        )
        return model, objective, self._bank(variant.pairs, seed) if variant.pairs.is_bank else None

    def _bank(self, pairs: PairsConfig, seed: int) -> Rows:
        """The pairs of a seed, made once for all methods that use them."""

        def build() -> dict[str, Tensor]:
            builder = PairBuilder(replace(pairs, num_pairs=self.sizes.bank_size), self.velocity("fm_1000", seed))
            data = self.data(seed).rows("train", range(self.sizes.bank_size))
            bank = builder.build(data, {}, keyed_generator(seed, "toy study", "pairs"))
            return {"x_0": bank.x_0, "x_1": bank.x_1}

        kept = self.cells.get_or_run_tensors(f"pairs/{pairs.name}/seed={seed}", build)
        return BankRows(lambda version: Batch(kept["x_1"], x_0=kept["x_0"]))

    def _train(
        self, model: nn.Module, objective: Objective, rows: Rows | None, method: str, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights after the last step, and what the run said.  Raises: SystemExit when the run was told to stop."""
        fine_tuning = method not in BASELINES
        steps = self.sizes.fm_steps if method == "fm_2000" else self.sizes.half
        train = TrainConfig(
            num_steps=steps,
            batch_size=self.sizes.batch_size,
            learning_rate=1e-3,
            lr_schedule="cosine",
            weight_decay=1e-5 if fine_tuning else 0.0,
            ema_decay=0.0,
        )
        evaluation = EvalConfig(every=steps, select_num_steps=[TABLE_STEPS])
        end = EndPoint()
        draws = keyed_seed(seed, "fine-tuning") if fine_tuning else seed  # fine-tuning meets fresh noise
        trainer = FlowTrainer(
            model, self.data(seed), objective, train, evaluation, seed=draws, rows=rows, callbacks=[end]
        )
        started = time.perf_counter()
        result = trainer.train()
        if result.stopped:
            raise SystemExit("The study was stopped; run the same command again and it goes on.")
        facts = {"steps": steps, "seconds": time.perf_counter() - started, "verdict": result.verdict}
        return end.weights, {**facts, "selected": result.improved, "history": result.history}

    # ------------------------------------------------------------------------------------------------------ the measurements
    def noise(self, size: int, seed: int, repeat: int = 0) -> Tensor:
        """Noise that every method starts from: (size, 2)."""
        return torch.randn(size, 2, generator=keyed_generator(seed, "toy study", "noise", repeat))

    def truth(self, size: int, seed: int, repeat: int = 0) -> Tensor:
        """Data no method has seen: (size, 2)."""
        return sample_toy("five_gaussians", size, keyed_generator(seed, "toy study", "truth", repeat))

    def cell(self, method: str, seed: int) -> dict[str, Any]:
        """All numbers of a method at a seed: `steps`: N -> metric -> number; `w2`, `w2_matched`: exact, at `TABLE_STEPS`."""
        measured = self.cells.get_or_run(f"{method}/seed={seed}", lambda: self._measure(method, seed))
        return measured | self.cells.get_or_run(f"matched/{method}/seed={seed}", lambda: self._matched(method, seed))

    def gap(self, method: str, seed: int) -> dict[str, Any]:
        """Theorem 3.1 at the field itself: the error of N Euler steps against 512 RK4 steps, measured and bounded."""

        def measure() -> dict[str, Any]:
            x_0, generator = self.noise(256, seed), keyed_generator(seed, "toy study", "gap")
            table = gap_table(self.velocity(method, seed), x_0, num_steps=self.sizes.num_steps, generator=generator)
            return {"rows": [row._asdict() for row in table.rows], "constants": table.constants._asdict()}

        return self.cells.get_or_run(f"gap/{method}/seed={seed}", measure)

    def samples(self, method: str, seed: int, num_steps: int, size: int, repeat: int = 0) -> Tensor:
        """Euler samples of a method, or fresh data for the method `data`: (size, 2)."""
        if method == "data":
            return sample_toy("five_gaussians", size, keyed_generator(seed, "toy study", "floor", repeat))
        x_0, times = self.noise(size, seed, repeat), time_grid(num_steps)
        return generate(self.velocity(method, seed), x_0, {}, times, batch_size=size)

    def _measure(self, method: str, seed: int) -> dict[str, Any]:
        size, truth = self.sizes.num_exact, self.truth(self.sizes.num_samples, seed)
        exact = [
            distances.wasserstein_2(
                self.samples(method, seed, TABLE_STEPS, size, repeat), self.truth(size, seed, repeat)
            )
            for repeat in range(1, 1 + self.sizes.exact_repeats)
        ]
        steps = {
            n: around_centres(self.samples(method, seed, n, self.sizes.num_samples), truth, seed)
            for n in self.sizes.num_steps
        }
        return {"steps": steps, "w2": sum(exact) / len(exact)}

    def _matched(self, method: str, seed: int) -> dict[str, float]:
        size, draws = self.sizes.num_exact, range(1, 1 + self.sizes.exact_repeats)
        matched = [
            share_matched_w2(self.samples(method, seed, TABLE_STEPS, 2 * size, r), self.truth(size, seed, r))
            for r in draws
        ]
        return {"w2_matched": sum(matched) / len(matched)}
