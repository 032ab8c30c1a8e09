"""Rotations as low-rank Cayley transforms: orthogonal for every value of their parameters, and cheap.

    S = U V^T - V U^T is skew,        Q = (I + S)^-1 (I - S) is orthogonal, det Q = 1, without the eigenvalue -1

With Z = [U, V] (n x 2r) and Om = [[0, I], [-I, 0]], S = Z Om Z^T and Woodbury's identity leaves a system of 2r
equations:

    Q   = I - 2 Z (Z^T Z - Om)^-1 Z^T        Q^T = I - 2 Z (Z^T Z + Om)^-1 Z^T

which is always solvable: (G - Om) x = 0 gives x^T G x = 0 (Om is skew), so Z x = 0, so Om x = 0, so x = 0. With r = 1
it is the "inversion of a two-dimensional matrix" of arXiv 2510.02081, and Q turns span{u, v} by 2 arctan a, a^2 =
|u|^2 |v|^2 - (u.v)^2, leaving the rest alone: one planar rotation only, which is why r = 2 is the default here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LowRankCayley(nn.Module):
    """Q = Cayley(U V^T - V U^T) acting on row vectors.

    Args: `size`: n; `rank`: r, U and V being n x r, drawn from N(0, (0.1 / sqrt n)^2).  Raises: ValueError when rank
    < 1.
    """

    def __init__(self, size: int, rank: int = 2):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank of a Cayley rotation must be at least 1, got {rank}.")
        self.u = nn.Parameter(torch.randn(size, rank) * 0.1 / math.sqrt(size))
        self.v = nn.Parameter(torch.randn(size, rank) * 0.1 / math.sqrt(size))

    def forward(self, x: Tensor, transpose: bool = False) -> Tensor:
        """Q x, or Q^T x, for each row x: (batch, n) -> (batch, n); solved in float32 at least, as halves have no solver."""
        z = torch.cat([self.u, self.v], dim=1)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        rows = x.to(z.dtype)
        omega = _symplectic(z) if transpose else -_symplectic(z)
        return (rows - 2 * (z @ torch.linalg.solve(z.T @ z + omega, (rows @ z).T)).T).to(x.dtype)


def _symplectic(z: Tensor) -> Tensor:
    """Om = [[0, I], [-I, 0]] of the width of z."""
    rank = z.shape[1] // 2
    eye = torch.eye(rank, dtype=z.dtype, device=z.device)
    zero = torch.zeros_like(eye)
    return torch.cat([torch.cat([zero, eye], dim=1), torch.cat([-eye, zero], dim=1)])
