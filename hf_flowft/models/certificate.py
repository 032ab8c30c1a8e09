"""What can be said about the contraction of a viscous flow, and which part of it is proven."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Guarantee:
    """What the structure of a viscosity mu proves about mu alone, for every state, time and condition.

    `metric`: the fixed norm it is about; `condition_number` and `overshoot`: the same for that norm against the
    Euclidean one, |x(t) - x'(t)|_2 <= overshoot exp(-rate t) |x(0) - x'(0)|_2; `rate`: 1 / time, None when nothing is
    proven; `stiffness`: Lam, an upper bound of how fast mu moves, 1 / time; `max_step`: explicit Euler never expands,
    and contracts if rate > 0, for steps below it; None when nothing is proven or nothing moves; `reason`: the
    argument in one sentence.
    """

    metric: str
    condition_number: float | None
    overshoot: float | None
    rate: float | None
    stiffness: float | None
    max_step: float | None
    reason: str


@dataclass(frozen=True)
class ContractionCertificate:
    """How two states under the same condition approach each other between t = 0 and t = 1. Higher rates are stronger
    contraction.

    `viscosity`: what is proven about mu alone, on its own clock; `gate_integral`: of the gate over that clock;
    `speed`: how much faster than the flow the clocks run (cascade: 2); `base_expansion`: nu, the largest logarithmic
    norm of the base in the same metric over the states that were given, and `base_lipschitz`: its largest singular
    value there, both 1 / time of the base. None: not known.
    """

    structure: str
    wiring: str
    viscosity: Guarantee
    gate_integral: float
    speed: int
    base_expansion: float | None = None
    base_lipschitz: float | None = None

    @property
    def certified(self) -> bool:
        """Whether a rate of the viscosity is proven (it may be 0: distances do not grow)."""
        return self.viscosity.rate is not None

    @property
    def integrated_rate(self) -> float | None:
        """The integral of the rate over the flow: the viscosity alone multiplies distances by at most exp of minus it."""
        return self.viscosity.rate * self.gate_integral if self.certified else None

    @property
    def max_step(self) -> float | None:
        """Explicit Euler keeps the viscosity from expanding (rate > 0: keeps it contracting) for steps of the flow below it."""
        return None if self.viscosity.max_step is None else self.viscosity.max_step / self.speed

    @property
    def total(self) -> float | None:
        """integrated_rate - nu: base and viscosity together multiply distances by at most exp(-total)."""
        return (
            self.integrated_rate - self.base_expansion if self.certified and self.base_expansion is not None else None
        )

    @property
    def max_step_total(self) -> float | None:
        """1 / (base_lipschitz + stiffness) in the time of the flow, a rule of thumb: below it no Euler step overshoots."""
        if self.base_lipschitz is None or self.viscosity.stiffness is None:
            return None
        fastest = self.speed * (self.base_lipschitz + self.viscosity.stiffness)
        return 1 / fastest if fastest else None

    @property
    def proven(self) -> tuple[str, ...]:
        """The known numbers that follow from the parameters, for every state."""
        return (
            ("rate", "overshoot", "condition_number", "stiffness", "integrated_rate", "max_step")
            if self.certified
            else ()
        )

    @property
    def estimated(self) -> tuple[str, ...]:
        """The known numbers that rest on sampled states: a sample is no proof."""
        names = ("base_expansion", "base_lipschitz", "total", "max_step_total")
        return tuple(name for name in names if getattr(self, name) is not None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for a results file."""
        derived = ("integrated_rate", "max_step", "total", "max_step_total", "certified", "proven", "estimated")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}

    def sentences(self) -> list[str]:
        """The certificate in words, proven statements first."""
        return self._proven_sentences() + self._estimated_sentences()

    def _proven_sentences(self) -> list[str]:
        v = self.viscosity
        if not self.certified:
            return [f"Not certified: the viscosity '{self.structure}' has no proven contraction rate. {v.reason}"]
        effect = f"contracts at rate {v.rate:.4g}" if v.rate > 0 else "does not expand"
        lines = [
            f"Proven: the viscosity alone ('{self.structure}') {effect} in {v.metric} (condition number {v.condition_number:.4g}, "
            f"Euclidean overshoot {v.overshoot:.4g}); over the whole flow it multiplies distances by at most "
            f"exp(-{self.integrated_rate:.4g}). {v.reason}"
        ]
        if self.max_step is not None:
            lines.append(
                f"Proven: explicit Euler keeps the viscosity from expanding for steps below {self.max_step:.4g}."
            )
        return lines

    def _estimated_sentences(self) -> list[str]:
        if self.base_expansion is None:
            return []
        lines = [
            f"Estimated on sampled states: the base expands at rate at most {self.base_expansion:.4g} in "
            f"{self.viscosity.metric}, with a Lipschitz constant of {self.base_lipschitz:.4g}."
        ]
        if self.total is not None:
            verdict = "contracts as a whole" if self.total > 0 else "is not shown to contract as a whole"
            lines.append(
                f"Estimated: base and viscosity together multiply distances by at most exp({0 - self.total:.4g}), so the flow "
                f"{verdict}; keep Euler steps below about {self.max_step_total:.4g}."
            )
        return lines
