"""The schedulers against closed forms, diffusers, torchdiffeq and our own integrator (test_schedulers_contract: the rest)."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torchdiffeq import odeint

from hf_flowft.conventions import sigma_grid, time_grid
from hf_flowft.models.mlp import VelocityMLP
from hf_flowft.schedulers import FlowODEScheduler, FlowSDEScheduler
from hf_flowft.solvers import NoiseSchedule, integrate, integrate_sde
from hf_flowft.velocity import Velocity

EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
SOLVERS = list(EVALUATIONS)
SIGMAS = [1.0, 0.83, 0.5, 0.21, 0.03]  # uneven on purpose
MEAN, STD = 1.5, 0.3


def gaussian_velocity(x, t):
    """The exact velocity from N(0, 1) to N(MEAN, STD^2) with independent coupling."""
    return MEAN + (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2) * (x - t * MEAN)


def run(scheduler, field, x, timesteps=None, **kwargs):
    """The loop of a pipeline: the model says noise - data, the negative of `field(x, t)`."""
    for timestep in scheduler.timesteps if timesteps is None else timesteps:
        x = scheduler.step(-field(x, 1 - float(timestep) / 1000), timestep, x, **kwargs).prev_sample
    return x


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = VelocityMLP(event_shape=[3], hidden_dim=16, num_layers=2).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


# Against other integrators


@pytest.mark.parametrize("sigmas", [SIGMAS, [*SIGMAS, 0.0], np.linspace(1, 0.25, 4), sigma_grid(7, 3.0)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_diffusers_euler_on_the_same_sigmas(model, sigmas, shift):
    theirs, ours = FlowMatchEulerDiscreteScheduler(shift=1.0), FlowODEScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.asarray(sigmas))
    ours.set_timesteps(sigmas=sigmas)
    samples = []
    for scheduler in (theirs, ours):
        x = normal(4, 3)
        for timestep in scheduler.timesteps:
            x = scheduler.step(model(x, timestep).sample, timestep, x, return_dict=False)[0]
        samples.append(x)
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.timesteps, theirs.timesteps[: len(ours.timesteps)])


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_loop_is_bitwise_our_integrator(model, solver, shift):
    scheduler = FlowODEScheduler(solver=solver, shift=shift)
    scheduler.set_timesteps(7)
    x = normal(5, 3)
    expected = integrate(Velocity(model).field(), x, time_grid(7, shift), solver).x
    for timestep in scheduler.timesteps:
        x = scheduler.step(model(x, timestep).sample, timestep, x).prev_sample
    assert torch.equal(x, expected)


def test_sde_loop_is_bitwise_our_integrator(model):
    scheduler = FlowSDEScheduler(noise_schedule="constant", noise_scale=0.7, shift=2.0)
    scheduler.set_timesteps(6)
    x, generator = normal(5, 3), torch.Generator().manual_seed(3)
    schedule = NoiseSchedule("constant", 0.7)
    expected = integrate_sde(
        Velocity(model).field(), x, time_grid(6, 2.0), schedule, generator=torch.Generator().manual_seed(3)
    ).x
    for timestep in scheduler.timesteps:
        x = scheduler.step(model(x, timestep).sample, timestep, x, generator=generator).prev_sample
    assert torch.equal(x, expected)


@pytest.mark.parametrize(("solver", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")])
def test_agrees_with_torchdiffeq(solver, theirs):
    scheduler = FlowODEScheduler(solver=solver)
    scheduler.set_timesteps(sigmas=SIGMAS)
    x = normal(16)
    times = 1 - torch.tensor([*SIGMAS, 0.0])
    expected = odeint(lambda t, y: gaussian_velocity(y, t), x, times, method=theirs)[-1]
    torch.testing.assert_close(run(scheduler, gaussian_velocity, x), expected, rtol=0, atol=1e-5)


# Against closed forms


@pytest.mark.parametrize(("solver", "degree"), [("euler", 0), ("midpoint", 1), ("heun", 1), ("rk4", 3)])
def test_exact_on_polynomials_of_its_degree_and_no_further(solver, degree):
    scheduler = FlowODEScheduler(solver=solver, shift=3.0)
    scheduler.set_timesteps(3)
    x = normal(4, dtype=torch.float64)
    errors = [
        (run(scheduler, lambda y, t, k=k: torch.full_like(y, (k + 1) * t**k), x) - (x + 1)).abs().max().item()
        for k in range(degree + 2)
    ]
    assert max(errors[:-1]) < 1e-6  # timesteps are float32
    assert errors[-1] > 1e-3


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_order_of_convergence(solver, order):
    """x' = x^2 cos 2t, so x(1) = x / (1 - x sin(2) / 2); powers of two make every float32 timestep exact."""
    x = torch.linspace(-0.6, 0.6, 19, dtype=torch.float64)
    exact = x / (1 - x * math.sin(2) / 2)
    steps, scheduler, errors = [8, 16, 32], FlowODEScheduler(solver=solver), []
    for n in steps:
        scheduler.set_timesteps(n)
        errors.append((run(scheduler, lambda y, t: y**2 * math.cos(2 * t), x) - exact).norm().item())
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
@pytest.mark.parametrize("solver", SOLVERS)
def test_oracle_output_returns_the_data(solver, num_steps):
    noise, data = normal(4, 3, dtype=torch.float64), normal(4, 3, seed=1, dtype=torch.float64)
    scheduler = FlowODEScheduler(solver=solver, shift=2.0)
    scheduler.set_timesteps(num_steps)
    torch.testing.assert_close(run(scheduler, lambda x, t: data - noise, noise), data, rtol=0, atol=1e-13)


@pytest.mark.parametrize("schedule", ["sqrt", "constant", "memoryless"])
def test_sde_keeps_the_marginals(schedule):
    scheduler = FlowSDEScheduler(noise_schedule=schedule)
    scheduler.set_timesteps(200)
    generator = torch.Generator().manual_seed(1)
    noise = normal(40_000)
    half = run(scheduler, gaussian_velocity, noise, scheduler.timesteps[:100], generator=generator)
    data = run(scheduler, gaussian_velocity, half, scheduler.timesteps[100:], generator=generator)
    assert half.mean().item() == pytest.approx(MEAN / 2, abs=0.01)
    assert half.std().item() == pytest.approx(math.hypot(0.5, 0.5 * STD), abs=0.01)
    assert data.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert data.std().item() == pytest.approx(STD, abs=0.01)
    correlation = torch.corrcoef(torch.stack([noise, data]))[0, 1].abs().item()
    assert correlation < (0.02 if schedule == "memoryless" else 0.9)  # the ODE's is 1


def test_sde_without_noise_is_euler():
    sde, ode = FlowSDEScheduler(noise_scale=0.0), FlowODEScheduler()
    for scheduler in (sde, ode):
        scheduler.set_timesteps(5)
    x = normal(8)
    torch.testing.assert_close(run(sde, gaussian_velocity, x), run(ode, gaussian_velocity, x))


def test_sde_noise_belongs_to_the_sample_and_the_last_step_has_none():
    scheduler = FlowSDEScheduler()
    scheduler.set_timesteps(4)
    x = normal(3, 2)

    def generators(rows):
        return [torch.Generator().manual_seed(10 + i) for i in rows]

    whole = run(scheduler, gaussian_velocity, x, generator=generators([0, 1, 2]))
    parts = [run(scheduler, gaussian_velocity, x[rows], generator=generators(rows)) for rows in ([0], [1, 2])]
    assert torch.equal(whole, torch.cat(parts))
    last = scheduler.timesteps[-1]
    ends = [scheduler.step(x, last, x, generator=torch.Generator().manual_seed(i)).prev_sample for i in (0, 1)]
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="got 2 for 3 samples"):
        scheduler.step(x, scheduler.timesteps[0], x, generator=generators([0, 1]))


# The grid


@pytest.mark.parametrize("solver", SOLVERS)
def test_default_grid_is_uniform_shifted_once(solver):
    s, n = 3.0, 5
    scheduler = FlowODEScheduler(solver=solver, shift=s)
    scheduler.set_timesteps(n)
    nodes = [s * (1 - k / n) / (1 + (s - 1) * (1 - k / n)) for k in range(n + 1)]
    assert scheduler.sigmas[:: EVALUATIONS[solver]].tolist() == pytest.approx(nodes, abs=1e-7)
    assert scheduler.sigmas[-1] == 0
    assert len(scheduler.timesteps) == n * scheduler.order == len(scheduler.sigmas) - 1
    assert scheduler.timesteps.tolist() == pytest.approx((1000 * scheduler.sigmas[:-1]).tolist(), abs=1e-4)
    assert scheduler.sigmas.dtype == scheduler.timesteps.dtype == torch.float32


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_training_grid_is_that_of_diffusers(shift):
    ours, theirs = FlowODEScheduler(solver="rk4", shift=shift), FlowMatchEulerDiscreteScheduler(shift=shift)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=1e-3)
    assert len(ours) == len(ours.timesteps) == 1000


def test_custom_timesteps_are_sigmas_and_dynamic_shifting_is_that_of_diffusers():
    by_sigma, by_timestep = FlowODEScheduler(shift=3.0), FlowODEScheduler(shift=3.0)
    by_sigma.set_timesteps(sigmas=SIGMAS)
    by_timestep.set_timesteps(5, timesteps=[1000 * s for s in SIGMAS])
    torch.testing.assert_close(by_timestep.sigmas, by_sigma.sigmas)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = FlowODEScheduler.from_config(theirs.config)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(sigmas=SIGMAS, mu=0.8)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    ours.set_timesteps(4, mu=0.8)
    torch.testing.assert_close(ours.sigmas, sigma_grid(4, math.exp(0.8)))
    with pytest.raises(ValueError, match="needs mu"):
        ours.set_timesteps(4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "needs num_inference_steps"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"sigmas": []}, "decrease strictly"),
        ({"sigmas": [0.0]}, "decrease strictly"),
        ({"sigmas": [0.5, 0.7]}, "decrease strictly"),
        ({"sigmas": [1.0, 0.5, 0.5]}, "decrease strictly"),
        ({"sigmas": [1.2, 0.5]}, "decrease strictly"),
        ({"sigmas": [1.0, -0.1]}, "decrease strictly"),
        ({"sigmas": [1.0, float("nan")]}, "decrease strictly"),
        ({"timesteps": [1001.0, 3.0]}, "decrease strictly"),
        ({"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "has 2 steps"),
        ({"sigmas": [1.0], "timesteps": [1000.0]}, "not both"),
    ],
)
def test_bad_grids_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FlowODEScheduler().set_timesteps(**kwargs)


def test_bad_settings_are_refused():
    for wrong, message in [
        ({"solver": "dopri5"}, r"FlowPipeline\(..., solver='dopri5'\)"),
        ({"solver": "ralston"}, "euler, midpoint, heun, rk4"),
        ({"shift": 0.0}, "shift must be"),
        ({"num_train_timesteps": 500}, "num_train_timesteps must be 1000"),
    ]:
        with pytest.raises(ValueError, match=message):
            FlowODEScheduler(**wrong)
    for wrong, message in [
        ({"noise_schedule": "cosine"}, "sqrt, constant, memoryless"),
        ({"noise_scale": -1.0}, ">= 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            FlowSDEScheduler(**wrong)
