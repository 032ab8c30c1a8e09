"""The door between networks and the mathematics: sign, time, precision, frozen copies and guidance."""

import pytest
import torch
from closed_forms import GaussianFlow
from torch import nn

from hf_flowft.models import VelocityMLP
from hf_flowft.solvers import integrate, uniform_times
from hf_flowft.velocity import FrozenVelocity, GuidedVelocity, ParkedVelocity, Velocity

NOISE, DATA = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))


class Recorder(nn.Module):
    """A network that keeps what it was called with and returns a fixed output, in diffusers' way when asked to."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, sample, t=None, timestep=None, return_dict=None, **condition):
        """The fixed output."""
        self.sample, self.time, self.condition = sample, timestep if t is None else t, condition
        return self.output if return_dict is None else (self.output,)


def mlp(**options):
    """A tiny network in diffusers' convention."""
    return VelocityMLP(event_shape=[3], hidden_dim=8, num_layers=1, **options)


@pytest.mark.parametrize("num_steps", [1, 3, 16])
def test_the_oracle_takes_noise_to_data(num_steps):
    """A diffusers model that predicts noise - data turns noise into data by Euler's method, in any number of steps."""
    velocity = Velocity(Recorder(NOISE - DATA), convention="diffusers")
    torch.testing.assert_close(integrate(velocity, NOISE, uniform_times(num_steps)).x, DATA)


@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25), torch.full((4,), 0.25)], ids=["float", "scalar", "batch"])
@pytest.mark.parametrize(("convention", "time"), [("diffusers", 750.0), ("flow", 0.25)])
def test_time_reaches_the_network_in_its_own_convention(t, convention, time):
    """diffusers: timestep 1000 (1 - t); flow: t; always one float32 number a sample."""
    model = Recorder(NOISE)
    Velocity(model, convention)(NOISE, t)
    assert torch.equal(model.time, torch.full((4,), time))


def test_diffusers_models_speak_diffusers_and_others_flow():
    """A ModelMixin predicts dx/dsigma, any other module dx/dt, unless told otherwise."""
    model = mlp()
    assert torch.equal(Velocity(model)(NOISE, 0.25), -model(NOISE, 750.0).sample)
    assert torch.equal(Velocity(Recorder(DATA))(NOISE, 0.25), DATA)
    with pytest.raises(ValueError, match="unknown convention 'papers'; choose one of diffusers, flow"):
        Velocity(model, "papers")


def test_times_stay_float32_beside_half_precision():
    """A bfloat16 sample comes back in bfloat16, a bfloat16 network is fed its dtype, and the time keeps its digits."""
    model = Recorder(NOISE.bfloat16())
    model.register_parameter("weight", nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)))
    v = Velocity(model, "diffusers")(NOISE, torch.tensor(0.1234567))
    assert (v.dtype, model.sample.dtype, model.time.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    torch.testing.assert_close(model.time, torch.full((4,), 876.5433))
    Velocity(model, "diffusers")(NOISE, torch.tensor(0.3, dtype=torch.bfloat16))
    assert model.time[0].item() == pytest.approx(1000 * (1 - torch.tensor(0.3, dtype=torch.bfloat16).item()))


def test_conditions_reach_the_network():
    """`field` fixes the condition; the solver passes x and t only."""
    model, labels = Recorder(NOISE), torch.arange(4)
    Velocity(model).field({"class_labels": labels})(NOISE, 0.5)
    assert model.condition["class_labels"] is labels


def test_wrong_shapes_are_refused():
    """A network that predicts a variance too is not a flow model, and a (batch, 1) time is not a time."""
    with pytest.raises(ValueError, match=r"maps \(4, 3\) to \(4, 6\); check its output channels"):
        Velocity(Recorder(torch.zeros(4, 6)))(NOISE, 0.5)
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(4,\)"):
        Velocity(Recorder(NOISE))(NOISE, torch.zeros(4, 1))


def test_a_frozen_velocity_stays_frozen():
    """No gradients, eval mode with dropout off after .train(), whatever the module it is part of."""
    frozen = FrozenVelocity(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3)), "flow")
    frozen.model.forward = lambda x, t: frozen.model[1](frozen.model[0](x))
    whole = nn.ModuleList([frozen]).train()
    assert not any(module.training for module in frozen.modules())
    x = NOISE.clone().requires_grad_(True)
    assert torch.equal(frozen(x, 0.5), frozen(x, 0.5))
    assert not frozen(x, 0.5).requires_grad
    whole.requires_grad_(True)
    assert not frozen(x, 0.5).requires_grad


def test_a_frozen_velocity_is_a_copy():
    """Training the original does not move the reference, and the original stays trainable."""
    model = mlp()
    frozen, before = FrozenVelocity(model), Velocity(model)(NOISE, 0.5).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(frozen(NOISE, 0.5), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), torch.full((4,), 0.5)], ids=["float", "scalar", "batch"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_extrapolates_from_the_null_condition(scale, t):
    """v(null) + scale (v(c) - v(null)): scale 0 ignores the condition, scale 1 is the plain model."""
    velocity = Velocity(mlp(num_classes=2, condition_dim=2))
    with torch.no_grad():
        nn.init.normal_(velocity.model.blocks[0].film.weight)
        nn.init.normal_(velocity.model.blocks[0].outer.weight)
    condition = {"class_labels": torch.tensor([0, 1, 0, 1]), "condition": torch.ones(4, 2)}
    null = {"class_labels": 2, "condition": torch.tensor([-1.0, 0.5])}
    without = velocity(NOISE, t, class_labels=torch.full((4,), 2), condition=null["condition"].expand(4, 2))
    expected = without + scale * (velocity(NOISE, t, **condition) - without)
    assert not torch.allclose(without, velocity(NOISE, t, **condition))
    torch.testing.assert_close(GuidedVelocity(velocity, scale, null)(NOISE, t, **condition), expected)


def test_guidance_needs_a_null_value_for_every_condition():
    """A model trained without "none" cannot be guided."""
    with pytest.raises(ValueError, match=r"null value for \['class_labels'\]"):
        GuidedVelocity(Velocity(GaussianFlow()), 2.0, {})(NOISE, 0.5, class_labels=torch.zeros(4))


def test_a_parked_copy_stays_where_it_is():
    """It answers as the base does, in the dtype of the sample; moving, saving or training who holds it leaves it alone."""
    model = mlp()
    expected = FrozenVelocity(model)(NOISE, 0.25)
    holder = nn.ModuleDict(
        {"reference": ParkedVelocity(model), "rounded": ParkedVelocity(model, "cpu", torch.bfloat16)}
    )
    assert not holder.state_dict()
    holder.double().train()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(holder["reference"](NOISE, 0.25), expected)
    half = holder["rounded"](NOISE, torch.full((4,), 0.25))
    assert half.dtype == torch.float32
    assert not half.requires_grad
    assert not torch.equal(half, expected)
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.05)
