"""The settings and methods of the shift study, what is run where, and among which methods a family chooses."""

from __future__ import annotations

from itertools import chain
from typing import get_args

from ..times import TemperatureName
from .shift_fronts import Comparison, Curves
from .shift_settings import REFERENCE_RATE, Method, Setting

SETTINGS = {
    "few": Setting("64 samples"),
    "tiny": Setting("16 samples", train_size=16),
    "far": Setting("64 samples, larger shift (80 degrees, moved by 2)", rotation=80.0, move=2.0),
    "ema": Setting("64 samples, weights averaged (EMA 0.99)", ema_decay=0.99),
    "conditional": Setting("64 samples of a new condition", conditional=True),
}
SCHEDULES = [name for name in get_args(TemperatureName) if name != "alpha_linear"]
BASELINES = {
    "plain": Method("plain", "plain"),
    "warmup": Method("plain + warm-up", "warmup"),
}
GRADUAL = {
    "gft": Method("GFT"),
    "gft_0.25": Method("GFT, stops at tau 0.25", final_temperature=0.25),
    "gft_1": Method("GFT, stops at tau 1", final_temperature=1.0),
}
REPLAY = {f"replay_{w:g}": Method(f"GFT, replay {w:g}", "replay", weight=w) for w in (0.3, 1.0, 3.0)}
INTERPOLATED = {kind: Method(f"plain and base, {kind} interpolated", kind) for kind in ("weights", "velocities")}
"""What costs no training beyond plain fine-tuning: models between its selected model and the base."""
OPTIMAL = {
    "ot_plain": Method("OT: plain", "plain", coupling="ot"),
    "ot_warmup": Method("OT: plain + warm-up", "warmup", coupling="ot"),
    "ot_gft": Method("OT: GFT", coupling="ot"),
    "ot_gft_0.25": Method("OT: GFT, stops at tau 0.25", final_temperature=0.25, coupling="ot"),
}
OT_BASELINES = ("ot_plain", "ot_warmup")
OTHER_SCHEDULES = {f"gft_{name}": Method(f"GFT, {name}", schedule=name) for name in SCHEDULES}
METHODS = BASELINES | INTERPOLATED | GRADUAL | REPLAY | OPTIMAL | OTHER_SCHEDULES
FAMILIES = {
    "baseline_chosen": ("plain or warm-up, chosen on held-out", ("plain", "warmup")),
    "gft_chosen": ("GFT, final tau chosen on held-out", tuple(GRADUAL)),
    "replay_chosen": ("GFT, replay weight chosen on held-out", tuple(REPLAY)),
}
"""Unions of runs among which the held-out score chooses; they have more candidates than one method, which helps them."""
TITLES = {name: method.title for name, method in METHODS.items()} | {
    name: title for name, (title, _) in FAMILIES.items()
}
Plan = dict[str, dict[str, tuple[float, ...]]]
CellsOfSettings = dict[str, dict[str, list[Curves]]]
"""setting -> method -> seed -> the cells over the learning rates."""


def full_plan(rates: tuple[float, ...]) -> Plan:
    """What is run where, and at which learning rates: methods that are compared by their curves have the same ones."""
    one, some = (REFERENCE_RATE,), tuple(rate for rate in rates if rate >= 3e-4)
    between = dict.fromkeys(INTERPOLATED, some)
    annealed = dict.fromkeys([*BASELINES, *GRADUAL], rates) | between
    replay = {"replay_0.3": one, "replay_1": some, "replay_3": one}
    return {
        "few": annealed | replay | dict.fromkeys(OPTIMAL, rates) | dict.fromkeys(OTHER_SCHEDULES, one),
        "tiny": annealed,
        "far": annealed,
        "ema": dict.fromkeys([*BASELINES, "gft"], one),
        "conditional": dict.fromkeys([*BASELINES, "gft", "gft_0.25"], rates) | between | replay,
    }


def quick_plan() -> Plan:
    """One method of each kind."""
    one: tuple[float, ...] = (REFERENCE_RATE,)
    return {
        "few": dict.fromkeys([*BASELINES, *INTERPOLATED, *GRADUAL, "replay_1"], one),
        "conditional": dict.fromkeys([*BASELINES, "replay_1"], one),
    }


def compared(cells: dict[str, list[Curves]]) -> Comparison:
    """One setting by whole curves, with the families added where their members are there."""
    families: dict[str, list[Curves]] = {}
    for name, (_, members) in FAMILIES.items():
        if all(member in cells for member in members):
            families[name] = [list(chain(*runs)) for runs in zip(*(cells[m] for m in members), strict=True)]
    return Comparison(cells | families)
