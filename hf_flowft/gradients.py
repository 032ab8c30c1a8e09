"""How a solve is differentiated: four ways to get d x_N / d parameters, traded between memory, time and exactness."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .solvers import Field, Tableau, integrate, runge_kutta_step, tableau

GradientMode = Literal["direct", "checkpointed", "truncated", "adjoint"]
_TORCHDIFFEQ_NAMES = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4": "rk4"}


def solve(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    method: str = "euler",
    *,
    gradient: GradientMode = "direct",
    last_steps: int = 1,
    parameters: Iterable[nn.Parameter] = (),
) -> Tensor:
    """The end of `integrate`, differentiable with respect to `x` and whatever the field holds.

        direct        autograd through every step: exact; memory grows with the number of steps
        checkpointed  exact; keeps one state a step and recomputes inside it: about 4/3 of the time, flat memory; needs `parameters`
        truncated     only through the last `last_steps` steps: cheap and biased (the earlier steps' terms are missing)
        adjoint       torchdiffeq's continuous adjoint on the same grid: flat memory, inexact at few steps; needs `parameters`

    Args: `x`: (batch, *event); `times`, `method`: as `integrate`.  Raises: ValueError for an unknown mode or bad `last_steps`.
    """
    if gradient == "direct":
        return integrate(field, x, times, method).x
    if gradient == "checkpointed":
        return _Checkpointed.apply(field, tuple(times), tableau(method), x, *parameters)
    if gradient == "truncated":
        if not last_steps >= 1:
            raise ValueError(f"last_steps must be at least 1, got {last_steps}.")
        cut = max(len(times) - 1 - last_steps, 0)
        if cut:
            with torch.no_grad():
                x = integrate(field, x, times[: cut + 1], method).x
            _forget_casts()
        return integrate(field, x, times[cut:], method).x
    if gradient == "adjoint":
        return _adjoint(field, x, times, method, tuple(parameters))
    raise ValueError(f"unknown gradient mode {gradient!r}; choose direct, checkpointed, truncated or adjoint.")


class _Checkpointed(torch.autograd.Function):
    """A whole solve as one node of the graph, with its states in one tensor.

    A chain of `torch.utils.checkpoint` is as exact, but leaves small objects of every step among the large blocks that are freed, and
    the heap then grows by a fifth of a step's activations with each step.
    """

    @staticmethod
    def forward(
        ctx: Any, field: Field, times: tuple[float, ...], scheme: Tableau, x: Tensor, *parameters: nn.Parameter
    ) -> Tensor:
        states, ctx.rng = x.new_empty(len(times) - 1, *x.shape), []
        for k, (t, t_next) in enumerate(itertools.pairwise(times)):
            states[k] = x
            ctx.rng.append(_rng_state(x.device))
            x = runge_kutta_step(field, x, t, t_next, scheme)
        _forget_casts()
        ctx.field, ctx.times, ctx.scheme = field, times, scheme
        kind = x.device.type
        ctx.autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
        }
        ctx.save_for_backward(states, *parameters)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, *parameters = ctx.saved_tensors
        totals = [torch.zeros_like(p) for p in parameters]
        devices = [states.device] if states.is_cuda else []
        with torch.random.fork_rng(devices), torch.autocast(**ctx.autocast):
            for k in reversed(range(len(states))):
                _set_rng_state(states.device, ctx.rng[k])
                x = states[k].detach().requires_grad_()
                with torch.enable_grad():
                    end = runge_kutta_step(ctx.field, x, ctx.times[k], ctx.times[k + 1], ctx.scheme)
                gradient, *parts = torch.autograd.grad(end, [x, *parameters], gradient, materialize_grads=True)
                if parts:
                    torch._foreach_add_(totals, parts)
        return None, None, None, gradient, *totals


def _forget_casts() -> None:
    """After a solve without gradients: before PyTorch 2.10, autocast goes on using the weights it has cast there, which carry no gradients."""
    torch.clear_autocast_cache()


def _rng_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_rng_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _adjoint(
    field: Field, x: Tensor, times: Sequence[float], method: str, parameters: tuple[nn.Parameter, ...]
) -> Tensor:
    from torchdiffeq import odeint_adjoint

    tableau(method)
    grid = torch.tensor(list(times), dtype=x.dtype, device=x.device)
    options = {"method": _TORCHDIFFEQ_NAMES[method], "adjoint_params": parameters}
    end = odeint_adjoint(lambda t, state: field(state, t), x, grid, **options)[-1]
    _forget_casts()
    return end
