"""Probability paths: derivatives, conversions, the score where it exists, and Brownian bridges."""

import pytest
import torch

from hf_flowft.paths import COSINE, LINEAR, AffinePath, BrownianBridgePath, broadcast_time

PATHS = pytest.mark.parametrize("path", [LINEAR, COSINE], ids=["linear", "cosine"])
SHAPES = pytest.mark.parametrize("shape", [(4,), (4, 4), (4, 1), (1, 5), (3, 2, 4, 4)], ids=str)


def draw(shape, generator, low=0.05, high=0.95):
    """Noise, data and times inside the path, float64."""
    x_0, x_1 = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return x_0, x_1, low + (high - low) * torch.rand(shape[0], generator=generator, dtype=torch.float64)


def derivative(function, t):
    """d function / dt by autograd, one number a time."""
    t = t.clone().requires_grad_(True)
    return torch.autograd.grad(function(t).sum(), t)[0]


@PATHS
def test_derivatives_are_those_of_autograd(path: AffinePath):
    """alpha' and sigma' are the derivatives of alpha and sigma."""
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(path.d_alpha(t), derivative(path.alpha, t))
    torch.testing.assert_close(path.d_sigma(t), derivative(path.sigma, t))


@PATHS
@SHAPES
def test_the_velocity_is_the_derivative_of_the_point(path, shape, generator):
    """v_t = d x_t / dt, sample by sample, also when the batch is as large as the event."""
    x_0, x_1, t = draw(shape, generator)
    _, by_autograd = torch.func.jvp(lambda s: path.sample(x_0, x_1, s).x_t, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(path.sample(x_0, x_1, t).v_t, by_autograd)


@PATHS
def test_paths_start_in_the_noise_and_end_in_the_data(path, generator):
    """x_t is x_0 at t = 0 and x_1 at t = 1."""
    x_0, x_1, _ = draw((6, 3), generator)
    torch.testing.assert_close(path.sample(x_0, x_1, torch.zeros(6, dtype=torch.float64)).x_t, x_0)
    torch.testing.assert_close(path.sample(x_0, x_1, torch.ones(6, dtype=torch.float64)).x_t, x_1)


@PATHS
@SHAPES
def test_a_velocity_tells_both_ends(path, shape, generator):
    """The conditional velocity at x_t gives back the x_0 and the x_1 it came from."""
    x_0, x_1, t = draw(shape, generator)
    x_t, v_t, _ = path.sample(x_0, x_1, t)
    torch.testing.assert_close(path.x_0_from_velocity(v_t, x_t, t), x_0)
    torch.testing.assert_close(path.x_1_from_velocity(v_t, x_t, t), x_1)


@PATHS
@SHAPES
def test_conversions_invert_each_other(path, shape, generator):
    """velocity -> x_1, x_0, score -> velocity is the identity, for every shape."""
    v, x_t, t = draw(shape, generator)
    torch.testing.assert_close(path.velocity_from_x_1(path.x_1_from_velocity(v, x_t, t), x_t, t), v)
    torch.testing.assert_close(path.velocity_from_x_0(path.x_0_from_velocity(v, x_t, t), x_t, t), v)
    score = path.score_from_velocity(v, x_t, t, coupling="independent")
    torch.testing.assert_close(path.velocity_from_score(score, x_t, t, coupling="independent"), v)


@PATHS
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_everything_is_finite_at_the_ends(path, end, generator):
    """Divisors are clamped, so nothing is infinite or NaN in float32 at t = 0 and t = 1."""
    v, x = torch.randn(2, 8, 3, generator=generator)
    t = torch.full((8,), end)
    results = [
        path.x_0_from_velocity(v, x, t),
        path.x_1_from_velocity(v, x, t),
        path.velocity_from_x_0(v, x, t),
        path.velocity_from_x_1(v, x, t),
        path.score_from_velocity(v, x, t, coupling="independent"),
        path.velocity_from_score(v, x, t, coupling="independent"),
    ]
    assert all(result.isfinite().all() for result in results)


@PATHS
def test_the_score_keeps_its_sign_at_the_data(path):
    """At t = 1 the score still points against the noise, although cos(pi / 2) is negative in float32."""
    x_0, x_1, t = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.ones(1)
    x_t, v_t, _ = path.sample(x_0, x_1, t)
    assert path.score_from_velocity(v_t, x_t, t, coupling="independent") < 0


@PATHS
def test_the_score_of_a_gaussian_is_the_closed_form(path, generator):
    """For data N(m, C): score = -(x - alpha m) / (sigma^2 + alpha^2 C), read off the exact velocity."""
    mean, variance = 1.5, 0.3
    x, _, t = draw((64, 2), generator, 0.0, 0.99)
    s = broadcast_time(t, x)
    alpha, sigma = path.alpha(s), path.sigma(s)
    score = -(x - alpha * mean) / (sigma**2 + alpha**2 * variance)
    x_0, x_1 = -sigma * score, mean - alpha * variance * score
    velocity = path.d_alpha(s) * x_1 + path.d_sigma(s) * x_0
    torch.testing.assert_close(path.score_from_velocity(velocity, x, t, coupling="independent"), score)


@pytest.mark.parametrize("coupling", ["ot", "sinkhorn", "unknown"])
def test_the_score_is_refused_for_dependent_couplings(coupling, generator):
    """With OT pairs the noise given the data is not Gaussian: the formula would be silently false."""
    v, x, t = draw((4, 2), generator)
    with pytest.raises(ValueError, match=f"'independent' coupling, not for '{coupling}'"):
        LINEAR.score_from_velocity(v, x, t, coupling=coupling)
    with pytest.raises(ValueError, match="'independent' coupling"):
        LINEAR.velocity_from_score(v, x, t, coupling=coupling)


@pytest.mark.parametrize("sigma_b", [0.1, 1.0])
@SHAPES
def test_bridge_velocity_score_and_drift_agree(sigma_b, shape, generator):
    """velocity + (sigma_b^2 / 2) score = drift = (x_1 - x_t) / (1 - t), and the velocity is d x_t / dt at fixed noise."""
    x_0, x_1, t = draw(shape, generator)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    path = BrownianBridgePath(sigma_b)
    bridge = path.bridge_sample(x_0, x_1, t, noise)
    torch.testing.assert_close(bridge.v_t + sigma_b**2 / 2 * bridge.score, bridge.drift)
    torch.testing.assert_close(bridge.drift, (x_1 - bridge.x_t) / (1 - broadcast_time(t, x_1)))
    _, by_autograd = torch.func.jvp(lambda s: path.sample(x_0, x_1, s, noise).x_t, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(bridge.v_t, by_autograd)


def test_the_bridge_score_is_that_of_its_gaussian(generator):
    """x_t given the ends is N((1 - t) x_0 + t x_1, sigma_b^2 t (1 - t)), and the score is the gradient of its log-density."""
    x_0, x_1, t = draw((16, 1), generator)
    bridge = BrownianBridgePath(0.7).bridge_sample(
        x_0, x_1, t, torch.randn(16, 1, generator=generator, dtype=torch.float64)
    )
    x, s = bridge.x_t.clone().requires_grad_(True), t[:, None]
    law = torch.distributions.Normal((1 - s) * x_0 + s * x_1, 0.7 * (s * (1 - s)).sqrt())
    torch.testing.assert_close(bridge.score, torch.autograd.grad(law.log_prob(x).sum(), x)[0])


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_bridges_end_in_their_ends_and_stay_finite(end, generator):
    """At t = 0 and t = 1 the bridge is its end point, and velocity, drift and score are finite."""
    x_0, x_1, noise = torch.randn(3, 5, 2, generator=generator)
    bridge = BrownianBridgePath(1.0).bridge_sample(x_0, x_1, torch.full((5,), end), noise)
    assert torch.equal(bridge.x_t, x_1 if end else x_0)
    assert all(part.isfinite().all() for part in bridge)


@pytest.mark.parametrize("t_shape", [(4, 1), (2,), (1,)], ids=str)
def test_times_that_would_broadcast_silently_are_refused(t_shape):
    """A (batch, 1) time would multiply columns in place of rows when batch = width."""
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(4,\)"):
        LINEAR.sample(torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(t_shape))


def test_a_scalar_time_holds_for_the_whole_batch():
    """A 0-dim time is the same time for every sample."""
    x_0, x_1 = torch.zeros(3, 2), torch.ones(3, 2)
    assert torch.equal(LINEAR.sample(x_0, x_1, torch.tensor(0.25)).x_t, torch.full((3, 2), 0.25))


def test_bad_shapes_and_bridges_are_refused():
    """Shapes that differ, bridges without noise, and a bridge of no width are named."""
    x, t = torch.zeros(4, 2), torch.zeros(4)
    with pytest.raises(ValueError, match=r"x_0 of \(4, 2\), x_1 of \(4, 3\)"):
        LINEAR.sample(x, torch.zeros(4, 3), t)
    with pytest.raises(ValueError, match=r"noise of \(2,\)"):
        BrownianBridgePath(1.0).sample(x, x, t, torch.zeros(2))
    with pytest.raises(ValueError, match="needs `noise`"):
        BrownianBridgePath(1.0).sample(x, x, t)
    with pytest.raises(ValueError, match=r"sigma_b must be positive, got 0\.0"):
        BrownianBridgePath(0.0)
