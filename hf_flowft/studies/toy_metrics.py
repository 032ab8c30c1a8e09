"""How samples of the five Gaussians are judged."""

from __future__ import annotations

import torch
from torch import Tensor

from ..couplings import squared_distances
from ..data.toy import FIVE_CENTRES, FIVE_WEIGHTS
from ..metrics import distances, modes
from ..randomness import keyed_generator

CENTRES, WEIGHTS = torch.tensor(FIVE_CENTRES), torch.tensor(FIVE_WEIGHTS)
BAD = 0.3
"""A sample farther than this from every centre (three standard deviations of a mode) is bad."""


def around_centres(x: Tensor, truth: Tensor, seed: int) -> dict[str, float]:
    """The metrics of samples, by name: (n, 2), (m, 2); `seed`: of the directions of the sliced distance."""
    directions = keyed_generator(seed, "toy study", "directions")
    return {
        "distance": modes.distance_to_nearest_centre(x, CENTRES),
        "bad_share": modes.bad_share(x, CENTRES, BAD),
        "mode_error": modes.mode_share_error(x, CENTRES, WEIGHTS),
        "std_ratio": modes.within_mode_std_ratio(x, truth, CENTRES, BAD),
        "sliced_w2": distances.sliced_wasserstein_2(x, truth, generator=directions, num_projections=64),
    }


def share_matched_w2(x: Tensor, truth: Tensor) -> float:
    """W2 to the truth of as many samples at each centre as the truth has there, in data units; lower is better.

    Plain W2 of a few thousand samples measures mostly how their mode shares happen to fall, and forgives samples between the modes, over which
    misplaced mass travels more cheaply. Here the shares (judged by `mode_error`) are taken out, and what is left is the shape of the modes and
    the samples between them. A centre with too few samples repeats them; one with none takes any.

    Args: `x`: (n, 2), better more than the truth has; `truth`: (m, 2).
    """
    at_x, at_truth = (torch.from_numpy(squared_distances(y, CENTRES).argmin(axis=1)) for y in (x, truth))
    rows = []
    for centre, wanted in enumerate(torch.bincount(at_truth, minlength=len(CENTRES)).tolist()):
        found = (at_x == centre).nonzero().flatten()
        found = found if len(found) else torch.arange(len(x))
        rows.append(found.repeat(-(-wanted // len(found)))[:wanted])
    return distances.wasserstein_2(x[torch.cat(rows)], truth)
