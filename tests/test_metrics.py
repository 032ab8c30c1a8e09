"""Metrics against closed forms, naive loops and other libraries; their table of units and directions."""

import math
from types import SimpleNamespace

import numpy as np
import ot
import pytest
import scipy.linalg
import scipy.stats
import torch
from scipy.spatial.distance import cdist, pdist
from torch import nn

from hf_flowft.batch import Batch
from hf_flowft.metrics import ARROWS, METRICS
from hf_flowft.metrics import distances as d
from hf_flowft.metrics import flow as f
from hf_flowft.metrics import held_out as h
from hf_flowft.metrics import modes as m
from hf_flowft.metrics.stability import instantaneous_variance, spearman_correlation
from hf_flowft.models.mlp import VelocityMLP
from hf_flowft.velocity import Velocity


@pytest.fixture
def samples(generator):
    """Two sets of different sizes in three dimensions, off centre."""
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64) * 1.3 + 2
    return x, torch.randn(55, 3, generator=generator, dtype=torch.float64) + 1.5


class Field(nn.Module):
    """A closed-form velocity that counts how often it is evaluated."""

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, x, t, **condition):
        self.calls += 1
        return self.function(x, t.to(x), **condition)


def velocity(function):
    return Velocity(Field(function))


# --- distances ---------------------------------------------------------------------------------------------------------------------


def test_wasserstein_of_a_shifted_set_is_the_shift(samples):
    x, _ = samples
    shift = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    permuted = x[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    assert d.wasserstein_2(x, permuted + shift) == pytest.approx(3.0)
    assert d.wasserstein_2(x, permuted) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sizes", [(40, 40), (40, 55), (300, 300)])
def test_wasserstein_is_pot(sizes, generator):
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in sizes)
    expected = math.sqrt(ot.emd2([], [], ot.dist(x.numpy(), y.numpy())))
    assert d.wasserstein_2(x, y) == pytest.approx(expected)
    assert d.wasserstein_2(y, x) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m_"), [(30, 30), (30, 50), (7, 13), (1, 5)])
def test_wasserstein_and_its_slices_in_one_dimension(n, m_, generator):
    """All agree in 1-D, where POT integrates the quantile functions exactly; one slice of a line is the line."""
    x, y = (
        torch.randn(n, 1, generator=generator, dtype=torch.float64),
        2 * torch.randn(m_, 1, generator=generator, dtype=torch.float64),
    )
    expected = math.sqrt(ot.wasserstein_1d(x.numpy().ravel(), y.numpy().ravel(), p=2))
    assert d.wasserstein_2(x, y) == pytest.approx(expected)
    assert d.sliced_wasserstein_2(x, y, generator=generator, num_projections=3) == pytest.approx(expected)


def test_sliced_wasserstein_of_a_translation(samples, generator):
    """SW_2^2 of a translation by s is E (u.s)^2 = ||s||^2 / d."""
    x, _ = samples
    shift = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    value = d.sliced_wasserstein_2(x, x + shift, generator=generator, num_projections=20_000)
    assert value == pytest.approx(5 / math.sqrt(3), rel=0.01)


def test_sliced_wasserstein_is_pot_on_the_same_directions(samples):
    x, y = samples
    directions = torch.randn(3, 50, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.numpy())
    ours = d.sliced_wasserstein_2(x, y, generator=torch.Generator().manual_seed(5), num_projections=50)
    assert ours == pytest.approx(float(expected))


def test_energy_distance_is_scipy_without_the_bias(generator):
    """SciPy's is the root of the biased form, whose inner means count the zeros of the diagonal: (n - 1) / n of ours."""
    x, y = (
        torch.randn(60, generator=generator, dtype=torch.float64),
        torch.rand(45, generator=generator, dtype=torch.float64),
    )
    gini_x, gini_y = ((z[:, None] - z[None]).abs().mean().item() for z in (x, y))
    biased = scipy.stats.energy_distance(x.numpy(), y.numpy()) ** 2
    assert d.energy_distance(x, y) == pytest.approx(biased - gini_x / 59 - gini_y / 44)


def test_energy_distance_of_known_laws_and_its_floor(generator):
    """N(0, 1) against N(s, 1): 2 E|N(s, 2)| - 4 / sqrt(pi); between samples of one law 0 on average, of either sign."""
    s = 1.5
    x, y = torch.randn(6000, generator=generator), torch.randn(6000, generator=generator) + s
    folded = scipy.stats.foldnorm(c=s / math.sqrt(2), scale=math.sqrt(2)).mean()
    assert d.energy_distance(x, y) == pytest.approx(2 * folded - 4 / math.sqrt(math.pi), abs=0.03)
    floors = [d.energy_distance(*torch.randn(2, 20, 2, generator=generator)) for _ in range(400)]
    assert abs(np.mean(floors)) < 3 * np.std(floors) / 20
    assert min(floors) < 0 < max(floors)


def test_energy_distance_within_labels(generator):
    """The same samples under swapped labels are far apart although the mixtures agree."""
    near, far = torch.randn(30, 2, generator=generator), torch.randn(50, 2, generator=generator) + 8
    x, labels = torch.cat([near, far]), torch.tensor([3] * 30 + [7] * 50)
    y = torch.cat([torch.randn(40, 2, generator=generator), torch.randn(20, 2, generator=generator) + 8])
    labels_y = torch.tensor([3] * 40 + [7] * 20)
    mean = (d.energy_distance(near, y[:40]) + d.energy_distance(far, y[40:])) / 2
    order = torch.randperm(80, generator=generator)
    assert d.energy_distance_by_label(x[order], y, labels[order], labels_y) == pytest.approx(mean)
    assert d.energy_distance_by_label(x, y, labels, 10 - labels_y) > 10
    with pytest.raises(ValueError, match=r"same labels, got \[3, 7\] for x and \[3, 8\]"):
        d.energy_distance_by_label(x, y, labels, torch.where(labels_y == 7, 8, 3))
    with pytest.raises(ValueError, match="label 7 needs at least two"):
        d.energy_distance_by_label(x[:31], y, labels[:31], labels_y)
    with pytest.raises(ValueError, match="labels_y must hold one label a sample"):
        d.energy_distance_by_label(x, y, labels, labels_y[:5])


def naive_mmd(x, y, kernel):
    """The unbiased estimate by loops over all pairs."""
    n, k = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(k) for j in range(k) if i != j) / (k * (k - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * k)


def test_kernel_discrepancies_are_the_double_loops(samples, monkeypatch):
    x, y = samples[0].numpy(), samples[1].numpy()
    median = np.median([np.linalg.norm(y[i] - y[j]) for i in range(55) for j in range(i)])  # 1485 pairs: the middle one
    for width in (0.7, median):
        expected = naive_mmd(x, y, lambda a, b, h=width: math.exp(-((a - b) ** 2).sum() / (2 * h**2)))
        assert d.mmd_squared(*samples, bandwidth=width) == pytest.approx(expected)
    assert d.mmd_squared(*samples) == pytest.approx(expected)
    assert d.kid(*samples) == pytest.approx(naive_mmd(x, y, lambda a, b: (a @ b / 3 + 1) ** 3))
    assert d.energy_distance(*samples) == pytest.approx(naive_mmd(x, y, lambda a, b: -np.linalg.norm(a - b)))
    monkeypatch.setattr(d, "BLOCK_ROWS", 7)
    assert d.mmd_squared(*samples) == pytest.approx(expected)


def test_mmd_of_gaussians_has_its_closed_form(generator):
    """E k(x, y) for x - y ~ N(s, 2 I) in d dimensions is (h^2 / (h^2 + 2))^(d / 2) exp(-||s||^2 / (2 (h^2 + 2)))."""
    x, y = torch.randn(5000, 2, generator=generator), torch.randn(5000, 2, generator=generator) + 1
    exact = 2 * 0.5 * (1 - math.exp(-2 / (2 * 4)))  # h^2 = 2, d = 2
    assert d.mmd_squared(x, y, bandwidth=math.sqrt(2)) == pytest.approx(exact, abs=0.01)


def test_frechet_of_gaussian_moments():
    """One dimension: (m - m')^2 + (s - s')^2; commuting covariances: the same along each axis; singular ones too."""
    zero, one = torch.zeros(1), torch.ones(1)
    assert d.frechet_of_moments(zero, one * 4, one * 3, one * 9) == pytest.approx(9 + 1)
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    c_x, c_y = (q @ torch.diag(torch.tensor(v, dtype=torch.float64)) @ q.T for v in ([1.0, 4.0, 0.0], [9.0, 0.0, 0.0]))
    mean = torch.tensor([1.0, 2.0, 2.0])
    assert d.frechet_of_moments(mean, c_x, torch.zeros(3), c_y) == pytest.approx(9 + 4 + 4)
    assert d.frechet_of_moments(mean, c_x, mean, c_x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_features(samples, generator):
    x, y = samples[0].numpy(), samples[1].numpy()
    c_x, c_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(c_x @ c_y).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c_x + c_y - 2 * root)
    assert d.frechet_distance(*samples) == pytest.approx(expected)
    features = torch.randn(5, 60, generator=generator)  # fewer samples than dimensions: singular covariances
    assert d.frechet_distance(features, features + 0.5) == pytest.approx(60 * 0.25, rel=1e-6)
    assert d.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


DISTANCES = [
    d.wasserstein_2,
    d.energy_distance,
    d.mmd_squared,
    d.frechet_distance,
    d.kid,
    lambda x, y: d.sliced_wasserstein_2(x, y, generator=torch.Generator().manual_seed(0)),
]


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_ignore_order_and_event_shape_and_refuse_nonsense(distance, generator):
    x, y = torch.randn(30, 2, 3, generator=generator), torch.randn(24, 2, 3, generator=generator)
    value = distance(x, y)
    assert isinstance(value, float)
    permuted = x[torch.randperm(30, generator=generator)], y[torch.randperm(24, generator=generator)]
    assert distance(*permuted) == pytest.approx(value, rel=1e-9)
    assert distance(x.flatten(1), y.flatten(1)) == value
    with pytest.raises(ValueError, match="events of one size"):
        distance(x, y[:, :1])
    with pytest.raises(ValueError, match="at least"):
        distance(x[:0], y)
    bad = y.clone()
    bad[3, 0, 0], bad[5, 1, 1] = math.nan, math.inf
    with pytest.raises(ValueError, match="NaN or infinite values in 2 of its 24 samples"):
        distance(x, bad)


def test_no_metric_touches_the_global_generator(samples, generator):
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    for distance in DISTANCES:
        distance(*samples)
    f.held_out_loss(velocity(lambda x, t: x), samples[0].float(), generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_bandwidths_that_cannot_be():
    with pytest.raises(ValueError, match="give a bandwidth"):
        d.mmd_squared(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="must be positive"):
        d.mmd_squared(torch.zeros(3, 2), torch.zeros(4, 2), bandwidth=0.0)
    with pytest.raises(ValueError, match="num_projections"):
        d.sliced_wasserstein_2(torch.zeros(3, 2), torch.zeros(4, 2), generator=torch.Generator(), num_projections=0)


# --- modes -------------------------------------------------------------------------------------------------------------------------

CENTRES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])


def test_distances_and_shares_of_placed_points():
    x = torch.tensor([[0.3, 0.4], [10.0, 0.0], [10.0, 2.0], [0.0, 9.0]])
    assert m.distance_to_nearest_centre(x, CENTRES) == pytest.approx((0.5 + 0 + 2 + 1) / 4)
    assert m.bad_share(x, CENTRES, 0.9) == 0.5
    assert m.bad_share(x, CENTRES, 1.0) == 0.25
    assert m.mode_shares(x, CENTRES).tolist() == [0.25, 0.5, 0.25]
    assert m.mode_share_error(x, CENTRES, torch.tensor([0.25, 0.5, 0.25])) == 0
    assert m.mode_share_error(x, CENTRES, torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="3 shares that sum to 1"):
        m.mode_share_error(x, CENTRES, torch.tensor([0.5, 0.6, 0.5]))


def test_distance_to_the_centre_of_a_gaussian_is_rayleigh(generator):
    index = torch.randint(0, 3, (20_000,), generator=generator)
    x = CENTRES[index] + 0.1 * torch.randn(20_000, 2, generator=generator)
    assert m.distance_to_nearest_centre(x, CENTRES) == pytest.approx(0.1 * math.sqrt(math.pi / 2), rel=0.02)
    assert m.bad_share(x, CENTRES, 0.3) == pytest.approx(math.exp(-4.5), abs=0.003)
    assert m.within_mode_std(x, CENTRES) == pytest.approx(0.1, rel=0.02)


def test_spread_within_modes_is_unbiased_and_sees_shrinkage_behind_stragglers(generator):
    """Many small samples: the mean of std^2 is the truth; with stragglers only the threshold shows modes at half their size."""
    index = torch.randint(0, 3, (2000, 8), generator=generator)
    small = CENTRES[index] + 0.5 * torch.randn(2000, 8, 2, generator=generator)
    assert np.mean([m.within_mode_std(s, CENTRES) ** 2 for s in small]) == pytest.approx(0.25, rel=0.03)
    truth = CENTRES[index.flatten()] + 0.1 * torch.randn(16_000, 2, generator=generator)
    shrunk = CENTRES[index.flatten()] + 0.05 * torch.randn(16_000, 2, generator=generator)
    with_stragglers = torch.cat([shrunk, torch.full((800, 2), 4.0)])
    assert m.within_mode_std_ratio(shrunk, truth, CENTRES) == pytest.approx(0.5, rel=0.03)
    assert m.within_mode_std_ratio(with_stragglers, truth, CENTRES) > 3
    assert m.within_mode_std_ratio(with_stragglers, truth, CENTRES, threshold=0.5) == pytest.approx(0.5, rel=0.03)
    assert m.within_mode_std_ratio(truth[::2], truth[1::2], CENTRES, threshold=0.1) == pytest.approx(
        1, rel=0.03
    )  # both are cut


def test_spreads_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="two samples of one mode"):
        m.within_mode_std(CENTRES, CENTRES)
    with pytest.raises(ValueError, match="no spread within its modes"):
        m.within_mode_std_ratio(CENTRES, CENTRES.repeat(2, 1), CENTRES)
    with pytest.raises(ValueError, match="all data points coincide"):
        m.collapse_ratio(CENTRES, CENTRES, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="events of one size"):
        m.bad_share(torch.zeros(3, 3), CENTRES, 1.0)


def test_diversity_is_the_mean_pairwise_distance(generator):
    x = torch.tensor([[0.0], [3.0], [7.0]])
    assert m.diversity(x) == pytest.approx((3 + 7 + 4) / 3)
    assert m.diversity(torch.ones(5, 2, 2)) == 0
    assert m.diversity(torch.randn(3000, generator=generator)) == pytest.approx(2 / math.sqrt(math.pi), rel=0.03)
    with pytest.raises(ValueError, match="at least 2"):
        m.diversity(x[:1])


def test_memorising_is_exactly_zero_on_training_points(generator):
    train = 100 + torch.randn(500, 3, 4, generator=generator, dtype=torch.float64)
    assert m.nearest_distance(train[torch.randint(0, 500, (60,), generator=generator)], train) == 0
    step = torch.zeros(1, 3, 4)
    step[0, 0, 0] = 0.01
    assert m.nearest_distance(train[:60] + step, train) == pytest.approx(0.01, rel=1e-3)


def test_collapse_alarm(generator):
    """A perfect sampler has ratio 1, the mean of the data 0, half the spread 1/2; a point per condition is a collapse of the noise."""
    data, x, other = torch.randn(3, 4000, 2, generator=generator)
    assert m.collapse_ratio(x, other, data) == pytest.approx(1, rel=0.03)
    assert m.collapse_ratio(x / 2, other / 2, data) == pytest.approx(0.5, rel=0.03)
    assert m.collapse_ratio(x, x, data) == 0
    assert m.noise_sensitivity(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == pytest.approx(3)
    with pytest.raises(ValueError, match="numbers must agree, got 3 and 4"):
        m.noise_sensitivity(x[:3], x[:4])


# --- fields ------------------------------------------------------------------------------------------------------------------------


def test_geometry_of_straight_paths(generator):
    """v = c: length ||c||, excess 1, straightness and curvature 0; with the speed varying along the line only those two move."""
    x_0 = torch.randn(50, 2, generator=generator)
    c = torch.tensor([3.0, 4.0])
    straight = f.path_geometry(velocity(lambda x, t: c.expand_as(x)), x_0, batch_size=16)
    assert straight == pytest.approx((5, 1, 0, 0), abs=1e-5)
    hurried = f.path_geometry(velocity(lambda x, t: 2 * t[:, None] * c), x_0)
    assert hurried.path_length == pytest.approx(5, rel=1e-5)
    assert hurried.excess_path_length == pytest.approx(1, rel=1e-5)
    assert hurried.straightness == pytest.approx(25 / 3, rel=1e-3)  # int (1 - 2 t)^2 ||c||^2
    assert hurried.curvature == pytest.approx(10, rel=1e-4)


def test_geometry_of_a_half_circle(generator):
    """A rotation by pi: length pi r against the diameter 2 r, x'' = pi^2 r; int ||X_1 - X_0 - v||^2 = (pi^2 - 4) r^2."""
    angle = torch.rand(40, generator=generator) * 6
    r = torch.tensor([0.5, 1.0, 2.5, 4.0]).repeat(10)
    x_0 = r[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    shape = f.path_geometry(
        velocity(lambda x, t: math.pi * torch.stack([-x[:, 1], x[:, 0]], dim=1)), x_0, num_steps=128, batch_size=7
    )
    mean, mean_square = r.mean().item(), r.square().mean().item()
    assert shape.path_length == pytest.approx(math.pi * mean, rel=1e-4)
    assert shape.excess_path_length == pytest.approx(math.pi / 2, rel=1e-4)
    assert shape.curvature == pytest.approx(math.pi**2 * mean, rel=1e-4)
    assert shape.straightness == pytest.approx((math.pi**2 - 4) * mean_square, rel=1e-3)


def test_adaptive_evaluations_are_counted(generator):
    """dopri5: 2 evaluations to choose the first step, then 6 a step; what is returned is what the network saw."""
    x_0 = torch.randn(20, 2, generator=generator)
    easy, stiff = velocity(lambda x, t: -x), velocity(lambda x, t: -30 * (x - t[:, None]))
    count = f.adaptive_evaluations(easy, x_0)
    assert count == easy.model.calls
    assert (count - 2) % 6 == 0
    assert f.adaptive_evaluations(stiff, x_0) > 2 * count
    assert f.adaptive_evaluations(easy, x_0, rtol=1e-2, atol=1e-2) < count
    stiff.model.calls = 0
    in_batches = f.adaptive_evaluations(stiff, x_0, batch_size=5)
    assert in_batches == pytest.approx(stiff.model.calls / 4)


def test_reconstruction_and_few_step_curve_of_decay(generator):
    """x' = -x: N Euler steps multiply by (1 - 1 / N)^N; the pairs ask for e^-1."""
    x_0 = torch.randn(64, 3, generator=generator)
    decay = velocity(lambda x, t: -x)
    errors = f.reconstruction_errors(decay, Batch(x_0 * math.exp(-1), x_0=x_0), (1, 4, 100), batch_size=10)
    for n, error in errors.items():
        assert error == pytest.approx(
            ((1 - 1 / n) ** n - math.exp(-1)) ** 2 * x_0.square().mean().item(), rel=1e-2, abs=1e-9
        )
    curve = f.few_step_curve(lambda x: (x / x_0).mean().item(), decay, x_0, num_steps=(1, 2, 8))
    assert curve == pytest.approx({n: (1 - 1 / n) ** n for n in (1, 2, 8)}, abs=1e-5)
    shifted = f.few_step_curve(lambda x: (x / x_0).mean().item(), decay, x_0, num_steps=(2,), shift=3.0)
    assert shifted[2] == pytest.approx((1 - 0.25) * (1 - 0.75))  # sigma: 1, 3/4, 0
    with pytest.raises(ValueError, match="x_0 is None"):
        f.reconstruction_errors(decay, Batch(x_0))


def test_drift_is_the_mean_square_difference_under_the_same_conditions(generator):
    x, scale = torch.randn(33, 2, generator=generator), torch.rand(33, generator=generator)
    t = torch.rand(33, generator=generator)
    base = velocity(lambda x, t, scale: scale[:, None] * x)
    tuned = velocity(lambda x, t, scale: scale[:, None] * x + t[:, None])
    drift = f.velocity_drift(tuned, base, x, t, {"scale": scale}, batch_size=8)
    assert drift == pytest.approx(t.square().mean().item())
    assert f.velocity_drift(base, base, x, 0.3, {"scale": scale}) == 0


def test_held_out_loss_is_fixed_by_the_generator_and_has_its_floor(generator):
    """Data at one point c: v = (c - x) / (1 - t) is exact, with loss 0; v = 0 has E (c - x_0)^2 = c^2 + 1."""
    c = 2.0
    x_1 = torch.full((5000, 2), c)

    def loss(field, seed=0, **options):
        return f.held_out_loss(velocity(field), x_1, generator=torch.Generator().manual_seed(seed), **options)

    def zero(x, t):
        return torch.zeros_like(x)

    assert loss(lambda x, t: (c - x) / (1 - t[:, None])) < 1e-6
    assert loss(zero) == pytest.approx(c**2 + 1, rel=0.03)
    assert loss(zero) == loss(zero, batch_size=5000)
    assert loss(zero) != loss(zero, seed=1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        loss(lambda x, t: x / 0)


def test_fields_are_evaluated_in_eval_mode_without_gradients_and_left_as_they_were(generator):
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 2))
    model[0].eval()
    spy = SimpleNamespace(modes=[])

    def function(x, t):
        spy.modes.append((model.training, torch.is_grad_enabled()))
        return model(x)

    net = velocity(function)
    net.model.inner = model
    net.train()
    model[0].eval()
    x = torch.randn(10, 2, generator=generator)
    f.path_geometry(net, x, num_steps=4)
    f.adaptive_evaluations(net, x)
    f.held_out_loss(net, x, generator=generator)
    assert set(spy.modes) == {(False, False)}
    assert (net.training, model.training, model[0].training) == (True, True, False)


def test_conditions_stay_with_their_rows_in_batches(generator):
    """A labelled network: everything in batches of 7 is what it is in one batch."""
    model = VelocityMLP([2], hidden_dim=16, num_classes=3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    net, x = Velocity(model), torch.randn(25, 2, generator=generator)
    c = {"class_labels": torch.randint(0, 3, (25,), generator=generator)}
    small, large = (f.path_geometry(net, x, c, num_steps=8, batch_size=b) for b in (7, 100))
    assert small == pytest.approx(large, rel=1e-4)
    assert torch.allclose(
        f.evaluate(net, x, 0.4, c, batch_size=7), f.evaluate(net, x, torch.full((25,), 0.4), c), atol=1e-5
    )
    with pytest.raises(ValueError, match="at least one state"):
        f.path_geometry(net, x[:0])


# --- runs and the table ------------------------------------------------------------------------------------------------------------


def test_instantaneous_variance_of_known_curves():
    """Constant: 0; alternating 0, 1 in windows of 2: 1/2; a line of slope s: s^2 w (w + 1) / 12."""
    assert instantaneous_variance([3.0] * 6) == 0
    assert instantaneous_variance([0, 1, 0, 1, 0], window=2) == pytest.approx(0.5)
    assert instantaneous_variance([0.5 * k for k in range(9)], window=4) == pytest.approx(0.25 * 4 * 5 / 12)
    with pytest.raises(ValueError, match="at least 2 checkpoints"):
        instantaneous_variance([1, 2, 3], window=1)
    with pytest.raises(ValueError, match="at least 3 finite numbers"):
        instantaneous_variance([1.0, math.nan, 2.0])


def test_spearman_is_the_pearson_of_ranks():
    steps, values = [10, 20, 30, 40, 50], [5.0, 3.0, 4.0, 1.0, 0.9]
    ranks = [5, 3, 4, 2, 1]
    assert spearman_correlation(steps, values) == pytest.approx(np.corrcoef([1, 2, 3, 4, 5], ranks)[0, 1])
    assert spearman_correlation(steps, [math.exp(-s) for s in steps]) == pytest.approx(-1)
    assert spearman_correlation(steps, [1.0] * 5) == 0
    with pytest.raises(ValueError, match="5 steps and 2 values"):
        spearman_correlation(steps, [1.0, 2.0])


def test_every_metric_says_its_unit_and_direction():
    for name, metric in METRICS.items():
        said = metric.function.__doc__.lower()
        wanted = "neither is better" if metric.direction == "neither" else f"{metric.direction} is better"
        assert wanted in said, f"{name} should say {wanted!r}"
        assert metric.unit
        assert metric.arrow == ARROWS[metric.direction]
    assert METRICS["wasserstein_2"].arrow == "↓"


def test_every_public_function_that_measures_is_in_the_table():
    helpers = {
        "flat_samples",
        "flat_pair",
        "mean_over_pairs",
        "kernel_discrepancy",
        "median_bandwidth",
        "frechet_of_moments",
    }
    helpers |= {"few_step_curve", "evaluate", "evaluation_mode"}
    listed = {metric.function for metric in METRICS.values()}
    for module in (d, m, f):
        for name, value in vars(module).items():
            if (
                callable(value)
                and getattr(value, "__module__", "") == module.__name__
                and name[0].islower()
                and name not in helpers
            ):
                assert value in listed, name


# How sure a comparison is over held-out rows


def test_the_energy_score_is_best_for_the_right_law(generator):
    """Under N(0, 1) it is 1 / sqrt(pi) for samples of that law; for who draws the mean alone sqrt(2 / pi), whose squared error is half as large."""
    y, x, other = torch.randn(3, 200_000, 1, generator=generator)
    held_out, mean = Batch(y), torch.zeros_like(y)
    assert h.energy_score(x, other, held_out).mean().item() == pytest.approx(1 / math.sqrt(math.pi), abs=5e-3)
    assert h.energy_score(mean, mean, held_out).mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=5e-3)
    assert h.reconstruction_error(mean, held_out) == pytest.approx(1, abs=1e-2)
    assert h.reconstruction_error(x, held_out) == pytest.approx(2, abs=2e-2)


def test_rows_of_the_energy_distance(generator):
    """Within labels twice SciPy's mean distance to the samples, which with the two other terms is the metric; a label with one row is left out."""
    x, y = torch.randn(2, 9, 2, generator=generator)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 1, 0, 0])
    held_out, expected = Batch(y, {"class_labels": labels}), []
    for label in (0, 1):
        a, b = (z[labels == label].numpy() for z in (x, y))
        expected.append(2 * cdist(a, b).mean() - pdist(a).mean() - pdist(b).mean())
        rows = h.energy_by_row(x, held_out)[labels[labels != 2] == label]
        np.testing.assert_allclose(rows, 2 * cdist(a, b).mean(axis=0) * 8 / (2 * 4))
    assert h.energy_metric(x, held_out) == pytest.approx(np.mean(expected))


def test_the_rows_tell_how_sure_a_difference_is(generator):
    """The spread of the difference of two models over many held-out sets is what the rows of one of them say."""
    x_0, x_1 = torch.randn(2, 400, 1, generator=generator)
    x_1 = x_1 + 0.5
    differences, errors = [], []
    for _ in range(200):
        held_out = Batch(torch.randn(50, 1, generator=generator))
        a, b = (h.energy_by_row(x, held_out) for x in (x_0, x_1))
        differences.append(float((a - b).mean()))
        errors.append(float((a - b).std()) / math.sqrt(50))
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.15)
