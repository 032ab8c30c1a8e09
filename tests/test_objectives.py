"""Training objectives: the identities of gradual fine-tuning, reconstruction, and batches that do not depend on how they are divided."""

import copy
import math
from dataclasses import fields

import pytest
import torch
from closed_forms import GaussianFlow, gaussian_velocity
from torch import nn

from hf_flowft.batch import Batch
from hf_flowft.conventions import time_grid
from hf_flowft.couplings import IndependentCoupling, OTCoupling, Shard
from hf_flowft.models import VelocityMLP
from hf_flowft.objectives import FlowMatchingObjective, GradualObjective, ReconstructionObjective, ReplayObjective
from hf_flowft.objectives.base import mean_square
from hf_flowft.objectives.flow_matching import velocity_weight
from hf_flowft.paths import LINEAR, BrownianBridgePath
from hf_flowft.randomness import keyed_generator
from hf_flowft.replay import build_replay
from hf_flowft.sampling import generate
from hf_flowft.solvers import NoiseSchedule, uniform_times
from hf_flowft.times import TemperatureSchedule, TimeDensity
from hf_flowft.velocity import FrozenVelocity, Velocity

ALPHAS = pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5, 0.9])


def mlp(seed=0, dimension=2):
    """A small network with weights of its own."""
    model = VelocityMLP([dimension], hidden_dim=16, num_layers=2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def gradual(reference, alpha, **options):
    """GFT held at one alpha: the temperature 1 / alpha - 1 from start to end."""
    tau = 1 / alpha - 1
    return GradualObjective(reference, TemperatureSchedule(initial_temperature=tau, final_temperature=tau), **options)


def drawn(objective, generator, batch=64):
    """A batch of N(1, 0.5^2) data as the objective wants it."""
    return objective.draw(Batch(1 + 0.5 * torch.randn(batch, 2, generator=generator)), generator, Shard())


def loss_and_gradients(objective, model, batch):
    """The loss and its gradient tensor by tensor."""
    loss, _ = objective(Velocity(model), batch, 0, torch.Generator())
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))


# ---------------------------------------------------------------- flow matching


def test_the_flow_matching_loss_of_the_exact_field_is_the_conditional_variance(generator):
    """At v* the loss is E Var(x_1 - x_0 | x_t) = (1 + C) - (t C - (1 - t))^2 / S_t, which at t = 1 / 2 is 4 C / (1 + C)."""
    x_0, t = torch.randn(100_000, 1, generator=generator), torch.full((100_000,), 0.5)
    x_1 = 2 + 0.5 * torch.randn(100_000, 1, generator=generator)
    x_t, v_t, _ = LINEAR.sample(x_0, x_1, t)
    loss, _ = FlowMatchingObjective()(
        Velocity(GaussianFlow(2.0, 0.25)), Batch(x_1, x_t=x_t, v_t=v_t, t=t), 0, generator
    )
    assert loss.item() == pytest.approx(4 * 0.25 / 1.25, rel=0.02)


def test_a_bank_brings_its_own_noise(generator):
    """Flow matching on pairs keeps their x_0, and x_t, v_t lie on the line between them."""
    x_0, x_1 = torch.randn(2, 32, 2, generator=generator)
    batch = FlowMatchingObjective().draw(Batch(x_1, x_0=x_0), generator, Shard())
    assert batch.x_0 is x_0
    torch.testing.assert_close(batch.x_t + (1 - batch.t[:, None]) * batch.v_t, x_1)


@pytest.mark.parametrize(
    ("schedule", "divergence"),
    [
        (NoiseSchedule("sqrt", 0.5), 1.425163),
        (NoiseSchedule("sqrt", 1.0), 1.040715),
        (NoiseSchedule("sqrt", 2.0), 0.947239),
        (NoiseSchedule("sqrt", 4.0), 1.097997),
        (NoiseSchedule("memoryless"), 0.917544),
    ],
    ids=str,
)
def test_the_kl_weight_is_girsanovs(schedule, divergence):
    """int lambda_t E (v* - v_base)^2 dt is the path KL of N(0, 1/4) from N(0, 4); memoryless: the KL of the ends, the least."""
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    x = ((1 - t) ** 2 + t**2 * 0.25).sqrt()  # E f^2 of a field linear in x is f^2 at one standard deviation
    error = gaussian_velocity(x, t, 0.0, 0.25) - gaussian_velocity(x, t, 0.0, 4.0)
    weight = velocity_weight(t, "kl", schedule)
    assert (weight * error**2).mean().item() == pytest.approx(divergence, abs=2e-5)
    halfway = 0.5 * gaussian_velocity(x, t, 0.0, 0.25) + 0.5 * gaussian_velocity(x, t, 0.0, 4.0)
    left = weight * (gaussian_velocity(x, t, 0.0, 0.25) - halfway) ** 2
    assert left.mean().item() == pytest.approx(divergence / 4, abs=1e-5)  # (1 - alpha)^2 of it at alpha = 1 / 2


def test_the_memoryless_kl_is_that_of_the_ends():
    """The number above against torch.distributions: KL(N(0, 1/4) || N(0, 4))."""
    ends = [torch.distributions.Normal(0.0, std) for std in (0.5, 2.0)]
    assert torch.distributions.kl_divergence(*ends).item() == pytest.approx(0.917544, abs=1e-6)


def test_weights_enter_the_loss_sample_by_sample(generator):
    """`kl` is the weighted mean of the squared errors; it is finite at t = 0 and t = 1."""
    batch = drawn(FlowMatchingObjective(), generator)
    velocity = Velocity(mlp())
    errors = mean_square(velocity(batch.x_t, batch.t) - batch.v_t)
    loss, _ = FlowMatchingObjective(weighting="kl")(velocity, batch, 0, generator)
    torch.testing.assert_close(loss, (errors * (1 + batch.t) ** 2 / (4 * (1 - batch.t.clamp(max=0.999)))).mean())
    assert velocity_weight(torch.tensor([0.0, 1.0]), "kl").isfinite().all()


# ---------------------------------------------------------------- gradual fine-tuning, target measure


@ALPHAS
def test_two_terms_are_one_interpolated_target(alpha, generator):
    """I1: ||v - u||^2 + tau ||v - v_ref||^2 = (1 + tau) ||v - y||^2 + tau / (1 + tau) ||u - v_ref||^2, batch by batch."""
    reference, velocity, tau = FrozenVelocity(mlp(1)), Velocity(mlp(2)), 1 / alpha - 1
    batch = drawn(FlowMatchingObjective(), generator)
    anchor, v = reference(batch.x_t, batch.t), velocity(batch.x_t, batch.t)
    one = gradual(reference, alpha)(velocity, batch, 0, generator)[0]
    two = mean_square(v - batch.v_t).mean() + tau * mean_square(v - anchor).mean()
    constant = tau / (1 + tau) * mean_square(batch.v_t - anchor).mean()
    torch.testing.assert_close(two, (1 + tau) * one + constant, rtol=2e-6, atol=0)


@ALPHAS
def test_at_the_base_the_gradient_is_alpha_times_flow_matchings(alpha, generator):
    """I4: at the base's own weights, tensor by tensor."""
    base = mlp(1)
    batch = drawn(FlowMatchingObjective(), generator)
    _, ours = loss_and_gradients(gradual(FrozenVelocity(base), alpha), base, batch)
    _, plain = loss_and_gradients(FlowMatchingObjective(), base, batch)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, alpha * b, rtol=1e-4, atol=1e-6)


def test_at_alpha_zero_the_base_has_no_loss(generator, monkeypatch):
    """I5: loss and gradient are exactly zero at the base's own weights."""
    base = mlp(1)
    objective = gradual(FrozenVelocity(base), 0.5)
    monkeypatch.setattr(objective, "alpha", lambda step: 0.0)
    loss, gradients = loss_and_gradients(objective, base, drawn(objective, generator))
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_at_alpha_one_the_loss_is_flow_matching_bitwise(generator):
    """I5: the same bits, and the reference is not even called."""
    model, reference = mlp(2), FrozenVelocity(mlp(1))
    reference.model.forward = None
    objective = gradual(reference, 1.0)
    batch = drawn(objective, generator)
    ours, plain = (loss_and_gradients(o, model, batch) for o in (objective, FlowMatchingObjective()))
    assert torch.equal(ours[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(ours[1], plain[1], strict=True))


@ALPHAS
@pytest.mark.parametrize("coupling", [IndependentCoupling(), OTCoupling()], ids=lambda c: c.name)
def test_the_target_regresses_to_the_mixed_slope(alpha, coupling, generator):
    """U3: at fixed t the regression of y on x_t has the slope alpha B_target + (1 - alpha) B_base; OT: alpha of the OT slope."""
    t, variance, n = 0.6, 0.25, 100_000 if coupling.name == "independent" else 1024
    objective = gradual(FrozenVelocity(GaussianFlow(0.0, 4.0)), alpha, coupling=coupling)
    batch = objective.draw(Batch(0.5 * torch.randn(n, 1, generator=generator)), generator, Shard())
    x_t, v_t, times = LINEAR.sample(batch.x_0, batch.x_1, torch.full((n,), t))
    y = objective.target(Batch(batch.x_1, x_t=x_t, v_t=v_t, t=times), 0)
    one, std = torch.ones(1), variance**0.5
    slope = (
        gaussian_velocity(one, t, 0.0, variance) if coupling.name == "independent" else (std - 1) / (1 - t + t * std)
    )
    expected = alpha * slope + (1 - alpha) * gaussian_velocity(one, t, 0.0, 4.0)
    found = (x_t * y).sum() / (x_t * x_t).sum()
    assert found.item() == pytest.approx(float(expected), abs=0.03)


def test_the_reference_is_never_trained(generator):
    """U6: after objective.train() and a backward pass the reference has no gradient, is in eval mode, and has its old weights."""
    base = mlp(1)
    objective = gradual(FrozenVelocity(nn.Sequential(base, nn.Dropout(0.5))), 0.5)
    objective.reference.model.forward = lambda x, t: objective.reference.model[1](base(x, t).sample)
    before = copy.deepcopy(objective.reference.state_dict())
    objective.train()
    loss_and_gradients(objective, mlp(2), drawn(objective, generator))
    assert not any(module.training for module in objective.reference.modules())
    assert all(p.grad is None and not p.requires_grad for p in objective.parameters())
    assert all(torch.equal(before[key], value) for key, value in objective.reference.state_dict().items())


def test_the_temperature_runs_with_the_steps(generator):
    """alpha is logged and follows the schedule over `num_steps`."""
    schedule = TemperatureSchedule("linear", initial_temperature=3.0, end=1.0)
    objective = GradualObjective(FrozenVelocity(mlp(1)), schedule, num_steps=10)
    batch = drawn(objective, generator)
    alphas = [objective(Velocity(mlp(2)), batch, step, generator)[1]["alpha"] for step in (0, 5, 10)]
    assert alphas == pytest.approx([1 / 4, 1 / 2.5, 1])


def train(model, objective, num_steps, data, lr=5e-3, seed="train"):
    """Adam on data(generator) -> Batch."""
    optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=lr)
    for step in range(num_steps):
        generator = keyed_generator(seed, step)
        batch = objective.draw(data(generator), generator, Shard())
        optimizer.zero_grad()
        objective(Velocity(model), batch, step, keyed_generator(seed, "loss", step))[0].backward()
        optimizer.step()
    return model


@pytest.mark.slow
def test_couplings_share_the_end_and_ot_has_the_shorter_path():
    """U7: trained at tau = 0, OT and independent pairs give the moments of the data, OT by shorter and straighter paths."""

    def data(generator):
        return Batch(torch.tensor([2.0, 0.0]) + torch.tensor([0.3, 1.5]) * torch.randn(256, 2, generator=generator))

    lengths, excess, noise = {}, {}, torch.randn(4000, 2, generator=keyed_generator("noise"))
    for coupling in (IndependentCoupling(), OTCoupling()):
        torch.manual_seed(0)
        model = VelocityMLP([2], hidden_dim=64, num_layers=2)
        objective = gradual(FrozenVelocity(model), 1.0, coupling=coupling)
        path = generate(
            Velocity(train(model, objective, 400, data)), noise, {}, uniform_times(50), "heun", trajectory=True
        )
        torch.testing.assert_close(path[-1].mean(dim=0), torch.tensor([2.0, 0.0]), rtol=0, atol=0.2)
        torch.testing.assert_close(path[-1].std(dim=0), torch.tensor([0.3, 1.5]), rtol=0, atol=0.2)
        lengths[coupling.name] = path.diff(dim=0).norm(dim=2).sum(dim=0).mean().item()
        excess[coupling.name] = lengths[coupling.name] / (path[-1] - path[0]).norm(dim=1).mean().item()
    assert lengths["ot"] < lengths["independent"] - 0.02
    assert excess["ot"] < 1.01 < 1.03 < excess["independent"]


# ---------------------------------------------------------------- replay


def replay_objective(generator, weight=1.0):
    """Replay of the Gaussian base N(-5, 4)."""
    base = FrozenVelocity(GaussianFlow(-5.0, 4.0))
    return ReplayObjective(build_replay(base, {}, [2], generator, num_samples=64, num_steps=4), weight)


def test_the_replay_loss_is_two_losses(generator):
    """The data's term plus `weight` times the base's, in one pass of the network."""
    objective, velocity = replay_objective(generator, weight=0.3), Velocity(mlp(2))
    batch = drawn(objective, generator)
    loss, logs = objective(velocity, batch, 0, generator)
    old = batch.replay
    torch.testing.assert_close(logs["target_loss"], mean_square(velocity(batch.x_t, batch.t) - batch.v_t).mean())
    torch.testing.assert_close(logs["replay_loss"], mean_square(velocity(old.x_t, old.t) - old.v_t).mean())
    torch.testing.assert_close(loss, logs["target_loss"] + 0.3 * logs["replay_loss"])


def test_replay_refuses_what_it_cannot_do(generator):
    """A negative weight, and data under other conditions than the base's, are named."""
    objective = replay_objective(generator)
    with pytest.raises(ValueError, match=r"must be >= 0, got -1"):
        ReplayObjective(objective.replay, -1.0)
    batch = objective.draw(Batch(torch.zeros(4, 2), {"class_labels": torch.zeros(4)}), generator, Shard())
    with pytest.raises(ValueError, match=r"\[\] are not those of the data, \['class_labels'\]"):
        objective(Velocity(mlp()), batch, 0, generator)


def test_the_replay_reference_goes_where_the_objective_goes(generator):
    """The frozen base is a submodule, so that `objective.to(device)` takes it along, and none of it is trained."""
    objective = replay_objective(generator)
    assert objective.replay.reference in list(objective.modules())
    assert not [p for p in objective.parameters() if p.requires_grad]


# ---------------------------------------------------------------- reconstruction


def reconstruction(generator, **options):
    """MLE with a batch of pairs."""
    x_0, x_1 = torch.randn(2, 64, 2, generator=generator)
    return ReconstructionObjective(**options), Batch(x_1, x_0=x_0)


class Still(nn.Module):
    """A field that goes nowhere: phi(x_0) = x_0, so the errors are x_1 - x_0."""

    def forward(self, x, t):
        """Zero."""
        return 0 * x


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_the_loss_is_the_error_of_the_solvers_end(solver, generator):
    """mean (x_1 - phi(x_0))^2 with phi the N-step solve on the shifted grid, and gradients reach the weights."""
    objective, batch = reconstruction(generator, num_steps=3, solver=solver, shift=2.0)
    model = mlp(1)
    loss, logs = objective(Velocity(model), batch, 0, generator)
    end = generate(Velocity(model), batch.x_0, {}, time_grid(3, shift=2.0), solver)
    torch.testing.assert_close(loss, (batch.x_1 - end).square().mean())
    assert logs["num_steps"] == 3
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, list(model.parameters())))


def test_coordinates_that_hardly_change_do_not_outweigh_the_others(generator):
    """A variance below 1/100 of the median one counts as that; those of ordinary coordinates are what they are, and no data change at all nowhere."""
    given = torch.tensor([0.0, 1e-9, 0.01, 0.5, 2.0, 2.0, 3.0])
    objective, _ = reconstruction(generator, covariance="diagonal", variance=given)
    torch.testing.assert_close(objective.variance, torch.tensor([0.005, 0.005, 0.01, 0.5, 2.0, 2.0, 3.0]))
    objective, _ = reconstruction(generator, covariance="diagonal", variance=torch.zeros(3))
    assert (objective.variance == torch.tensor(1e-6)).all()


def test_diagonal_covariance_weighs_each_coordinate(generator):
    """mean of e_i^2 / s_i^2."""
    objective, batch = reconstruction(generator, covariance="diagonal", variance=torch.tensor([0.5, 2.0]))
    loss, _ = objective(Velocity(Still()), batch, 0, generator)
    torch.testing.assert_close(loss, ((batch.x_1 - batch.x_0).square() / torch.tensor([0.5, 2.0])).mean())


def test_the_pseudo_huber_distance(generator):
    """sqrt(||e||^2 + c^2) - c of each sample with c = 0.00054 sqrt(d), over sqrt(d): near zero a square, far away a norm."""
    objective, batch = reconstruction(generator, distance="huber")
    loss, logs = objective(Velocity(Still()), batch, 0, generator)
    error = (batch.x_1 - batch.x_0).double()
    c = 0.00054 * math.sqrt(error[0].numel())
    expected = (torch.sqrt(error.square().sum(dim=1) + c**2) - c) / math.sqrt(error[0].numel())
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert logs["reconstruction"].item() == pytest.approx(error.square().mean().item(), rel=1e-5)


def test_the_learned_covariance_is_the_mean_square_error(generator):
    """The minimum over s^2 is s_i^2 = E e_i^2, where the loss is the mean of (1 + log E e_i^2) / 2."""
    objective, batch = reconstruction(generator, covariance="learned", event_shape=[2])
    batch = Batch(batch.x_1 * torch.tensor([0.1, 3.0]), x_0=batch.x_0)
    optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss, _ = objective(Velocity(Still()), batch, 0, generator)
        loss.backward()
        return loss

    optimizer.step(closure)
    squares = (batch.x_1 - batch.x_0).square().mean(dim=0)
    torch.testing.assert_close(objective.log_variance.exp().detach(), squares, rtol=1e-3, atol=0)
    torch.testing.assert_close(closure().detach(), (1 + squares.log()).mean() / 2)


def test_the_learned_covariance_can_leave_its_floor(generator):
    """Below the floor of 1e-6 the loss is finite and still pulls the variance up."""
    objective, batch = reconstruction(generator, covariance="learned", event_shape=[2])
    nn.init.constant_(objective.log_variance, -20.0)
    loss, _ = objective(Velocity(Still()), batch, 0, generator)
    assert loss.isfinite()
    assert (torch.autograd.grad(loss, objective.log_variance)[0] < 0).all()


def test_all_micro_batches_of_a_step_draw_one_number_of_steps(generator):
    """A random N is keyed by the step: the same for every micro-batch and process, and all of its values come up."""
    objective, batch = reconstruction(generator, num_steps=[2, 3, 5])

    def drawn_steps(step):
        parts = batch.split(4)
        return {
            objective(Velocity(Still()), part, step, keyed_generator(0, "loss", step))[1]["num_steps"] for part in parts
        }

    steps = [drawn_steps(step) for step in range(30)]
    assert all(len(found) == 1 for found in steps)
    assert set.union(*steps) == {2, 3, 5}


def test_a_mixture_adds_another_objective(generator):
    """L = L_mle + weight L_fm, where flow matching draws its own noise beside the pairs."""
    plain = FlowMatchingObjective()
    objective, batch = reconstruction(generator, num_steps=2, mixture=plain, mixture_weight=0.3)
    both = objective.draw(batch, generator, Shard())
    assert both.x_0 is batch.x_0
    velocity = Velocity(mlp(1))
    loss, logs = objective(velocity, both, 0, generator)
    mixture, _ = plain(velocity, both, 0, generator)
    alone, _ = ReconstructionObjective(2)(velocity, both, 0, generator)
    torch.testing.assert_close(loss, alone + 0.3 * mixture)
    torch.testing.assert_close(logs["mixture_loss"], mixture.detach())


def test_independent_pairs_collapse_to_the_mean_and_a_bank_does_not():
    """Data at -1 and +1: trained on fresh noise every output goes to 0; on sorted pairs both modes stay."""
    values = torch.tensor([-1.0, 1.0]).repeat(64)[:, None]
    spreads = {}
    for coupling in (IndependentCoupling(), OTCoupling()):
        torch.manual_seed(0)
        objective = ReconstructionObjective(2, coupling=coupling, allow_independent=True)
        model = train(VelocityMLP([1], hidden_dim=32, num_layers=1), objective, 250, lambda generator: Batch(values))
        noise = torch.randn(1000, 1, generator=keyed_generator("noise"))
        spreads[coupling.name] = generate(Velocity(model), noise, {}, uniform_times(2)).std().item()
    assert spreads["independent"] < 0.2
    assert spreads["ot"] > 0.8


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"coupling": IndependentCoupling()},
            r"(?s)every mode collapses.*ot_output, best_of_k.*allow_independent=True",
        ),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_steps": []}, "num_steps must name at least one"),
        ({"distance": "l1"}, "unknown distance 'l1'; choose one of squared, huber"),
        (
            {"distance": "huber", "covariance": "learned"},
            "distance huber has no covariance: choose covariance scalar, not 'learned'",
        ),
        ({"covariance": "full"}, "unknown covariance 'full'; choose one of scalar, diagonal, learned"),
        ({"covariance": "diagonal"}, "needs the variance of each coordinate"),
        ({"solver": "dopri5"}, "unknown fixed-step solver 'dopri5'"),
    ],
    ids=str,
)
def test_reconstruction_refuses_what_cannot_work(options, named):
    """Independent pairs are refused with the reason and the remedy; so is what cannot be built."""
    with pytest.raises(ValueError, match=named):
        ReconstructionObjective(**options)


def test_reconstruction_without_pairs_is_refused(generator):
    """Neither a bank nor a coupling: there is no x_0 that belongs to x_1."""
    with pytest.raises(ValueError, match="reconstruction needs pairs: batches with x_0 from a bank, or a coupling"):
        ReconstructionObjective().draw(Batch(torch.zeros(2, 2)), generator, Shard())


def test_an_unknown_weighting_is_refused():
    """`kl` needs a schedule with noise."""
    t = torch.zeros(2)
    with pytest.raises(ValueError, match="'one', or 'kl' with a schedule that has noise, got 'snr'"):
        velocity_weight(t, "snr")
    with pytest.raises(ValueError, match="schedule that has noise"):
        velocity_weight(t, "kl", NoiseSchedule("sqrt", 0.0))


# ---------------------------------------------------------------- the global batch

OBJECTIVES = {
    "fm": lambda: FlowMatchingObjective(times=TimeDensity("logit_normal", shift=2.0)),
    "fm ot": lambda: FlowMatchingObjective(coupling=OTCoupling()),
    "fm bridge": lambda: FlowMatchingObjective(BrownianBridgePath(0.5), OTCoupling()),
    "replay": lambda: replay_objective(keyed_generator("bank")),
    "mle": lambda: ReconstructionObjective(coupling=OTCoupling(), mixture=FlowMatchingObjective()),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_does_not_depend_on_how_it_is_divided(name, generator):
    """Two ranks draw the two halves of what one process draws: noise, times, pairs, bridges and replay, bitwise."""
    objective, x_1 = OBJECTIVES[name](), torch.randn(32, 2, generator=generator)
    whole = objective.draw(Batch(x_1), keyed_generator("draw"), Shard())
    for rank in (0, 1):
        rows = slice(16 * rank, 16 * rank + 16)
        half = objective.draw(Batch(x_1[rows]), keyed_generator("draw"), Shard(rank, 2, gather=lambda local: x_1))
        assert_same(half, whole.rows(rows))


def assert_same(batch, expected):
    """Every tensor of two batches is the same."""
    for field in fields(Batch):
        a, b = getattr(batch, field.name), getattr(expected, field.name)
        if isinstance(a, Batch):
            assert_same(a, b)
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b), field.name
        else:
            assert a == b


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_to_the_batch(name, generator):
    """The mean of the losses of equal parts is the loss of the whole."""
    objective, velocity = OBJECTIVES[name](), Velocity(mlp(1))
    batch = objective.draw(Batch(torch.randn(32, 2, generator=generator)), generator, Shard())
    whole, _ = objective(velocity, batch, 0, keyed_generator("loss"))
    parts = [objective(velocity, part, 0, keyed_generator("loss"))[0] for part in batch.split(4)]
    assert math.isclose(whole.item(), sum(parts).item() / 4, rel_tol=1e-5)
