"""The training-inference gap: the bounds on fields whose constants are known, and their estimates from fields alone."""

import math

import pytest
import torch
from torch import nn

from hf_flowft.metrics.gap import (
    GapConstants,
    discrete_bound,
    empirical_field,
    gap_table,
    log_norm_bound,
    uniform_bound,
    variable_bound,
    velocity_error,
)
from hf_flowft.models.mlp import VelocityMLP
from hf_flowft.solvers import integrate, uniform_times
from hf_flowft.velocity import FrozenVelocity, Velocity


class Linear(nn.Module):
    """v = A x + b as a network that speaks the papers' convention; a scalar A is a multiple of the identity."""

    def __init__(self, a, b=0.0):
        super().__init__()
        self.a, self.b = torch.as_tensor(a, dtype=torch.float64), b

    def forward(self, x, t):
        return (x * self.a if self.a.ndim == 0 else x @ self.a.to(x).T) + self.b


A, D, START = 1.5, 0.1, 2.0
EXPANDING = GapConstants(D, A, A**2 * math.exp(A) * START, A)
CONTRACTING = GapConstants(D, 2.0, 4 * START, -2.0)
# theory of the linear test u = a x, v = a x + d: steps, measured, discrete, uniform, variable
TABLE = [
    (1, 3.863378, 10.183800, 23.637884, 45.640627),
    (4, 1.642822, 4.498359, 6.083555, 11.746283),
    (16, 0.361235, 1.555204, 1.694973, 3.272698),
    (64, 0.073181, 0.584623, 0.597828, 1.154301),
]


@pytest.mark.parametrize(("num_steps", "measured", "discrete", "uniform", "variable"), TABLE)
def test_expanding_linear_field(num_steps, measured, discrete, uniform, variable):
    grid = uniform_times(num_steps)
    x_0 = torch.tensor([[START]], dtype=torch.float64)
    end = integrate(Velocity(Linear(A, D)).field(), x_0, grid).x
    assert abs(math.exp(A) * START - end.item()) == pytest.approx(measured, abs=1e-6)
    assert discrete_bound(EXPANDING, grid) == pytest.approx(discrete, abs=1e-6)
    assert uniform_bound(EXPANDING, grid) == pytest.approx(uniform, abs=1e-6)
    assert variable_bound(EXPANDING, grid) == pytest.approx(variable, abs=1e-6)
    assert log_norm_bound(EXPANDING, grid) == pytest.approx(discrete, abs=1e-6)  # nu = L: nothing to gain


def test_contracting_linear_field():
    grid = uniform_times(8)
    end = integrate(Velocity(Linear(-2.0, D)).field(), torch.tensor([[START]], dtype=torch.float64), grid).x
    assert abs(math.exp(-2) * START - end.item()) == pytest.approx(0.025450, abs=1e-6)
    assert uniform_bound(CONTRACTING, grid) == pytest.approx(1.916717, abs=1e-6)
    assert log_norm_bound(CONTRACTING, grid) == pytest.approx(0.269966, abs=1e-6)


def test_bounds_are_ordered_on_any_grid_and_finite_or_infinite_at_extreme_constants():
    grid = [0.0, 0.05, 0.3, 0.35, 0.8, 1.0]
    for nu in (-3.0, 0.0, 2.0):
        c = GapConstants(0.2, 3.0, 17.0, nu)
        assert log_norm_bound(c, grid) <= discrete_bound(c, grid) <= uniform_bound(c, grid) <= variable_bound(c, grid)
    assert variable_bound(GapConstants(0.2, 1.0, 2.0, 0.0), grid) == pytest.approx(
        math.e * (0.2 + 0.45)
    )  # the largest step is 0.45
    flat = GapConstants(0.2, 0.0, 1.0, 0.0)
    assert uniform_bound(flat, uniform_times(4)) == pytest.approx(0.2 + 1 / 8)
    assert uniform_bound(flat._replace(lipschitz=1e-9), uniform_times(4)) == pytest.approx(0.2 + 1 / 8)
    assert variable_bound(flat._replace(lipschitz=1e4), uniform_times(4)) == math.inf
    assert uniform_bound(flat._replace(lipschitz=1e4), uniform_times(4)) == math.inf


@pytest.mark.parametrize("version", ["A", "B"])
def test_table_recovers_the_constants_of_the_linear_field(version, generator):
    x_0 = torch.tensor([[START]], dtype=torch.float64)
    steps = [row[0] for row in TABLE]
    table = gap_table(
        Velocity(Linear(A, D)),
        x_0,
        oracle=lambda x, t: A * x,
        version=version,
        num_steps=steps,
        reference_steps=2048,
        generator=generator,
    )
    assert table.constants.epsilon == pytest.approx(D)
    assert table.constants.lipschitz == pytest.approx(A)
    assert table.constants.log_norm == pytest.approx(A)
    assert table.constants.acceleration == pytest.approx(EXPANDING.acceleration, rel=2e-3)
    assert (table.lipschitz_quantile, table.lipschitz_mean) == (pytest.approx(A), pytest.approx(A))
    for row, (n, measured, discrete, uniform, variable) in zip(table.rows, TABLE, strict=True):
        assert (row.num_steps, row.measured) == (n, pytest.approx(measured, abs=1e-6))
        assert row.bound_discrete == pytest.approx(discrete, rel=2e-3)
        assert row.bound_uniform == pytest.approx(uniform, rel=2e-3)
        assert row.bound_variable == pytest.approx(variable, rel=2e-3)
        assert not row.violated


def test_log_norm_of_a_rotation_sees_what_the_lipschitz_constant_does_not(generator):
    """v = R x with R skew: L = 3 but nu = 0; without an oracle only the discretisation is measured."""
    rotation = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=torch.float64)
    x_0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    table = gap_table(Velocity(Linear(rotation)), x_0, num_steps=(8, 32), generator=generator)
    rms = math.sqrt(2.5)  # of ||x_0||, kept by the rotation: ||x''|| = 9 ||x||
    assert table.constants.epsilon == 0
    assert table.constants.lipschitz == pytest.approx(3)
    assert table.constants.log_norm == pytest.approx(0, abs=1e-9)
    assert table.constants.acceleration == pytest.approx(9 * rms, rel=1e-3)
    for row in table.rows:
        step = complex(1, 3 / row.num_steps) ** row.num_steps  # Euler in the complex plane
        exact = complex(math.cos(3), math.sin(3))
        assert row.measured == pytest.approx(rms * abs(step - exact), rel=1e-6)
        assert row.measured < row.bound_lognorm < 0.5 * row.bound_discrete
        assert not row.violated


def test_versions_put_the_lipschitz_constant_on_different_fields(generator):
    """u = x, v = 2 x: A has L of u and the error at the model's states, B has L of v and the error on the true path."""
    x_0 = torch.ones(1, 3, dtype=torch.float64)
    size = math.sqrt(3)
    run = {
        v: gap_table(Velocity(Linear(2.0)), x_0, oracle=lambda x, t: x, version=v, num_steps=(4,), generator=generator)
        for v in "AB"
    }
    assert run["A"].constants.lipschitz == pytest.approx(1)
    assert run["B"].constants.lipschitz == pytest.approx(2)
    assert run["A"].constants.epsilon == pytest.approx(
        size * 1.5**3
    )  # ||v - u|| = ||x|| at the last state before t = 1
    assert run["B"].constants.epsilon == pytest.approx(size * math.exp(511 / 512))
    for table in run.values():
        assert table.rows[0].measured == pytest.approx(size * (1.5**4 - math.e))
        assert not table.rows[0].violated


def test_version_a_takes_the_error_at_the_times_of_the_model_states(generator):
    """v = 0, u = t: the steps start at t = 0, 1/4, 1/2, 3/4."""
    x_0 = torch.zeros(1, 1, dtype=torch.float64)
    table = gap_table(
        Velocity(Linear(0.0)), x_0, oracle=lambda x, t: x * 0 + t, version="A", num_steps=(4,), generator=generator
    )
    assert table.rows[0].measured == pytest.approx(0.5)
    assert table.constants.epsilon == pytest.approx(0.75)


class Unstable(nn.Module):
    """x' = 2 t + k t (x - t^2) from 0 is x = t^2, with M = 2; its errors grow by e^(k (1 - t^2) / 2). Beside it a plane turns at rate 3."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x, t):
        s = t.to(x)
        return torch.stack([2 * s + self.k * s * (x[:, 0] - s**2), -3 * x[:, 2], 3 * x[:, 1]], dim=1)


@pytest.mark.parametrize(("k", "broken"), [(2.0, {"lognorm"}), (8.0, {"lognorm", "discrete", "uniform"})])
def test_violation_of_any_bound_is_flagged(k, broken, generator):
    """At t = 0 nobody sees the growth: L = 3 and nu = 0. Sixteen times see it."""
    x_0 = torch.zeros(2, 3, dtype=torch.float64)
    sparse = gap_table(Velocity(Unstable(k)), x_0, num_steps=(64,), num_times=1, generator=generator)
    dense = gap_table(Velocity(Unstable(k)), x_0, num_steps=(64,), num_times=16, generator=generator)
    assert (sparse.constants.lipschitz, sparse.constants.log_norm) == (pytest.approx(3), pytest.approx(0, abs=1e-9))
    assert sparse.constants.acceleration == pytest.approx(2, rel=1e-3)
    row = sparse.rows[0]
    assert {
        name for name in ("discrete", "uniform", "variable", "lognorm") if row.measured > getattr(row, f"bound_{name}")
    } >= broken
    assert (row.measured > row.bound_discrete) == ("discrete" in broken)
    assert (row.violated, dense.rows[0].violated) == (True, False)
    assert dense.constants.log_norm == pytest.approx(k * 15 / 16)


def test_gaussian_oracle_of_theory_and_the_empirical_field_agree(generator):
    """Target N(m, C): v* = m + (t C - (1 - t) I) S^-1 (x - t m), S = (1 - t)^2 I + t^2 C; a large sample of it gives the same field."""
    mean, c = (
        torch.tensor([0.5, -1.0], dtype=torch.float64),
        torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64),
    )
    data = mean + torch.randn(40_000, 2, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(c).T
    eye = torch.eye(2, dtype=torch.float64)
    noise = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    for t in (0.0, 0.3, 0.6):
        x = (1 - t) * noise + t * data[:50]
        s = (1 - t) ** 2 * eye + t**2 * c
        exact = mean + (x - t * mean) @ ((t * c - (1 - t) * eye) @ torch.linalg.inv(s)).T
        assert torch.allclose(empirical_field(data)(x, t), exact, atol=0.1)


def test_empirical_field_brute_force_batch_times_and_boundary(generator):
    data, x = torch.randn(7, 2, 3, generator=generator), torch.randn(5, 2, 3, generator=generator)
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.99])
    field = empirical_field(data)
    for i in range(5):
        weights = torch.softmax(
            torch.stack([-((x[i] - t[i] * y) ** 2).sum() / (2 * (1 - t[i]) ** 2) for y in data]), dim=0
        )
        expected = sum(w * (y - x[i]) for w, y in zip(weights, data, strict=True)) / (1 - t[i])
        assert torch.allclose(field(x, t)[i], expected, atol=2e-3)
        assert torch.allclose(field(x, float(t[i]))[i], expected, atol=2e-3)
    assert torch.allclose(field(x, 0.0), data.mean(dim=0) - x, atol=1e-6)
    with pytest.raises(ValueError, match="singular at t = 1"):
        field(x, 1.0)


def test_flow_of_the_empirical_field_ends_on_the_data(generator):
    data = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    end = integrate(
        empirical_field(data),
        torch.randn(30, 2, generator=generator, dtype=torch.float64),
        uniform_times(256),
        "midpoint",
    ).x
    assert torch.cdist(end, data).min(dim=1).values.max() < 1e-6


def test_velocity_error_of_the_oracle_is_zero_and_the_loss_splits(generator):
    """E||v - u||^2 = eps^2 + V for a field that is off by a constant, V being what the oracle itself leaves."""
    data = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    oracle = empirical_field(data[:50])
    data = data[:50].repeat(80, 1)

    class Off(nn.Module):
        def __init__(self, offset):
            super().__init__()
            self.offset = offset

        def forward(self, x, t):
            return oracle(x, t) + self.offset

    def errors(offset):
        g = torch.Generator().manual_seed(3)
        return velocity_error(Velocity(Off(offset)), data, (0.0, 0.4, 0.8), oracle=oracle, generator=g)

    for exact, off in zip(errors(0.0), errors(0.3), strict=True):
        assert exact.epsilon == pytest.approx(0, abs=1e-5)  # the network's time is float32
        assert off.epsilon == pytest.approx(0.3 * math.sqrt(2), rel=1e-4)
        assert off.upper**2 == pytest.approx(off.epsilon**2 + exact.upper**2, rel=0.05)
        assert off.upper >= off.epsilon
    by_default = velocity_error(Velocity(Off(0.3)), data[:50], (0.4,), generator=generator)
    assert by_default[0].epsilon == pytest.approx(0.3 * math.sqrt(2), rel=1e-4)


def test_networks_frozen_or_not_and_high_dimension(generator):
    """A frozen network has the same Jacobians as the live one; above 64 dimensions Lanczos finds them."""
    torch.manual_seed(0)
    model = VelocityMLP([9, 9], hidden_dim=32)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    x_0 = torch.randn(4, 9, 9, generator=generator)
    args = {"num_steps": (2, 16), "num_times": 2, "reference_steps": 64}
    model.train()
    live = gap_table(Velocity(model), x_0, generator=torch.Generator().manual_seed(1), **args)
    frozen = gap_table(FrozenVelocity(model), x_0, generator=torch.Generator().manual_seed(1), **args)
    assert model.training
    assert live == frozen
    assert live.constants.lipschitz > 0.1
    assert live.constants.log_norm <= live.constants.lipschitz
    assert not any(row.violated for row in live.rows)
    assert live.rows[0].measured > live.rows[1].measured


def test_bad_arguments_are_refused(generator):
    velocity, x_0 = Velocity(Linear(1.0)), torch.ones(2, 1)
    with pytest.raises(ValueError, match="version must be A or B"):
        gap_table(velocity, x_0, version="C", generator=generator)
    with pytest.raises(ValueError, match="finite starting point"):
        gap_table(velocity, x_0 * math.nan, generator=generator)
    with pytest.raises(ValueError, match="finite starting point"):
        gap_table(velocity, x_0[:0], generator=generator)
    with pytest.raises(ValueError, match="increases from 0 to 1"):
        discrete_bound(EXPANDING, [0.0, 0.5])
    with pytest.raises(ValueError, match="give an oracle"):
        velocity_error(velocity, x_0, (0.1,), {"class_labels": torch.zeros(2)}, generator=generator)
