"""Pairs (x_0, x_1, condition) for training on reconstructions, made once with a frozen base and kept as a bank.

The pairing is the method: reconstruction fits E[x_1 | x_0, c], so noise that is independent of the data teaches the mean
(collapse), and pairs that change from step to step blur the basins. Every builder returns a `Batch` with one row a pair.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .batch import Batch
from .choices import Choices
from .conventions import time_grid
from .couplings import candidates, conditional_permutation, exact_assignment
from .digests import tensors_digest
from .sampling import draw_rows, generate
from .solvers import FixedMethod
from .velocity import SharedVelocity, Velocity

PairsName = Literal["fixed", "ot_output", "inverse", "best_of_k", "self", "sorted", "independent"]


@dataclass(frozen=True)
class PairsConfig(Choices):
    """How the noise of a reconstruction is paired with its data point."""

    name: PairsName = "ot_output"
    """ot_output: exact assignment to the frozen base's outputs (unconditional models; within equal labels for labelled ones);
    best_of_k: of k noises the one whose frozen-base output is nearest (vector conditions); self: x_1 is the base's own fine
    solution (fewer steps, no data); fixed: exact assignment of noise to data; inverse: reverse ODE from the data; sorted: exact,
    re-drawn in every batch (harms on multi-modal data); independent: fresh noise, collapses to the mean, refused unless
    `allow_independent`."""
    num_steps: int = 16
    """Steps of the frozen base when a bank is made (self: of the fine solution that is learned; inverse: of the reverse ODE)."""
    solver: FixedMethod = "heun"
    """Solver of the frozen base when a bank is made."""
    num_candidates: int = 16
    """best_of_k: noises tried for each data point."""
    repeats: int = 1
    """fixed, ot_output, best_of_k, inverse: how often each data point stands in the bank (few data points want more noises)."""
    num_pairs: int = 8192
    """self: size of the bank."""
    refresh_epochs: int = 0
    """Draw a new bank after so many passes over it; 0 keeps the first one."""
    cache: str = ""
    """Folder in which banks are kept: a run with the same base, data, pairs and seed finds its bank there. Empty keeps none."""
    allow_independent: bool = False
    """Allow `independent` for an experiment that wants to see the collapse."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "independent" and not self.allow_independent:
            raise ValueError(
                "pairs 'independent' make reconstruction fit E[x_1 | condition]: every sample collapses to the mean of its condition (mode "
                "collapse). Use ot_output (unconditional or labelled), best_of_k (vector conditions) or self (fewer steps); "
                "allow_independent: true permits it for an experiment."
            )
        for key in ("num_steps", "num_candidates", "repeats", "num_pairs"):
            if getattr(self, key) < 1:
                raise ValueError(f"pairs.{key} must be at least 1, got {getattr(self, key)}.")
        if self.refresh_epochs < 0:
            raise ValueError(f"pairs.refresh_epochs must be >= 0, got {self.refresh_epochs}.")
        if self.cache and not self.is_bank:
            raise ValueError(
                f"pairs {self.name!r} are drawn in every batch, so there is nothing to keep: leave pairs.cache empty."
            )

    @property
    def is_bank(self) -> bool:
        """Whether pairs are made once, rather than in every batch."""
        return self.name not in ("sorted", "independent")


MIN_CANDIDATES = 2
"""Rows with equal labels, on average, from which on an assignment within them is allowed."""
MAX_KEPT, MIN_ROWS = 0.5, 16
"""The part of the noises that an assignment under condition vectors may leave in their places, where there are that many rows."""
CONDITION = "condition."
"""Begins the names of conditions in the file of a bank."""


def _columns(batch: Batch) -> dict[str, Tensor]:
    """The tensors of pairs, or of the data they are made of, by name."""
    noise = {} if batch.x_0 is None else {"x_0": batch.x_0}
    return {"x_1": batch.x_1, **noise, **{f"{CONDITION}{key}": x for key, x in batch.condition.items()}}


@dataclass(frozen=True)
class PairBuilder:
    """Makes banks with a frozen base.

    Args: `config`; `base`: the frozen field; `shift`: of its scheduler; `batch_size`: of its evaluations; `progress`: show bars;
    `meaning`: identifies what conditions stand for, where their numbers alone do not (prompts).
    """

    config: PairsConfig
    base: Velocity
    shift: float = 1.0
    batch_size: int = 1024
    progress: bool = False
    meaning: str = ""

    def build(self, data: Batch, conditions: dict[str, Tensor], generator: torch.Generator) -> Batch:
        """A bank of pairs: from `config.cache` where it has been made before, otherwise made now.

        Args: `data`: the training set, `x_1` and `condition`; `conditions`: rows of conditions to draw from for `self`.
        Returns: a batch with `x_0`, `x_1`, `condition`.  Raises: ValueError for pairs that are not a bank, or a broken file in the cache.
        """
        if not self.config.cache:
            return self._make(data, conditions, generator)
        path = Path(self.config.cache) / f"{self._identity(data, conditions, generator)}.safetensors"
        if not path.is_file():
            bank = self._make(data, conditions, generator)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            save_file({key: x.contiguous() for key, x in _columns(bank).items()}, temporary)
            os.replace(temporary, path)
        try:
            kept = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"the bank of pairs {path} is broken ({error}): delete it to have it made again."
            ) from error
        condition = {key.removeprefix(CONDITION): x for key, x in kept.items() if key.startswith(CONDITION)}
        return Batch(kept["x_1"], condition, x_0=kept["x_0"])

    def _identity(self, data: Batch, conditions: dict[str, Tensor], generator: torch.Generator) -> str:
        """What a bank is made of, as a digest."""
        drawn = {f"drawn.{key}": x for key, x in conditions.items()}
        inside = isinstance(self.base, SharedVelocity)  # of a network with trained parts, which are none of the base
        trained = {key for key, p in self.base.model.named_parameters() if inside and p.requires_grad}
        base = {f"base.{key}": x for key, x in self.base.model.state_dict().items() if key not in trained}
        state = {"generator": generator.get_state()}
        network = [type(self.base.model).__name__, str(getattr(self.base.model, "config", ""))]
        settings = [asdict(replace(self.config, cache="")), self.shift, self.base.convention, *network, self.meaning]
        text = json.dumps([settings, tensors_digest({**_columns(data), **drawn, **base, **state})])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _make(self, data: Batch, conditions: dict[str, Tensor], generator: torch.Generator) -> Batch:
        builders: dict[str, Callable[..., Batch]] = {
            "fixed": self._fixed,
            "ot_output": self._ot_output,
            "inverse": self._inverse,
            "best_of_k": self._best_of_k,
        }
        if self.config.name == "self":
            return self._self(data, conditions, generator)
        if self.config.name not in builders:
            raise ValueError(
                f"pairs {self.config.name!r} are made in every batch; banks are {', '.join(builders)} and self."
            )
        if self.config.name in ("fixed", "ot_output"):
            self._require_candidates(data)
        repeated = data.map(lambda x: x.repeat(self.config.repeats, *[1] * (x.ndim - 1)))
        return builders[self.config.name](repeated, generator)

    def _require_candidates(self, data: Batch) -> None:
        """Raises: ValueError when an assignment within equal labels has next to nothing to choose from, so that its pairs are independent."""
        choice = candidates(data.condition, len(data))
        if choice < min(MIN_CANDIDATES, len(data)):
            raise ValueError(
                f"pairs {self.config.name!r} are assigned within equal conditions, and of these data only {choice:.1f} rows share theirs (prompts, "
                f"pictures and labels count): noise would be all but independent of the data, and reconstruction collapses to the mean. Use "
                "pairs.name best_of_k or self."
            )

    def outputs(self, x_0: Tensor, condition: dict[str, Tensor], title: str) -> Tensor:
        """phi(x_0, c): where the frozen base takes the noise."""
        times = time_grid(self.config.num_steps, self.shift)
        return self._generate(x_0, condition, times, self.config.solver, title)

    def _generate(self, x: Tensor, condition: dict[str, Tensor], times: list[float], solver: str, title: str) -> Tensor:
        progress = f"pairs: {title}" if self.progress else None
        return generate(self.base, x, condition, times, solver, batch_size=self.batch_size, progress=progress)

    def _fixed(self, data: Batch, generator: torch.Generator) -> Batch:
        x_0 = torch.randn(data.x_1.shape, generator=generator)
        return self._assigned(x_0, x_0, data)

    def _ot_output(self, data: Batch, generator: torch.Generator) -> Batch:
        x_0 = torch.randn(data.x_1.shape, generator=generator)
        outputs = self.outputs(x_0, data.condition, "outputs of the base")
        return self._assigned(x_0, outputs, data)

    def _assigned(self, x_0: Tensor, points: Tensor, data: Batch) -> Batch:
        """The noises whose points are assigned to the data.  Raises: ValueError when vector conditions keep most of them where they were drawn."""
        permutation = conditional_permutation(exact_assignment, points, data.x_1, data.condition)
        rows = len(data) // self.config.repeats  # a row and its repeats are one place
        kept = float((permutation % rows == torch.arange(len(data)) % rows).float().mean())
        vectors = any(x.is_floating_point() for x in data.condition.values())
        if vectors and rows >= MIN_ROWS and kept > MAX_KEPT:
            raise ValueError(
                f"pairs {self.config.name!r} are assigned with regard to condition vectors, and these lie so far apart that {kept:.0%} of the noises stay "
                "where they were drawn: they would be all but independent of the data, and reconstruction collapses to the mean. Use pairs.name "
                "best_of_k or self."
            )
        return replace(data, x_0=x_0[permutation])

    def _inverse(self, data: Batch, generator: torch.Generator) -> Batch:
        times = time_grid(self.config.num_steps, self.shift)[::-1]
        return replace(data, x_0=self._generate(data.x_1, data.condition, times, self.config.solver, "reverse ODE"))

    def _best_of_k(self, data: Batch, generator: torch.Generator) -> Batch:
        best = torch.full((len(data),), torch.inf)
        chosen = torch.empty_like(data.x_1)
        for k in range(self.config.num_candidates):
            x_0 = torch.randn(data.x_1.shape, generator=generator)
            title = f"candidate {k + 1} of {self.config.num_candidates}"
            distance = (self.outputs(x_0, data.condition, title) - data.x_1).flatten(1).norm(dim=1)
            better = distance < best
            best = torch.where(better, distance, best)
            chosen[better] = x_0[better]
        if not torch.isfinite(best).all():
            raise ValueError(
                "best_of_k found no finite output of the base for some data points: the base's solver diverges."
            )
        return replace(data, x_0=chosen)

    def _self(self, data: Batch, conditions: dict[str, Tensor], generator: torch.Generator) -> Batch:
        x_0 = torch.randn(self.config.num_pairs, *data.x_1.shape[1:], generator=generator)
        condition = draw_rows(conditions, self.config.num_pairs, generator)
        return Batch(self.outputs(x_0, condition, "fine solutions of the base"), condition, x_0=x_0)
