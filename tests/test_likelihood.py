"""Likelihoods of Gaussian flows against torch.distributions, with the exact trace and with Hutchinson's."""

import pytest
import torch
from closed_forms import GaussianFlow, gaussian_velocity
from torch.distributions import MultivariateNormal, Normal

from hf_flowft.likelihood import divergence, log_likelihood, standard_normal_log_prob
from hf_flowft.solvers import uniform_times
from hf_flowft.velocity import FrozenVelocity, Velocity

MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 1.2]], dtype=torch.float64)


def correlated(x, t):
    """The flow to N(MEAN, COVARIANCE): v = m + (t C - (1 - t) I) S^-1 (x - t m), S = (1 - t)^2 I + t^2 C."""
    eye = torch.eye(2, dtype=torch.float64)
    slope = torch.linalg.solve((1 - t) ** 2 * eye + t**2 * COVARIANCE, t * COVARIANCE - (1 - t) * eye)
    return MEAN + (x - t * MEAN) @ slope.T


def test_standard_normal_log_prob_sums_over_the_event(generator):
    """The log-density of torch.distributions, summed over an image."""
    x = torch.randn(5, 1, 3, 3, generator=generator)
    torch.testing.assert_close(standard_normal_log_prob(x), Normal(0.0, 1.0).log_prob(x).sum(dim=(1, 2, 3)))


@pytest.mark.parametrize(("method", "atol"), [("euler", 0.2), ("heun", 1e-2), ("rk4", 1e-6), ("dopri5", 1e-3)])
def test_a_gaussian_flow_has_its_gaussian_likelihood(method, atol, generator):
    """log p_1 is that of MultivariateNormal(m, C), to the accuracy of the solver."""
    x = MEAN + torch.randn(16, 2, generator=generator, dtype=torch.float64)
    found = log_likelihood(correlated, x, uniform_times(100), method)
    torch.testing.assert_close(found, MultivariateNormal(MEAN, COVARIANCE).log_prob(x), rtol=0, atol=atol)


def test_hutchinson_is_exact_on_a_diagonal_jacobian(generator):
    """With Rademacher probes p^T J p is the trace of a diagonal J, so one probe is enough; events may be images."""
    x = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    found = log_likelihood(
        lambda x, t: gaussian_velocity(x, t, 0.5, 0.3), x, uniform_times(50), num_probes=1, generator=generator
    )
    expected = Normal(0.5, 0.3**0.5).log_prob(x).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_hutchinson_is_unbiased_and_narrows_with_probes(generator):
    """The mean over 2000 estimates is the likelihood within 4 standard errors, and nine probes cut the spread by three."""
    x = MEAN.expand(2000, 2) + 0.5
    exact = MultivariateNormal(MEAN, COVARIANCE).log_prob(x[0]).item()
    spreads = []
    for num_probes in (1, 9):
        estimates = log_likelihood(correlated, x, uniform_times(20), num_probes=num_probes, generator=generator)
        spreads.append(estimates.std().item())
        assert estimates.mean().item() == pytest.approx(exact, abs=4 * spreads[-1] / 2000**0.5 + 1e-4)
    assert spreads[0] / spreads[1] == pytest.approx(3, rel=0.15)


def test_the_exact_divergence_is_the_trace_of_the_jacobian(generator):
    """Against torch.func.jacrev of a nonlinear field."""
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    _, trace = divergence(lambda x, t: torch.tanh(x @ weights), x, 0.5)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda y: torch.tanh(y @ weights)))(x)
    torch.testing.assert_close(trace, jacobians.diagonal(dim1=1, dim2=2).sum(dim=1))


def test_a_field_of_its_parameters_alone_has_no_divergence():
    """A learned shift moves the density without changing its volume."""
    shift = torch.tensor([[1.0]], requires_grad=True)
    x = torch.tensor([[0.3], [2.0]])
    torch.testing.assert_close(
        log_likelihood(lambda x, t: shift.expand_as(x), x, [0.0, 1.0]), Normal(0.0, 1.0).log_prob(x - 1)[:, 0]
    )


def test_a_frozen_velocity_is_refused_and_its_model_is_not():
    """Without gradients in x the divergence would silently be wrong; the error says what to use."""
    frozen, x = FrozenVelocity(GaussianFlow(0.0, 0.25)), torch.zeros(2, 1)
    with pytest.raises(ValueError, match="FrozenVelocity turns gradients off, use Velocity"):
        log_likelihood(frozen.field(), x, uniform_times(4))
    found = log_likelihood(Velocity(frozen.model, frozen.convention).field(), x, uniform_times(50))
    torch.testing.assert_close(found, Normal(0.0, 0.5).log_prob(x)[:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("times", "probes", "named"), [([1.0, 0.0], 0, "from 0 to 1, got 1.0 to 0.0"), ([0.0, 1.0], -1, "got -1")]
)
def test_bad_requests_are_refused(times, probes, named):
    """A backwards grid and a negative number of probes are named."""
    with pytest.raises(ValueError, match=named):
        log_likelihood(correlated, torch.zeros(1, 2, dtype=torch.float64), times, num_probes=probes)
