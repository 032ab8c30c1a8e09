"""Figures of the shift study, drawn from its stored cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .shift import SETTINGS, TITLES, Cells
from .shift_fronts import Curves, front_curve, mixing_curve, points
from .shift_report import at_rate
from .shift_settings import END, Sizes

STYLES = {
    "plain": ("#1f4e79", "-"),
    "warmup": ("#17a2b8", "-"),
    "gft": ("#c0392b", "-"),
    "gft_0.25": ("#e67e22", "-"),
    "gft_1": ("#b7950b", "-"),
    "replay_1": ("#2e8b57", "-"),
}
"""The methods shown: colour and line."""
METRIC_TITLES = {"energy": "energy distance", "sliced": "sliced W2"}


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, facecolor="white", pil_kwargs={"optimize": True})


def _finish(axis: Any, **labels: Any) -> None:
    axis.set(**labels)
    axis.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


# ---------------------------------------------------------------------------------------------------------------- trade-off
def trade_off(cells: Cells, path: Path) -> None:
    """Target quality against forgetting: every checkpoint as a dot, the held-out choice at each limit as a line."""
    panels = [(s, m) for s, m in (("few", "energy"), ("few", "sliced"), ("conditional", "energy")) if s in cells]
    figure = _figure(4.3 * len(panels), 4.5)
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (setting, metric) in zip(axes, panels, strict=True):
        _front_panel(axis, cells[setting], metric, mixing=metric == "energy" and not SETTINGS[setting].conditional)
        _finish(
            axis,
            title=f"{'conditional' if setting == 'labels' else 'unconditional'}, {METRIC_TITLES[metric]}",
            xlabel="forgetting (distance to the base's domain)",
            ylabel="distance to the target" if axis is axes[0] else "",
        )
    handles = {h.get_label(): h for axis in axes for h in axis.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(
        "Both axes in units of the distance between the domains; dots: checkpoints, lines: chosen on held-out data",
        fontsize=10,
    )
    _save(figure, path)


def _front_panel(axis: Any, methods: dict[str, list[Curves]], metric: str, mixing: bool) -> None:
    conditional = not mixing and metric == "energy"
    grid = np.geomspace(0.02, 1.6, 60) if conditional else np.linspace(0.0, 1.1, 56)
    for name in (m for m in STYLES if m in methods):
        colour, line = STYLES[name]
        seeds = methods[name]
        dots = np.concatenate([points(curves, metric) for curves in seeds])
        axis.plot(dots[:, 0], dots[:, 1], ".", color=colour, alpha=0.18, markersize=3, markeredgewidth=0, zorder=1)
        least = np.mean([points(curves, metric)[:, 0].min() for curves in seeds])
        reachable = grid[grid >= least]
        mean = np.mean([front_curve(curves, metric, reachable) for curves in seeds], axis=0)
        axis.plot(reachable, mean, line, color=colour, linewidth=1.8, label=TITLES[name], zorder=3)
    if mixing:
        axis.plot(grid, mixing_curve(grid), "k--", linewidth=1.1, label="mixtures: the limit for any model", zorder=4)
    if conditional:
        axis.set(xscale="log", yscale="log")
    else:
        axis.set(xlim=(0, 1.15), ylim=(0, 1.05))


# -------------------------------------------------------------------------------------------------------------- over steps
def over_steps(sizes: Sizes, cells: Cells, path: Path) -> None:
    """Target quality and forgetting over the steps at the reference rate, with the step at which alpha reaches its final value."""
    settings = [s for s in ("few", "tiny", "far", "conditional") if s in cells]
    figure = _figure(3.5 * len(settings), 5.4)
    axes = figure.subplots(2, len(settings), squeeze=False, sharex=True)
    for column, setting in enumerate(settings):
        for row, domain in enumerate(("target", "base")):
            axis = axes[row][column]
            for name in (m for m in STYLES if m in cells[setting]):
                _band(axis, cells[setting][name], f"{domain}_energy", STYLES[name][0], TITLES[name])
            axis.axvline(END * sizes.num_steps, color="#555555", linestyle=":", linewidth=1)
            axis.set_yscale("log")
            if row == 0:
                axis.set_title(SETTINGS[setting].title.split(" (")[0], fontsize=10)
            y = "distance to the target" if row == 0 else "forgetting"
            _finish(axis, xlabel="step" if row else "", ylabel=y if column == 0 else "")
    axes[0][0].annotate(
        "alpha is final", (END * sizes.num_steps, 0.97), xycoords=("data", "axes fraction"), fontsize=8,
        ha="right", va="top", rotation=90, color="#555555",
    )  # fmt: skip
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9, frameon=False)
    _save(figure, path)


def _band(axis: Any, seeds: list[Curves], key: str, colour: str, title: str) -> None:
    """Mean and standard error over seeds."""
    runs = [at_rate(curves) for curves in seeds]
    table = np.array([run["curve"][key] for run in runs])
    mean, error = table.mean(axis=0), table.std(axis=0, ddof=1) / np.sqrt(len(runs))
    steps = runs[0]["curve"]["step"]
    axis.plot(steps, mean, color=colour, linewidth=1.5, label=title)
    axis.fill_between(steps, np.maximum(mean - error, 1e-4), mean + error, color=colour, alpha=0.15, linewidth=0)


# ----------------------------------------------------------------------------------------------------------------- samples
def panels(shown: dict[str, dict[str, Tensor]], path: Path) -> None:
    """The base, the training samples, and what each method makes of them (coloured) over held-out target data (grey)."""
    first = next(iter(shown.values()))
    drawn = {"base": (first["base"], "#444444"), "64 training samples": (first["train"], "#000000")}
    drawn |= {TITLES[name]: (x["selected"], STYLES[name][0]) for name, x in shown.items()}
    figure = _figure(2.3 * len(drawn), 2.6)
    for axis, (title, (x, colour)) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
        axis.scatter(first["target"][:, 0], first["target"][:, 1], s=2, alpha=0.5, linewidths=0, color="#bbbbbb")
        size = 9 if title.endswith("training samples") else 2.5
        axis.scatter(x[:, 0], x[:, 1], s=size, alpha=0.6, linewidths=0, color=colour)
        axis.set(xlim=(-3, 3.6), ylim=(-3.2, 3.2), xticks=[], yticks=[], aspect="equal")
        axis.set_title(title, fontsize=9)
    _save(figure, path)


def draw_figures(sizes: Sizes, cells: Cells, shown: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Write all figures."""
    trade_off(cells, folder / "shift_trade_off.png")
    over_steps(sizes, cells, folder / "shift_over_steps.png")
    panels(shown, folder / "shift_samples.png")
