"""The pipeline draws what the flow says, whatever the solver; encoding inverts it, and densities are those of the data's own units."""

import math

import numpy as np
import pytest
import torch
from closed_forms import gaussian_velocity
from diffusers import (
    ConfigMixin,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    ModelMixin,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from PIL import Image

from hf_flowft import FlowODEScheduler, FlowPipeline, FlowSDEScheduler, VelocityMLP
from hf_flowft.conventions import sigma_grid

MEAN, VARIANCE = 0.7, 0.25


class GaussianModel(ModelMixin, ConfigMixin):
    """The exact flow from N(0, 1) to N(MEAN + label, VARIANCE) in diffusers' convention; the label NUM_LABELS means "none", at 0."""

    @register_to_config
    def __init__(self, event_shape=(2,), num_classes=0):
        super().__init__()
        self.idle = torch.nn.Parameter(torch.zeros(()))

    def forward(self, sample, timestep, class_labels=None, condition=None, return_dict=True):
        """noise - data."""
        shift = 0.0
        if class_labels is not None:
            shift = torch.where(class_labels == self.config.num_classes, 0, class_labels).float()
            shift = shift.reshape(-1, *[1] * (sample.ndim - 1))
        if condition is not None:
            shift = shift + condition
        t = (1 - timestep / 1000).reshape(-1, *[1] * (sample.ndim - 1))
        return (-gaussian_velocity(sample, t, MEAN + shift, VARIANCE),)


def make(model=None, scheduler=None, conditions=None, **description):
    pipeline = FlowPipeline(
        model or GaussianModel(), scheduler or FlowODEScheduler(solver="rk4"), description, conditions
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def labelled(**description):
    return make(GaussianModel(num_classes=4), conditions={"class_labels": torch.arange(4)}, **description)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latent(pipeline, **options):
    return pipeline(output_type="latent", **options).samples


# Samples


def test_samples_are_where_the_flow_ends():
    """x_1 = m + sqrt(C) x_0, to the order of the solver; the adaptive one to its tolerance."""
    x_0 = normal(6, 2)
    exact = MEAN + math.sqrt(VARIANCE) * x_0
    torch.testing.assert_close(latent(make(), latents=x_0, num_inference_steps=32), exact, atol=1e-5, rtol=0)
    result = make()(latents=x_0, solver="dopri5", output_type="latent")
    torch.testing.assert_close(result.samples, exact, atol=1e-4, rtol=0)
    assert result.num_evaluations > 6


def test_data_units(generator):
    """x = std z + mean a coordinate; the same noise gives the same samples in every output type."""
    pipeline = make(event_shape=[2], normalisation={"mean": [1.0, -1.0], "std": [2.0, 5.0]})
    x_0 = normal(3, 2)
    z = latent(pipeline, latents=x_0)
    expected = z * torch.tensor([2.0, 5.0]) + torch.tensor([1.0, -1.0])
    assert torch.equal(pipeline(latents=x_0, output_type="pt").samples, expected)
    assert np.array_equal(pipeline(latents=x_0).samples, expected.numpy())  # vectors come as arrays


def test_labels_and_conditions_steer(generator):
    """One label for all, one a sample, or a vector a sample: each moves the mean by itself."""
    x_0 = normal(3, 2)
    base = MEAN + math.sqrt(VARIANCE) * x_0
    many = {"num_inference_steps": 32}
    for labels, shift in ((2, 2.0), ([0, 1, 3], torch.tensor([[0.0], [1.0], [3.0]]))):
        drawn = latent(labelled(), latents=x_0, class_labels=labels, **many)
        torch.testing.assert_close(drawn, base + shift, atol=1e-4, rtol=0)
    vectors = normal(3, 2, seed=1)
    drawn = latent(make(conditions={"condition": vectors}), latents=x_0, condition=vectors, **many)
    torch.testing.assert_close(drawn, base + vectors, atol=1e-4, rtol=0)
    assert labelled()(batch_size=3, class_labels=1, num_inference_steps=1).samples.shape == (3, 2)
    assert labelled()(class_labels=[1, 0], num_inference_steps=1).samples.shape == (2, 2)


def test_guidance_is_linear_in_the_scale():
    """v = v(null) + s (v(c) - v(null)): on this flow, the mean of the label times s; it costs two evaluations."""
    x_0, null = normal(2, 2), {"null_condition": {"class_labels": 4.0}}
    base = MEAN + math.sqrt(VARIANCE) * x_0
    for scale in (0.0, 1.0, 2.5):
        result = labelled(**null)(
            latents=x_0, class_labels=2, guidance_scale=scale, num_inference_steps=32, output_type="latent"
        )
        torch.testing.assert_close(result.samples, base + scale * 2.0, atol=1e-4, rtol=0)
        assert result.num_evaluations == 32 * 4 * (1 if scale == 1 else 2)
    with pytest.raises(ValueError, match=r"train.condition_dropout > 0"):
        labelled()(class_labels=2, guidance_scale=2.0)


def test_generators():
    """A generator repeats a draw; a list draws each sample by itself, whatever its neighbours."""
    pipeline, seeds = make(), [3, 4, 5]
    first, second = (latent(pipeline, batch_size=3, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    together = latent(pipeline, batch_size=3, generator=[torch.Generator().manual_seed(s) for s in seeds])
    for i, seed in enumerate(seeds):
        alone = latent(pipeline, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(together[i : i + 1], alone)
    with pytest.raises(ValueError, match="got 2 for 3 samples"):
        pipeline(batch_size=3, generator=[torch.Generator()] * 2)


def test_the_noise_of_a_stochastic_scheduler_comes_from_the_generator():
    pipeline = make(scheduler=FlowSDEScheduler())
    one, two = (latent(pipeline, latents=normal(3, 2), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    again = latent(pipeline, latents=normal(3, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_sampling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    make()(batch_size=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


# diffusers' contract


def test_diffusers_scheduler_drops_in():
    """With the same sigmas, FlowMatchEulerDiscreteScheduler makes the same images."""
    x_0, sigmas = normal(4, 2), sigma_grid(7, 2.0)[:-1].tolist()
    ours, theirs = (
        latent(make(scheduler=s), latents=x_0, sigmas=sigmas)
        for s in (FlowODEScheduler(), FlowMatchEulerDiscreteScheduler())
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    heun = make(scheduler=FlowMatchHeunDiscreteScheduler())
    exact = MEAN + math.sqrt(VARIANCE) * x_0
    torch.testing.assert_close(latent(heun, latents=x_0, num_inference_steps=50), exact, atol=5e-3, rtol=0)
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler takes no sigmas"):
        heun(sigmas=sigmas)


def test_return_dict_and_counts():
    pipeline = make()
    result = pipeline(num_inference_steps=3)
    assert result.num_evaluations == pipeline.num_timesteps == 3 * 4
    assert result.images is result.samples
    samples, evaluations = pipeline(num_inference_steps=3, latents=normal(1, 2), return_dict=False)
    assert np.array_equal(samples, pipeline(num_inference_steps=3, latents=normal(1, 2)).samples)
    assert evaluations == 12


def test_callbacks_see_and_change_the_latents():
    """Called once an evaluation, with the timestep; what it returns goes on."""
    pipeline, seen = make(scheduler=FlowODEScheduler()), []

    def watch(pipe, index, timestep, tensors):
        seen.append((index, float(timestep), list(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if index == 3 else None

    samples = latent(pipeline, num_inference_steps=4, callback_on_step_end=watch)
    assert torch.equal(samples, torch.zeros(1, 2))
    assert seen == [(i, 1000 - 250 * i, ["latents"]) for i in range(4)]
    pipeline(
        num_inference_steps=1, callback_on_step_end=lambda *a: a[3] and None, callback_on_step_end_tensor_inputs=[]
    )
    with pytest.raises(ValueError, match=r"must be among \['latents'\], got \['noise'\]"):
        pipeline(callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["noise"])


def test_progress_bar(capsys, monkeypatch):
    """One tick an evaluation, unless it is turned off."""
    monkeypatch.setenv("TQDM_DISABLE", "0")
    pipeline = make()
    pipeline(num_inference_steps=5)
    assert capsys.readouterr().err == ""
    pipeline.set_progress_bar_config(disable=False)
    pipeline(num_inference_steps=5)
    assert "20/20" in capsys.readouterr().err


def test_images_come_as_pil():
    """value_range is mapped to 0..255, what lies outside is clamped, and channels come last."""
    pipeline = make(GaussianModel((3, 2, 2)), event_shape=[3, 2, 2], is_image=True, value_range=[0.0, 16.0])
    data = torch.tensor([0.0, 8.0, 16.0, 40.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    from hf_flowft.pipelines.output import to_pil

    (image,) = to_pil(data, [0.0, 16.0])
    assert np.asarray(image)[..., 0].tolist() == [[0, 128], [255, 255]]
    drawn = pipeline(batch_size=2).samples
    assert [type(i) for i in drawn] == [Image.Image] * 2
    assert drawn[0].size == (2, 2)
    grey = make(GaussianModel((1, 4, 3)), event_shape=[1, 4, 3], is_image=True)().samples[0]
    assert (grey.mode, grey.size) == ("L", (3, 4))


def test_a_unet_of_diffusers_samples():
    """A class-conditional UNet2DModel in half precision: samples stay float32 and finite."""
    torch.manual_seed(0)
    options = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=4, num_class_embeds=3, **options).eval()
    pipeline = make(unet.to(torch.bfloat16), FlowODEScheduler())
    samples = pipeline(class_labels=[0, 2], num_inference_steps=2, output_type="pt").samples
    assert samples.dtype == torch.float32
    assert samples.shape == (2, *pipeline.event_shape) == (2, 1, 8, 8)
    assert samples.isfinite().all()


# Encoding and likelihood


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_encode_inverts_sampling(solver):
    """Data -> noise -> data, in data units and under labels; the noise is (z - m) / sqrt(C)."""
    pipeline = labelled(event_shape=[2], normalisation={"mean": 3.0, "std": 2.0})
    x_0, labels = normal(4, 2), [0, 1, 2, 3]
    exact = 3 + 2 * (MEAN + torch.tensor(labels)[:, None] + math.sqrt(VARIANCE) * x_0)
    torch.testing.assert_close(pipeline.encode(exact, labels, solver=solver), x_0, atol=2e-4, rtol=0)
    back = pipeline(latents=x_0, class_labels=labels, num_inference_steps=64, output_type="pt").samples
    torch.testing.assert_close(pipeline.encode(back, labels, num_steps=64), x_0, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_probes", [None, 1])
def test_likelihood_is_the_density_in_data_units(num_probes):
    """log N(x; mean + std m, std^2 C), the volume of the normalisation included; Hutchinson is exact, for J is a multiple of I."""
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.1])
    pipeline = labelled(event_shape=[2], normalisation={"mean": mean.tolist(), "std": std.tolist()})
    labels = torch.tensor([0, 1, 2])
    z = MEAN + labels[:, None] + 0.5 * normal(3, 2)
    density = torch.distributions.Normal(mean + std * (MEAN + labels[:, None]), std * math.sqrt(VARIANCE))
    x = mean + std * z
    log_p = pipeline.log_likelihood(x, labels, num_steps=64, num_probes=num_probes, generator=torch.Generator())
    torch.testing.assert_close(log_p, density.log_prob(x).sum(dim=1), atol=2e-3, rtol=0)
    assert not log_p.requires_grad


# Refusals


def test_no_label_is_a_label_where_it_was_trained():
    """The row after the last label, of a model that was trained with dropped labels."""
    pipeline = labelled()
    pipeline.register_to_config(description={**pipeline.description, "null_condition": {"class_labels": 4}})
    assert len(pipeline(class_labels=[0, 4], output_type="pt").samples) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"output_type": "jpeg"}, "must be one of pil, np, pt, latent, got 'jpeg'"),
        ({"output_type": "pil"}, r"shape \(2,\) are not images"),
        ({"solver": "euler"}, "fixed-step solvers belong to the scheduler"),
        ({"num_inference_steps": 0}, "at least 1, got 0"),
        ({"batch_size": 0, "class_labels": None}, r"conditioned on \['class_labels'\], got none"),
        ({"class_labels": [0, 9]}, "labels of this model are 0 to 3, got 9"),
        ({"class_labels": 4}, "labels of this model are 0 to 3, got 4"),
        ({"class_labels": -1}, "got -1"),
        ({"class_labels": []}, "at least one sample"),
        ({"latents": torch.zeros(2, 3)}, r"must have shape \(2, 2\), got \(2, 3\)"),
        ({"latents": torch.zeros(2, 2), "class_labels": [0, 1, 2]}, r"must have shape \(3, 2\)"),
        ({"condition": torch.zeros(1, 2)}, "conditioned on"),
        ({"condition": torch.zeros(2), "class_labels": None}, r"\(batch, condition_dim\)"),
    ],
)
def test_wrong_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        labelled()(**{"class_labels": 0, **call})


def test_wrong_data_are_refused():
    with pytest.raises(ValueError, match=r"have shape \(2,\), got \(3,\)"):
        make().encode(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="one label or condition a sample"):
        labelled().log_likelihood(torch.zeros(4, 2), [0, 1])
    with pytest.raises(ValueError, match="at least one sample"):
        make()(batch_size=0)
    unlabelled = make(VelocityMLP([2], hidden_dim=8, num_layers=1))
    with pytest.raises(ValueError, match="num_classes is 0"):
        unlabelled(class_labels=0)
