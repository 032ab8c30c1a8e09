"""Replay: the bank holds the base's own states, and training on it keeps what the base knew."""

import pytest
import torch
from closed_forms import GaussianFlow, gaussian_velocity
from scipy import stats
from torch import nn

from hf_flowft.batch import Batch
from hf_flowft.couplings import Shard
from hf_flowft.models import VelocityMLP
from hf_flowft.objectives import FlowMatchingObjective, PriorPreservationObjective, ReplayObjective
from hf_flowft.randomness import keyed_generator
from hf_flowft.replay import ReplayBank, build_replay
from hf_flowft.sampling import generate
from hf_flowft.solvers import integrate, uniform_times
from hf_flowft.times import TimeDensity
from hf_flowft.velocity import FrozenVelocity, Velocity

BASE = FrozenVelocity(GaussianFlow(-5.0, 4.0))


def bank(generator, **options) -> ReplayBank:
    """A small bank of the Gaussian base."""
    return build_replay(BASE, {}, [2], generator, **({"num_samples": 256} | options))


@pytest.mark.parametrize("states", ["interpolant", "trajectory"])
def test_the_bank_holds_samples_of_the_base(states, generator):
    """z_1 follows the base's own law, N(-5, 4)."""
    z_1 = bank(generator, states=states, num_samples=2000).z_1
    assert stats.kstest(z_1.flatten().numpy(), stats.norm(-5, 2).cdf).pvalue > 1e-3


def test_trajectories_are_the_bases_own(generator):
    """States lie on the exact flow map z_t = t m + sqrt(S_t) z_0, and the cached velocity is the base's there."""
    replay = bank(generator, states="trajectory")
    for k in (0, 10, 31):
        t = replay.times[k]
        spread = ((1 - t) ** 2 + 4 * t**2) ** 0.5
        torch.testing.assert_close(replay.states[k], -5 * t + spread * replay.states[0], rtol=0, atol=1e-2)
        torch.testing.assert_close(replay.velocities[k], gaussian_velocity(replay.states[k], t, -5.0, 4.0))
    torch.testing.assert_close(replay.z_1, -5 + 2 * replay.states[0], rtol=0, atol=1e-2)


@pytest.mark.parametrize("states", ["interpolant", "trajectory"])
def test_targets_are_the_bases_velocity_where_they_are_drawn(states, generator):
    """v_t is v_base(z_t, t) for both kinds of states."""
    replay = bank(generator, states=states)
    batch = replay.with_velocity(replay.draw(32, TimeDensity(), generator, Shard()), replay.reference)
    torch.testing.assert_close(batch.v_t, gaussian_velocity(batch.x_t, batch.t[:, None], -5.0, 4.0))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_replay_times_follow_the_training_density(shift, generator):
    """On a grid of any shift the times are those of the density, rounded down to the grid."""
    replay, density = bank(generator, states="trajectory", shift=3.0, num_steps=64), TimeDensity(shift=shift)
    t = replay.draw(5000, density, generator, Shard()).t
    grid = torch.tensor([*replay.times, 1.0])
    expected = density.sample(100_000, generator)
    for node in grid[1:-1:8]:
        assert (t < node - 1e-6).float().mean().item() == pytest.approx(
            (expected < node).float().mean().item(), abs=0.03
        )


@pytest.mark.parametrize("states", ["interpolant", "trajectory"])
def test_two_processes_draw_one_replay_batch(states, generator):
    """The rows of two ranks, put together, are those of one process with the doubled batch."""
    replay = bank(generator, states=states)
    whole = replay.draw(16, TimeDensity(), keyed_generator("draw"), Shard())
    halves = [replay.draw(8, TimeDensity(), keyed_generator("draw"), Shard(rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.x_t for half in halves]), whole.x_t)
    assert torch.equal(torch.cat([half.t for half in halves]), whole.t)


@pytest.mark.parametrize(
    ("coupling", "kind"), [("independent", "interpolant"), ("ot", "trajectory"), ("unknown", "trajectory")]
)
def test_states_follow_the_coupling_of_the_base(coupling, kind, generator):
    """Interpolants are right for an independently coupled base only; trajectories for every other, and when nobody knows."""
    replay = bank(generator, base_coupling=coupling)
    assert (replay.states is None) == (kind == "interpolant")
    assert (replay.velocities is None) == (kind == "interpolant")


def test_bad_banks_are_refused(generator):
    """Interpolants of an OT-trained base are biased; no samples and unknown states are no bank."""
    with pytest.raises(ValueError, match="biased for a base trained with the 'ot' coupling: use 'trajectory'"):
        bank(generator, states="interpolant", base_coupling="ot")
    with pytest.raises(ValueError, match="num_samples = 0"):
        bank(generator, num_samples=0)
    with pytest.raises(ValueError, match="unknown replay states 'path'; choose one of auto"):
        bank(generator, states="path")


def test_every_condition_is_used_equally_often(generator):
    """Conditions come in whole shuffled passes over the base's own."""
    labels = {"class_labels": torch.arange(4)}
    replay = build_replay(BASE, labels, [2], generator, num_samples=10, num_steps=2)
    assert sorted(replay.condition["class_labels"].bincount().tolist()) == [2, 2, 3, 3]


class MixtureField(nn.Module):
    """The closed-form minimiser plus `scale` times a test function: at the minimum no direction lowers the loss."""

    def __init__(self, weight, direction):
        super().__init__()
        self.weight, self.direction, self.scale = weight, direction, nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        """(p* v* + weight p_base v_base) / (p* + weight p_base) + scale f(x, t), for N(5, 0.05) and N(-5, 4)."""
        t = t[:, None]
        log_ratio = torch.log(torch.tensor(self.weight)) + log_density(x, t, -5.0, 4.0) - log_density(x, t, 5.0, 0.05)
        base = torch.sigmoid(log_ratio)
        mixed = (1 - base) * gaussian_velocity(x, t, 5.0, 0.05) + base * gaussian_velocity(x, t, -5.0, 4.0)
        return mixed + self.scale * self.direction(x, t)


def log_density(x, t, mean, variance):
    """log of p_t on the linear path to N(mean, variance)."""
    return torch.distributions.Normal(t * mean, ((1 - t) ** 2 + t**2 * variance).sqrt()).log_prob(x)


DIRECTIONS = [
    lambda x, t: torch.ones_like(x),
    lambda x, t: x * (1 - t),
    lambda x, t: torch.tanh(x),
    lambda x, t: (x < 0).float(),
]


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("direction", range(len(DIRECTIONS)))
def test_the_minimiser_is_the_density_weighted_field(weight, direction, generator):
    """Target N(5, 0.05), base N(-5, 4): the gradient of the replay loss vanishes at the field of the mixture, in every direction."""
    replay = build_replay(BASE, {}, [1], generator, base_coupling="independent", num_samples=40_000, num_steps=64)
    objective = ReplayObjective(replay, weight)
    batch = objective.draw(Batch(5 + 0.05**0.5 * torch.randn(40_000, 1, generator=generator)), generator, Shard())
    field = MixtureField(weight, DIRECTIONS[direction])
    loss, _ = objective(Velocity(field), batch, 0, generator)
    gradient = torch.autograd.grad(loss, field.scale)[0].item()
    assert gradient == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("direction", range(len(DIRECTIONS)))
def test_prior_preservation_has_the_same_minimiser(direction, generator):
    """With z_1 - z_0 in place of the base's velocity the gradient vanishes at the same field, and the base is not asked."""
    replay = build_replay(BASE, {}, [1], generator, base_coupling="independent", num_samples=40_000, num_steps=64)
    objective = PriorPreservationObjective(replay, 1.0)
    batch = objective.draw(Batch(5 + 0.05**0.5 * torch.randn(40_000, 1, generator=generator)), generator, Shard())
    old = objective.kept(batch.replay)
    torch.testing.assert_close((1 - old.t[:, None]) * old.v_t, old.x_1 - old.x_t, rtol=0, atol=1e-4)
    field = MixtureField(1.0, DIRECTIONS[direction])
    loss, _ = objective(Velocity(field), batch, 0, generator)
    assert torch.autograd.grad(loss, field.scale)[0].item() == pytest.approx(0, abs=0.15)


def test_the_mixture_field_generates_the_mixture(generator):
    """With weight 1 half of the samples are the target's and half the base's, and the base's part keeps its std of 2."""
    field = Velocity(MixtureField(1.0, DIRECTIONS[0]))
    with torch.no_grad():
        x = integrate(field, torch.randn(4000, 1, generator=generator), uniform_times(200), "heun").x
    assert (x > 2).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert x[x < 2].mean().item() == pytest.approx(-5, abs=0.2)
    assert x[x < 2].std().item() == pytest.approx(2, abs=0.15)


def fit(objective, model, x_1, label, num_steps, seed):
    """Adam on one label's data."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(num_steps):
        generator = keyed_generator(seed, step)
        rows = torch.randint(len(x_1), (128,), generator=generator)
        batch = objective.draw(Batch(x_1[rows], {"class_labels": torch.full((128,), label)}), generator, Shard())
        optimizer.zero_grad()
        objective(Velocity(model), batch, step, generator)[0].backward()
        optimizer.step()


@pytest.mark.slow
def test_replay_keeps_the_old_condition_and_plain_fine_tuning_forgets_it(generator):
    """Base: label 0 is N(-2, 0.5^2). New: label 1 is N(2, 0.5^2). With replay both are right; without, label 0 moves away."""
    torch.manual_seed(0)
    old, new = -2 + torch.randn(2, 1024, 1, generator=generator) * 0.5 + torch.tensor([0.0, 4.0])[:, None, None]
    base = VelocityMLP([1], hidden_dim=32, num_layers=2, num_classes=2)
    fit(FlowMatchingObjective(), base, old, 0, 400, "base")

    def mean_and_std(model, label):
        noise, labels = (
            torch.randn(1000, 1, generator=keyed_generator("noise")),
            {"class_labels": torch.full((1000,), label)},
        )
        samples = generate(Velocity(model), noise, labels, uniform_times(20), "heun")
        return samples.mean().item(), samples.std().item()

    replay = build_replay(
        FrozenVelocity(base), {"class_labels": torch.zeros(1).long()}, [1], generator, base_coupling="independent"
    )
    distances = {}
    for objective in (FlowMatchingObjective(), ReplayObjective(replay)):
        model = VelocityMLP([1], hidden_dim=32, num_layers=2, num_classes=2)
        model.load_state_dict(base.state_dict())
        fit(objective, model, new, 1, 400, "new")
        assert mean_and_std(model, 1) == pytest.approx((2.0, 0.5), abs=0.2)
        distances[objective.name] = abs(mean_and_std(model, 0)[0] - mean_and_std(base, 0)[0])
    assert distances["gft_replay"] < 0.2
    assert distances["fm"] > 1
