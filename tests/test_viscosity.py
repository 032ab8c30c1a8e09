"""Viscosity: bitwise start, certified rates that hold, the literal form that fails, and models that save and load whole."""

import math

import pytest
import torch
from diffusers import UNet2DModel

from hf_flowft.conventions import timestep_from_sigma
from hf_flowft.jacobians import jacobian, log_norm
from hf_flowft.metrics.contraction import flow_expansion, pair_test, slope_box_expansion
from hf_flowft.models import VelocityMLP, ViscousFlowModel
from hf_flowft.models.bases import build_base
from hf_flowft.models.cayley import LowRankCayley
from hf_flowft.models.dissipation import ACTIVATIONS, STRUCTURES, nonnegative
from hf_flowft.solvers import integrate, uniform_times
from hf_flowft.velocity import Velocity

CERTIFIED = ("gradient", "metric", "dominance")
ALL = (*CERTIFIED, "paper", "mlp")
HURWITZ = torch.tensor([[1.0, -3.0], [2.0, -4.0]], dtype=torch.float64)


def mlp_base(**options):
    torch.manual_seed(0)
    return VelocityMLP(event_shape=[3], hidden_dim=16, num_layers=2, **options)


def unet_base():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
    )


def zero_base():
    """A base with the velocity 0, so that only the viscosity moves."""
    base = mlp_base()
    torch.nn.init.zeros_(base.output.weight)
    torch.nn.init.zeros_(base.output.bias)
    return base


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


# --- the start -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ALL)
@pytest.mark.parametrize("make", [lambda: mlp_base(num_classes=2), unet_base])
def test_untrained_viscosity_is_the_base_bit_for_bit(structure, make, generator):
    base = make().eval()
    model = ViscousFlowModel.from_base(base, structure=structure, num_classes=3 if make is unet_base else 2, hidden_dim=8)
    sample = torch.randn(5, *model.config.event_shape, generator=generator)
    timestep, labels = torch.tensor([0.0, 1.0, 333.3, 999.0, 1000.0]), torch.tensor([0, 1, 2, 1, 0])
    expected = base(sample, timestep, class_labels=labels).sample
    out = model(sample, timestep, class_labels=labels)
    assert torch.equal(out.sample.view(torch.int32), expected.view(torch.int32))
    assert torch.equal(model(sample, timestep, return_dict=False, class_labels=labels)[0], out.sample)


def test_even_a_negative_zero_of_the_base_stays(generator):
    base = zero_base()
    base.output.weight.data.fill_(-0.0)
    base.output.bias.data.fill_(-0.0)
    for structure in ALL:
        model = ViscousFlowModel.from_base(base, structure=structure)
        sample = torch.randn(64, 3, generator=generator)
        out, expected = model(sample, 500.0).sample, base(sample, 500.0).sample
        assert torch.equal(out.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("structure", ALL)
def test_the_start_has_live_gradients_that_lower_the_loss(structure, generator):
    model = ViscousFlowModel.from_base(mlp_base(), structure=structure, gate_start=0.0)
    sample, target = torch.randn(64, 3, generator=generator), torch.randn(64, 3, generator=generator)
    names = {
        "gradient": ["dissipation.raw_gain"],
        "metric": ["dissipation.raw_gain"],
        "dominance": ["dissipation.off_diagonal", "dissipation.raw_margin"],
        "paper": ["dissipation.raw_decay", "dissipation.upper"],
        "mlp": ["plain.output.weight"],
    }[structure]
    names += [] if structure == "mlp" else ["dissipation.raw_delta", "head.output.weight"]
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(30):
        loss = (model(sample, 500.0).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert all(parameters[name].grad.abs().sum() > 0 for name in names)
            assert all(p.grad is None for name, p in parameters.items() if name.startswith("base_model."))
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


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
        return torch.tensor([[1.25 * (1 - math.cos(2 * math.pi * t)), 1.25 * (1 + math.cos(2 * math.pi * t))]], dtype=torch.float64)

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


# --- the model -------------------------------------------------------------------------------------------------------


def trained(structure="gradient", base=None, **options):
    """A model whose residual is far from its start."""
    model = ViscousFlowModel.from_base(base or mlp_base(), structure=structure, hidden_dim=8, **options)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    if structure != "mlp":
        model.dissipation.raw_delta.data.fill_(0.7)
    return model


def test_in_loop_adds_the_gated_centred_viscosity(generator):
    model = trained(gate_start=0.6)
    x, t = torch.randn(4, 3, generator=generator), torch.tensor([0.1, 0.6, 0.8, 1.0])
    head = model.head(timestep_from_sigma(1 - t), None, None)
    centre, forcing, bias = head[:, :3], head[:, 3:6], head[:, 6:]
    gate = torch.tensor([0.0, 0.0, 0.5, 1.0])[:, None]
    expected = Velocity(model.base_model)(x, t) + gate * model.dissipation(x - centre, bias) + forcing
    torch.testing.assert_close(Velocity(model)(x, t), expected, rtol=1e-5, atol=1e-5)


def test_cascade_is_the_base_followed_by_the_viscosity(generator):
    model = trained(wiring="cascade")
    noise = torch.randn(6, 3, generator=generator)
    with torch.no_grad():
        whole = integrate(Velocity(model).field(), noise, uniform_times(16), "euler").x
        middle = integrate(Velocity(model.base_model).field(), noise, uniform_times(8), "euler").x

        def viscosity(x, s):
            head = model.head(torch.full((len(x),), timestep_from_sigma(1 - s)), None, None)
            return model.dissipation(x - head[:, :3], head[:, 6:]) + head[:, 3:6]

        end = integrate(viscosity, middle, uniform_times(8), "euler").x
    torch.testing.assert_close(whole, end, rtol=1e-4, atol=1e-4)


def test_cascade_takes_a_time_for_each_row(generator):
    model = trained(wiring="cascade")
    x, t = torch.randn(4, 3, generator=generator), torch.tensor([0.1, 0.5, 0.9, 0.499])
    rows = torch.cat([Velocity(model)(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(Velocity(model)(x, t), rows)
    base = 2 * Velocity(model.base_model)(x[:1], 2 * t[:1])
    torch.testing.assert_close(rows[:1], base)


@pytest.mark.parametrize("gate_start", [0.0, 0.6])
def test_distances_shrink_by_the_gate_integral(gate_start, generator):
    """With delta alone and no base, x - x' shrinks by exactly exp(-delta * integral of the gate)."""
    model = ViscousFlowModel.from_base(zero_base(), gate_start=gate_start)
    model.dissipation.raw_delta.data.fill_(1.5)
    x, other = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    result = pair_test(Velocity(model).field(), x, other, uniform_times(20))
    certificate = model.certificate()
    assert certificate.integrated_rate == pytest.approx(1.5 * (0.2 if gate_start else 1.0))
    shrunk = result.distances[-1] / result.distances[0]
    torch.testing.assert_close(shrunk, torch.full((5,), math.exp(-certificate.integrated_rate)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("wiring", ["in_loop", "cascade"])
@pytest.mark.parametrize("structure", CERTIFIED)
def test_total_certificate_bounds_the_pairs_of_the_whole_flow(structure, wiring, generator):
    model = trained(structure, wiring=wiring)
    x = torch.randn(40, 3, generator=generator)
    other = x + 0.05 * torch.randn(40, 3, generator=generator)
    times = uniform_times(32)
    guide = model.base_model if wiring == "cascade" else model
    with torch.no_grad():
        states = integrate(Velocity(guide).field(), x, times, "euler", trajectory=True).trajectory
    certificate = model.certificate(states[::4], times[::4])
    result = pair_test(Velocity(model).field(), x, other, uniform_times(256), "midpoint", norm=model.dissipation.norm)
    assert certificate.total == pytest.approx(0.7 - certificate.base_expansion)
    assert (result.distances[-1] / result.distances[0]).max().item() <= math.exp(-certificate.total) * 1.02
    assert certificate.proven[0] == "rate"
    assert "total" in certificate.estimated
    assert any("Proven" in line for line in certificate.sentences())
    assert any("Estimated" in line for line in certificate.sentences())


def test_certificates_say_what_is_not_certified():
    for structure in ("paper", "mlp"):
        certificate = trained(structure).certificate(torch.zeros(2, 4, 3), [0.0, 0.5])
        assert not certificate.certified
        assert certificate.proven == ()
        assert certificate.total is None
        assert "Not certified" in certificate.sentences()[0]
        assert certificate.to_dict()["certified"] is False
    values = trained("metric").certificate().to_dict()
    assert values["certified"] is True
    assert values["viscosity"]["overshoot"] == pytest.approx(math.sqrt(values["viscosity"]["condition_number"]))


def test_cascade_halves_the_step_bound():
    loop, cascade = trained().certificate(), trained(wiring="cascade").certificate()
    assert cascade.max_step == pytest.approx(loop.max_step / 2)


@pytest.mark.parametrize("structure", ALL)
@pytest.mark.parametrize("make", [lambda: mlp_base(num_classes=3, condition_dim=2), unet_base])
def test_save_and_load_are_bitwise(structure, make, tmp_path, generator):
    conditioned = make is not unet_base
    model = trained(structure, make(), num_classes=3, condition_dim=2 if conditioned else 0, num_terms=2)
    model.save_pretrained(tmp_path)
    loaded = ViscousFlowModel.from_pretrained(tmp_path)
    sample = torch.randn(3, *model.config.event_shape, generator=generator)
    condition = {"class_labels": torch.tensor([0, 1, 2])}
    if conditioned:
        condition["condition"] = torch.randn(3, 2, generator=generator)
    assert torch.equal(model(sample, 400.0, **condition).sample, loaded(sample, 400.0, **condition).sample)
    assert type(loaded.base_model) is type(model.base_model)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {n for n, p in model.named_parameters() if p.requires_grad}


def test_labels_and_conditions_reach_centre_and_forcing(generator):
    model = trained("gradient", zero_base(), num_classes=0)
    assert model.head.embed_label is None
    model = trained("gradient", mlp_base(num_classes=2, condition_dim=2), num_classes=2, condition_dim=2)
    x, condition = torch.randn(1, 3, generator=generator).expand(2, 3), torch.zeros(2, 2)
    heads = model.head(torch.zeros(2), torch.tensor([0, 1]), condition)
    assert not torch.equal(heads[0], heads[1])
    out = model(x, 300.0, class_labels=torch.tensor([1, 1]), condition=torch.tensor([[0.0, 0.0], [1.0, 0.0]])).sample
    assert not torch.equal(out[0], out[1])


def test_the_base_is_frozen_until_told_otherwise():
    base = mlp_base()
    model = ViscousFlowModel.from_base(base).train()
    assert model.training
    assert model.dissipation.training
    assert not any(module.training for module in model.base_model.modules())
    assert all(name.startswith(("dissipation.", "head.")) for name, p in model.named_parameters() if p.requires_grad)
    assert all(p.requires_grad for p in base.parameters())
    assert model.base_model is not base
    model.unfreeze_base()
    assert model.base_model.training
    assert all(p.requires_grad for p in model.parameters())
    model.freeze_base()
    assert not model.train().base_model.training


def test_gradients_flow_through_a_frozen_base_to_its_input(generator):
    model = trained()
    x = torch.randn(2, 3, generator=generator, requires_grad=True)
    model.base_model(x, 500.0).sample.sum().backward()
    alone = x.grad.clone()
    x.grad = None
    model(x, 500.0).sample.sum().backward()
    assert alone.abs().sum() > 0
    assert not torch.equal(alone, x.grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "viscous"}, "unknown structure 'viscous'; choose one of gradient"),
        ({"wiring": "parallel"}, "unknown wiring 'parallel'"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"num_terms": 0}, "num_terms must be at least 1"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1"),
        ({"gate_start": 1.0}, r"gate_start must lie in \[0, 1\), got 1.0"),
        ({"gate_start": 0.5, "wiring": "cascade"}, "gate_start=0"),
        ({"gate_start": 0.5, "structure": "mlp"}, "gate_start=0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ViscousFlowModel.from_base(mlp_base(), **options)


def test_bases_are_a_closed_list():
    with pytest.raises(ValueError, match=r"class 'os\.system' is not accepted; its config must name one of VelocityMLP, UNet2DModel"):
        build_base({"_class_name": "os.system", "event_shape": [2]})
    with pytest.raises(ValueError, match="class None"):
        build_base({"event_shape": [2]})
    with pytest.raises(ValueError, match="VelocityMLP has no option"):
        build_base({"_class_name": "VelocityMLP", "event_shape": [2], "width": 3})
    with pytest.raises(ValueError, match="give event_shape"):
        ViscousFlowModel.from_base(
            UNet2DModel(
                block_out_channels=(8,),
                norm_num_groups=4,
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
                layers_per_block=1,
            )
        )
    with pytest.raises(ValueError, match="rank of a Cayley rotation"):
        LowRankCayley(3, 0)


def test_wrong_inputs_are_named(generator):
    model = trained("gradient", mlp_base(num_classes=2), num_classes=2)
    with pytest.raises(ValueError, match=r"samples of shape \(batch, \*\[3\]\), got \(2, 4\)"):
        model(torch.zeros(2, 4), 0.0, class_labels=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="num_classes is 2, so class_labels must be given"):
        model(torch.zeros(2, 3), 0.0)
    with pytest.raises(ValueError, match="together with their times"):
        model.certificate(torch.zeros(2, 3, 3))
