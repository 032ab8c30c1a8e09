"""Jacobians of a field and what they say about two neighbouring trajectories: how fast they may part, and how fast they move at all.

For x' = f(x, t) and J = df/dx, the logarithmic norm mu(J) of the norm |.| bounds the growth of every difference of solutions,

    |x(t) - x'(t)| <= exp(integral of mu(J)) |x(0) - x'(0)|                 (Dahlquist 1958; Lohmiller & Slotine 1998)

    norm                        mu(J)
    |x|_2                       lam_max((J + J^T) / 2)
    |x|_P = sqrt(x^T P x)       lam_max(sym(P^1/2 J P^-1/2))
    sum_i eta_i |x_i|           max over columns k of J_kk + sum_(i != k) (eta_i / eta_k) |J_ik|

A negative value is contraction at that rate. Everything here is per sample and carries no gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .solvers import Field

EXACT_DIMENSION = 64


def jacobian(field: Field, x: Tensor, t: Any) -> Tensor:
    """J = df/dx at every sample, by one backward pass a row.

    Args: `x`: (batch, *event).  Returns: (batch, d, d), row i = the gradient of f_i.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        v = field(x, t).flatten(1)
        if not v.requires_grad:
            return x.new_zeros(x.shape[0], v.shape[1], v.shape[1])
        rows = [
            torch.autograd.grad(v[:, i].sum(), x, retain_graph=True, materialize_grads=True)[0]
            for i in range(v.shape[1])
        ]
    return torch.stack([row.flatten(1) for row in rows], dim=1)


def jvp(field: Field, x: Tensor, t: Any, direction: Tensor) -> Tensor:
    """J u by two backward passes: w -> J^T w is linear and its own transpose is J; `x`, `direction`, the result: (batch, *event).

    (Forward mode would be cheaper, but torch has none for group norm on the strides that convolutions and attention produce.)
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x.detach().requires_grad_(True)
        v = field(x, t)
        weight = torch.zeros_like(v).requires_grad_(True)
        if not v.requires_grad:
            return torch.zeros_like(x)
        pulled = torch.autograd.grad(v, x, weight, create_graph=True, materialize_grads=True)[0]
        if not pulled.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(pulled, weight, direction)[0]


def vjp(field: Field, x: Tensor, t: Any, direction: Tensor) -> Tensor:
    """J^T u by one backward pass; `x`, `direction`, the result: (batch, *event)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        v = field(x, t)
        if not v.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(v, x, direction, materialize_grads=True)[0]


def log_norm(matrix: Tensor, metric: Tensor | None = None) -> Tensor:
    """The logarithmic norm of |x|_2, or of |x|_P when `metric` = P is given: (..., d, d) -> (...).

    With P = R^T R, |x|_P = |R x|_2, so that mu_P(J) = mu_2(R J R^-1).  Raises: ValueError when P is not symmetric positive definite.
    """
    if metric is not None:
        lower, info = torch.linalg.cholesky_ex(metric)
        if int(info) or not torch.allclose(metric, metric.mT):
            raise ValueError("a metric is a symmetric positive definite matrix; the one given is not.")
        matrix = torch.linalg.solve(lower.mT, lower.mT @ matrix, left=False)
    return torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[..., -1]


def log_norm_l1(matrix: Tensor, weights: Tensor) -> Tensor:
    """The logarithmic norm of sum_i eta_i |x_i|: (..., d, d), `weights` = eta: (d,) -> (...).

    max_k J_kk + sum_(i != k) (eta_i / eta_k) |J_ik|.  Raises: ValueError when a weight is not positive.
    """
    if not bool((weights > 0).all()):
        raise ValueError(f"the weights of an l1 norm must be positive, got {weights.tolist()}.")
    diagonal = torch.diagonal(matrix, dim1=-2, dim2=-1)
    columns = (matrix.abs() * weights[:, None]).sum(dim=-2) / weights
    return (columns - diagonal.abs() + diagonal).amax(dim=-1)


def expansion_rate(
    field: Field, x: Tensor, t: Any, *, num_iterations: int = 24, generator: torch.Generator | None = None
) -> Tensor:
    """lam_max(sym J) at every sample, in 1 / time: exact up to 64 dimensions, by Lanczos beyond (then an estimate from below).

    Args: `x`: (batch, *event); `num_iterations`: Lanczos steps of one Jv and one J^T v each.  Returns: (batch,).
    """
    if x[0].numel() <= EXACT_DIMENSION:
        return log_norm(jacobian(field, x, t))
    start = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return _lanczos(lambda u: (jvp(field, x, t, u) + vjp(field, x, t, u)) / 2, start, num_iterations)


def lipschitz(
    field: Field, x: Tensor, t: Any, *, num_iterations: int = 24, generator: torch.Generator | None = None
) -> Tensor:
    """sigma_max(J) at every sample, in 1 / time: exact up to 64 dimensions, by Lanczos on J^T J beyond (from below).

    Args: as `expansion_rate`.  Returns: (batch,).
    """
    if x[0].numel() <= EXACT_DIMENSION:
        return torch.linalg.matrix_norm(jacobian(field, x, t), 2)
    start = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return _lanczos(lambda u: vjp(field, x, t, jvp(field, x, t, u)), start, num_iterations).clamp(min=0).sqrt()


def in_coordinates(field: Field, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor]) -> Field:
    """The field in the linear coordinates z = T x: z' = T f(T^-1 z, t); its Euclidean numbers are those of f in |T x|_2."""
    return lambda z, t: forward(field(backward(z), t))


def _lanczos(operator: Callable[[Tensor], Tensor], start: Tensor, num_iterations: int) -> Tensor:
    """The largest Ritz value of a symmetric operator, per sample; with full reorthogonalisation (Golub & Van Loan 2013, 10.1).

    A sample whose Krylov space is exhausted goes on with its first Rayleigh quotient, which adds nothing above the top.
    """
    shape = start.shape
    vector = start.flatten(1)
    basis = [vector / vector.norm(dim=1, keepdim=True)]
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    for _ in range(min(num_iterations, vector.shape[1])):
        image = operator(basis[-1].reshape(shape)).flatten(1)
        alive = basis[-1].norm(dim=1) > 0.5
        alpha = (image * basis[-1]).sum(dim=1)
        alphas.append(alpha if not alphas else torch.where(alive, alpha, alphas[0]))
        span = torch.stack(basis, dim=1)
        for _ in range(2):
            image = image - torch.einsum("bk,bkd->bd", torch.einsum("bkd,bd->bk", span, image), span)
        beta = image.norm(dim=1)
        scale = torch.stack(alphas).abs().amax(dim=0) + beta
        goes_on = alive & (beta > 10 * torch.finfo(beta.dtype).eps * scale)
        betas.append(torch.where(goes_on, beta, torch.zeros_like(beta)))
        basis.append(torch.where(goes_on[:, None], image / beta.clamp(min=torch.finfo(beta.dtype).tiny)[:, None], 0))
    diagonal, off = (
        torch.stack(alphas, dim=1),
        torch.stack(betas[:-1], dim=1) if len(betas) > 1 else vector.new_zeros(len(vector), 0),
    )
    tridiagonal = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return torch.linalg.eigvalsh(tridiagonal)[:, -1]
