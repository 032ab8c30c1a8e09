"""The door between the papers' convention and diffusers': exact, invertible, and the same shift as diffusers'."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from hf_flowft.conventions import (
    output_from_velocity,
    shift_sigma,
    shift_t,
    sigma_from_t,
    sigma_from_timestep,
    sigma_grid,
    t_from_sigma,
    time_grid,
    timestep_from_sigma,
    velocity_from_output,
)

SIGMAS = torch.linspace(0, 1, 101)


def test_the_ends_are_where_diffusers_has_them():
    """t = 0 is noise, sigma = 1, timestep 1000; t = 1 is data, sigma = 0, timestep 0."""
    assert (sigma_from_t(0.0), timestep_from_sigma(sigma_from_t(0.0))) == (1.0, 1000.0)
    assert (sigma_from_t(1.0), timestep_from_sigma(sigma_from_t(1.0))) == (0.0, 0.0)


def test_conversions_invert_each_other():
    """t <-> sigma <-> timestep and velocity <-> output go there and back."""
    torch.testing.assert_close(t_from_sigma(sigma_from_t(SIGMAS)), SIGMAS)
    torch.testing.assert_close(sigma_from_timestep(timestep_from_sigma(SIGMAS)), SIGMAS)
    assert torch.equal(velocity_from_output(output_from_velocity(SIGMAS)), SIGMAS)


def test_velocity_is_minus_the_output():
    """A diffusers model predicts dx/dsigma = noise - data, and dsigma = -dt."""
    noise, data = torch.tensor([3.0]), torch.tensor([1.0])
    assert torch.equal(velocity_from_output(noise - data), data - noise)


@pytest.mark.parametrize("num_steps", [1, 3, 10, 50])
def test_python_floats_hold_the_complement_of_every_float32_sigma(num_steps):
    """1 - (1 - sigma) is sigma to the last bit, so a scheduler's grid and an integrator's grid are one grid."""
    sigmas = sigma_grid(num_steps, shift=3.0).tolist()
    assert [sigma_from_t(t) for t in time_grid(num_steps, shift=3.0)] == sigmas


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shift_in_t_is_shift_in_sigma(shift):
    """t' = t / (s - (s - 1) t) is 1 - sigma' of sigma = 1 - t."""
    torch.testing.assert_close(shift_t(1 - SIGMAS, shift), 1 - shift_sigma(SIGMAS, shift))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_shift_is_that_of_diffusers(shift):
    """Our grid is what diffusers makes of the uniform sigmas."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 11)[:-1].tolist())
    torch.testing.assert_close(sigma_grid(10, shift), scheduler.sigmas)


@pytest.mark.parametrize("shift", [0.3, 1.0, 7.0])
def test_grids_end_exactly_and_decrease(shift):
    """sigma goes from 1 to 0 and t from 0 to 1, exactly and strictly."""
    grid = sigma_grid(13, shift)
    assert grid[0] == 1
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()
    assert time_grid(13, shift)[0] == 0
    assert time_grid(13, shift)[-1] == 1


@pytest.mark.parametrize(("arguments", "named"), [((0,), "num_steps"), ((4, 0.0), "shift"), ((4, -1.0), "shift")])
def test_bad_grids_are_refused(arguments, named):
    """No steps and shifts that are not positive are named in the error."""
    with pytest.raises(ValueError, match=named):
        sigma_grid(*arguments)
