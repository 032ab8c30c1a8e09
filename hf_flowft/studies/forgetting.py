"""Learning against forgetting on digits: methods compared by all their checkpoints at three learning rates, not by one lucky step."""

from __future__ import annotations

import math
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import figures
from ..results import RESULTS_VERSION, environment, write_json
from ..tables import markdown_table
from ..training.run import Run
from .cells import Cells
from .common import run_or_reuse, study_config
from .digits import QUICK, config_of

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("digits_plain", {}),
    "plain + warm-up": ("digits_warmup", {}),
    "GFT, target": ("digits_gft_target", {}),
    "GFT, stopped at alpha 0.8": ("digits_gft_target", {"train.temperature.final_temperature": 0.25}),
    "GFT, replay": ("digits_gft", {"eval.forgetting_limit": 0}),
}
RATES = (1e-4, 3e-4, 1e-3)
SEEDS = (0, 1, 2)
LIMITS = (1.1, 2.0, 5.0, math.inf)


def main(out: Path, quick: bool = False) -> None:
    """Run every method at every rate and seed into `out`, cell by cell; writes results.json, forgetting.md and a figure."""
    run_or_reuse(config_of("digits_base", out, quick))
    seeds, rates = (SEEDS[:1], RATES[:1]) if quick else (SEEDS, RATES)
    cells = Cells(out / "cells", {"quick": quick, "methods": list(METHODS)})
    curves: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for name, seed, rate in tqdm([(m, s, r) for m in METHODS for s in seeds for r in rates], desc="forgetting"):
        key = f"{METHODS[name][0]}-{list(METHODS).index(name)}-{seed}-{rate:g}"
        curve = cells.get_or_run(key, partial(one_run, out, name, seed, rate, quick))
        curves.setdefault(name, {}).setdefault(seed, []).append({"rate": rate, **curve})
    table = summary_table(curves)
    write_json(
        out / "results.json", {"format_version": RESULTS_VERSION, "curves": curves, "environment": environment()}
    )
    (out / "forgetting.md").write_text(table + "\n")
    draw(curves, out / "forgetting.png")
    print(table)


def one_run(out: Path, name: str, seed: int, rate: float, quick: bool) -> dict[str, Any]:
    """The curve of one run on the validation split: target and base-domain energy distance of every checkpoint."""
    config_name, overrides = METHODS[name]
    folder = out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    overrides = {
        **overrides,
        "output_dir": str(folder),
        "model.path": str(out / "digits_base" / "pipeline"),
        "seed": seed,
    }
    overrides |= {"train.learning_rate": rate, "eval.every": 25, "eval.num_repeats": 2}
    run = Run(study_config(config_name, {**overrides, **(QUICK if quick else {})}), progress=False)
    result = run.trainer.train()
    if result.stopped:
        raise KeyboardInterrupt
    scores = result.selection.scores
    shutil.rmtree(folder)
    return {
        "step": [s.step for s in scores],
        "target": [s.value for s in scores],
        "base_domain": [s.forgetting for s in scores],
    }


def best_within(curves: list[dict[str, Any]], limit: float) -> float:
    """The best target value over all checkpoints and rates of one seed that forget at most `limit` times the base's own value."""
    values = []
    for curve in curves:
        allowed = limit * curve["base_domain"][0]
        values += [t for t, b in zip(curve["target"], curve["base_domain"], strict=True) if b <= allowed]
    return min(values)


def summary_table(curves: dict[str, dict[int, list[dict[str, Any]]]]) -> str:
    """Best target quality under each limit of forgetting: mean and standard error over the seeds."""
    header = [
        "method",
        *[f"forgetting <= {limit:g} x base" if math.isfinite(limit) else "no limit" for limit in LIMITS],
    ]
    rows = []
    for name, seeds in curves.items():
        cells = []
        for limit in LIMITS:
            values = [best_within(runs, limit) for runs in seeds.values()]
            error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{error}")
        rows.append([name, *cells])
    return markdown_table(header, rows)


def draw(curves: dict[str, dict[int, list[dict[str, Any]]]], path: Path) -> None:
    """The lower left hull of each method's checkpoints, over rates and seeds together."""
    fronts = {}
    for name, seeds in curves.items():
        points = [
            (b, t) for runs in seeds.values() for c in runs for b, t in zip(c["base_domain"], c["target"], strict=True)
        ]
        front: list[tuple[float, float]] = []
        for b, t in sorted(points):
            if not front or t < front[-1][1]:
                front.append((b, t))
        fronts[name] = ([b for b, _ in front], [t for _, t in front])
    figures.trade_off(
        fronts,
        path,
        xlabel="old digits: energy distance (validation)",
        ylabel="new digits: energy distance (validation)",
        title="best of all checkpoints, three learning rates and all seeds (lower left is better)",
    )
