"""The networks of action chunks: diffusers models in shape, saving and convention, whatever they observe, and bases of every method."""

import json

import pytest
import torch
from tiny_policies import OBSERVED, SMALL, TWO, build, inputs
from torch import nn

from hf_flowft import ActionTransformer, ConditionalUNet1D, FlowODEScheduler, FlowPipeline, ViscousFlowModel
from hf_flowft.jacobians import jacobian, jvp
from hf_flowft.models.observation import ImageEncoder, spatial_softmax
from hf_flowft.velocity import Velocity

CLASSES = pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.__name__)
EACH = pytest.mark.parametrize("observed", OBSERVED)


# The contract


@CLASSES
@EACH
def test_the_output_has_the_shape_of_the_sample(cls, observed, generator):
    """.sample of the same shape, or a tuple with return_dict=False; a number and one number a sample are the same time."""
    model = build(cls, observed)
    sample, seen = inputs(model, generator)
    out = model(sample, 300.0, **seen).sample
    assert out.shape == sample.shape
    assert torch.equal(model(sample, torch.full((4,), 300.0), return_dict=False, **seen)[0], out)


@CLASSES
@EACH
def test_the_first_velocity_is_zero(cls, observed, generator):
    """Before training the last layer is zero: the loss starts at the mean square of x_1 - x_0, whatever is observed."""
    torch.manual_seed(0)
    model = cls(event_shape=[8, 2], image_widths=[8, 16], **SMALL[cls], **OBSERVED[observed])
    sample, seen = inputs(model, generator)
    assert torch.equal(model(sample, 300.0, **seen).sample, torch.zeros_like(sample))


@CLASSES
@EACH
def test_saved_networks_come_back_bitwise(cls, observed, generator, tmp_path):
    """By class and as the model of a pipeline, for every kind of observation."""
    model = build(cls, observed)
    sample, seen = inputs(model, generator)
    expected = model(sample, 10.0, **seen).sample
    FlowPipeline(model, FlowODEScheduler()).save_pretrained(tmp_path)
    loaded = FlowPipeline.from_pretrained(tmp_path)
    assert loaded.event_shape == (8, 2)
    for other in (loaded.model, cls.from_pretrained(tmp_path, subfolder="model")):
        assert type(other) is cls
        assert torch.equal(other(sample, 10.0, **seen).sample, expected)


@CLASSES
@EACH
def test_every_parameter_trains(cls, observed, generator):
    """From the true start, after four steps of Adam no tensor is where it was."""
    torch.manual_seed(0)
    model = cls(event_shape=[8, 2], image_widths=[8, 16], **SMALL[cls], **OBSERVED[observed])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(4):
        sample, seen = inputs(model, generator, batch=16)
        out = model(sample, 1000 * torch.rand(16, generator=generator), **seen).sample
        (out - sample).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


@CLASSES
@EACH
def test_rows_do_not_see_each_other(cls, observed, generator):
    """In training mode too, the output of a sample does not depend on the rest of its batch: there are no batch statistics."""
    model = build(cls, observed).train()
    sample, seen = inputs(model, generator)
    times = torch.linspace(0, 1000, 4)
    alone = model(sample[2:3], times[2:3], **{key: value[2:3] for key, value in seen.items()}).sample
    torch.testing.assert_close(model(sample, times, **seen).sample[2:3], alone, rtol=1e-4, atol=1e-5)


@CLASSES
def test_everything_observed_matters(cls, generator):
    """Another time, label, state, or image of either camera gives another velocity."""
    model = build(cls, "all")
    sample, seen = inputs(model, generator)
    _, other = inputs(model, generator)
    other["class_labels"] = (seen["class_labels"] + 1) % 4
    out = model(sample, 300.0, **seen).sample
    assert (model(sample, 600.0, **seen).sample - out).abs().amax(dim=(1, 2)).min() > 1e-4
    for key in seen:
        changed = model(sample, 300.0, **{**seen, key: other[key]}).sample
        assert (changed - out).abs().amax(dim=(1, 2)).min() > 1e-6, key


@CLASSES
def test_half_precision_runs(cls, generator):
    """A bfloat16 network takes and gives bfloat16, with float32 timesteps and states."""
    model = build(cls, "all").bfloat16()
    sample, seen = inputs(model, generator)
    out = model(sample.bfloat16(), torch.full((4,), 333.3), **seen).sample
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@CLASSES
def test_recomputing_changes_no_gradient(cls, generator):
    """enable_gradient_checkpointing reaches network and image encoder, gives the same gradients, and can be undone."""
    model = build(cls, "all")
    sample, seen = inputs(model, generator)

    def gradients():
        model.zero_grad()
        model(sample, 300.0, **seen).sample.square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    model.enable_gradient_checkpointing()
    assert all(part.gradient_checkpointing for part in (model, *model.cameras.encoders))
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    model.disable_gradient_checkpointing()
    assert not model.cameras.encoders[0].gradient_checkpointing


@CLASSES
def test_jacobians_exist(cls, generator):
    """J u by double backward is the Jacobian, written out row by row, times u: likelihoods and certificates can be had."""
    model = build(cls, "all").double()
    sample, seen = inputs(model, generator, batch=2)
    field = Velocity(model).field(seen)
    direction = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
    expected = (jacobian(field, sample.double(), 0.4) @ direction.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(jvp(field, sample.double(), 0.4, direction).flatten(1), expected)


@CLASSES
def test_the_documented_sizes_are_the_true_ones(cls):
    """The number of parameters that the docstring gives for the defaults on Push-T's states."""
    count = sum(p.numel() for p in cls(event_shape=[16, 2], condition_dim=36).parameters())
    assert f"{count:,} parameters" in " ".join(cls.__doc__.split())


# Images


def test_the_image_encoder_is_a_resnet_18_without_batch_statistics():
    """As many weights as ResNet-18 without its classifier (He et al. 2016: 11,689,512 less 513,000), and 512 x 32 + 32 for the
    keypoints; 16 channels a group."""
    with torch.device("meta"):
        encoder = ImageEncoder(3, [64, 128, 256, 512])
    assert sum(p.numel() for p in encoder.parameters()) == 11_689_512 - 513_000 + 512 * 32 + 32
    norms = [m for m in encoder.modules() if "Norm" in type(m).__name__]
    assert len(norms) == 20
    assert all(type(m) is nn.GroupNorm and m.num_channels == 16 * m.num_groups for m in norms)


def test_spatial_softmax_says_where():
    """A single bright pixel is at its centre, x before y; an even map is at 0, two equal pixels half way between."""
    maps = torch.full((1, 3, 4, 8), -1e4)
    maps[0, 0, 1, 6] = 0
    maps[0, 1] = 0
    maps[0, 2, 0, 0] = maps[0, 2, 3, 1] = 0
    x, y = spatial_softmax(maps).reshape(2, 3)
    torch.testing.assert_close(x, torch.tensor([13 / 8 - 1, 0.0, 2 / 8 - 1]))
    torch.testing.assert_close(y, torch.tensor([3 / 4 - 1, 0.0, 0.0]))


def test_cameras_share_an_encoder_or_have_their_own(generator):
    """Shared weights see the same image alike whatever camera it is from, own weights do not; either way the cameras' order is fixed."""
    images = {"b": [1, 3, 32, 32], "a": [1, 3, 32, 32]}
    for share in (True, False):
        model = build(ActionTransformer, images=images, share_image_encoder=share, condition_dim=0)
        frames = torch.randint(0, 256, (2, 1, 3, 32, 32), generator=generator, dtype=torch.uint8)
        first, second = model.encode_images(image_a=frames, image_b=frames).chunk(2, dim=1)
        assert torch.equal(first, second) == share
        assert len(model.cameras.encoders) == (1 if share else 2)
        twin = build(ActionTransformer, images=dict(sorted(images.items())), share_image_encoder=share, condition_dim=0)
        assert torch.equal(twin.encode_images(image_a=frames, image_b=frames), torch.cat([first, second], dim=1))


@CLASSES
def test_images_can_be_encoded_once(cls, generator):
    """The features in place of the images give the same velocity, for a viscous model on it too."""
    model = build(cls, "all")
    sample, seen = inputs(model, generator)
    features = model.encode_images(**{key: value for key, value in seen.items() if key.startswith("image_")})
    assert features.shape == (4, model.cameras.size) == (4, 2 * 2 * 64)
    kept = {key: value for key, value in seen.items() if not key.startswith("image_")}
    viscous = ViscousFlowModel.from_base(model, condition_dim=5, num_classes=3)
    for net in (model, viscous):
        assert torch.equal(net(sample, 9.0, image_features=features, **kept).sample, net(sample, 9.0, **seen).sample)


# Errors


@pytest.mark.parametrize(
    ("cls", "change", "named"),
    [
        (ConditionalUNet1D, {"event_shape": [10, 2], "channels": [8, 8, 8]}, "horizon of 10 cannot be halved 2 times"),
        (ConditionalUNet1D, {"channels": [8, 10]}, "multiples of groups = 4"),
        (ConditionalUNet1D, {"channels": []}, "at least one"),
        (ConditionalUNet1D, {"kernel_size": 4}, "kernel_size must be odd, got 4"),
        (ActionTransformer, {"num_heads": 3}, "hidden_dim must be a multiple of num_heads = 3, got 8"),
        (ActionTransformer, {"num_layers": 0}, "num_layers must be at least 1, got 0"),
        (ActionTransformer, {"event_shape": [16]}, r"must be \[horizon, action_dim\], got \[16\]"),
        (ActionTransformer, {"images": {"top": [3, 32, 32]}}, r"height, width\], got top: \[3, 32, 32\]"),
        (ActionTransformer, {"images": TWO, "image_widths": [40]}, "image_widths must be multiples of 16"),
        (
            ConditionalUNet1D,
            {"images": {"a": [1, 1, 32, 32], "b": [1, 3, 32, 32]}, "share_image_encoder": True},
            r"cameras of \[1, 3\] channels cannot share",
        ),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(cls, change, named):
    """What cannot be built is named, with what can."""
    with pytest.raises(ValueError, match=named):
        build(cls, **change)


@CLASSES
@pytest.mark.parametrize(
    ("observed", "change", "named"),
    [
        ("nothing", {"sample": torch.zeros(4, 7, 2)}, r"\(batch, \*\[8, 2\]\), got \(4, 7, 2\)"),
        ("nothing", {"condition": torch.zeros(4, 5)}, "condition_dim is 0, so condition must not be given"),
        ("states", {"condition": None}, "condition_dim is 5, so condition must be given"),
        ("states", {"condition": torch.zeros(4, 6)}, r"condition must have shape \(4, 5\), got \(4, 6\)"),
        ("task", {"class_labels": None}, "num_classes is 3, so class_labels must be given"),
        ("states", {"class_labels": torch.zeros(4).long()}, "class_labels must not be given"),
        ("states", {"image_top": torch.zeros(1)}, "takes no condition 'image_top'; its images are none"),
        ("all", {"image_top": torch.zeros(1)}, "its images are image_front, image_wrist"),
        ("all", {"image_wrist": None}, "so image_wrist must be given"),
        ("all", {"image_wrist": torch.zeros(4, 3, 32, 32)}, r"image_wrist must have shape \(4, 2, 3, 32, 32\)"),
        ("images", {"image_top": torch.zeros(4, 1, 1, 32, 32)}, "as uint8, got torch.float32"),
        ("images", {"image_features": torch.zeros(4, 64)}, "in place of the images"),
        ("nothing", {"image_features": torch.zeros(4, 64)}, "nothing for a model without images"),
    ],
    ids=str,
)
def test_bad_inputs_are_refused(cls, observed, change, named, generator):
    """Samples and observations of another shape, too few or too many are named."""
    model = build(cls, observed)
    sample, seen = inputs(model, generator)
    with pytest.raises(ValueError, match=named):
        model(**{"sample": sample, "timestep": 1.0, **seen, **change})


@CLASSES
def test_a_strangers_config_allocates_nothing(cls, tmp_path):
    """Sizes in a config that the saved weights do not bear out are refused before any memory is taken."""
    build(cls).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    lies = {"condition_dim": 10**9, "images": {"top": [2, 3, 32, 32]}, "num_layers": 10**6, "channels": [8] * 10**5}
    for key in lies.keys() & config.keys():
        (tmp_path / "config.json").write_text(json.dumps(config | {key: lies[key]}))
        with pytest.raises(
            ValueError, match=r"weights are not those of its config|asks for num_layers|asks for channels"
        ):
            cls.from_pretrained(tmp_path)
