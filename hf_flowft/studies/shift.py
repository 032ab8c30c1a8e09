"""Gradual fine-tuning under a shift with little data (after arXiv 2601.22495), in two dimensions, against its honest baselines.

A base that knows five Gaussians is fine-tuned to the same, rotated, scaled and moved, from 64 samples (or 16; or to a larger shift; or under a new condition).
Beside GFT stand plain fine-tuning and plain fine-tuning whose learning rate follows GFT's alpha. Each method traces a curve of target quality against
forgetting over its checkpoints and learning rates, and these curves are compared (`shift_fronts`), not one lucky step.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from ..times import TemperatureName
from .shift_fronts import Comparison, Curves
from .shift_runs import ShiftRuns
from .shift_settings import QUICK, REFERENCE_RATE, Method, Run, Setting, Sizes, all_runs

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
Cells = dict[str, dict[str, list[Curves]]]
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


def gathered(study: ShiftRuns, plan: Plan) -> Cells:
    """Every cell of the plan, run where it is missing, by setting, method and seed."""
    cells: Cells = {}
    for run in (bar := tqdm(list(all_runs(study.sizes, plan)), desc="shift")):
        bar.set_postfix_str(run.name)
        seeds = cells.setdefault(run.setting, {}).setdefault(run.method, [[] for _ in range(study.sizes.seeds)])
        seeds[run.seed].append(study.cell(run))
    return cells


def compared(cells: dict[str, list[Curves]]) -> Comparison:
    """One setting by whole curves, with the families added where their members are there."""
    families: dict[str, list[Curves]] = {}
    for name, (_, members) in FAMILIES.items():
        if all(member in cells for member in members):
            families[name] = [list(chain(*runs)) for runs in zip(*(cells[m] for m in members), strict=True)]
    return Comparison(cells | families)


def pictured(study: ShiftRuns) -> dict[str, Any]:
    """The points of the scatter panels: the first seed at the reference rate."""
    shown = ["plain", "warmup", "gft", "gft_1", "replay_1"]
    return {name: study.samples(Run("few", name, REFERENCE_RATE, 0)) for name in shown}


def main(out: Path, quick: bool = False) -> None:
    """Run what is missing, then write results.json, shift.md and the figures from the stored cells."""
    from .shift_figures import draw_figures
    from .shift_report import write_report

    sizes = QUICK if quick else Sizes()
    plan = quick_plan() if quick else full_plan(sizes.rates)
    study = ShiftRuns(out, sizes, SETTINGS, METHODS)
    cells = gathered(study, plan)
    write_report(sizes, cells, out)
    draw_figures(sizes, cells, pictured(study), out / "figures")
    print((out / "shift.md").read_text())
