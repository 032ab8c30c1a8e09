"""The figures of the toy study, drawn from stored cells and the stored weights of the first seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conventions import time_grid
from ..couplings import squared_distances
from ..figures import COLOURS, new_figure, save_figure, scatter_panels
from ..sampling import generate
from ..velocity import Velocity
from .toy_metrics import BAD, CENTRES
from .toy_report import CellsOfMethods, summary
from .toy_runs import TABLE_STEPS, TITLES, ToyStudy

LIMIT = 3.0
VALUES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5)
BLUE, RED, GREEN, ORANGE, VIOLET, CYAN, GREY, PINK = COLOURS
STYLES = {
    "fm_1000": ("#999999", "-", "o"),
    "fm_2000": ("#000000", "-", "o"),
    "sorted": (RED, "-", "v"),
    "fixed": (CYAN, "-", "^"),
    "ot_output": (BLUE, "-", "s"),
    "inverse": (ORANGE, "-", "D"),
    "best_of_k": (PINK, "--", "x"),
    "self": (ORANGE, "--", "d"),
    "with_fm": (CYAN, "--", "<"),
    "random_n": (BLUE, "--", ">"),
    "gav": (GREEN, "-", "P"),
    "gav_joint": (GREEN, "--", "p"),
    "mlp_residual": (VIOLET, "--", "X"),
}
MAPPED = ("fm_2000", "ot_output", "gav")
SAMPLED = ("fm_2000", "sorted", "ot_output", "best_of_k", "gav")
SHORT = {
    "data": "data",
    "fm_1000": "FM, half the steps",
    "fm_2000": "FM, all steps",
    "sorted": "MLE, re-drawn OT",
    "ot_output": "MLE, ot_output",
    "inverse": "MLE, inverse ODE",
    "best_of_k": "MLE, best of 16",
    "gav": "MLE + GAV, base frozen",
    "gav_joint": "MLE + GAV, base trained",
}


def draw_figures(study: ToyStudy, cells: CellsOfMethods, out: Path) -> None:
    """All figures of the study."""
    error_against_steps(study, cells, out / "toy_steps.png")
    error_maps(study, out / "toy_error_map.png")
    reduction_maps(study, out / "toy_error_reduction.png")
    bad_paths(study, out / "toy_bad_paths.png")
    histograms(study, out / "toy_histograms.png")
    samples(study, out / "toy_samples.png")
    gap_curves(study, out / "toy_gap.png")


def error_against_steps(study: ToyStudy, cells: CellsOfMethods, path: Path) -> None:
    """Two metrics against the number of Euler steps, with standard errors over the seeds, for every method."""
    figure = new_figure(11.0, 4.6)
    labels = {"distance": "mean distance to the nearest centre", "sliced_w2": "sliced W2 to fresh data"}
    axes = figure.subplots(1, len(labels))
    for axis, (metric, label) in zip(axes, labels.items(), strict=True):
        for method, (colour, line, marker) in STYLES.items():
            points = [summary(cells[method], metric, n) for n in study.sizes.num_steps]
            axis.errorbar(
                study.sizes.num_steps,
                [p["value"] for p in points],
                yerr=[p["stderr"] for p in points],
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=4,
                linewidth=1.3,
                capsize=2,
                label=TITLES[method],
            )
        floor = summary(cells["data"], metric)["value"]
        axis.axhline(floor, color="#555555", linestyle=":", linewidth=1.2, label="fresh data of the same size")
        axis.set(xscale="log", yscale="log", xlabel="Euler steps N", ylabel=label)
        _plain_ticks(axis, study.sizes.num_steps)
        low, high = axis.get_ylim()
        values = [value for value in VALUES if low < value < high]
        axis.set_yticks(values, [f"{value:g}" for value in values])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    seeds = study.sizes.seeds
    figure.suptitle(f"Error against the number of steps (mean and standard error of {seeds} seeds)", fontsize=11)
    save_figure(figure, path)


def error_maps(study: ToyStudy, path: Path) -> None:
    """Where noise goes wrong: the distance to the nearest centre that each point of the latent plane ends at."""
    from matplotlib.colors import LogNorm

    figure = new_figure(11.0, 4.0)
    axes = figure.subplots(1, len(MAPPED))
    image = None
    for axis, method in zip(axes, MAPPED, strict=True):
        errors = _latent_errors(study.velocity(method, 0))
        image = axis.imshow(errors, cmap="inferno", norm=LogNorm(0.02, 1.5), **_plane())
        axis.set_title(f"{SHORT[method]}: {_bad_text(study, method)} bad", fontsize=10)
        _latent_axis(axis)
    figure.colorbar(image, ax=axes, shrink=0.85, label="distance to the nearest centre")
    figure.suptitle(f"Error over the latent plane, {TABLE_STEPS} Euler steps", fontsize=11)
    save_figure(figure, path)


def reduction_maps(study: ToyStudy, path: Path) -> None:
    """Where fine-tuning helps and where it harms: the base's error minus the fine-tuned model's, over the latent plane."""
    base = _latent_errors(study.velocity("fm_1000", 0))
    methods = ("ot_output", "gav", "sorted")
    figure = new_figure(11.0, 4.0)
    axes = figure.subplots(1, len(methods))
    image = None
    for axis, method in zip(axes, methods, strict=True):
        gain = base - _latent_errors(study.velocity(method, 0))
        image = axis.imshow(gain, cmap="RdBu", vmin=-0.8, vmax=0.8, **_plane())
        axis.set_title(SHORT[method], fontsize=10)
        _latent_axis(axis)
    figure.colorbar(
        image, ax=axes, shrink=0.85, label="error of the base minus error after\n(blue: better, red: worse)"
    )
    figure.suptitle(f"Error reduction by fine-tuning, {TABLE_STEPS} Euler steps", fontsize=11)
    save_figure(figure, path)


def bad_paths(study: ToyStudy, path: Path, shown: int = 60) -> None:
    """Paths that end away from every centre, from the same noise for every method."""
    x_0 = study.noise(study.sizes.num_exact, 0)
    figure = new_figure(11.0, 4.5)
    axes = figure.subplots(1, len(MAPPED))
    for axis, method in zip(axes, MAPPED, strict=True):
        x = generate(study.velocity(method, 0), x_0, {}, time_grid(TABLE_STEPS), trajectory=True)
        bad = x[:, _distances(x[-1]) > BAD]
        axis.plot(bad[:, :shown, 0], bad[:, :shown, 1], color=BLUE, linewidth=0.6, alpha=0.6)
        axis.scatter(bad[0, :shown, 0], bad[0, :shown, 1], s=7, color=GREY, label="noise", zorder=3)
        axis.scatter(bad[-1, :shown, 0], bad[-1, :shown, 1], s=9, color=RED, label="end", zorder=3)
        axis.scatter(CENTRES[:, 0], CENTRES[:, 1], s=60, marker="+", color="black", label="centres", zorder=4)
        axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal")
        axis.set_title(f"{SHORT[method]}: {bad.shape[1]} of {len(x_0):,} bad", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(f"Paths that end farther than {BAD} from every centre (up to {shown} shown)", fontsize=11)
    save_figure(figure, path)


def histograms(study: ToyStudy, path: Path) -> None:
    """How the errors are distributed: within the modes, and between them."""
    figure = new_figure(6.4, 4.0)
    axis = figure.subplots()
    size = study.sizes.num_samples
    bins = np.linspace(0, 1.5, 61)
    axis.hist(
        _distances(study.truth(size, 0)), bins=bins, color="#cccccc", label="data", weights=np.full(size, 1 / size)
    )
    for method in ("fm_2000", "sorted", "inverse", "ot_output", "gav"):
        x = generate(study.velocity(method, 0), study.noise(size, 0), {}, time_grid(TABLE_STEPS))
        colour, line, _ = STYLES[method]
        weights = np.full(size, 1 / size)
        axis.hist(
            _distances(x), bins=bins, weights=weights, histtype="step", color=colour, ls=line, label=SHORT[method]
        )
    axis.axvline(BAD, color="#555555", linestyle=":", linewidth=1.2)
    axis.set(yscale="log", xlabel="distance to the nearest centre", ylabel="share of samples", xlim=(0, 1.5))
    axis.set_title(f"Errors of {size:,} samples, {TABLE_STEPS} Euler steps (dotted: bad beyond)", fontsize=11)
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def samples(study: ToyStudy, path: Path) -> None:
    """Samples of some methods from the same noise, beside data."""
    size = study.sizes.num_exact
    panels = {SHORT["data"]: study.truth(size, 0)}
    for method in SAMPLED:
        panels[SHORT[method]] = generate(study.velocity(method, 0), study.noise(size, 0), {}, time_grid(TABLE_STEPS))
    scatter_panels(panels, path, LIMIT, title=f"{size:,} samples, {TABLE_STEPS} Euler steps")


def gap_curves(study: ToyStudy, path: Path) -> None:
    """The error of N Euler steps of a field against its own exact flow, and the bounds of Theorem 3.1."""
    figure = new_figure(6.4, 4.2)
    axis = figure.subplots()
    for method in MAPPED:
        rows, colour = study.gap(method, 0)["rows"], STYLES[method][0]
        for key, line, label in (("measured", "-", "measured"), ("bound_lognorm", "--", "log-norm bound")):
            x = [(row["num_steps"], row[key]) for row in rows if row[key] is not None]
            axis.plot(
                *zip(*x, strict=True), color=colour, ls=line, marker="o", ms=3.5, label=f"{SHORT[method]}: {label}"
            )
    axis.set(xscale="log", yscale="log", xlabel="Euler steps N", ylabel="distance to the exact flow (root mean square)")
    axis.set_title("Theorem 3.1: the error of few steps of a field, and its bound", fontsize=11)
    _plain_ticks(axis, study.sizes.num_steps)
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def _latent_errors(velocity: Velocity, size: int = 201) -> np.ndarray:
    """The error each point of the latent plane ends with: (size, size), the first axis is y."""
    line = torch.linspace(-LIMIT, LIMIT, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    ends = generate(velocity, torch.stack([x, y], dim=-1).reshape(-1, 2), {}, time_grid(TABLE_STEPS), batch_size=8192)
    return _distances(ends).reshape(size, size)


def _distances(x: Tensor) -> np.ndarray:
    return np.sqrt(squared_distances(x, CENTRES).min(axis=1))


def _bad_text(study: ToyStudy, method: str) -> str:
    return f"{100 * study.cell(method, 0)['steps'][str(TABLE_STEPS)]['bad_share']:.1f} %"


def _plane() -> dict[str, Any]:
    return {"extent": (-LIMIT, LIMIT, -LIMIT, LIMIT), "origin": "lower", "interpolation": "nearest"}


def _latent_axis(axis: Any) -> None:
    """The circles of the standard normal that hold 50 and 95 % of the noise."""
    for share in (0.5, 0.95):
        radius, angle = np.sqrt(-2 * np.log(1 - share)), np.linspace(0, 2 * np.pi, 200)
        axis.plot(radius * np.cos(angle), radius * np.sin(angle), color="#888888", linewidth=0.8, linestyle=":")
    axis.set(xlabel="$x_0$, first coordinate")
    axis.label_outer()


def _plain_ticks(axis: Any, num_steps: Sequence[int]) -> None:
    """Numbers of steps as they are, and a light grid."""
    axis.set_xticks(num_steps, [str(n) for n in num_steps])
    axis.minorticks_off()
    axis.grid(alpha=0.25, which="both", linewidth=0.5)
