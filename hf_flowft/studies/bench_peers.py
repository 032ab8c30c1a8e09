"""Rows of the benchmark that race other packages; a package that is not installed has a row that says so."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..conventions import time_grid
from ..couplings import OTCoupling
from ..models import VelocityMLP
from ..solvers import integrate, integrate_adaptive
from ..velocity import Velocity
from .bench_tools import CallLoop, Row, compare

NUM_STEPS = 16
SIZES = ((256, 64), (512, 2))
TOLERANCE = 1e-5


def peer_rows(quick: bool) -> list[Row]:
    """Our couplings and solvers against those of torchcfm, torchdiffeq and flow_matching."""
    races: list[tuple[str, str, Callable[[str, bool, Any], Row], str]] = [
        *(
            (f"exact OT of {n} x {d} / torchcfm's sampler", "torchcfm.optimal_transport", _ot(n, d), "OTPlanSampler")
            for n, d in SIZES
        ),
        (f"{NUM_STEPS} Euler steps / torchdiffeq's odeint", "torchdiffeq", _odeint, "odeint"),
        ("dopri5 / torchdiffeq's odeint", "torchdiffeq", _dopri5, "odeint"),
        (f"{NUM_STEPS} Euler steps / flow_matching's ODESolver", "flow_matching.solver", _ode_solver, "ODESolver"),
    ]
    rows = []
    for name, module, race, attribute in races:
        try:
            peer = getattr(importlib.import_module(module), attribute)
        except ImportError:
            rows.append(Row(name, note=f"{module.split('.')[0]} is not installed"))
        else:
            rows.append(race(name, quick, peer))
    return rows


def _ot(n: int, d: int) -> Callable[[str, bool, Any], Row]:
    def race(name: str, quick: bool, peer: Any) -> Row:
        generator = torch.Generator().manual_seed(0)
        x_0, x_1 = torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator) + 1
        sampler, coupling = peer(method="exact"), OTCoupling()
        kept = torch.unique(sampler.sample_plan(x_0, x_1)[1], dim=0).shape[0] / n
        return compare(
            name,
            CallLoop(lambda: coupling(x_0, x_1)),
            CallLoop(lambda: sampler.sample_plan(x_0, x_1)),
            2 if quick else 15,
            note=f"ours uses every data point of the batch, theirs {kept:.0%}",
        )

    return race


def _field(quick: bool) -> tuple[Velocity, Tensor]:
    """A small network on vectors, where the overhead of a solver shows."""
    model = VelocityMLP([64], hidden_dim=32 if quick else 256).requires_grad_(False).eval()
    return Velocity(model), torch.randn(128, 64, generator=torch.Generator().manual_seed(0))


def _odeint(name: str, quick: bool, odeint: Any) -> Row:
    velocity, x_0 = _field(quick)
    times = time_grid(NUM_STEPS, 1.0)
    grid = torch.tensor(times)
    ours = CallLoop(lambda: integrate(velocity.field(), x_0, times), 2)
    theirs = CallLoop(lambda: odeint(lambda t, x: velocity(x, t), x_0, grid, method="euler"), 2)
    return compare(name, ours, theirs, 2 if quick else 21, goal=1.0)


def _dopri5(name: str, quick: bool, odeint: Any) -> Row:
    velocity, x_0 = _field(quick)
    options = {"method": "dopri5", "rtol": TOLERANCE, "atol": TOLERANCE}
    grid = torch.tensor([0.0, 1.0])
    ours = CallLoop(lambda: integrate_adaptive(velocity.field(), x_0, rtol=TOLERANCE, atol=TOLERANCE), 2)
    theirs = CallLoop(lambda: odeint(lambda t, x: velocity(x, t.clamp(0, 1)), x_0, grid, **options), 2)
    return compare(name, ours, theirs, 2 if quick else 21, note="ours ends its last step on t = 1")


def _ode_solver(name: str, quick: bool, solver_class: Any) -> Row:
    velocity, x_0 = _field(quick)
    times = time_grid(NUM_STEPS, 1.0)
    solver = solver_class(velocity_model=lambda x, t: velocity(x, t))
    ours = CallLoop(lambda: integrate(velocity.field(), x_0, times), 2)
    theirs = CallLoop(lambda: solver.sample(x_init=x_0, method="euler", step_size=1 / NUM_STEPS), 2)
    return compare(name, ours, theirs, 2 if quick else 21, goal=1.0)
