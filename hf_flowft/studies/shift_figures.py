"""Figures of the shift study, drawn from its stored cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..figures import new_figure, save_figure
from .shift_fronts import Curves, front_curve, mixing_curve, points
from .shift_methods import SETTINGS, TITLES, CellsOfSettings
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
FRONT_STYLES = STYLES | {"weights": ("#7d3c98", "--"), "velocities": ("#d98fd9", "--")}
"""In the trade-off also what lies between the base and plain fine-tuning."""
METRIC_TITLES = {"energy": "energy distance", "sliced": "sliced W2"}


def _save(figure: Any, path: Path) -> None:
    """With a palette: a third of the size, and no difference to see."""
    save_figure(figure, path)
    with Image.open(path) as picture:
        reduced = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)


def _finish(axis: Any, title: str = "", **labels: Any) -> None:
    axis.set(**labels)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


# ---------------------------------------------------------------------------------------------------------------- trade-off
def trade_off(cells: CellsOfSettings, path: Path) -> None:
    """Target quality against forgetting: every checkpoint as a dot, the held-out choice at each limit as a line."""
    panels = [(s, m) for s, m in (("few", "energy"), ("few", "sliced"), ("conditional", "energy")) if s in cells]
    figure = new_figure(4.2 * len(panels), 4.6)
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (setting, metric) in zip(axes, panels, strict=True):
        conditional = SETTINGS[setting].conditional
        _front_panel(
            axis, cells[setting], metric, np.geomspace(0.01, 1.6, 80) if conditional else np.linspace(0, 1.15, 116)
        )
        if metric == "energy" and not conditional:
            grid = np.linspace(0, 1.15, 116)
            axis.plot(
                grid, mixing_curve(grid), "k--", linewidth=1.1, label="mixtures: the limit for any model", zorder=4
            )
        title = "a condition tells the domains apart" if conditional else "no condition"
        y = "distance of what is chosen to the target" if axis is axes[0] else ""
        _finish(axis, title=f"{title}, {METRIC_TITLES[metric]}", xlabel="forgetting allowed", ylabel=y)
        limits = {"xscale": "log", "yscale": "log", "xlim": (0.008, 2), "ylim": (0.03, 3)}
        axis.set(**limits if conditional else {"xlim": (0, 1.15), "ylim": (0, 1.1)})
    handles = {h.get_label(): h for axis in axes for h in axis.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    text = "In units of the distance between the domains; dots: all checkpoints; lines: chosen on held-out data, mean over seeds"
    figure.suptitle(text, fontsize=10)
    _save(figure, path)


def _front_panel(axis: Any, methods: dict[str, list[Curves]], metric: str, grid: np.ndarray) -> None:
    """Dots and lines; a line begins where the base itself, which is always a candidate, is within the limit at every seed."""
    for name in (m for m in FRONT_STYLES if m in methods):
        colour, line = FRONT_STYLES[name]
        seeds = methods[name]
        dots = np.concatenate([points(curves, metric) for curves in seeds])
        axis.plot(dots[:, 0], dots[:, 1], ".", color=colour, alpha=0.3, markersize=3.5, markeredgewidth=0, zorder=1)
        least = max(points(curves, metric)[:, 0].min() for curves in seeds)
        reachable = grid[grid >= least]
        mean = np.mean([front_curve(curves, metric, reachable) for curves in seeds], axis=0)
        axis.plot(reachable, mean, line, color=colour, linewidth=1.8, label=TITLES[name], zorder=3)


# -------------------------------------------------------------------------------------------------------------- over steps
def over_steps(sizes: Sizes, cells: CellsOfSettings, path: Path) -> None:
    """Target quality and forgetting over the steps at the reference rate, with the step at which alpha reaches its final value."""
    from matplotlib.ticker import LogLocator, NullLocator

    settings = [s for s in ("few", "tiny", "far", "conditional") if s in cells]
    figure = new_figure(3.5 * len(settings), 5.4)
    axes = figure.subplots(2, len(settings), squeeze=False, sharex=True)
    for column, setting in enumerate(settings):
        for row, domain in enumerate(("target", "base")):
            axis = axes[row][column]
            for name in (m for m in STYLES if m in cells[setting]):
                _band(axis, cells[setting][name], f"{domain}_energy", STYLES[name][0], TITLES[name])
            axis.axvline(END * sizes.num_steps, color="#555555", linestyle=":", linewidth=1)
            axis.set_yscale("log")
            if row:
                axis.set_ylim(bottom=4e-3)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            title = "" if row else SETTINGS[setting].title.split(" (")[0]
            y = ("distance to the target", "forgetting")[row] if column == 0 else ""
            _finish(axis, title, xlabel="step" if row else "", ylabel=y)
    place = {"xycoords": ("data", "axes fraction"), "fontsize": 8, "color": "#555555"}
    axes[0][0].annotate(" alpha is final", (END * sizes.num_steps, 0.95), ha="left", **place)
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
    figure = new_figure(2.3 * len(drawn), 2.6)
    for axis, (title, (x, colour)) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
        axis.scatter(first["target"][:, 0], first["target"][:, 1], s=2, alpha=0.5, linewidths=0, color="#bbbbbb")
        size = 9 if title.endswith("training samples") else 2.5
        axis.scatter(x[:, 0], x[:, 1], s=size, alpha=0.6, linewidths=0, color=colour)
        axis.set(xlim=(-3, 3.6), ylim=(-3.2, 3.2), xticks=[], yticks=[], aspect="equal")
        axis.set_title(title, fontsize=9)
    _save(figure, path)


def draw_figures(sizes: Sizes, cells: CellsOfSettings, shown: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Write all figures."""
    trade_off(cells, folder / "shift_trade_off.png")
    over_steps(sizes, cells, folder / "shift_over_steps.png")
    panels(shown, folder / "shift_samples.png")
