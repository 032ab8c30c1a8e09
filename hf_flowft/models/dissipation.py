"""State-dependent dissipation mu(y): four structures of artificial viscosity (after arXiv 2510.02081), three with a proof.

    mu(y) = A_0 y + sum_j A_j f_j(W_j y + b_j)        f_j increasing with slopes in [0, 1], b_j free of y

The literature asks for Hurwitz A_j and positive diagonal W_j. That is not enough: A = [[1, -3], [2, -4]] has
eigenvalues -1 and -2, but with W = diag(5, 1) the product A W has eigenvalues 0.5 +- 3.12 i. With slopes of any size
and one constant metric P, contraction holds if and only if A_j = -P^-1 C_j, C_j >= 0 diagonal: take the slope s e_i
e_i^T with s -> inf, then v e_i^T + e_i v^T <= 0 for v = P A_j e_i forces v = -c_i e_i. `Gradient` and `Metric` have
that form (with rectangular W_j); `Dominance` trades it for a weighted l1 norm; `Paper` keeps the literal form and
proves nothing.

Non-negative parameters are `nonnegative(a)` with a = 0 at the start: mu is exactly zero there and yet has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..jacobians import expansion_rate, in_coordinates, jacobian, lipschitz, log_norm_l1
from ..solvers import Field
from .cayley import LowRankCayley
from .certificate import Guarantee

# Increasing functions with f(0) = 0 and slopes in [0, 1].
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "arctan": torch.atan,
    "softsign": functional.softsign,
    "leaky_relu": functional.leaky_relu,
    "identity": lambda x: x,
}


def nonnegative(a: Tensor) -> Tensor:
    """max(a, 0) forwards, the identity backwards: exactly zero at a = 0 with a live gradient, and never negative."""
    return a + (a.relu() - a).detach()


class Dissipation(nn.Module):
    """mu(y, b) with the rate `delta` >= 0 of its linear part; a subclass adds the terms and says what it proves.

    `num_biases`: how many entries of b(t, c) a sample brings.
    """

    def __init__(self, activation: str, num_biases: int):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.num_biases = num_biases
        self.raw_delta = nn.Parameter(torch.zeros(()))

    @property
    def delta(self) -> Tensor:
        """The rate of the linear part: a scalar >= 0, in 1 / time."""
        return nonnegative(self.raw_delta)

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        """mu(y): `y`: (batch, d), `bias`: (batch, num_biases) -> (batch, d)."""
        raise NotImplementedError

    def guarantee(self) -> Guarantee:
        """What is proven for the present parameters."""
        raise NotImplementedError

    def norm(self, y: Tensor) -> Tensor:
        """The norm in which the rate holds: (batch, d) -> (batch,). Euclidean unless a subclass says otherwise."""
        return y.norm(dim=1)

    def expansion_rate(self, field: Field, x: Tensor, t: float | Tensor) -> Tensor:
        """The logarithmic norm of another field in this norm, at every sample: (batch,), in 1 / time."""
        return expansion_rate(field, x, t)

    def lipschitz(self, field: Field, x: Tensor, t: float | Tensor) -> Tensor:
        """The Euclidean Lipschitz constant of another field at every sample: (batch,), in 1 / time."""
        return lipschitz(field, x, t)


class Gradient(Dissipation):
    """Minus the gradient of a convex potential, mu(y) = -delta y - sum_j W_j^T D_j f(W_j y + b_j), D_j >= 0 diagonal.

    J = -delta I - sum_j W_j^T D_j f' W_j <= -delta I: rate delta in the Euclidean norm. The W_j may be rectangular; with one f the M
    terms are stacked into one W of M h rows.
    """

    def __init__(self, size: int, activation: str = "tanh", hidden_dim: int = 128, num_terms: int = 1, rank: int = 2):
        super().__init__(activation, num_terms * hidden_dim)
        self.weight = nn.Parameter(torch.randn(self.num_biases, size) / math.sqrt(size))
        self.raw_gain = nn.Parameter(torch.zeros(self.num_biases))

    @property
    def gain(self) -> Tensor:
        """D: (M h,), >= 0."""
        return nonnegative(self.raw_gain)

    def potential_gradient(self, y: Tensor, bias: Tensor) -> Tensor:
        """W^T D f(W y + b): (batch, d)."""
        return (self.gain * self.activation(y @ self.weight.T + bias)) @ self.weight

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        return -self.delta * y - self.potential_gradient(y, bias)

    @torch.no_grad()
    def guarantee(self) -> Guarantee:
        delta, root = float(self.delta), self.gain.cpu().double().sqrt()[:, None] * self.weight.cpu().double()
        stiffness = delta + float(torch.linalg.matrix_norm(root, 2)) ** 2
        reason = "J is symmetric with eigenvalues in [-stiffness, -rate] at every state."
        return Guarantee("the Euclidean norm", 1.0, 1.0, delta, stiffness, _ratio(2, stiffness), reason)


class Metric(Gradient):
    """mu(y) = -delta y - S sum_j W_j^T D_j f(W_j y + b_j), one S = Q diag(s) Q^T > 0 for all j.

    With P = S^-1, P J + J^T P <= -2 delta P: rate delta in |x|_P, Euclidean overshoot sqrt(cond S). Q is a low-rank
    Cayley rotation and s = softplus; S = I at the start.
    """

    def __init__(self, size: int, activation: str = "tanh", hidden_dim: int = 128, num_terms: int = 1, rank: int = 2):
        super().__init__(size, activation, hidden_dim, num_terms)
        self.rotation = LowRankCayley(size, rank)
        self.raw_scale = nn.Parameter(torch.full((size,), math.log(math.e - 1)))

    def power(self, y: Tensor, exponent: float) -> Tensor:
        """S^exponent y for each row y: (batch, d) -> (batch, d)."""
        scale = functional.softplus(self.raw_scale) ** exponent
        return self.rotation(scale * self.rotation(y, transpose=True))

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        return -self.delta * y - self.power(self.potential_gradient(y, bias), 1)

    def norm(self, y: Tensor) -> Tensor:
        """|y|_P = |S^-1/2 y|_2."""
        return self.power(y, -0.5).norm(dim=1)

    def expansion_rate(self, field: Field, x: Tensor, t: float | Tensor) -> Tensor:
        """lam_max(sym(P^1/2 J P^-1/2)), P^1/2 = S^-1/2."""

        def rows(y: Tensor, exponent: float) -> Tensor:
            return self.power(y.flatten(1), exponent).reshape(y.shape)

        scaled = in_coordinates(field, lambda y: rows(y, -0.5), lambda z: rows(z, 0.5))
        return expansion_rate(scaled, rows(x, -0.5).detach(), t)

    @torch.no_grad()
    def guarantee(self) -> Guarantee:
        scale = functional.softplus(self.raw_scale).cpu().double()
        condition = float(scale.max() / scale.min())
        rows = self.rotation(self.gain.sqrt()[:, None] * self.weight, transpose=True).cpu().double() * scale.sqrt()
        delta = float(self.delta)
        stiffness = delta + float(torch.linalg.matrix_norm(rows, 2)) ** 2
        reason = "J is similar, by S^1/2, to a symmetric matrix with eigenvalues in [-stiffness, -rate] at every state."
        name = "|x|_P = sqrt(x^T S^-1 x)"
        return Guarantee(name, condition, math.sqrt(condition), delta, stiffness, _ratio(2, stiffness), reason)


class Dominance(Dissipation):
    """mu(y) = A_0 y + sum_j A_j f(W_j y + b_j), W_j > 0 diagonal, the A_j dominated by their negative diagonals.

        a^j_kk = -sum_(i != k) (eta_i / eta_k) |a^j_ik| - r^j_k,   r^j_k >= 0,   and r^0_k = delta

    The logarithmic norm of sum_i eta_i |x_i| is linear in non-negative factors of the columns, so mu_(1,eta)(A_0 +
    sum_j A_j E_j) <= -delta for all diagonal E_j >= 0: rate delta, Euclidean overshoot at most sqrt(d) max eta / min
    eta. The A_j need not be symmetric. Holds (M + 1) d^2 numbers: for small d.
    """

    def __init__(self, size: int, activation: str = "tanh", hidden_dim: int = 128, num_terms: int = 1, rank: int = 2):
        super().__init__(activation, num_terms * size)
        self.off_diagonal = nn.Parameter(torch.zeros(num_terms + 1, size, size))
        self.raw_margin = nn.Parameter(torch.zeros(num_terms, size))
        self.log_weight = nn.Parameter(torch.zeros(num_terms, size))
        self.log_eta = nn.Parameter(torch.zeros(size))

    def matrices(self) -> Tensor:
        """A_0, A_1, ..., A_M: (M + 1, d, d)."""
        size = self.off_diagonal.shape[-1]
        off = self.off_diagonal * (1 - torch.eye(size, dtype=self.off_diagonal.dtype, device=self.off_diagonal.device))
        eta = self.log_eta.exp()
        dominance = (off.abs() * eta[:, None]).sum(dim=1) / eta
        margin = torch.cat([self.delta.expand(1, size), nonnegative(self.raw_margin)])
        return off - torch.diag_embed(dominance + margin)

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        terms = self.activation(y[:, None] * self.log_weight.exp() + bias.reshape(len(y), *self.log_weight.shape))
        return torch.einsum("bjk,jik->bi", torch.cat([y[:, None], terms], dim=1), self.matrices())

    def norm(self, y: Tensor) -> Tensor:
        """sum_i eta_i |y_i|."""
        return (self.log_eta.exp() * y.abs()).sum(dim=1)

    def expansion_rate(self, field: Field, x: Tensor, t: float | Tensor) -> Tensor:
        """The column measure with the weights eta; needs the whole Jacobian (d backward passes)."""
        return log_norm_l1(jacobian(field, x, t), self.log_eta.exp().detach())

    @torch.no_grad()
    def guarantee(self) -> Guarantee:
        diagonals = -torch.diagonal(self.matrices(), dim1=1, dim2=2)
        slopes = torch.cat([torch.ones_like(diagonals[:1]), self.log_weight.exp()])
        stiffness = float((diagonals * slopes).sum(dim=0).max())
        condition = float((self.log_eta.max() - self.log_eta.min()).exp())
        overshoot = math.sqrt(self.log_eta.numel()) * condition
        reason = "Every column of J is dominated by its negative diagonal at every state."
        name = "the weighted l1 norm sum_i eta_i |x_i|"
        return Guarantee(name, condition, overshoot, float(self.delta), stiffness, _ratio(1, stiffness), reason)


class Paper(Dissipation):
    """NOT certified: mu(y) = -delta y + sum_j Q_j U_j Q_j^T f(W_j y), W_j > 0 diagonal, U_j upper triangular.

    The literal form of arXiv 2510.02081, Corollary 4.4: A_j = Q_j U_j Q_j^T Hurwitz with real eigenvalues diag U_j <= 0, by
    a Schur form with a Cayley rotation. It does not imply contraction, and not even stability: see the module's example;
    two such terms may also sum to an unstable matrix, and saturating slopes turn a stable A into an unstable A E.
    """

    def __init__(self, size: int, activation: str = "tanh", hidden_dim: int = 128, num_terms: int = 1, rank: int = 2):
        super().__init__(activation, 0)
        self.rotations = nn.ModuleList(LowRankCayley(size, rank) for _ in range(num_terms))
        self.raw_decay = nn.Parameter(torch.zeros(num_terms, size))
        self.upper = nn.Parameter(torch.zeros(num_terms, size, size))
        self.log_weight = nn.Parameter(torch.zeros(num_terms, size))

    def triangular(self) -> Tensor:
        """U_1, ..., U_M: (M, d, d)."""
        return self.upper.triu(1) - torch.diag_embed(nonnegative(self.raw_decay))

    def matrices(self) -> Tensor:
        """A_j = Q_j U_j Q_j^T: (M, d, d)."""
        eye = torch.eye(self.upper.shape[-1], dtype=self.upper.dtype, device=self.upper.device)
        rotations = torch.stack([rotate(eye, transpose=True) for rotate in self.rotations])
        return rotations @ self.triangular() @ rotations.mT

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        mu = -self.delta * y
        for rotate, upper, weight in zip(self.rotations, self.triangular(), self.log_weight.exp(), strict=True):
            mu = mu + rotate(rotate(self.activation(weight * y), transpose=True) @ upper.T)
        return mu

    @torch.no_grad()
    def guarantee(self) -> Guarantee:
        matrices, weights = self.matrices().cpu().double(), self.log_weight.cpu().double().exp()
        norms = torch.linalg.matrix_norm(matrices, 2)
        stiffness = float(self.delta) + float((norms * weights.amax(dim=1)).sum())
        reason = (
            "Hurwitz A_j and positive diagonal W_j do not imply contraction (A = [[1, -3], [2, -4]] with W = diag(5, 1) is "
            "unstable); use 'gradient', 'metric' or 'dominance' for a proof, or measure the Jacobian on rollouts."
        )
        return Guarantee("the Euclidean norm", None, None, None, stiffness, None, reason)


STRUCTURES: dict[str, Callable[[int, str, int, int, int], Dissipation]] = {
    "gradient": Gradient,
    "metric": Metric,
    "dominance": Dominance,
    "paper": Paper,
}


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None
