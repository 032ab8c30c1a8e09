"""Dissipation: certified rates that hold for every state, the literal form that fails, and the Cayley rotations inside."""

import math

import pytest
import torch

from hf_flowft.jacobians import jacobian, log_norm
from hf_flowft.metrics.contraction import flow_expansion, pair_test, slope_box_expansion
from hf_flowft.models.cayley import LowRankCayley
from hf_flowft.models.dissipation import ACTIVATIONS, STRUCTURES, nonnegative
from hf_flowft.solvers import integrate, uniform_times

CERTIFIED = ("gradient", "metric", "dominance")
HURWITZ = torch.tensor([[1.0, -3.0], [2.0, -4.0]], dtype=torch.float64)


def randomise(module, scale=1.0, seed=0):
    """Large random parameters everywhere, and a rate delta = 0.7."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    module.raw_delta.data.fill_(0.7)
    return module


def dissipation(structure, size=4, **options):
    torch.manual_seed(0)
    return STRUCTURES[structure](size, hidden_dim=8, num_terms=2, **options).double()


def drift(mu):
    """A dissipation under no bias as a field."""
    return lambda x, t: mu(x, x.new_zeros(len(x), mu.num_biases))


def paper(matrices, weights, delta, activation="identity"):
    """The literal structure with A_j = Q U Q^T given by (Q's angle, U), and W_j = diag(weights_j)."""
    mu = STRUCTURES["paper"](2, activation=activation, num_terms=len(matrices), rank=1).double()
    mu.raw_delta.data.fill_(delta)
    mu.log_weight.data.copy_(torch.tensor(weights, dtype=torch.float64).log())
    for j, (angle, upper) in enumerate(matrices):
        # u = (tan(angle / 2), 0) and v = (0, 1) span the plane and turn it by `angle`.
        mu.rotations[j].u.data.copy_(torch.tensor([[math.tan(angle / 2)], [0.0]]))
        mu.rotations[j].v.data.copy_(torch.tensor([[0.0], [1.0]]))
        mu.raw_decay.data[j] = -torch.tensor(upper, dtype=torch.float64).diagonal()
        mu.upper.data[j] = torch.tensor(upper)
    return mu


def test_nonnegative_is_relu_forwards_and_the_identity_backwards():
    a = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.7], requires_grad=True)
    out = nonnegative(a)
    assert torch.equal(out, torch.tensor([0.0, 0.0, 0.0, 1e-30, 3.7]))
    assert torch.equal(torch.autograd.grad(out.sum(), a)[0], torch.ones(5))


# --- certified structures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("structure", CERTIFIED)
def test_certified_structures_contract_at_their_rate_everywhere(structure, activation, generator):
    mu = randomise(dissipation(structure, activation=activation))
    guarantee = mu.guarantee()
    assert guarantee.rate == pytest.approx(0.7)
    x = 5 * torch.randn(200, 4, generator=generator, dtype=torch.float64)
    bias = 3 * torch.randn(200, mu.num_biases, generator=generator, dtype=torch.float64)
    rates = mu.expansion_rate(lambda y, t: mu(y, bias), x, 0.0)
    assert rates.max().item() <= -0.7 + 1e-9


@pytest.mark.parametrize("structure", CERTIFIED)
def test_pairs_approach_at_the_certified_rate_and_within_the_overshoot(structure, generator):
    mu = randomise(dissipation(structure), scale=0.7)
    guarantee = mu.guarantee()
    x, other = (3 * torch.randn(50, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    steps = math.ceil(2 * guarantee.stiffness)
    times = uniform_times(steps)
    result = pair_test(drift(mu), x, other, times, rate=guarantee.rate, norm=mu.norm)
    assert result.growth.max().item() <= 1 + 1e-9
    euclidean = pair_test(drift(mu), x, other, times)
    bound = guarantee.overshoot * torch.exp(-guarantee.rate * torch.tensor(times, dtype=torch.float64))[:, None]
    assert (euclidean.distances <= bound * euclidean.distances[0] * (1 + 1e-9)).all()


@pytest.mark.parametrize("structure", CERTIFIED)
def test_euler_below_the_step_bound_never_expands(structure, generator):
    mu = randomise(dissipation(structure), seed=3)
    guarantee = mu.guarantee()
    x, other = (2 * torch.randn(50, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    times = [k * 0.99 * guarantee.max_step for k in range(30)]
    assert pair_test(drift(mu), x, other, times, "euler", norm=mu.norm).growth.max().item() < 1


def test_the_euler_bound_of_the_gradient_structure_is_sharp(generator):
    """With f = identity mu is -(delta I + W^T D W) y: just above 2 / Lam a step expands along its top eigenvector."""
    mu = randomise(dissipation("gradient", activation="identity"))
    matrix = -jacobian(drift(mu), torch.zeros(1, 4, dtype=torch.float64), 0.0)[0]
    values, vectors = torch.linalg.eigh(matrix)
    guarantee = mu.guarantee()
    assert guarantee.stiffness == pytest.approx(values[-1].item())
    x, zero = vectors[:, -1][None], torch.zeros(1, 4, dtype=torch.float64)
    for factor, expands in ((0.999, False), (1.001, True)):
        growth = pair_test(drift(mu), x, zero, [0.0, factor * guarantee.max_step], "euler").growth.item()
        assert (growth > 1) == expands


def test_gradient_structure_is_the_gradient_of_its_potential(generator):
    """Phi = delta |y|^2 / 2 + sum D log cosh(W y + b) for f = tanh."""
    mu = randomise(dissipation("gradient"))
    y = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, mu.num_biases, generator=generator, dtype=torch.float64)
    potential = 0.35 * y.square().sum() + (mu.gain * (y @ mu.weight.T + bias).cosh().log()).sum()
    torch.testing.assert_close(mu(y, bias), -torch.autograd.grad(potential, y)[0])


def test_metric_structure_solves_its_lyapunov_inequality(generator):
    """P J + J^T P <= -2 delta P with P = S^-1 built densely."""
    mu = randomise(dissipation("metric"))
    eye = torch.eye(4, dtype=torch.float64)
    metric = torch.linalg.inv(mu.power(eye, 1).detach())
    metric = (metric + metric.T) / 2
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    assert log_norm(jacobian(drift(mu), x, 0.0), metric).max().item() <= -0.7 + 1e-9
    torch.testing.assert_close(mu.norm(x).square(), (x @ metric * x).sum(dim=1))
    assert mu.guarantee().overshoot == pytest.approx(math.sqrt(torch.linalg.cond(metric, 2).item()))


def test_only_minus_inverse_metric_times_diagonal_contracts_for_all_slopes(generator):
    """x' = A_0 x + A f(x): with A = -P^-1 C every slope contracts; any other A fails for some large slope of one coordinate."""
    size, rate = 3, 0.4
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    metric = root @ root.T + torch.eye(size, dtype=torch.float64)
    linear = -rate * torch.eye(size, dtype=torch.float64)
    gains = torch.rand(size, generator=generator, dtype=torch.float64)
    matrix = -torch.linalg.solve(metric, torch.diag(gains))
    slopes = 100 * torch.rand(300, size, generator=generator, dtype=torch.float64)
    assert log_norm(linear + matrix * slopes[:, None, :], metric).max().item() <= -rate + 1e-8
    other = matrix.clone()
    other[0, 1] += 0.05
    spike = torch.zeros(size, dtype=torch.float64)
    spike[1] = 1e4
    assert log_norm(linear + other * spike, metric).item() > 0


# --- the literal structure -------------------------------------------------------------------------------------------


def test_hurwitz_and_positive_diagonal_do_not_contract():
    """A has eigenvalues -1 and -2; with W = diag(5, 1) and A_0 = -0.1 I the origin has eigenvalues 0.4 +- 3.12 i."""
    mu = paper([(math.atan2(0.5547, 0.8321), [[-1.0, -5.0], [0.0, -2.0]])], [[5.0, 1.0]], 0.1, "tanh")
    torch.testing.assert_close(mu.matrices()[0], HURWITZ, rtol=0, atol=1e-3)
    values = torch.linalg.eigvals(jacobian(drift(mu), torch.zeros(1, 2, dtype=torch.float64), 0.0)[0])
    assert sorted(values.imag.tolist()) == pytest.approx([-3.1225, 3.1225], abs=1e-2)
    assert values.real.tolist() == pytest.approx([0.4, 0.4], abs=1e-2)
    origin = torch.zeros(1, 2, dtype=torch.float64)
    assert pair_test(drift(mu), origin, origin + 1e-6, uniform_times(400, end=8.0)).distances[-1] > 2e-5
    assert mu.guarantee().rate is None
    assert "do not imply" in mu.guarantee().reason


def test_two_hurwitz_terms_sum_to_an_unstable_one():
    """[[-1, 10], [0, -1]] + [[-1, 0], [10, -1]] has the eigenvalue 8; the second is a quarter turn of [[-1, -10], [0, -1]]."""
    mu = paper([(0.0, [[-1.0, 10.0], [0.0, -1.0]]), (math.pi / 2, [[-1.0, -10.0], [0.0, -1.0]])], [[1.0, 1.0]] * 2, 0.0)
    torch.testing.assert_close(mu.matrices()[1], torch.tensor([[-1.0, 0.0], [10.0, -1.0]], dtype=torch.float64))
    start = torch.zeros(1, 2, dtype=torch.float64)
    growth = pair_test(drift(mu), start, start + 1.0, uniform_times(200)).distances[-1] / math.sqrt(2)
    assert growth.item() == pytest.approx(math.exp(8), rel=1e-4)
    assert mu.guarantee().rate is None


def test_saturating_slopes_destabilise_an_equilibrium():
    """At x* = (0, 2) with W = I, f = tanh the Jacobian A diag(1, 1 - tanh^2 2) has a positive trace, so no metric helps."""
    mu = paper([(math.atan2(0.5547, 0.8321), [[-1.0, -5.0], [0.0, -2.0]])], [[1.0, 1.0]], 0.0, "tanh")
    point = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    jac = jacobian(drift(mu), point, 0.0)[0]
    torch.testing.assert_close(jac, HURWITZ * torch.tensor([1.0, 1 - math.tanh(2) ** 2]), rtol=0, atol=1e-3)
    values = torch.linalg.eigvals(jac)
    assert values.real.min().item() == pytest.approx(0.359, abs=2e-3)

    def forced(x, t):
        return drift(mu)(x, t) - drift(mu)(point, t)

    result = pair_test(forced, point, point + 1e-6, uniform_times(300, end=6.0))
    assert result.distances[-1] > 3 * result.distances[0]
    assert mu.guarantee().rate is None


def test_diagonal_stability_does_not_contract_under_a_moving_input():
    """x' = A tanh(x) + g(t) with sym A = -0.1 I: along a path of period 1 between (0, 2.5) and (2.5, 0) neighbours part."""
    matrix = torch.tensor([[-0.1, -5.0], [5.0, -0.1]], dtype=torch.float64)

    def path(t):
        return torch.tensor(
            [[1.25 * (1 - math.cos(2 * math.pi * t)), 1.25 * (1 + math.cos(2 * math.pi * t))]], dtype=torch.float64
        )

    def field(x, t):
        speed = 2.5 * math.pi * math.sin(2 * math.pi * t) * torch.tensor([[1.0, -1.0]], dtype=torch.float64)
        return speed + (x.tanh() - path(t).tanh()) @ matrix.T

    assert log_norm(matrix).item() == pytest.approx(-0.1)
    times = uniform_times(400)
    end = integrate(field, path(0.0), times, "rk4").x
    torch.testing.assert_close(end, path(1.0), rtol=0, atol=1e-4)
    flow = jacobian(lambda x, _: integrate(field, x, times, "rk4").x, path(0.0), 0.0)[0]
    assert torch.linalg.eigvals(flow).abs().max().item() == pytest.approx(1.63, abs=0.02)
    assert flow_expansion(field, path(0.0), times, "rk4").item() > 0
    bound = slope_box_expansion(matrix[None], torch.ones(1, 2, dtype=torch.float64))
    assert bound > 2


def test_a_large_linear_rate_rescues_the_literal_structure(generator):
    mu = randomise(dissipation("paper", size=3))
    slopes = mu.log_weight.exp().detach()
    bound = slope_box_expansion(mu.matrices().detach(), slopes)
    mu.raw_delta.data.fill_(bound + 0.5)
    x = 3 * torch.randn(300, 3, generator=generator, dtype=torch.float64)
    assert mu.expansion_rate(drift(mu), x, 0.0).max().item() <= -0.5 + 1e-9


# --- Cayley ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_rank_cayley_is_the_dense_cayley(rank, dtype, tolerance, generator):
    rotation = LowRankCayley(5, rank).to(dtype)
    for parameter in rotation.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    with torch.no_grad():
        skew = rotation.u.double() @ rotation.v.double().T
        skew = skew - skew.T
        eye = torch.eye(5, dtype=torch.float64)
        dense = torch.linalg.solve(eye + skew, eye - skew)
        q, q_t = rotation(eye.to(dtype)).T, rotation(eye.to(dtype), transpose=True).T
    scale = 20 if dtype == torch.float32 else 1
    torch.testing.assert_close(q.double(), dense, rtol=0, atol=scale * tolerance)
    torch.testing.assert_close(q_t, q.T, rtol=0, atol=scale * tolerance)
    torch.testing.assert_close((q @ q.T).double(), eye, rtol=0, atol=scale * tolerance)
    assert torch.linalg.det(q.double()).item() == pytest.approx(1, abs=1e-4 if dtype == torch.float32 else 1e-10)


def test_rank_one_cayley_turns_one_plane_by_twice_the_arc_tangent(generator):
    """The inverse of the 2 x 2 system in closed form, the angle 2 arctan a, and the identity off the plane."""
    rotation = LowRankCayley(4, 1).double()
    u, v = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    rotation.u.data, rotation.v.data = u[:, None], v[:, None]
    with torch.no_grad():
        q = rotation(torch.eye(4, dtype=torch.float64)).T
    area = (u @ u) * (v @ v) - (u @ v) ** 2
    inverse = torch.stack([torch.stack([v @ v, 1 - u @ v]), torch.stack([-(1 + u @ v), u @ u])]) / (1 + area)
    z = torch.stack([u, v], dim=1)
    torch.testing.assert_close(q, torch.eye(4, dtype=torch.float64) - 2 * z @ inverse @ z.T)
    assert q.trace().item() == pytest.approx(2 + 2 * math.cos(2 * math.atan(math.sqrt(area))))
    normal = torch.linalg.qr(torch.cat([z, torch.eye(4, dtype=torch.float64)[:, :2]], dim=1))[0][:, 2:]
    torch.testing.assert_close(q @ normal, normal)
