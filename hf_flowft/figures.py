"""Pictures of a run: sample grids, scatter plots, curves. Each function writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

COLOURS = ("#1f4e79", "#c0392b", "#2e8b57", "#d68910", "#7d3c98", "#17a2b8", "#6c757d", "#e377c2")


def save_figure(figure: Any, path: Path) -> Path:
    """Write the PNG, making its folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    return path


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches; matplotlib is loaded here."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def image_rows(rows: dict[str, Tensor], path: Path, column_names: Sequence[str] = (), title: str = "") -> Path:
    """Rows of images side by side, a name for each row.

    Args: `rows`: name -> (columns, channels, height, width) with values in [0, 1]; `column_names`: above the columns.
    """
    columns = max(len(images) for images in rows.values())
    height, width = next(iter(rows.values())).shape[-2:]
    gap = max(1, width // 8)
    channels = next(iter(rows.values())).shape[1]
    paper = 0.0 if channels == 1 else 1.0  # grey images are drawn in ink: 0 is white
    mosaic = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, channels), paper)
    for row, images in enumerate(rows.values()):
        for column, image in enumerate(images.clamp(0, 1).permute(0, 2, 3, 1).numpy()):
            top, left = row * (height + gap), column * (width + gap)
            mosaic[top : top + height, left : left + width] = image
    figure = new_figure(0.62 * columns + 2.4, 0.62 * len(rows) + (0.5 if title else 0.2))
    axis = figure.subplots()
    axis.imshow(mosaic.squeeze(-1) if channels == 1 else mosaic, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axis.set_yticks([row * (height + gap) + height / 2 - 0.5 for row in range(len(rows))], list(rows), fontsize=9)
    axis.set_xticks(
        [column * (width + gap) + width / 2 - 0.5 for column in range(len(column_names))], column_names, fontsize=9
    )
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title, fontsize=11)
    return save_figure(figure, path)


def scatter_panels(
    panels: dict[str, Tensor], path: Path, limit: float = 4.0, size: float = 2.0, title: str = ""
) -> Path:
    """Two-dimensional samples, one panel each: name -> (n, 2)."""
    figure = new_figure(2.7 * len(panels), 2.9)
    for axis, (name, x) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        axis.scatter(x[:, 0], x[:, 1], s=size, alpha=0.4, linewidths=0, color=COLOURS[0])
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
        axis.set_title(name, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return save_figure(figure, path)


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    errors: Mapping[str, Sequence[float]] | None = None,
    lines: Mapping[str, float] | None = None,
) -> Path:
    """Lines with markers: name -> (x, y); `errors`: standard errors of y; `lines`: named horizontal lines."""
    figure = new_figure(6.4, 4.0)
    axis = figure.subplots()
    for index, (name, (x, y)) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        style = "-" if index < len(COLOURS) else "--"
        axis.errorbar(
            x,
            y,
            yerr=(errors or {}).get(name),
            label=name,
            color=colour,
            linestyle=style,
            marker="o",
            markersize=3.5,
            linewidth=1.4,
        )
    for name, value in (lines or {}).items():
        axis.axhline(value, color="#444444", linestyle=":", linewidth=1)
        axis.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color="#444444"
        )
    _decorate(axis, xlabel, ylabel, title, log_x, log_y)
    ticks = sorted({value for x, _ in series.values() for value in x})
    if log_x and len(ticks) <= 8:
        axis.set_xticks(ticks, [f"{value:g}" for value in ticks], minor=False)
        axis.set_xticks([], minor=True)
    return save_figure(figure, path)


def trade_off(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> Path:
    """Two qualities against each other over a run: name -> (x, y) in the order of the run; the last point is marked."""
    figure = new_figure(6.4, 4.6)
    axis = figure.subplots()
    for index, (name, (x, y)) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        axis.plot(x, y, color=colour, marker=".", linewidth=1.1, markersize=5, label=name)
        axis.plot(x[-1:], y[-1:], color=colour, marker="s", markersize=6)
    _decorate(axis, xlabel, ylabel, title, True, True)
    return save_figure(figure, path)


def _decorate(axis: Any, xlabel: str, ylabel: str, title: str, log_x: bool, log_y: bool) -> None:
    if log_x:
        axis.set_xscale("log")
    if log_y:
        axis.set_yscale("log")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if title:
        axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.25, which="both", linewidth=0.5)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
