"""What the shift study compares: its sizes, settings and methods, and the data of a setting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ..data import FlowData, ToyConfig, load_toy
from ..data.toy import ToyName
from ..objectives import Objective, ObjectiveContext
from ..objectives.flow_matching import FlowMatchingConfig
from ..objectives.gradual import GradualConfig
from ..times import TemperatureName, TemperatureSchedule

DISTRIBUTION: ToyName = "five_gaussians"
END = 0.6
"""The fraction of the run at which the temperature reaches its final value: step 360 of 600."""
INITIAL_TEMPERATURE = 9.0
"""alpha starts at 0.1."""
REFERENCE_RATE = 1e-3
"""Where the exact W2 to the target is followed along the run, for plain, warm-up and GFT."""
BASE_SEED = 1000
BASE_CONDITION = [1.0, 0.0]


@dataclass(frozen=True)
class Sizes:
    """How large the study is; part of every cell's identity."""

    seeds: int = 5
    """Each seed has a base, data and training noise of its own, the same for all methods."""
    pretrain_steps: int = 3000
    num_steps: int = 600
    batch_size: int = 64
    every: int = 50
    num_samples: int = 1000
    """Samples (and held-out samples) of each energy distance and sliced W2."""
    num_exact: int = 2000
    """Samples of each exact W2."""
    rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    """At the lower ones plain fine-tuning leaves the base's domain slowly enough to have checkpoints where little is forgotten."""
    solver_steps: int = 32
    percent: int = 5
    """Interpolations between the base and plain fine-tuning are evaluated every so many percent."""


QUICK = Sizes(2, 60, 20, 16, 10, 60, 50, (1e-3,), 4, 50)


@dataclass(frozen=True)
class Setting:
    """A shift to learn, how much data there is of it, and how the model is built."""

    title: str
    train_size: int = 64
    rotation: float = 36.0
    scale: float = 0.8
    move: float = 0.5
    ema_decay: float = 0.0
    conditional: bool = False
    """A condition tells the two domains apart; the base has seen one of its values only."""


@dataclass(frozen=True)
class Method:
    """One way to fine-tune."""

    title: str
    kind: str = "gft"
    """plain; warmup: plain, the learning rate follows alpha; gft: target measure; replay: replay measure; weights, velocities: of plain, with
    the base, interpolated after training."""
    schedule: TemperatureName = "alpha_linear"
    final_temperature: float = 0.0
    weight: float = 1.0
    coupling: str = "independent"

    @property
    def temperature(self) -> TemperatureSchedule:
        """tau over the run."""
        return TemperatureSchedule(self.schedule, INITIAL_TEMPERATURE, self.final_temperature, END)

    def objective(self, context: ObjectiveContext) -> Objective:
        """The loss."""
        if self.kind not in ("gft", "replay"):
            return FlowMatchingConfig(coupling=self.coupling).build(context)  # type: ignore[arg-type]
        measure: Any = "replay" if self.kind == "replay" else "target"
        coupling: Any = self.coupling
        return GradualConfig(measure=measure, coupling=coupling, replay_weight=self.weight).build(context)


@dataclass(frozen=True)
class Run:
    """One cell: a method in a setting at a learning rate, from a seed."""

    setting: str
    method: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of the cell."""
        return f"{self.setting}/{self.method}/lr{self.rate:g}/seed{self.seed}"


def with_condition(splits: dict[str, Dataset], base: bool = False) -> dict[str, Dataset]:
    """The splits with a column `domain`: (1, 0) for the base's domain, (0, 1) for the target."""
    return {
        name: split.add_column(
            "domain", [BASE_CONDITION if base or name.startswith("base_") else [0.0, 1.0]] * len(split)
        )
        for name, split in splits.items()
    }


def target_data(setting: Setting, sizes: Sizes, seed: int) -> FlowData:
    """The target's few training samples (repeated until they fill a batch), as many held out to select by, and a large test split."""
    config = ToyConfig(
        distribution=DISTRIBUTION,
        train_size=setting.train_size,
        eval_size=max(sizes.num_exact, sizes.num_samples, setting.train_size),
        rotation=setting.rotation,
        scale=setting.scale,
        move=setting.move,
        with_base=True,
        seed=seed,
    )
    splits = dict(load_toy(config).splits)
    repeats = -(-sizes.batch_size // setting.train_size)
    splits["train"] = splits["train"].select(list(range(setting.train_size)) * repeats)
    splits["validation"] = splits["validation"].select(range(setting.train_size))
    del splits["base_train"], splits["base_validation"]
    return _flow_data(with_condition(splits) if setting.conditional else splits, setting.conditional)


def base_data(conditional: bool, seed: int) -> FlowData:
    """What the base is pretrained on: draws of its own, none of which the target repeats."""
    splits = load_toy(ToyConfig(DISTRIBUTION, train_size=16384, eval_size=1000, seed=BASE_SEED + seed)).splits
    return _flow_data(with_condition(splits, base=True) if conditional else splits, conditional)


def _flow_data(splits: dict[str, Dataset], conditional: bool) -> FlowData:
    return FlowData(DISTRIBUTION, splits, (2,), condition_columns={"condition": "domain"} if conditional else {})


def all_runs(sizes: Sizes, plan: dict[str, dict[str, tuple[float, ...]]], seeds: range | None = None) -> Iterator[Run]:
    """Every run of a plan (setting -> method -> rates), seed by seed, so that an unfinished study has whole seeds."""
    for seed in seeds or range(sizes.seeds):
        for setting, methods in plan.items():
            for method, rates in methods.items():
                yield from (Run(setting, method, rate, seed) for rate in rates)
