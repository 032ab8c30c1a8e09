"""Viscous flows: the bitwise start, wirings, certificates of the whole flow, and models that save and load whole."""

import math

import pytest
import torch
from diffusers import UNet2DModel

from hf_flowft.conventions import timestep_from_sigma
from hf_flowft.jacobians import expansion_rate, jacobian, log_norm
from hf_flowft.metrics.contraction import pair_test
from hf_flowft.models import VelocityMLP, ViscousFlowModel
from hf_flowft.models.bases import build_base
from hf_flowft.models.cayley import LowRankCayley
from hf_flowft.solvers import integrate, uniform_times
from hf_flowft.velocity import Velocity

CERTIFIED = ("gradient", "metric", "dominance")
ALL = (*CERTIFIED, "paper", "mlp")


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


@pytest.mark.parametrize("structure", ALL)
@pytest.mark.parametrize("make", [lambda: mlp_base(num_classes=2), unet_base])
def test_untrained_viscosity_is_the_base_bit_for_bit(structure, make, generator):
    base = make().eval()
    model = ViscousFlowModel.from_base(
        base, structure=structure, num_classes=3 if make is unet_base else 2, hidden_dim=8
    )
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
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


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
    with pytest.raises(
        ValueError, match=r"class 'os\.system' is not accepted; its config must name one of VelocityMLP, UNet2DModel"
    ):
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


def test_low_precision_bases_and_autocast_keep_the_start(generator):
    sample = torch.randn(3, 3, generator=generator)
    half = mlp_base().to(torch.bfloat16).eval()
    for structure in ALL:
        model = ViscousFlowModel.from_base(half, structure=structure)
        assert torch.equal(model(sample.bfloat16(), 500.0).sample, half(sample.bfloat16(), 500.0).sample)
    base = mlp_base().eval()
    model = trained("metric", base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(sample, 500.0).sample
    torch.testing.assert_close(out.float(), model(sample, 500.0).sample, rtol=0.02, atol=0.05)


def test_rates_of_a_network_with_attention_agree_with_its_dense_jacobian(generator):
    """Lanczos on products (two backward passes through group norm and attention) against all rows of J: 256 dimensions."""
    base = unet_base().eval()
    field = Velocity(base).field({"class_labels": torch.tensor([1])})
    x = torch.randn(1, 1, 16, 16, generator=generator)
    exact = log_norm(jacobian(field, x, 0.5).double())
    estimate = expansion_rate(field, x, 0.5, num_iterations=40, generator=generator)
    assert estimate.item() == pytest.approx(exact.item(), rel=1e-2)
    assert estimate.item() <= exact.item() + 1e-4
