"""Metrics: pure functions of tensors or velocity fields, each with its unit and its direction, in its docstring and in `METRICS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from . import distances, flow, gap, modes, stability

Direction = Literal["lower", "higher", "neither"]
ARROWS: dict[Direction, str] = {"lower": "↓", "higher": "↑", "neither": ""}


class Metric(NamedTuple):
    """A number that cards and tables print.

    `function` computes it: alone, as its field of that name of a NamedTuple, or as one number a step count; `direction`: which way
    is better; `unit`: `data` is the unit of one coordinate of the data, `1` none.
    """

    function: Callable[..., Any]
    direction: Direction
    unit: str

    @property
    def arrow(self) -> str:
        """↓ lower is better, ↑ higher is better, empty for neither."""
        return ARROWS[self.direction]


METRICS: dict[str, Metric] = {
    "wasserstein_2": Metric(distances.wasserstein_2, "lower", "data"),
    "sliced_wasserstein_2": Metric(distances.sliced_wasserstein_2, "lower", "data"),
    "energy_distance": Metric(distances.energy_distance, "lower", "data"),
    "energy_distance_by_label": Metric(distances.energy_distance_by_label, "lower", "data"),
    "mmd_squared": Metric(distances.mmd_squared, "lower", "1"),
    "frechet_distance": Metric(distances.frechet_distance, "lower", "features^2"),
    "kid": Metric(distances.kid, "lower", "1"),
    "distance_to_nearest_centre": Metric(modes.distance_to_nearest_centre, "lower", "data"),
    "bad_share": Metric(modes.bad_share, "lower", "share"),
    "mode_shares": Metric(modes.mode_shares, "neither", "share"),
    "mode_share_error": Metric(modes.mode_share_error, "lower", "share"),
    "within_mode_std": Metric(modes.within_mode_std, "neither", "data"),
    "within_mode_std_ratio": Metric(modes.within_mode_std_ratio, "neither", "1"),
    "diversity": Metric(modes.diversity, "neither", "data"),
    "nearest_distance": Metric(modes.nearest_distance, "neither", "data"),
    "noise_sensitivity": Metric(modes.noise_sensitivity, "neither", "data"),
    "collapse_ratio": Metric(modes.collapse_ratio, "neither", "1"),
    "path_length": Metric(flow.path_geometry, "lower", "data"),
    "excess_path_length": Metric(flow.path_geometry, "lower", "1"),
    "straightness": Metric(flow.path_geometry, "lower", "data^2"),
    "curvature": Metric(flow.path_geometry, "lower", "data / time^2"),
    "adaptive_evaluations": Metric(flow.adaptive_evaluations, "lower", "evaluations"),
    "reconstruction_errors": Metric(flow.reconstruction_errors, "lower", "data^2"),
    "velocity_drift": Metric(flow.velocity_drift, "lower", "data^2 / time^2"),
    "held_out_loss": Metric(flow.held_out_loss, "lower", "data^2"),
    "held_out_losses": Metric(flow.held_out_losses, "lower", "data^2"),
    "velocity_error": Metric(gap.velocity_error, "lower", "data / time"),
    "training_inference_gap": Metric(gap.gap_table, "lower", "data"),
    "instantaneous_variance": Metric(stability.instantaneous_variance, "lower", "metric^2"),
    "spearman_correlation": Metric(stability.spearman_correlation, "lower", "1"),
}

__all__ = ["ARROWS", "METRICS", "Direction", "Metric", "distances", "flow", "gap", "modes", "stability"]
