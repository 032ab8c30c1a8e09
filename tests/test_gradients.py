"""Gradients through a solve: every mode against the others, against finite differences, and against a hand computation."""

import pytest
import torch
from torch import nn

from hf_flowft.gradients import solve
from hf_flowft.solvers import TABLEAUX, uniform_times

METHODS = pytest.mark.parametrize("method", TABLEAUX)


@pytest.fixture
def network(generator) -> nn.Module:
    """A small nonlinear field of (x, t), float64."""
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return net


def as_field(net):
    """The field v(x, t) = net([x, t])."""
    return lambda x, t: net(torch.cat([x, torch.as_tensor(t, dtype=x.dtype).expand(len(x), 1)], dim=1))


def gradients(net, x, num_steps, method="euler", **options):
    """The end of the solve and the gradients of sum(end^2) in x and in every parameter."""
    x = x.clone().requires_grad_(True)
    end = solve(as_field(net), x, uniform_times(num_steps), method, parameters=tuple(net.parameters()), **options)
    return [end.detach(), *torch.autograd.grad(end.square().sum(), [x, *net.parameters()])]


@METHODS
def test_checkpointed_is_direct(method, network, generator):
    """Recomputing inside each step changes nothing: the end is the same bits, gradients are the same sums in another order."""
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    direct, checkpointed = (gradients(network, x, 5, method, gradient=mode) for mode in ("direct", "checkpointed"))
    assert torch.equal(direct[0], checkpointed[0])
    torch.testing.assert_close(checkpointed, direct, rtol=1e-13, atol=1e-14)


@METHODS
@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_gradients_are_finite_differences(method, gradient, network, generator):
    """autograd.gradcheck of the solve, in the start and in the parameters."""
    x = torch.randn(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in network.named_parameters()]

    def end(start, *values):
        """The solve as a function of the start and of the weights."""

        def net(inputs):
            return torch.func.functional_call(network, dict(zip(names, values, strict=True)), inputs)

        return solve(as_field(net), start, uniform_times(3), method, gradient=gradient, parameters=values)

    assert torch.autograd.gradcheck(end, (x, *network.parameters()))


@pytest.mark.parametrize(("method", "tolerance"), [("euler", 2e-2), ("midpoint", 1e-4), ("heun", 1e-4), ("rk4", 1e-7)])
def test_the_adjoint_approaches_the_gradient_on_a_fine_grid(method, tolerance, network, generator):
    """The continuous adjoint is the gradient of the exact flow: at N = 100 it agrees to the order of the method."""
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    direct, adjoint = (gradients(network, x, 100, method, gradient=mode) for mode in ("direct", "adjoint"))
    for a, b in zip(direct, adjoint, strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * a.abs().max().item())


@pytest.mark.parametrize("last_steps", [1, 3, 5, 9])
def test_truncated_is_the_last_steps_by_hand(last_steps):
    """Euler on x' = a x, h = 1/5: the end is (1 + h a)^5 x_0, and with x_(5 - K) held fixed d end / d a = K h (1 + h a)^4 x_0."""
    a, h = nn.Parameter(torch.tensor(0.7, dtype=torch.float64)), 0.2
    x = torch.full((1, 1), 2.0, dtype=torch.float64)
    end = solve(lambda x, t: a * x, x, uniform_times(5), gradient="truncated", last_steps=last_steps)
    assert end.item() == pytest.approx(2 * (1 + h * 0.7) ** 5)
    by_hand = min(last_steps, 5) * h * (1 + h * 0.7) ** 4 * 2
    assert torch.autograd.grad(end.sum(), a)[0].item() == pytest.approx(by_hand)


@pytest.mark.parametrize("gradient", ["direct", "truncated", "checkpointed", "adjoint"])
def test_autocast_forgets_what_it_cast_without_gradients(gradient, monkeypatch):
    """What is computed with the same weights after a solve has gradients: weights cast within no_grad are dropped before it."""
    net = nn.Linear(2, 2)
    used_since_cleared, clear = [], torch.clear_autocast_cache

    def forget():
        used_since_cleared.clear()
        clear()

    def field(x, t):
        used_since_cleared.append(torch.is_grad_enabled())
        return net(x)

    monkeypatch.setattr(torch, "clear_autocast_cache", forget)
    with torch.autocast("cpu", torch.bfloat16):
        solve(field, torch.ones(1, 2), uniform_times(4), gradient=gradient, parameters=tuple(net.parameters()))
        assert all(used_since_cleared)
        mixture = net(torch.ones(1, 2)).sum()
    assert all(gradient.all() for gradient in torch.autograd.grad(mixture, [*net.parameters()]))


def test_checkpointed_keeps_one_state_a_step(network, generator):
    """Autograd keeps the activations of every step of a direct solve, and of a checkpointed one only where each step starts."""
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)

    def saved(mode, num_steps):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            solve(as_field(network), x, uniform_times(num_steps), gradient=mode, parameters=network.parameters())
        return count

    assert saved("direct", 12) - saved("direct", 8) == saved("direct", 8) - saved("direct", 4) > 0
    assert saved("checkpointed", 8) - saved("checkpointed", 4) == 4 * x.numel()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"gradient": "backprop"}, "'backprop'; choose direct, checkpointed, truncated or adjoint"),
        ({"gradient": "truncated", "last_steps": 0}, "last_steps must be at least 1, got 0"),
        *(
            ({"gradient": mode, "method": "rk5"}, "'rk5'")
            for mode in ("direct", "checkpointed", "truncated", "adjoint")
        ),
    ],
    ids=str,
)
def test_bad_requests_are_refused(options, named, network):
    """Unknown modes and methods, and an empty truncation, are named."""
    with pytest.raises(ValueError, match=named):
        solve(as_field(network), torch.zeros(1, 2, dtype=torch.float64), uniform_times(2), **options)
