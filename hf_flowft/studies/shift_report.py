"""Tables and results.json of the shift study, made from its stored cells and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..results import RESULTS_VERSION, environment, write_json
from ..tables import markdown_table, number
from .shift import BASELINES, SETTINGS, TITLES, Cells, compared
from .shift_fronts import LIMITS, METRICS, Comparison, Curves, measures, summary
from .shift_settings import DISTRIBUTION, END, INITIAL_TEMPERATURE, REFERENCE_RATE, Sizes

METRIC_NAMES = {"energy": "energy distance", "sliced": "sliced W2"}
COLUMNS: dict[str, tuple[str, Callable[[dict[str, Any]], float | None]]] = {
    "w2": ("W2", lambda c: c["selected"].get("w2")),
    "target_energy": ("target", lambda c: at_selected(c, "target_energy")),
    "last_target_energy": ("target, last step", lambda c: c["curve"]["target_energy"][-1]),
    "base_energy": ("forgetting", lambda c: at_selected(c, "base_energy")),
    "energy_2_steps": ("target, 2 solver steps", lambda c: c["selected"]["energy_2_steps"]),
    "path_length": ("path length", lambda c: c["selected"]["path_length"]),
    "dopri5_evaluations": ("dopri5 NFE", lambda c: c["selected"]["dopri5_evaluations"]),
    "selected_step": ("step", lambda c: c["selected_step"]),
    "best_step": ("best step", lambda c: best_step(c["curve"])),
    "instantaneous_variance": ("inst. variance", lambda c: c["instantaneous_variance"]),
    "spearman": ("Spearman", lambda c: c["spearman"]),
}
"""The columns of the table of selected models: name -> title, and how to read it off a cell."""


def at_selected(cell: dict[str, Any], key: str) -> float:
    """A recorded number at the selected step."""
    curve = cell["curve"]
    return curve[key][curve["step"].index(cell["selected_step"])]


def best_step(curve: dict[str, list[float]]) -> float:
    """The step at which the target's energy distance on the test split is lowest: hindsight, not selection."""
    return curve["step"][curve["target_energy"].index(min(curve["target_energy"]))]


def at_rate(curves: Curves, rate: float = REFERENCE_RATE) -> dict[str, Any]:
    """The cell of the reference rate."""
    return next(cell for cell in curves if cell["rate"] == rate)


def short(entry: dict[str, Any] | None) -> str:
    """A number with its standard error, briefly."""
    if entry is None:
        return "-"
    return number({"value": float(f"{entry['value']:.3g}"), "stderr": float(f"{entry['stderr']:.1g}")})


# ------------------------------------------------------------------------------------------------------------------ numbers
def selected_numbers(cells: dict[str, list[Curves]]) -> dict[str, dict[str, Any]]:
    """Method -> column -> mean and error over seeds, of the models selected on held-out data at the reference rate."""
    result: dict[str, dict[str, Any]] = {}
    for method, seeds in cells.items():
        result[method] = {}
        for key, (_, read) in COLUMNS.items():
            values = [read(at_rate(curves)) for curves in seeds]
            if None not in values:
                result[method][key] = summary(values)
    return result


def exact_numbers(cells: dict[str, list[Curves]]) -> dict[str, dict[str, Any]]:
    """Method -> step -> exact W2 along the run, and what the last step costs; for the methods where it was followed."""
    result: dict[str, dict[str, Any]] = {}
    for method, seeds in cells.items():
        runs = [at_rate(curves) for curves in seeds]
        if runs[0]["exact"]:
            rows = {step: summary([run["exact"][step] for run in runs]) for step in runs[0]["exact"]}
            rows |= {key: summary([run["last"][key] for run in runs]) for key in runs[0]["last"]}
            result[method] = rows
    return result


def curve_numbers(comparison: Comparison) -> dict[str, Any]:
    """Method -> metric -> limit (or area) -> mean and error over seeds."""
    return {
        method: {
            metric: {str(measure): summary(comparison.values(method, metric, measure)) for measure in measures(metric)}
            for metric in METRICS
        }
        for method in comparison.cells
    }


def verdicts(comparison: Comparison) -> list[dict[str, Any]]:
    """Every GFT variant against both baselines of its own coupling at its own learning rates; family against family."""
    rows = []
    for method in comparison.cells:
        if method == "gft_chosen":
            rows += comparison.wins([method], ["baseline_chosen"])
        elif method.startswith("ot_gft"):
            rows += comparison.wins([method], ["ot_plain", "ot_warmup"])
        elif method.startswith(("gft", "replay")):
            rows += matched(comparison, [method, *BASELINES]).wins([method], list(BASELINES))
    return rows


def matched(comparison: Comparison, methods: list[str]) -> Comparison:
    """Some methods at the learning rates of the first, so that all have as many candidates."""
    rates = {cell["rate"] for cell in comparison.cells[methods[0]][0]}
    kept = {m: [[c for c in curves if c["rate"] in rates] for curves in comparison.cells[m]] for m in methods}
    return Comparison(kept)


# ------------------------------------------------------------------------------------------------------------------- tables
def exact_table(numbers: dict[str, dict[str, Any]]) -> str:
    """Exact W2 along the run."""
    steps = [key for key in next(iter(numbers.values())) if key.isdigit()]
    ends = [("w2_2_steps", "2-step W2"), ("path_length", "path length"), ("dopri5_evaluations", "dopri5 NFE")]
    header = ["method", *[f"W2 at {step}" for step in steps], *[title for _, title in ends]]
    rows = [[TITLES[m], *[short(row[k]) for k in (*steps, *[key for key, _ in ends])]] for m, row in numbers.items()]
    return markdown_table(header, rows)


def selected_table(numbers: dict[str, dict[str, Any]]) -> str:
    """The models selected on held-out data."""
    used = [key for key in COLUMNS if any(key in row for row in numbers.values())]
    header = ["method", *[COLUMNS[key][0] for key in used]]
    return markdown_table(header, [[TITLES[m], *[short(row.get(k)) for k in used]] for m, row in numbers.items()])


def curve_table(numbers: dict[str, Any], metric: str) -> str:
    """Target quality at each limit of forgetting, and the area."""
    names = [f"forgets <= {limit:g}" for limit in LIMITS[metric][:-1]] + ["any", "area"]
    rows = [[TITLES[m], *[short(entry) for entry in row[metric].values()]] for m, row in numbers.items()]
    return markdown_table(["method", *names], rows)


def verdict_text(rows: list[dict[str, Any]]) -> str:
    """How many comparisons went which way, and which."""
    tally = {v: [row for row in rows if row["verdict"] == v] for v in ("better", "worse", "undecided")}
    lines = [", ".join(f"{len(found)} {verdict}" for verdict, found in tally.items()) + f", of {len(rows)}."]
    for verdict in ("better", "worse"):
        for row in tally[verdict]:
            gaps = "; ".join(f"{short(gap)} against {TITLES[b]}" for b, gap in row["differences"].items())
            where = row["measure"] if row["measure"] == "area" else f"forgetting <= {row['measure']:g}"
            lines.append(f"- {verdict}: {TITLES[row['method']]}, {METRIC_NAMES[row['metric']]}, {where}: {gaps}")
    return "\n".join(lines)


def section(setting: str, cells: dict[str, list[Curves]], entry: dict[str, Any]) -> str:
    """The text of one setting."""
    parts = [f"## {SETTINGS[setting].title}"]
    if entry["exact"]:
        parts += ["Exact W2 to held-out target samples along the run:", exact_table(entry["exact"])]
    parts += [f"Selected on held-out data, learning rate {REFERENCE_RATE:g}:", selected_table(entry["selected"])]
    for metric in METRICS:
        gap = short(entry["gap"][metric])
        parts += [
            f"Whole curves, {METRIC_NAMES[metric]}, in units of its distance between the domains ({gap}):",
            curve_table(entry["curves"], metric),
        ]
    gradual = [row for row in entry["verdicts"] if "replay" not in row["method"]]
    replay = [row for row in entry["verdicts"] if "replay" in row["method"]]
    parts += ["GFT on the target measure against plain AND warm-up: " + verdict_text(gradual)]
    if replay:
        parts += ["GFT on the replay measure against plain AND warm-up: " + verdict_text(replay)]
    return "\n\n".join(parts)


def introduction(sizes: Sizes) -> str:
    """How to read the tables."""
    return f"""# Fine-tuning under a shift

Base: {DISTRIBUTION}, independent coupling. Target: the same, rotated, scaled by 0.8 and moved. {sizes.num_steps} steps of {sizes.batch_size}; alpha goes from
{1 / (1 + INITIAL_TEMPERATURE):g} to its final value at step {END * sizes.num_steps:g}; "stops at tau 0.25 / 1" ends at alpha 0.8 / 0.5. No weight averaging unless said.
{sizes.seeds} seeds, each with its own base, data and noise, shared by all methods; mean ± standard error. Lower is better, except for the area.
"target", "forgetting": energy distance to {sizes.num_samples} held-out samples of the target and of the base's domain ({sizes.solver_steps} Euler steps).
Models are selected on as many held-out target samples as there are training samples. inst. variance, Spearman: of the target's energy distance over checkpoints.

Whole curves: the best checkpoint by the held-out score, over learning rates {", ".join(f"{r:g}" for r in sizes.rates)}, among those that forget no more than a share of
the distance between the domains; its target quality on the test split. area: the share of the square dominated by any checkpoint (0.833 for the
mixing curve, which is the limit of the energy distance for unconditional models). Methods run at one learning rate have fewer candidates, and are judged
against the baselines at that rate. "better" and "worse" mean: by more than two standard errors of the paired difference over seeds, against both baselines."""


def write_report(sizes: Sizes, cells: Cells, out: Path) -> dict[str, Any]:
    """Write results.json and shift.md; returns the results."""
    entries: dict[str, Any] = {}
    for setting, methods in cells.items():
        comparison = compared(methods)
        first = next(iter(methods.values()))
        entries[setting] = {
            "exact": exact_numbers(methods),
            "selected": selected_numbers(methods),
            "gap": {metric: summary([curves[0]["gap"][metric] for curves in first]) for metric in METRICS},
            "curves": curve_numbers(comparison),
            "verdicts": verdicts(comparison),
        }
    content = {
        "format_version": RESULTS_VERSION,
        "name": "shift",
        "sizes": asdict(sizes),
        "settings": entries,
        "environment": environment(),
    }
    text = "\n\n".join([introduction(sizes), *[section(s, cells[s], entry) for s, entry in entries.items()]])
    (out / "shift.md").write_text(text + "\n")
    write_json(out / "results.json", content)
    return content
