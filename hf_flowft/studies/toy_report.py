"""What the toy study found: tables, claims checked over the seeds, and results.json, all made from the stored cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..results import RESULTS_VERSION, environment, mean_and_error, write_json
from ..tables import markdown_table, number
from .toy_metrics import BAD
from .toy_runs import BASELINES, TABLE_STEPS, TITLES, ToyStudy

CellsOfMethods = dict[str, list[dict[str, Any]]]
"""Method -> its cells, one a seed."""
Outcome = Literal["lower", "higher", "not higher"]
COLUMNS = {
    "distance": "distance to centre",
    "bad_share": f"farther than {BAD}",
    "w2": "W2",
    "w2_matched": "W2, shares matched",
    "sliced_w2": "sliced W2",
    "mode_error": "mode shares, TV",
    "std_ratio": "std in mode / data's",
}


class Claim(NamedTuple):
    """`method` is `outcome` than `against` in `metric` at `num_steps`, by more than two standard errors of the paired difference."""

    text: str
    method: str
    outcome: Outcome
    against: str
    metric: str = "distance"
    num_steps: int = TABLE_STEPS


CLAIMS = (
    Claim("MLE with an ot_output bank beats flow matching of the same length", "ot_output", "lower", "fm_2000"),
    Claim("... has fewer bad samples", "ot_output", "lower", "fm_2000", "bad_share"),
    Claim("... is no farther from the data", "ot_output", "not higher", "fm_2000", "w2"),
    Claim("... is nearer to it, mode shares apart", "ot_output", "lower", "fm_2000", "w2_matched"),
    Claim("... has no worse mode shares", "ot_output", "not higher", "fm_2000", "mode_error"),
    Claim("... does not shrink the modes below the data's", "data", "not higher", "ot_output", "std_ratio"),
    Claim("A fixed bank of noise and data does so too", "fixed", "lower", "fm_2000"),
    Claim("... is no farther from the data", "fixed", "not higher", "fm_2000", "w2"),
    Claim("... is nearer to it, mode shares apart", "fixed", "lower", "fm_2000", "w2_matched"),
    Claim("Pairs re-drawn in every step harm the base", "sorted", "higher", "fm_1000"),
    Claim("The inverse ODE's pairs do not reach flow matching of the same length", "inverse", "higher", "fm_2000"),
    Claim("Trained at 10 steps it is worse than its base at one", "ot_output", "higher", "fm_1000", num_steps=1),
    Claim("Random N is better at one step than N = 10", "random_n", "lower", "ot_output", num_steps=1),
    Claim("The FM loss beside it costs part of the gain", "with_fm", "higher", "ot_output"),
    Claim("MLE + GAV on the frozen base beats the base", "gav", "lower", "fm_1000"),
    Claim("... beats flow matching of the same length", "gav", "lower", "fm_2000"),
    Claim("... beats an MLP residual", "gav", "lower", "mlp_residual"),
    Claim("MLE + GAV with the base trained beats flow matching of the same length", "gav_joint", "lower", "fm_2000"),
    Claim("... and MLE without GAV", "gav_joint", "lower", "ot_output"),
)


def values(cells: Sequence[dict[str, Any]], metric: str, num_steps: int = TABLE_STEPS) -> list[float]:
    """A metric of a method's cells, one number a seed."""
    return [cell[metric] if metric in ("w2", "w2_matched") else cell["steps"][str(num_steps)][metric] for cell in cells]


def summary(cells: Sequence[dict[str, Any]], metric: str, num_steps: int = TABLE_STEPS) -> dict[str, float]:
    """Mean and standard error over the seeds."""
    return mean_and_error(values(cells, metric, num_steps))


def difference(cells: CellsOfMethods, method: str, against: str, metric: str, num_steps: int) -> dict[str, float]:
    """Mean and standard error over the seeds of a paired difference: both start from the same noise and are held against the same data."""
    pairs = zip(values(cells[method], metric, num_steps), values(cells[against], metric, num_steps), strict=True)
    return mean_and_error([a - b for a, b in pairs])


def check(claim: Claim, cells: CellsOfMethods) -> dict[str, Any]:
    """A claim with its numbers, and whether it holds."""
    gap = difference(cells, claim.method, claim.against, claim.metric, claim.num_steps)
    noise = 2 * gap["stderr"]
    holds = {"lower": gap["value"] < -noise, "higher": gap["value"] > noise, "not higher": gap["value"] <= noise}
    return {**claim._asdict(), "difference": gap, "holds": holds[claim.outcome]}


def write_report(study: ToyStudy, cells: CellsOfMethods, out: Path) -> None:
    """results.json and toy.md."""
    claims = [check(claim, cells) for claim in CLAIMS]
    training = {method: _training(study, method) for method in TITLES if method != "data"}
    results = {
        "format_version": RESULTS_VERSION,
        "study": "toy",
        "sizes": asdict(study.sizes),
        "titles": TITLES,
        "metrics": {method: _metrics(study, cells[method]) for method in TITLES},
        "training": training,
        "claims": claims,
        "environment": environment(),
    }
    write_json(out / "results.json", results)
    (out / "toy.md").write_text(_markdown(study, cells, training, claims))


def _training(study: ToyStudy, method: str) -> dict[str, Any]:
    """Seconds of training, and how often the do-no-harm selection would have kept the end point."""
    facts = [study.training(method, seed) for seed in range(study.sizes.seeds)]
    return {
        "seconds": mean_and_error([fact["seconds"] for fact in facts]),
        "selected": sum(fact["selected"] for fact in facts),
    }


def _metrics(study: ToyStudy, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    curves = {
        f"{metric}@{n}": summary(cells, metric, n)
        for metric in cells[0]["steps"][str(TABLE_STEPS)]
        for n in study.sizes.num_steps
    }
    return {f"{metric}@{TABLE_STEPS}": summary(cells, metric) for metric in ("w2", "w2_matched")} | curves


def _markdown(study: ToyStudy, cells: CellsOfMethods, training: dict[str, Any], claims: list[dict[str, Any]]) -> str:
    sizes = study.sizes
    header = (
        f"Five Gaussians in two dimensions; mean ± standard error over {sizes.seeds} seeds; Euler's method, {sizes.num_samples:,} samples; "
        f"the exact W2 is taken between {sizes.num_exact:,}, and is mostly the luck of the mode shares: beside it stands that of samples "
        f"with the truth's shares. MLE is trained for {sizes.half:,} steps at N = 10 from the flow of {sizes.half:,} steps; the baseline has {sizes.fm_steps:,}. "
        "Weights: raw, after the last step, whether or not the do-no-harm selection would have returned them."
    )
    parts = [
        "# The toy: which pairing helps",
        header,
        f"## At {TABLE_STEPS} steps (the distance of the data itself is the floor, not zero)",
        _full_table(study, cells, training),
        "## Distance to the nearest centre, by number of steps",
        _steps_table(study, cells, "distance"),
        f"## Share of samples farther than {BAD} from every centre, by number of steps",
        _steps_table(study, cells, "bad_share"),
        "## Claims (paired over the seeds, two standard errors)",
        _claims_table(claims),
    ]
    return "\n\n".join(parts) + "\n"


def _full_table(study: ToyStudy, cells: CellsOfMethods, training: dict[str, Any]) -> str:
    rows = []
    for method, title in TITLES.items():
        facts = training.get(method)
        kept = f"{facts['selected']} of {study.sizes.seeds}" if facts and method not in BASELINES else "-"
        seconds = f"{facts['seconds']['value']:.0f}" if facts else "-"
        rows.append([title, *[number(_rounded(summary(cells[method], metric))) for metric in COLUMNS], kept, seconds])
    return markdown_table(["model", *COLUMNS.values(), "selected", "seconds"], rows)


def _steps_table(study: ToyStudy, cells: CellsOfMethods, metric: str) -> str:
    rows = [
        [title, *[number(_rounded(summary(cells[method], metric, n))) for n in study.sizes.num_steps]]
        for method, title in TITLES.items()
        if method != "data"
    ]
    return markdown_table(["model", *[f"N = {n}" for n in study.sizes.num_steps]], rows)


def _claims_table(claims: list[dict[str, Any]]) -> str:
    """A claim of no harm that was not contradicted is not thereby proven, and says so."""
    rows = []
    for claim in claims:
        what = f"{claim['metric']} at N = {claim['num_steps']}: {claim['method']} minus {claim['against']}"
        holds = "not contradicted" if claim["outcome"] == "not higher" else "holds"
        rows.append(
            [claim["text"], what, number(_rounded(claim["difference"])), holds if claim["holds"] else "does not hold"]
        )
    return markdown_table(["claim", "measured by", "difference", ""], rows)


def _rounded(entry: dict[str, float]) -> dict[str, float]:
    """A mean with the decimals its standard error supports (two figures of the error), at most four; never -0."""
    error = entry["stderr"] if entry["stderr"] > 1e-6 else 0.0  # less is rounding
    places = min(4, max(0, 1 - math.floor(math.log10(error)))) if error else 4
    return {**entry, "value": round(entry["value"], places) + 0.0, "stderr": error}
