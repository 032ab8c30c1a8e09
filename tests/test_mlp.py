"""The MLP velocity network: a diffusers model in shape, saving and convention."""

import pytest
import torch

from hf_flowft.models import VelocityMLP

VARIANTS = [
    {"event_shape": [2]},
    {"event_shape": [2], "time": "concat", "activation": "relu"},
    {"event_shape": [1, 4, 4], "num_classes": 3},
    {"event_shape": [3], "num_classes": 2, "condition_dim": 5, "activation": "gelu"},
    {"event_shape": [3], "time": "concat", "condition_dim": 5, "activation": "tanh"},
]
EACH = pytest.mark.parametrize("options", VARIANTS, ids=str)


def build(options):
    """A small network of this variant."""
    return VelocityMLP(hidden_dim=16, num_layers=2, **options)


def inputs(model, generator, batch=5):
    """A sample and the conditions the network wants."""
    condition = {}
    if model.config.num_classes:
        condition["class_labels"] = torch.randint(0, model.config.num_classes + 1, (batch,), generator=generator)
    if model.config.condition_dim:
        condition["condition"] = torch.randn(batch, model.config.condition_dim, generator=generator)
    return torch.randn(batch, *model.config.event_shape, generator=generator), condition


@EACH
def test_the_output_has_the_shape_of_the_sample(options, generator):
    """.sample of the same shape, or a tuple with return_dict=False; a number and one number a sample are the same time."""
    model = build(options)
    sample, condition = inputs(model, generator)
    out = model(sample, 300.0, **condition).sample
    assert out.shape == sample.shape
    assert torch.equal(model(sample, torch.full((5,), 300.0), return_dict=False, **condition)[0], out)


@EACH
def test_saved_networks_come_back_bitwise(options, generator, tmp_path):
    """save_pretrained and from_pretrained keep the configuration and every weight."""
    model = build(options)
    model.save_pretrained(tmp_path)
    loaded = VelocityMLP.from_pretrained(tmp_path)
    sample, condition = inputs(model, generator)
    assert loaded.config.event_shape == options["event_shape"]
    assert torch.equal(loaded(sample, 10.0, **condition).sample, model(sample, 10.0, **condition).sample)


@EACH
def test_every_parameter_trains(options, generator):
    """After three steps of Adam no tensor is where it was, the zero-initialised ones included."""
    model = build(options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        sample, condition = inputs(model, generator, batch=32)
        model(sample, 1000 * torch.rand(32, generator=generator), **condition).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


@EACH
def test_rows_do_not_see_each_other(options, generator):
    """The output of a sample does not depend on the rest of its batch."""
    model = build(options)
    sample, condition = inputs(model, generator)
    times = torch.linspace(0, 1000, 5)
    alone = model(sample[3:4], times[3:4], **{key: value[3:4] for key, value in condition.items()}).sample
    torch.testing.assert_close(model(sample, times, **condition).sample[3:4], alone)


def test_film_blocks_start_as_the_identity(generator):
    """At the start a block returns its input, whatever the embedding."""
    block, x, embedding = build(VARIANTS[0]).blocks[0], *torch.randn(2, 4, 16, generator=generator)
    assert torch.equal(block(x, embedding), x)


def test_concat_sees_the_time_of_the_papers(generator):
    """The toy network's last input is t = 1 - timestep / 1000: 0 at the noise, 1 at the data."""
    model, seen = build(VARIANTS[1]), []
    model.net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(torch.zeros(3, 2), torch.tensor([1000.0, 250.0, 0.0]))
    torch.testing.assert_close(seen[0][:, 2], torch.tensor([0.0, 0.75, 1.0]))


def test_half_precision_runs(generator):
    """A bfloat16 network takes and gives bfloat16, with float32 timesteps."""
    model = build(VARIANTS[3]).bfloat16()
    sample, condition = inputs(model, generator)
    out = model(sample.bfloat16(), torch.full((5,), 333.3), **condition).sample
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation": "sine"}, "unknown activation 'sine'; choose one of relu, silu, gelu, tanh"),
        ({"time": "concat", "num_classes": 3}, "labels need time='film'"),
        ({"time": "fourier"}, "unknown time 'fourier'; choose film or concat"),
        ({"num_layers": 0}, "num_layers and hidden_dim must be at least 1, got 0 and 256"),
        ({"hidden_dim": -1}, "num_layers and hidden_dim must be at least 1, got 3 and -1"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(change, named):
    """What cannot be built is named, with what can."""
    with pytest.raises(ValueError, match=named):
        VelocityMLP(**({"event_shape": [2]} | change))


@pytest.mark.parametrize(
    ("options", "shape", "condition", "named"),
    [
        ({}, (4, 3), {}, r"\(batch, \*\[2\]\), got \(4, 3\)"),
        ({"num_classes": 3}, (4, 2), {}, "num_classes is 3, so class_labels must be given"),
        ({}, (4, 2), {"class_labels": torch.zeros(4).long()}, "num_classes is 0, so class_labels must not be given"),
        ({"condition_dim": 2}, (4, 2), {}, "condition_dim is 2, so condition must be given"),
        ({}, (4, 2), {"condition": torch.zeros(4, 2)}, "condition_dim is 0, so condition must not be given"),
        ({"condition_dim": 2}, (4, 2), {"condition": torch.zeros(4, 3)}, r"must have shape \(4, 2\), got \(4, 3\)"),
    ],
    ids=["shape", "no label", "a label", "no condition", "a condition", "another condition"],
)
def test_bad_inputs_are_refused(options, shape, condition, named):
    """Samples and conditions of another shape, and conditions too few or too many, are named."""
    with pytest.raises(ValueError, match=named):
        build({"event_shape": [2]} | options)(torch.zeros(shape), 1.0, **condition)
