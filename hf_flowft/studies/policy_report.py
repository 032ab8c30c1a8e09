"""What the policy study found: tables, comparisons with the control and the figure, made from the stored cells alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..figures import COLOURS, new_figure, save_figure
from ..results import environment, write_json
from ..tables import markdown_table
from .cells import Cells
from .estimates import Estimate, over_episodes
from .policy_rows import CONDITIONS, GROUPS, Group, Row

REWARD = "max_reward"
NOISES = [condition for condition in CONDITIONS if condition.startswith(("gaussian", "salt-pepper"))]


class Found(NamedTuple):
    """The cells of a study by row, seed, condition and steps."""

    cells: Cells
    seeds: int

    def episodes(self, name: str, condition: str, steps: int, metric: str) -> dict[int, np.ndarray]:
        """Seed -> values of the episodes, for the seeds that are there."""
        found = {}
        for seed in range(self.seeds):
            cell = f"{name}-{seed}/{condition}/{steps}"
            if cell in self.cells:
                entry = self.cells.get_or_run(cell, dict)[metric]
                found[seed] = np.array(entry["values"], dtype=float)
        return found

    def estimate(self, name: str, condition: str, steps: int, metric: str = REWARD) -> Estimate | None:
        """Over the seeds that are there; None where there is none."""
        found = self.episodes(name, condition, steps, metric)
        return over_episodes(list(found.values())) if found else None

    def gain(
        self, name: str, control: str, condition: str, steps: tuple[int, int], metric: str = REWARD
    ) -> Estimate | None:
        """`name` at steps[0] minus `control` at steps[1], episode by episode on the same starts."""
        ours = self.episodes(name, condition, steps[0], metric)
        theirs = self.episodes(control, condition, steps[1], metric)
        both = sorted(set(ours) & set(theirs))
        return over_episodes([ours[seed] - theirs[seed] for seed in both]) if both else None

    def lost(self, name: str, steps: int) -> Estimate | None:
        """Clean minus the mean over the noises of the sensors, episode by episode on the same starts."""
        noisy = [self.episodes(name, condition, steps, REWARD) for condition in NOISES]
        clean = self.episodes(name, "clean", steps, REWARD)
        both = sorted(set(clean).intersection(*noisy))
        return (
            over_episodes([clean[seed] - np.mean([found[seed] for found in noisy], axis=0) for seed in both])
            if both
            else None
        )

    def latency(self, steps: int) -> str:
        """Milliseconds of a decision of the base."""
        cell = f"latency/{steps}"
        return f"{self.cells.get_or_run(cell, dict)['milliseconds']:.1f}" if cell in self.cells else "-"

    def training(self, name: str, start: str) -> tuple[str, str]:
        """Seconds of training, and of how many seeds the validation rollouts chose the end over the start, where there is one."""
        names = [f"{name}-{seed}/training" for seed in range(self.seeds)]
        entries = [self.cells.get_or_run(cell, dict) for cell in names if cell in self.cells]
        if not entries:
            return "-", "-"
        seconds = np.mean([entry["seconds"] for entry in entries])
        chosen = f"{sum(entry['improved'] for entry in entries)} of {len(entries)}"
        return f"{seconds:.0f}", chosen if start else "-"


def write_report(folder: Path, rows: Mapping[str, Row], seeds: int, cells: Cells, episodes: int) -> None:
    """policy.md, results.json and the figure, from the cells that are there."""
    found = Found(cells, seeds)
    kept = {name: row for name, row in rows.items() if found.estimate(name, "clean", row.steps[0])}
    parts = [
        "# Policies on Push-T",
        f"{seeds} training seeds, {episodes} test starts each, the same for all rows. Mean reached reward ± standard error (the larger of that between "
        "seeds and that over all episodes) unless another number is named; bold differences are beyond two standard errors: *gain* of reward and "
        "*change* of jerk against flow matching continued at the same number of steps (for baselines, at four). The numbers are those of "
        "the weights a run ends with; *chosen* says how often rollouts from validation starts preferred them to the start, which the run returns "
        "otherwise, and what another row goes on from; *lost to noise* is clean minus the mean over the four noises. Seconds are those of the runs, on a busy machine; a bank of pairs "
        "is made once a seed, by the first row that needs it.",
    ]
    for group in GROUPS:
        inside = {name: row for name, row in kept.items() if group in row.groups}
        if inside:
            table = few_steps(found, inside) if group == "few steps" else robustness(found, inside)
            parts += [f"## {GROUPS[group]}", table]
    text = "\n\n".join(parts) + "\n"
    (folder / "policy.md").write_text(text)
    write_json(
        folder / "results.json",
        {"seeds": seeds, "episodes": episodes, "rows": summary(found, kept), "environment": environment()},
    )
    draw_steps(found, kept, folder / "few_steps.png")
    print(text)


def few_steps(found: Found, rows: Mapping[str, Row]) -> str:
    """Mean reached reward by solver steps; at the number a policy is meant for also what it gains over the control, and how smoothly it moves."""
    counts = sorted({steps for row in rows.values() for steps in row.steps})
    lines = []
    for name, row in rows.items():
        steps = row.steps[0]
        cells = [found.estimate(name, "clean", n) for n in counts]
        gains = [
            found.gain(name, row.control, "clean", (steps, steps), metric) if row.control else None
            for metric in (REWARD, "jerk")
        ]
        smooth = thousandfold(found.estimate(name, "clean", steps, "jerk"))
        numbers = [str(steps), signed(gains[0]), str(smooth), signed(thousandfold(gains[1]))]
        lines.append([row.title, *found.training(name, row.start), *(str(cell or "-") for cell in cells), *numbers])
    lines.append(["*milliseconds of a decision*", "-", "-", *(found.latency(n) for n in counts), *["-"] * 4])
    header = ["policy", "seconds", "chosen", *(f"N = {n}" for n in counts), "its N", "gain", "1000 x jerk", "change"]
    return markdown_table(header, lines)


def robustness(found: Found, rows: Mapping[str, Row]) -> str:
    """Clean and with worse sensors, at the deployed number of steps, and what has changed against the control."""
    lines = []
    for name, row in rows.items():
        steps = row.steps[0]
        seconds, chosen = found.training(name, row.start)
        against = (steps, steps if row.start else 4)  # a fine-tune at its own steps, a baseline as the control is used
        gains = {
            metric: found.gain(name, row.control, "clean", against, metric) if row.control else None
            for metric in (REWARD, "jerk")
        }
        line = {
            "policy": row.title,
            "N": steps,
            "seconds": seconds,
            "chosen": chosen,
            "success": found.estimate(name, "clean", steps, "success"),
            "reward": found.estimate(name, "clean", steps),
            "gain": signed(gains[REWARD]),
            "1000 x jerk": thousandfold(found.estimate(name, "clean", steps, "jerk")),
            "change": signed(thousandfold(gains["jerk"])),
        }
        line |= {condition: found.estimate(name, condition, steps) for condition in CONDITIONS if condition != "clean"}
        line["lost to noise"] = found.lost(name, steps)
        lines.append(line)
    return markdown_table(list(lines[0]), [["-" if x is None else str(x) for x in line.values()] for line in lines])


def thousandfold(entry: Estimate | None) -> Estimate | None:
    """An estimate in thousandths."""
    return None if entry is None else Estimate(1e3 * entry.value, 1e3 * entry.stderr, entry.seeds)


def signed(gain: Estimate | None) -> str:
    """A difference, in bold where it is beyond two standard errors."""
    if gain is None:
        return "-"
    text = f"{gain.value:+.3f} ± {gain.stderr:.3f}"
    return f"**{text}**" if abs(gain.value) > 2 * gain.stderr else text


def summary(found: Found, rows: Mapping[str, Row]) -> dict[str, Any]:
    """Every number of the tables: row -> condition@steps -> metric -> value, stderr, seeds."""
    result: dict[str, Any] = {}
    for name, row in rows.items():
        wanted = [("clean", steps) for steps in row.steps] + [(c, row.steps[0]) for c in CONDITIONS if c != "clean"]
        numbers = {}
        for condition, steps in wanted:
            metrics = {metric: found.estimate(name, condition, steps, metric) for metric in ("success", REWARD, "jerk")}
            if metrics[REWARD]:
                numbers[f"{condition}@{steps}"] = {key: entry._asdict() for key, entry in metrics.items() if entry}
        result[name] = {"title": row.title, "control": row.control, "numbers": numbers}
    return result


def draw_steps(found: Found, rows: Mapping[str, Row], path: Path, group: Group = "few steps") -> None:
    """Reached reward against solver steps, a curve for each policy of the group."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for colour, (name, row) in zip(COLOURS, ((n, r) for n, r in rows.items() if group in r.groups), strict=False):
        points = [(n, entry) for n in sorted(row.steps) if (entry := found.estimate(name, "clean", n))]
        counts, values = [n for n, _ in points], [entry.value for _, entry in points]
        axes.errorbar(
            counts, values, [entry.stderr for _, entry in points], label=row.title, color=colour, marker="o", capsize=3
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_xlabel("solver steps (network evaluations) of a decision")
    axes.set_ylabel("mean reached reward")
    axes.set_title("Push-T: quality at few steps")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)
