"""The toy of arXiv 2510.02081: five Gaussians, a flow trained for half the time, and every pairing of reconstructions to fine-tune it with.

What is compared are END POINTS: the raw weights after the last optimiser step (no EMA; the learning rate has gone to zero), whether or not the
do-no-harm selection of the trainer would have returned them; what it would have done is a column of the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from .toy_figures import draw_figures
from .toy_report import write_report
from .toy_runs import QUICK, TITLES, Sizes, ToyStudy


def main(out: Path, quick: bool = False) -> None:
    """Run what is missing, then write results.json, toy.md and the figures from the stored cells."""
    study = ToyStudy(out, QUICK if quick else Sizes())
    todo = [(seed, method) for seed in range(study.sizes.seeds) for method in TITLES]
    cells: dict[str, list[dict[str, Any]]] = {method: [] for method in TITLES}
    for seed, method in (bar := tqdm(todo, desc="toy")):
        bar.set_postfix_str(f"{method}, seed {seed}")
        cells[method].append(study.cell(method, seed))
    write_report(study, cells, out)
    draw_figures(study, cells, out / "figures")
    print((out / "toy.md").read_text())
