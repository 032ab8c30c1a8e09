"""The pictures of the page: grids of images, clouds of points, and their ways from the noise. Each function gives PIL images, one a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..figures import COLOURS, new_figure
from .comparison import Comparison, Drawing

GRID_WIDTH = 1200  # pixels
INK, PAPER, PALE = "#1b2733", "#ffffff", "#c9ced6"
MODEL_COLOURS = {"base": COLOURS[0], "result": COLOURS[1]}


def sample_pictures(comparison: Comparison, drawings: dict[str, Drawing], labels: Any) -> dict[str, Image.Image]:
    """The samples of every model."""
    if comparison.is_image:
        columns = comparison.columns(comparison.choose(labels))
        names = [comparison.labels[label] for label in columns if label is not None]
        low, high = comparison.models["result"].description.get("value_range", (0.0, 1.0))
        return {name: image_grid((d.samples - low) / (high - low), len(columns), names) for name, d in drawings.items()}
    clouds = {name: first_two(drawing.samples) for name, drawing in drawings.items()}
    data = comparison.cloud if comparison.in_plane else None
    limits = common_limits([*clouds.values(), *([] if data is None else [data])])
    return {name: _plot(_scatter(points, data, MODEL_COLOURS[name]), limits) for name, points in clouds.items()}


def line_pictures(comparison: Comparison, drawings: dict[str, Drawing]) -> dict[str, Image.Image]:
    """The ways from noise to sample of every model, for points in the plane."""
    data = comparison.cloud
    limits = common_limits([d.lines.flatten(0, 1) for d in drawings.values()] + ([] if data is None else [data]))
    return {name: _plot(_lines(d.lines, data, MODEL_COLOURS[name]), limits) for name, d in drawings.items()}


def image_grid(images: Tensor, columns: int, names: Sequence[str] = ()) -> Image.Image:
    """Images row by row, enlarged without smoothing, with names above the columns; grey images are drawn in ink.

    Args: `images`: (rows * columns, 1 or 3, height, width), values in [0, 1].
    """
    count, channels, height, width = images.shape
    pixels = images.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pixels = np.repeat(255 - pixels, 3, axis=3) if channels == 1 else pixels
    scale = max(1, round((GRID_WIDTH / columns - 8) / width))
    cell_width, cell_height, gap = scale * width, scale * height, 8
    top = 46 if names else gap
    grid = Image.new(
        "RGB", (columns * (cell_width + gap) + gap, top + (count // columns) * (cell_height + gap)), "#e8ebef"
    )
    pen = ImageDraw.Draw(grid)
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        place = (gap + column * (cell_width + gap), top + row * (cell_height + gap))
        grid.paste(Image.fromarray(image).resize((cell_width, cell_height), Image.Resampling.NEAREST), place)
    for column, name in enumerate(names):
        middle = gap + column * (cell_width + gap) + cell_width / 2
        pen.text((middle, top / 2), name, fill=INK, anchor="mm", font=ImageFont.load_default(26))
    return grid


def first_two(samples: Tensor) -> Tensor:
    """The first two coordinates of samples (n, *event), as (n, 2); numbers are shown against their order."""
    flat = samples.flatten(1)
    if flat.shape[1] == 1:
        return torch.cat([torch.linspace(-1, 1, len(flat))[:, None], flat], dim=1)
    return flat[:, :2]


def common_limits(clouds: Sequence[Tensor]) -> tuple[float, float, float, float]:
    """A square (left, right, bottom, top) that holds all points, with a margin, so that pictures can be compared."""
    points = torch.cat(list(clouds))
    low, high = points.min(dim=0).values, points.max(dim=0).values
    middle, half = (low + high) / 2, 0.54 * float((high - low).max().clamp(min=1e-6))
    x, y = middle.tolist()
    return x - half, x + half, y - half, y + half


def _plot(paint: Callable[[Any], None], limits: tuple[float, float, float, float]) -> Image.Image:
    """An empty square plane, painted on, as an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = new_figure(5.6, 5.6)
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set(xlim=limits[:2], ylim=limits[2:], aspect="equal")
    axis.tick_params(labelsize=8, length=0, colors="#7a8594")
    axis.grid(color="#eef0f3", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[:].set_color("#dde1e6")
    paint(axis)
    figure.set_dpi(120)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _data(axis: Any, data: Tensor | None) -> None:
    if data is not None:
        axis.scatter(data[:, 0], data[:, 1], s=9, color=PALE, linewidths=0, label="data")


def _scatter(points: Tensor, data: Tensor | None, colour: str) -> Callable[[Any], None]:
    def paint(axis: Any) -> None:
        _data(axis, data)
        axis.scatter(points[:, 0], points[:, 1], s=14, color=colour, alpha=0.65, linewidths=0, label="samples")
        _legend(axis)

    return paint


def _lines(states: Tensor, data: Tensor | None, colour: str) -> Callable[[Any], None]:
    def paint(axis: Any) -> None:
        _data(axis, data)
        axis.plot(states[..., 0], states[..., 1], color=colour, alpha=0.35, linewidth=0.8)
        axis.scatter(
            states[0, :, 0],
            states[0, :, 1],
            s=11,
            facecolors=PAPER,
            edgecolors="#55606e",
            linewidths=0.6,
            label="noise",
            zorder=3,
        )
        axis.scatter(states[-1, :, 0], states[-1, :, 1], s=16, color=colour, linewidths=0, label="samples", zorder=4)
        _legend(axis)

    return paint


def _legend(axis: Any) -> None:
    axis.legend(fontsize=8.5, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, handletextpad=0.2)
