"""Solvers: orders as theorems, exact counts, and the closed-form laws of ODE and SDE sampling between Gaussians."""

import itertools
import math

import numpy as np
import pytest
import torch
from closed_forms import gaussian_velocity
from torchdiffeq import odeint

from hf_flowft.conventions import time_grid
from hf_flowft.solvers import (
    ADAPTIVE_METHODS,
    TABLEAUX,
    NoiseSchedule,
    integrate,
    integrate_adaptive,
    integrate_sde,
    tableau,
    uniform_times,
)

METHODS = pytest.mark.parametrize("method", TABLEAUX)
START = torch.tensor([[1.0, 0.5]], dtype=torch.float64)


def riccati(x, t):
    """x' = -2 t x^2, nonlinear and not autonomous: x(t) = 1 / (1 / x_0 + t^2)."""
    return -2 * t * x**2


RICCATI_END = 1 / (1 / START + 1)


class Counted:
    """A field that counts its evaluations."""

    def __init__(self, field):
        self.field, self.calls = field, 0

    def __call__(self, x, t):
        self.calls += 1
        return self.field(x, t)


@METHODS
def test_the_slope_of_the_error_is_the_order(method):
    """log error against log step has the slope of the tableau's order."""
    steps = np.array([16, 32, 64, 128])
    errors = [
        (integrate(riccati, START, uniform_times(int(n)), method).x - RICCATI_END).abs().max().item() for n in steps
    ]
    slope = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(TABLEAUX[method].order, abs=0.15)


@METHODS
def test_a_method_is_exact_on_the_polynomials_of_its_order(method):
    """x' = p t^(p - 1) is integrated without error by a method of order p, in one step."""
    order = TABLEAUX[method].order
    solution = integrate(lambda x, t: order * t ** (order - 1) * torch.ones_like(x), START, [0.0, 1.0], method)
    torch.testing.assert_close(solution.x, START + 1, rtol=0, atol=1e-14)


@METHODS
def test_tableaux_are_consistent(method):
    """sum b = 1 and sum_j a_ij = c_i, and every stage uses only the ones before it."""
    scheme = tableau(method)
    assert sum(scheme.b) == pytest.approx(1)
    assert [sum(row) for row in scheme.a] == pytest.approx(scheme.c)
    assert [len(row) for row in scheme.a[1:]] == list(range(1, scheme.num_stages))


@METHODS
def test_evaluations_are_counted_exactly(method):
    """NFE is the number of calls of the field."""
    field = Counted(riccati)
    solution = integrate(field, START, uniform_times(7), method)
    assert solution.num_evaluations == field.calls == 7 * TABLEAUX[method].num_stages


@METHODS
def test_a_trajectory_keeps_every_state(method):
    """(len(times), batch, *event), from the start to the end, each the end of a shorter solve."""
    times = uniform_times(5)
    solution = integrate(riccati, START, times, method, trajectory=True)
    assert solution.trajectory.shape == (6, 1, 2)
    assert torch.equal(solution.trajectory[0], START)
    assert torch.equal(solution.trajectory[-1], solution.x)
    assert torch.equal(solution.trajectory[3], integrate(riccati, START, times[:4], method).x)
    assert integrate(riccati, START, times, method).trajectory is None


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_reverse_time_returns(method):
    """Integrating 0 -> 1 -> 0 comes back to the start."""
    if method in TABLEAUX:
        end = integrate(riccati, START, uniform_times(64), method).x
        back = integrate(riccati, end, uniform_times(64, 1.0, 0.0), method).x
    else:
        end = integrate_adaptive(riccati, START, (0.0, 1.0), method, rtol=1e-9, atol=1e-9).x
        back = integrate_adaptive(riccati, end, (1.0, 0.0), method, rtol=1e-9, atol=1e-9).x
    torch.testing.assert_close(back, START, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2"), ("rk4", "rk4")]
)
def test_fixed_steps_agree_with_torchdiffeq(method, theirs):
    """The same grid gives the same end to 1e-5 (their rk4 is the 3/8 rule, so it agrees to its order only)."""
    times = time_grid(32, shift=2.0)
    expected = odeint(lambda t, x: riccati(x, t), START, torch.tensor(times, dtype=torch.float64), method=theirs)[-1]
    torch.testing.assert_close(integrate(riccati, START, times, method).x, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ADAPTIVE_METHODS)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_adaptive_methods_meet_their_tolerance(method, tolerance):
    """The error at the end is of the size of the local tolerance (fehlberg2 is lax: it controls a lower order), NFE is counted."""
    field = Counted(riccati)
    solution = integrate_adaptive(field, START, method=method, rtol=tolerance, atol=tolerance)
    assert (solution.x - RICCATI_END).abs().max() < (100 if method == "fehlberg2" else 2) * tolerance
    assert solution.num_evaluations == field.calls


@pytest.mark.parametrize("method", ADAPTIVE_METHODS)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.4, 1.0)], ids=str)
@pytest.mark.parametrize("speed", [1.0, 1e-6])
def test_adaptive_methods_never_leave_the_interval(method, times, speed):
    """A model is asked only about times in [0, 1], also by the probe for the first step of a nearly constant field."""
    seen = []

    def field(x, t):
        seen.append(float(t))
        return speed * riccati(x, t)

    integrate_adaptive(field, START, times, method, rtol=1e-4, atol=1e-4)
    assert 0 <= min(seen) <= max(seen) <= 1


def test_adaptive_trajectories_are_where_they_were_asked_for():
    """States at the given times, each on the exact solution."""
    times = (0.0, 0.3, 1.0)
    states = integrate_adaptive(riccati, START, times, rtol=1e-8, atol=1e-8, trajectory=True).trajectory
    expected = torch.stack([1 / (1 / START + t**2) for t in times])
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- Gaussians: base N(m_0, C_0), target N(m_1, C_1)


def mixed(alpha, base=(0.0, 4.0), target=(0.0, 0.25)):
    """v = alpha v_target + (1 - alpha) v_base: the minimiser of gradual fine-tuning at temperature 1 / alpha - 1."""
    return lambda x, t: alpha * gaussian_velocity(x, t, *target) + (1 - alpha) * gaussian_velocity(x, t, *base)


@pytest.mark.parametrize(("alpha", "variance"), [(0.0, 4.0), (0.3, 1.741101), (0.5, 1.0), (1.0, 0.25)])
def test_ode_variance_of_a_mixed_field_is_the_geometric_mean(alpha, variance):
    """The flow of the mixed field has variance C_1^alpha C_0^(1 - alpha)."""
    end = integrate(mixed(alpha), torch.ones(1, 1, dtype=torch.float64), uniform_times(500), "rk4").x.item()
    assert end**2 == pytest.approx(variance, abs=1e-6)
    assert variance == pytest.approx(0.25**alpha * 4 ** (1 - alpha), abs=1e-6)


def test_ode_mean_of_a_mixed_field_is_not_the_mixed_mean():
    """With means -1 and 2 and alpha = 0.3 the flow ends at 0.497839, not at 0.3 * 2 - 0.7 = -0.1."""
    field = mixed(0.3, (-1.0, 4.0), (2.0, 0.25))
    end = integrate(field, torch.zeros(1, 1, dtype=torch.float64), uniform_times(500), "rk4").x.item()
    assert end == pytest.approx(0.497839, abs=1e-6)


def sde_moments(field, schedule, num_steps=1000):
    """Mean and variance at t = 1 of the SDE, from the ODEs of its moments: b = c_t v - k_t x is affine in x."""

    def moments(state, t):
        mean, variance = state[..., :1], state[..., 1:]
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        k = schedule.half_rate(t, 0.0)
        offset = (1 + t * k) * field(zero, t)
        slope = (1 + t * k) * (field(one, t) - field(zero, t)) - k
        return torch.cat([slope * mean + offset, 2 * slope * variance + 2 * (1 - t) * k], dim=-1)

    start = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    return integrate(moments, start, uniform_times(num_steps), "rk4").x[0].tolist()


@pytest.mark.parametrize(
    ("alpha", "kappa", "variance"),
    [
        (0.3, 1, 1.461073),
        (0.3, 4, 1.077661),
        (0.5, 1, 0.801592),
        (0.5, 4, 0.594305),
        (0.0, 1, 4.0),
        (0.0, 4, 4.0),
        (1.0, 1, 0.25),
        (1.0, 4, 0.25),
    ],
)
def test_sde_variance_of_a_mixed_field(alpha, kappa, variance):
    """Between base and target the SDE samples another law than the ODE; at the ends, where v is a flow's own, they agree."""
    assert sde_moments(mixed(alpha), NoiseSchedule("sqrt", kappa))[1] == pytest.approx(variance, abs=1e-6)


def test_sde_mean_of_a_mixed_field():
    """Means -1 and 2, alpha = 0.3, kappa = 1: the SDE ends at 0.698646 where the ODE ends at 0.497839."""
    mean, _ = sde_moments(mixed(0.3, (-1.0, 4.0), (2.0, 0.25)), NoiseSchedule())
    assert mean == pytest.approx(0.698646, abs=1e-6)


def sample_sde(field, schedule, num_steps, generator, n=50_000):
    """States of the SDE from standard noise: (num_steps + 1, n)."""
    noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    times = uniform_times(num_steps)
    return integrate_sde(field, noise, times, schedule, generator=generator, trajectory=True).trajectory[..., 0]


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule(), NoiseSchedule("sqrt", 4.0), NoiseSchedule("constant", 0.7)], ids=str
)
def test_sdes_have_the_marginals_of_the_flow(schedule, generator):
    """Halfway and at the end the SDE of N(1.5, 0.3^2) has the mean t m and the variance (1 - t)^2 + t^2 C of the flow."""
    states = sample_sde(lambda x, t: gaussian_velocity(x, t, 1.5, 0.09), schedule, 200, generator)
    for t, x in ((0.5, states[100]), (1.0, states[-1])):
        assert x.mean().item() == pytest.approx(1.5 * t, abs=0.015)
        assert x.std().item() == pytest.approx(math.sqrt((1 - t) ** 2 + 0.09 * t**2), abs=0.01)


def test_the_memoryless_sde_is_right_at_fifty_steps(generator):
    """Its drift comes from the same clamped g^2 as its noise: N(1.5, 0.3^2) at N = 50 ends at mean 1.499, std 0.299."""
    end = sample_sde(lambda x, t: gaussian_velocity(x, t, 1.5, 0.09), NoiseSchedule("memoryless"), 50, generator)[-1]
    assert end.mean().item() == pytest.approx(1.499, abs=0.005)
    assert end.std().item() == pytest.approx(0.299, abs=0.004)


def test_sampled_and_computed_sde_moments_agree(generator):
    """Euler-Maruyama samples of the mixed field have the variance of the moment equations, 0.801592."""
    assert sample_sde(mixed(0.5), NoiseSchedule(), 200, generator)[-1].var().item() == pytest.approx(0.801592, abs=0.02)


def test_an_sde_without_noise_is_eulers_method(generator):
    """kappa = 0 leaves the ODE."""
    times = uniform_times(10)
    sde = integrate_sde(riccati, START, times, NoiseSchedule("sqrt", 0.0), generator=generator)
    torch.testing.assert_close(sde.x, integrate(riccati, START, times).x)
    assert sde.num_evaluations == 10


def test_step_variances_add_up_to_the_integral():
    """sqrt: int of 2 kappa (1 - t) over [0, 1] is kappa, on any grid; constant: g^2."""
    times = time_grid(9, shift=3.0)
    for schedule, total in ((NoiseSchedule("sqrt", 2.0), 2.0), (NoiseSchedule("constant", 0.5), 0.25)):
        assert sum(schedule.variance(a, b) for a, b in itertools.pairwise(times)) == pytest.approx(total)


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule("sqrt", 2.0), NoiseSchedule("constant", 0.5), NoiseSchedule("memoryless")], ids=str
)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_drift_and_noise_come_from_one_diffusion(schedule, t):
    """The variance of a short step is g^2 h with g^2 = 2 (1 - t) k_t, k_t being the rate in the drift, clamped alike."""
    h = 1e-6
    assert schedule.variance(t, t + h) == pytest.approx(2 * (1 - t) * schedule.half_rate(t, h) * h, rel=1e-5)


def test_sde_noise_is_the_generators_own():
    """The same generator gives the same sample, another one another."""
    draws = [
        sample_sde(riccati, NoiseSchedule(), 5, torch.Generator().manual_seed(seed), n=3)[-1] for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: integrate(riccati, START, [0.0, 1.0], "rk5"), "'rk5'; choose one of euler, midpoint, heun, rk4"),
        (lambda: integrate(riccati, START, [0.0]), r"at least two times, got \[0\.0\]"),
        (lambda: uniform_times(0), "num_steps must be at least 1, got 0"),
        (
            lambda: integrate_adaptive(riccati, START, method="euler"),
            "unknown adaptive solver 'euler'; choose one of dopri5",
        ),
        (lambda: integrate_adaptive(riccati, START, rtol=0.0), "rtol and atol must be positive, got 0.0"),
        (lambda: NoiseSchedule("linear"), "NoiseSchedule.name must be one of sqrt, constant, memoryless, got 'linear'"),
        (lambda: NoiseSchedule("sqrt", -1.0), "must be a number >= 0, got -1.0"),
        (
            lambda: integrate_sde(riccati, START, [1.0, 0.0], NoiseSchedule()),
            r"increasing times within \[0, 1\]; got \[1\.0, 0\.0\]",
        ),
        (lambda: integrate_sde(riccati, START, [0.0], NoiseSchedule()), "at least two increasing times"),
        (lambda: integrate_sde(riccati, START, [0.5, 1.5], NoiseSchedule()), r"within \[0, 1\]"),
    ],
)
def test_bad_requests_are_refused(call, named):
    """Unknown names, empty grids and impossible tolerances are named, with what is accepted."""
    with pytest.raises(ValueError, match=named):
        call()
