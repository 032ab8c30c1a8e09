"""Tables and results.json of the shift study, made from its stored cells and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..results import RESULTS_VERSION, environment, write_json
from ..tables import markdown_table, number
from .shift_fronts import LIMITS, METRICS, Comparison, Curves, measures, summary
from .shift_methods import (
    BASELINES,
    GRADUAL,
    INTERPOLATED,
    OPTIMAL,
    OT_BASELINES,
    OTHER_SCHEDULES,
    SETTINGS,
    TITLES,
    CellsOfSettings,
    compared,
)
from .shift_settings import DISTRIBUTION, END, INITIAL_TEMPERATURE, REFERENCE_RATE, Sizes

METRIC_NAMES = {"energy": "energy distance", "sliced": "sliced W2"}
ENDS_ONLY = ("ema",)
"""Settings run at one learning rate: the curves of the baselines would have gaps, so only selected models are compared."""
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
        runs = [at_rate(curves) for curves in seeds]
        if "selected" in runs[0]:
            columns = {key: [read(run) for run in runs] for key, (_, read) in COLUMNS.items()}
            result[method] = {key: summary(values) for key, values in columns.items() if None not in values}
    return result


def exact_numbers(cells: dict[str, list[Curves]]) -> dict[str, dict[str, Any]]:
    """Method -> step -> exact W2 along the run, and what the last step costs; for the methods where it was followed."""
    result: dict[str, dict[str, Any]] = {}
    for method, seeds in cells.items():
        runs = [at_rate(curves) for curves in seeds]
        if runs[0].get("exact"):
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


def verdicts(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """Methods by their curves: question -> one row a method, metric and measure."""
    there = comparison.cells
    annealed = [m for m in [*GRADUAL, "gft_chosen", "replay_1", "replay_chosen"] if m in there]
    plain: list[dict[str, Any]] = []
    for method in (m for m in [*INTERPOLATED, *annealed] if m in there):
        plain += comparison.wins(method, ["baseline_chosen"] if method.endswith("_chosen") else list(BASELINES))
    for method in (m for m in OPTIMAL if m in there and m not in OT_BASELINES):
        plain += comparison.wins(method, OT_BASELINES)
    found = {"the better of plain and plain + warm-up (under the same coupling)": plain}
    if "velocities" in there:
        rows = [row for method in annealed for row in comparison.wins(method, ["velocities"])]
        found["interpolated velocities, which need no training beyond plain"] = rows
    schedules = [m for m in OTHER_SCHEDULES if m in there]
    if schedules:
        rows = [row for m in schedules for row in matched(comparison, [m, "gft"]).wins(m, ["gft"])]
        found["GFT with alpha_linear"] = rows
    return found


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


def verdict_table(rows: list[dict[str, Any]]) -> str:
    """One row a method: the difference to its harder baseline by each measure, marked where it is decided."""
    measures_there = list(dict.fromkeys(row["measure"] for row in rows))
    names = ["area" if m == "area" else "any" if m == "inf" else f"<= {m}" for m in measures_there]
    table: dict[str, list[str]] = {}
    for row in rows:
        hardest = max(row["differences"].values(), key=lambda gap: gap["value"])
        mark = "" if row["verdict"] == "undecided" else f" {row['verdict']}"
        table.setdefault(row["method"], []).append(short(hardest) + mark)
    return markdown_table(["method", *names], [[TITLES[method], *entries] for method, entries in table.items()])


def section(setting: str, entry: dict[str, Any]) -> str:
    """The text of one setting."""
    parts = [f"## {SETTINGS[setting].title}"]
    if entry["exact"]:
        parts += ["Exact W2 to held-out target samples along the run:", exact_table(entry["exact"])]
    parts += [f"Selected on held-out data, learning rate {REFERENCE_RATE:g}:", selected_table(entry["selected"])]
    for metric in METRICS if entry["curves"] else ():
        name, gap = METRIC_NAMES[metric], short(entry["gap"][metric])
        parts += [f"### Whole curves, {name}, in units of its distance between the domains ({gap})"]
        parts += [curve_table(entry["curves"], metric)]
        for question, every in entry["verdicts"].items():
            rows = [row for row in every if row["metric"] == metric]
            count = {v: sum(row["verdict"] == v for row in rows) for v in ("better", "worse", "undecided")}
            tally = ", ".join(f"{n} {v}" for v, n in count.items())
            parts += [f"Against {question} ({tally}; negative is better, for the area too):", verdict_table(rows)]
    return "\n\n".join(parts)


def introduction(sizes: Sizes) -> str:
    """How to read the tables."""
    rates = ", ".join(f"{rate:g}" for rate in sizes.rates)
    return f"""# Fine-tuning under a shift

Base: {DISTRIBUTION}, independent coupling. Target: the same, rotated (by 36 degrees unless said), scaled by 0.8 and moved (by 0.5). {sizes.num_steps} steps of {sizes.batch_size};
alpha goes from {1 / (1 + INITIAL_TEMPERATURE):g} to its final value at step {END * sizes.num_steps:g}; "stops at tau 0.25 / 1" ends at alpha 0.8 / 0.5. No weight averaging unless said.
{sizes.seeds} seeds, each with its own base, data and noise, shared by all methods; mean ± standard error. Lower is better, except for the area.
"target", "forgetting": energy distance to {sizes.num_samples} held-out samples of the target and of the base's domain ({sizes.solver_steps} Euler steps).
Models are selected on as many held-out target samples as there are training samples; "best step" is hindsight. inst. variance, Spearman: of the target's
energy distance over the checkpoints (every {sizes.every} steps).

Whole curves: of all checkpoints at all learning rates ({rates}; replay 1 and interpolations from 0.0003 on, other schedules
and replay weights {REFERENCE_RATE:g} only) that forget no more than a share of the distance between the domains, the one with the best held-out score; its
target quality on the test split.
area: the share of the square dominated by any checkpoint (0.833 for the mixing curve, the limit of the energy distance for unconditional models).
Interpolated: models between the base and the selected model of plain fine-tuning, by weights or (at twice the evaluations) by velocities.
"better" and "worse": by more than two standard errors of the paired difference over seeds; of so many comparisons some come out so by chance."""


def write_report(sizes: Sizes, cells: CellsOfSettings, out: Path) -> dict[str, Any]:
    """Write results.json and shift.md; returns the results."""
    entries: dict[str, Any] = {}
    for setting, methods in cells.items():
        comparison = Comparison({}) if setting in ENDS_ONLY else compared(methods)
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
    text = "\n\n".join([introduction(sizes), *[section(s, entry) for s, entry in entries.items()]])
    (out / "shift.md").write_text(text + "\n")
    write_json(out / "results.json", content)
    return content
