"""Gradual fine-tuning under a shift with little data (after arXiv 2601.22495), in two dimensions, against its honest baselines.

A base that knows five Gaussians is fine-tuned to the same, rotated, scaled and moved, from 64 samples (or 16; or to a larger shift; or under a new condition).
Beside GFT stand plain fine-tuning and plain fine-tuning whose learning rate follows GFT's alpha. Each method traces a curve of target quality against
forgetting over its checkpoints and learning rates, and these curves are compared (`shift_fronts`), not one lucky step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from .shift_figures import draw_figures
from .shift_methods import METHODS, SETTINGS, CellsOfSettings, Plan, full_plan, quick_plan
from .shift_report import write_report
from .shift_runs import ShiftRuns
from .shift_settings import QUICK, REFERENCE_RATE, Run, Sizes, all_runs


def gathered(study: ShiftRuns, plan: Plan) -> CellsOfSettings:
    """Every cell of the plan, run where it is missing, by setting, method and seed."""
    cells: CellsOfSettings = {}
    for run in (bar := tqdm(list(all_runs(study.sizes, plan)), desc="shift")):
        bar.set_postfix_str(run.name)
        seeds = cells.setdefault(run.setting, {}).setdefault(run.method, [[] for _ in range(study.sizes.seeds)])
        seeds[run.seed].append(study.cell(run))
    return cells


def pictured(study: ShiftRuns) -> dict[str, Any]:
    """The points of the scatter panels: the first seed at the reference rate."""
    shown = ["plain", "warmup", "gft", "gft_1", "replay_1"]
    return {name: study.samples(Run("few", name, REFERENCE_RATE, 0)) for name in shown}


def main(out: Path, quick: bool = False) -> None:
    """Run what is missing, then write results.json, shift.md and the figures from the stored cells."""
    sizes = QUICK if quick else Sizes()
    plan = quick_plan() if quick else full_plan(sizes.rates)
    study = ShiftRuns(out, sizes, SETTINGS, METHODS)
    cells = gathered(study, plan)
    write_report(sizes, cells, out)
    draw_figures(sizes, cells, pictured(study), out / "figures")
    print((out / "shift.md").read_text())
