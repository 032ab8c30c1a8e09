"""Contraction measures: the Jacobian's against closed forms and finite differences, and the flow's against what neighbours do."""

import math

import pytest
import torch

from hf_flowft.jacobians import expansion_rate, in_coordinates, jacobian, jvp, lipschitz, log_norm, log_norm_l1, vjp
from hf_flowft.metrics.contraction import expansion, flow_expansion, pair_test, rollout_expansion, slope_box_expansion
from hf_flowft.solvers import uniform_times


def linear(matrix):
    return lambda x, t: (x.flatten(1) @ matrix.T).reshape(x.shape)


def random_matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nonlinear(x, t):
    return torch.sin(x * (1 + t)) + torch.cos(2 * x.roll(1, dims=1))


def test_jacobian_and_products_agree_with_finite_differences():
    x, u = random_matrix(3, 4), random_matrix(3, 4, seed=1)
    jac = jacobian(nonlinear, x, 0.3)
    difference = (nonlinear(x + 1e-6 * u, 0.3) - nonlinear(x - 1e-6 * u, 0.3)) / 2e-6
    torch.testing.assert_close(torch.einsum("bij,bj->bi", jac, u), difference, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(jvp(nonlinear, x, 0.3, u), difference, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(vjp(nonlinear, x, 0.3, u), torch.einsum("bij,bi->bj", jac, u))


def test_a_field_without_the_state_has_a_zero_jacobian():
    x = random_matrix(2, 3)
    assert torch.equal(jacobian(lambda x, t: torch.ones_like(x), x, 0.0), torch.zeros(2, 3, 3, dtype=torch.float64))


def test_log_norms_are_the_derivative_of_the_operator_norm():
    """mu(J) = lim (|I + h J| - 1) / h as h -> 0."""
    matrix, h = random_matrix(3, 3), 1e-7
    step = torch.eye(3, dtype=torch.float64) + h * matrix
    eta = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    column_norm = ((step.abs() * eta[:, None]).sum(dim=0) / eta).max()
    assert log_norm(matrix).item() == pytest.approx((torch.linalg.matrix_norm(step, 2).item() - 1) / h, abs=1e-5)
    assert log_norm_l1(matrix, eta).item() == pytest.approx((column_norm.item() - 1) / h, abs=1e-5)


def test_metric_log_norm_is_the_smallest_rate_of_the_lyapunov_inequality():
    """P J + J^T P <= 2 mu P, with equality in one direction."""
    root, matrix = random_matrix(4, 4), random_matrix(4, 4, seed=1)
    metric = root @ root.T + torch.eye(4, dtype=torch.float64)
    mu = log_norm(matrix, metric)
    gap = torch.linalg.eigvalsh(metric @ matrix + matrix.T @ metric - 2 * mu * metric)
    assert gap[-1].item() == pytest.approx(0, abs=1e-10)


def test_a_coordinate_change_gives_the_metric_log_norm():
    root, matrix, x = random_matrix(3, 3), random_matrix(3, 3, seed=1), random_matrix(2, 3, seed=2)
    inverse = torch.linalg.inv(root)
    scaled = in_coordinates(linear(matrix), lambda y: y @ root.T, lambda z: z @ inverse.T)
    torch.testing.assert_close(expansion_rate(scaled, x, 0.0), log_norm(matrix, root.T @ root).expand(2))


@pytest.mark.parametrize("spectrum", ["random", "identity", "negative"])
def test_beyond_64_dimensions_lanczos_finds_the_same_numbers(spectrum, generator):
    size = 80
    matrix = {
        "random": random_matrix(size, size) / math.sqrt(size),
        "identity": torch.eye(size, dtype=torch.float64),
        "negative": -torch.eye(size, dtype=torch.float64) * 2,
    }[spectrum]
    x = random_matrix(2, 4, 4, 5, seed=1)
    rate = expansion_rate(linear(matrix), x, 0.0, num_iterations=60, generator=generator)
    slope = lipschitz(linear(matrix), x, 0.0, num_iterations=60, generator=generator)
    torch.testing.assert_close(rate, log_norm(matrix).expand(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope, torch.linalg.matrix_norm(matrix, 2).expand(2), rtol=1e-6, atol=1e-6)


def test_few_lanczos_iterations_never_overestimate(generator):
    matrix = random_matrix(80, 80)
    rate = expansion_rate(linear(matrix), random_matrix(4, 80, seed=1), 0.0, num_iterations=5, generator=generator)
    assert (rate <= log_norm(matrix)).all()


def test_expansion_chooses_the_norm():
    matrix, x = random_matrix(3, 3), random_matrix(2, 3, seed=1)
    metric, weights = (
        torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
    )
    for options, expected in (
        ({}, log_norm(matrix)),
        ({"metric": metric}, log_norm(matrix, metric)),
        ({"weights": weights}, log_norm_l1(matrix, weights)),
    ):
        torch.testing.assert_close(expansion(linear(matrix), x, 0.0, **options), expected.expand(2))


def test_rollout_bound_holds_for_what_neighbours_do_and_is_exact_for_a_scalar_field():
    x, times = random_matrix(4, 3), uniform_times(64)
    result = rollout_expansion(nonlinear, x, times, "rk4")
    assert result.rates.shape == (65, 4)
    assert (flow_expansion(nonlinear, x, times, "rk4") <= result.bound + 1e-3).all()
    scalar = rollout_expansion(lambda x, t: -2 * t * x, x, times, "rk4")
    torch.testing.assert_close(scalar.bound, torch.full((4,), -1.0, dtype=torch.float64))


def test_flow_expansion_of_a_linear_field_is_the_matrix_exponential(generator):
    for size in (3, 70):
        matrix = random_matrix(size, size) / math.sqrt(size)
        expected = torch.linalg.matrix_norm(torch.linalg.matrix_exp(matrix), 2).log()
        x = random_matrix(2, size, seed=1)
        found = flow_expansion(linear(matrix), x, uniform_times(40), "rk4", num_iterations=40, generator=generator)
        torch.testing.assert_close(found, expected.expand(2), rtol=1e-5, atol=1e-6)


def test_pair_test_measures_the_rate_of_a_linear_field():
    times, x, other = uniform_times(20), random_matrix(3, 2), random_matrix(3, 2, seed=1)
    result = pair_test(lambda x, t: -1.5 * x, x, other, times, rate=1.5)
    torch.testing.assert_close(result.growth, torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(result.distances[-1], math.exp(-1.5) * (x - other).norm(dim=1), rtol=1e-6, atol=0)
    assert (pair_test(lambda x, t: -1.5 * x, x, other, times, rate=1.6).growth > 1.004).all()
    assert pair_test(lambda x, t: x, x, x, times).growth.tolist() == [0, 0, 0]


def test_slope_box_bounds_every_slope_and_is_attained():
    matrices, slopes = random_matrix(2, 3, 3), random_matrix(2, 3, seed=1).exp()
    bound = slope_box_expansion(matrices, slopes)
    entries = torch.rand(2000, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * slopes
    sampled = log_norm((matrices * entries[:, :, None, :]).sum(dim=1))
    assert sampled.max().item() <= bound
    single = slope_box_expansion(matrices[:1], slopes[:1])
    corners = torch.stack([torch.tensor([i >> k & 1 for k in range(3)]) for i in range(8)]) * slopes[0]
    assert single == pytest.approx(log_norm(matrices[0] * corners[:, None, :]).max().item())


def test_errors_name_the_value():
    x, matrix = torch.zeros(1, 2), torch.eye(2)
    with pytest.raises(ValueError, match="not both"):
        expansion(linear(matrix), x, 0.0, metric=matrix, weights=torch.ones(2))
    with pytest.raises(ValueError, match="positive definite"):
        expansion(linear(matrix), x, 0.0, metric=-matrix)
    with pytest.raises(ValueError, match="positive"):
        expansion(linear(matrix), x, 0.0, weights=torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="one shape"):
        pair_test(linear(matrix), x, torch.zeros(2, 2), [0.0, 1.0])
    with pytest.raises(ValueError, match="at most 12, got 13"):
        slope_box_expansion(torch.zeros(1, 13, 13), torch.ones(1, 13))
