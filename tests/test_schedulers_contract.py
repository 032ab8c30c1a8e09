"""What diffusers' pipelines and scheduler tests expect of ours: places in the loop, noising, precision, saving, loading."""

import copy
import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from hf_flowft.conventions import sigma_grid
from hf_flowft.schedulers import FlowODEScheduler, FlowSDEScheduler

SOLVERS = ["euler", "midpoint", "heun", "rk4"]
EVERY = [
    *[(FlowODEScheduler, {"solver": solver}) for solver in SOLVERS],
    (FlowSDEScheduler, {"noise_schedule": "memoryless"}),
]
every_scheduler = pytest.mark.parametrize(("cls", "config"), EVERY)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def output(x, timestep):
    """A stand-in for a model: nonlinear, and different at every timestep."""
    return torch.tanh(x) * (1 + timestep / 500)


def run(scheduler, x, timesteps=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for timestep in scheduler.timesteps if timesteps is None else timesteps:
        x = scheduler.step(output(x, timestep), timestep, x, generator=generator).prev_sample
    return x


def ready(cls, config, num_steps=5):
    scheduler = cls(**config)
    scheduler.set_timesteps(num_steps)
    return scheduler


# Places in the loop


@every_scheduler
def test_a_loop_can_be_restarted(cls, config):
    x = normal(3, 2)
    scheduler = ready(cls, config)
    first = run(scheduler, x)
    assert scheduler.step_index == len(scheduler.timesteps)
    assert torch.equal(run(scheduler, x), first)  # without a word
    run(scheduler, x, scheduler.timesteps[: scheduler.order + 1])  # left in the middle, of a step too
    assert torch.equal(run(scheduler, x), first)
    run(scheduler, x, scheduler.timesteps[: scheduler.order + 1])
    scheduler.set_timesteps(5)
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    assert torch.equal(run(scheduler, x), first)


@every_scheduler
def test_changing_the_number_of_steps_leaves_no_trace(cls, config):
    x = normal(3, 2)
    scheduler = ready(cls, config, 3)
    run(scheduler, x)
    scheduler.set_timesteps(6)
    assert scheduler.num_inference_steps == 6
    assert len(scheduler.timesteps) == 6 * scheduler.order
    assert torch.equal(run(scheduler, x), run(ready(cls, config, 6), x))


@every_scheduler
def test_begin_index_starts_in_the_middle(cls, config):
    """As image-to-image pipelines do; the answer is that of a grid that holds only the later steps."""
    x = normal(3, 2)
    scheduler = ready(cls, config)
    start = 2 * scheduler.order
    expected = run(scheduler, x, scheduler.timesteps[start:])  # found by its timestep
    scheduler.set_begin_index(start)
    assert scheduler.begin_index == start
    assert scheduler.step_index is None
    assert torch.equal(run(scheduler, x, scheduler.timesteps[start:]), expected)
    rest = cls(**config)
    rest.set_timesteps(sigmas=sigma_grid(5)[2:])
    assert torch.equal(run(rest, x), expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_index_is_the_step_that_starts_there(solver):
    """The last evaluation of heun and rk4 is at the timestep where the next step starts."""
    scheduler = ready(FlowODEScheduler, {"solver": solver})
    for start in range(0, len(scheduler.timesteps), scheduler.order):
        assert scheduler.index_for_timestep(scheduler.timesteps[start]) == start
    x = normal(2, 2)
    for timestep in (3, 999.0, torch.tensor(-1.0)):
        with pytest.raises(ValueError, match="no step starts at timestep"):
            scheduler.step(x, timestep, x)
    with pytest.raises(ValueError, match="no step starts at timestep nan"):
        scheduler.step(x, float("nan"), x)
    for index in (-1, len(scheduler.timesteps), *([1] if scheduler.order > 1 else [])):
        with pytest.raises(ValueError, match="begin_index must be a multiple"):
            scheduler.set_begin_index(index)


def test_a_step_cannot_begin_at_a_later_stage():
    scheduler = ready(FlowODEScheduler, {"solver": "midpoint"})
    with pytest.raises(ValueError, match="no step starts at timestep 900"):
        scheduler.step(normal(2), scheduler.timesteps[1], normal(2))


@every_scheduler
def test_step_needs_a_grid_one_timestep_and_matching_shapes(cls, config):
    scheduler, x = cls(**config), normal(3, 2)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="same shape"):
        scheduler.step(x[:1], scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="one timestep for the whole batch"):
        scheduler.step(x, scheduler.timesteps[:1].repeat(3), x)


# What a step returns


@every_scheduler
def test_shapes_tuples_and_steps_at_two_timesteps(cls, config):
    x, residual = normal(4, 3, 8, 8), 0.1 * normal(4, 3, 8, 8, seed=1)
    one, two = ready(cls, config), ready(cls, config)
    for index in range(2 * one.order):
        timestep = one.timesteps[index]
        named = one.step(residual, timestep, x, generator=torch.Generator().manual_seed(index))
        plain = two.step(residual, timestep, x, generator=torch.Generator().manual_seed(index), return_dict=False)
        assert isinstance(plain, tuple)
        assert len(plain) == 1
        assert torch.equal(named.prev_sample, plain[0])
        assert torch.equal(named[0], named.prev_sample)
        assert named.prev_sample.shape == x.shape
        assert one.step_index == index + 1


@every_scheduler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision(cls, config, dtype):
    """Half precision only at the ends: each evaluation is the float32 one, rounded once."""
    x, residual = normal(4, 3).to(dtype), normal(4, 3, seed=1).to(dtype)
    low, high = ready(cls, config), ready(cls, config)
    working = torch.promote_types(dtype, torch.float32)
    noise = {"generator": torch.Generator().manual_seed(0)}
    wide = {"generator": torch.Generator().manual_seed(0)}
    for timestep in low.timesteps[: low.order]:
        result = low.step(residual, timestep, x, **noise).prev_sample
        expected = high.step(residual.to(working), timestep, x.to(working), **wide).prev_sample
        assert result.dtype == dtype
        assert torch.equal(result, expected.to(dtype))
    assert low.sigmas.dtype == low.timesteps.dtype == torch.float32


# Noising


@every_scheduler
def test_noising_at_any_timestep(cls, config):
    scheduler = ready(cls, config, 4)
    data, noise = normal(4, 2, 3), normal(4, 2, 3, seed=1)
    timesteps = torch.tensor([0.0, 1000.0, 123.4, 750.0])
    noisy = scheduler.add_noise(data, noise, timesteps)
    assert noisy.shape == data.shape
    assert noisy.device == data.device
    assert torch.equal(noisy[0], data[0])
    assert torch.equal(noisy[1], noise[1])
    torch.testing.assert_close(noisy[2], 0.1234 * noise[2] + 0.8766 * data[2])
    torch.testing.assert_close(noisy[3], 0.75 * noise[3] + 0.25 * data[3])
    assert torch.equal(scheduler.scale_noise(data, timesteps, noise), noisy)
    for one in (750, 750.0, torch.tensor(750), torch.tensor([750.0])):
        torch.testing.assert_close(scheduler.add_noise(data, noise, one), 0.75 * noise + 0.25 * data)
    assert scheduler.add_noise(data.bfloat16(), noise.bfloat16(), timesteps).dtype == torch.bfloat16


def test_noising_on_the_grid_is_that_of_diffusers():
    theirs, ours = FlowMatchEulerDiscreteScheduler(shift=3.0), FlowODEScheduler(shift=3.0)
    data, noise = normal(4, 4), normal(4, 4, seed=1)  # batch = width: a wrong broadcast would not raise
    timesteps = theirs.timesteps[[0, 10, 500, 999]]
    torch.testing.assert_close(ours.scale_noise(data, timesteps, noise), theirs.scale_noise(data, timesteps, noise))


def test_bad_noising_is_refused():
    scheduler, x = FlowODEScheduler(), normal(4, 2)
    for timesteps, message in [
        (1001, "must be in"),
        (-1.0, "must be in"),
        (float("nan"), "must be in"),
        (torch.ones(3), "shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            scheduler.add_noise(x, x, timesteps)
    with pytest.raises(ValueError, match="same shape"):
        scheduler.add_noise(x, x[:1], 5)


@every_scheduler
def test_what_pipelines_multiply_by(cls, config):
    scheduler, x = cls(**config), normal(2)
    assert scheduler.init_noise_sigma == 1
    assert scheduler.scale_model_input(x, scheduler.timesteps[0]) is x
    assert len(scheduler) == scheduler.config.num_train_timesteps == 1000


# Saving and loading


@every_scheduler
def test_save_and_load_give_the_same_samples(cls, config, tmp_path):
    scheduler = cls(**config, shift=2.5)
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == cls.__name__
    loaded = cls.from_pretrained(tmp_path)
    private = {"_use_default_values"}  # diffusers' own note of what was not passed
    assert {k: v for k, v in loaded.config.items() if k not in private} == {
        k: v for k, v in scheduler.config.items() if k not in private
    }
    for one in (scheduler, loaded):
        one.set_timesteps(4)
    x = normal(3, 2)
    assert torch.equal(run(loaded, x), run(scheduler, x))
    assert torch.equal(run(copy.deepcopy(scheduler), x), run(scheduler, x))


@every_scheduler
@pytest.mark.parametrize("theirs", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_configs_pass_to_diffusers_and_back(cls, config, theirs):
    ours = cls(**config, shift=2.5)
    assert set(ours.compatibles) == {cls, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler}
    there = theirs.from_config(ours.config)
    assert there.config.shift == 2.5
    back = cls.from_config(there.config)
    assert {key: back.config[key] for key in config} == config
    assert back.config.shift == 2.5
    assert cls.from_config(theirs(shift=3.0).config, **config).config.shift == 3.0


def test_the_modules_show_diffusers_the_base_class():
    """A pipeline loads a component only if `SchedulerMixin` is found in the module of its class."""
    import hf_flowft.schedulers.scheduling_flow_ode as ode
    import hf_flowft.schedulers.scheduling_flow_sde as sde

    assert ode.SchedulerMixin is sde.SchedulerMixin
    assert issubclass(FlowODEScheduler, ode.SchedulerMixin)


# Inside a pipeline of diffusers


@pytest.fixture(scope="module")
def flux():
    """A FLUX pipeline with a tiny random transformer; it passes `sigmas`, `mu` and `set_begin_index`, and has no text encoders."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    size = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    text = {"joint_attention_dim": 32, "pooled_projection_dim": 32}
    transformer = FluxTransformer2DModel(patch_size=1, in_channels=4, axes_dims_rope=[4, 4, 8], **size, **text)
    parts = dict.fromkeys(["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    pipeline = FluxPipeline(scheduler=FlowODEScheduler(), transformer=transformer, **parts)
    pipeline.set_progress_bar_config(disable=True)

    def sample(scheduler):
        pipeline.scheduler = scheduler
        prompt = {"prompt_embeds": normal(1, 8, 32, seed=1), "pooled_prompt_embeds": normal(1, 32, seed=2)}
        how = {"height": 32, "width": 32, "num_inference_steps": 4, "output_type": "latent"}
        return pipeline(**prompt, **how, generator=torch.Generator().manual_seed(0)).images

    return sample


@pytest.mark.parametrize("dynamic", [False, True])
def test_swaps_into_a_diffusers_pipeline(flux, dynamic):
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic)
    expected = flux(theirs)
    torch.testing.assert_close(flux(FlowODEScheduler.from_config(theirs.config)), expected, rtol=1e-5, atol=1e-5)
    fine = flux(FlowODEScheduler.from_config(theirs.config, solver="rk4"))
    better = flux(FlowODEScheduler.from_config(theirs.config, solver="heun"))
    assert (better - fine).norm() < (expected - fine).norm()
    assert flux(FlowSDEScheduler.from_config(theirs.config)).isfinite().all()
