"""Do no harm: the base is a candidate, and the best model on held-out data is what a run returns."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .evaluation import Score
from .settings import EvalConfig


def paired_difference(values: list[float], others: list[float]) -> tuple[float, float]:
    """The mean of values - others over common noise draws or rows, and its standard error (0 of a single one)."""
    differences = [a - b for a, b in zip(values, others, strict=True)]
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / max(len(differences) - 1, 1))
    return mean, spread / math.sqrt(len(differences))


@dataclass
class Selection:
    """The candidates seen so far; the first one is the base.

    A candidate is eligible when it keeps within the forgetting limit; the best eligible one is returned if it beats the base by more than
    `min_delta` standard errors of the paired difference, and the base otherwise. The error is the larger of two: over the repeats, which are the
    noise (of a policy: over the episodes), and over the held-out rows, where the metric is a matter of rows: others would have been as good to judge on.
    """

    config: EvalConfig
    scores: list[Score] = field(default_factory=list)
    best: Score = None

    def add(self, score: Score) -> bool:
        """Enter a candidate; True when it is the best so far (the base, entered first, always is; any number beats none)."""
        if self.scores:
            known = self.base.rows and score.rows
            score = replace(
                score, rows=[], row_error=paired_difference(self.base.rows, score.rows)[1] if known else 0.0
            )
        self.scores.append(score)
        if self.best is None or (self.eligible(score) and not score.value >= self.best.value):
            self.best = score
            return True
        return False

    @property
    def base(self) -> Score:
        """The score of the base."""
        return self.scores[0]

    def eligible(self, score: Score) -> bool:
        """Whether a candidate is finite and forgets no more than allowed."""
        if not math.isfinite(score.value):
            return False
        limit = self.config.forgetting_limit
        if not limit or score.forgetting is None:
            return True
        rise, error = paired_difference(score.base_domain, self.base.base_domain)
        return rise <= max((limit - 1) * abs(self.base.forgetting), error)

    def improvement(self) -> tuple[float, float]:
        """How much lower the best is than the base, and the standard error of that difference."""
        gain, error = paired_difference(self.base.target, self.best.target)
        return gain, max(error, self.best.row_error)

    @property
    def improved(self) -> bool:
        """Whether the best candidate beats the base by more than `min_delta` standard errors."""
        if not math.isfinite(self.base.value):
            return self.best is not self.base
        gain, error = self.improvement()
        return self.best is not self.base and gain > self.config.min_delta * error

    @property
    def since_best(self) -> int:
        """Evaluations since the best one."""
        return len(self.scores) - 1 - self.scores.index(self.best)

    @property
    def exhausted(self) -> bool:
        """Whether early stopping says enough."""
        return bool(self.config.patience) and self.since_best >= self.config.patience

    def verdict(self, metric: str, split: str) -> str:
        """One sentence for the log, the results and the card; `split`: what the candidates were judged on."""
        gain, error = self.improvement()
        if not any(math.isfinite(score.value) for score in self.scores):
            return f"{metric} on the {split} split was never a finite number, so that nothing could be compared: the base is returned."
        if self.improved:
            return (
                f"Step {self.best.step} is the best model on the {split} split: {metric} {self.best.value:.4g} against {self.base.value:.4g} "
                f"for the base (lower is better; difference {gain:.3g} +- {error:.2g})."
            )
        return (
            f"Nothing beat the base on the {split} split ({metric} {self.base.value:.4g}) by more than {self.config.min_delta:g} standard error{'' if self.config.min_delta == 1 else 's'}"
            f"{'' if self.best is self.base else f'; the best attempt was {self.best.value:.4g} at step {self.best.step}'}: the base is returned."
        )

    def state(self) -> dict[str, Any]:
        """JSON-able, for checkpoints."""
        return {"scores": [asdict(score) for score in self.scores], "best_step": self.best.step if self.best else None}

    def told(self) -> list[dict[str, Any]]:
        """The scores for results and cards, without what single rows add."""
        return [{key: value for key, value in score.items() if key != "rows"} for score in self.state()["scores"]]

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        self.scores = [Score(**score) for score in state["scores"]]
        self.best = next((score for score in self.scores if score.step == state["best_step"]), None)
