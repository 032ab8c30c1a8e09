"""A policy sees raw windows and acts in raw units: horizons, scales, ensembling and errors, against values worked out by hand."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from hf_flowft import FlowODEScheduler, FlowPipeline, FlowPolicyPipeline, VelocityMLP, ViscousFlowModel
from hf_flowft.models import ConditionalUNet1D
from hf_flowft.pipelines.receding import RecedingHorizon
from hf_flowft.velocity import GuidedVelocity

POLICY = {
    "state_keys": ["observation.state", "observation.environment_state"],
    "cameras": {},
    "observation_horizon": 2,
    "action_horizon": 3,
    "num_tasks": 0,
    "fps": 10,
}
DESCRIPTION = {
    "event_shape": [8, 2],
    "normalisation": {"mean": [256.0, 100.0], "std": [256.0, 10.0]},
    "observation_normalisation": {
        "observation.state": {"mean": [256.0, 256.0], "std": [256.0, 128.0]},
        "observation.environment_state": {"mean": 1.0, "std": 2.0},
    },
}


def random_weights(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def policy(num_tasks=0, model=None, scheduler=None, **changes):
    model = model or random_weights(
        VelocityMLP(event_shape=[8, 2], hidden_dim=16, num_layers=1, condition_dim=10, num_classes=num_tasks)
    )
    facts = {**DESCRIPTION, "policy": {**POLICY, "num_tasks": num_tasks, **changes}}
    pipeline = FlowPolicyPipeline(model, scheduler or FlowODEScheduler(), facts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def window(rows=3):
    rng = np.random.default_rng(0)
    return {
        "observation.state": rng.uniform(0, 512, (rows, 2, 2)),
        "observation.environment_state": rng.normal(size=(rows, 2, 3)).astype(np.float32),
    }


def draws(rows=3):
    return [torch.Generator().manual_seed(i) for i in range(rows)]


def test_states_become_the_condition_oldest_first():
    """Scaled key by key, joined within a step, steps in their order."""
    given = policy().encode_observation(window())["condition"]
    state = (torch.tensor(window()["observation.state"]).float() - 256) / torch.tensor([256.0, 128.0])
    rest = (torch.tensor(window()["observation.environment_state"]) - 1) / 2
    steps = [torch.cat([state[:, k], rest[:, k]], dim=1) for k in range(2)]
    torch.testing.assert_close(given, torch.cat(steps, dim=1))


def test_actions_are_those_of_the_flow_in_raw_units():
    """The chunk is the sample of the flow under that condition, un-normalised; its executed part begins at now."""
    pipeline = policy()
    out = pipeline(window(), generator=draws(), num_inference_steps=4)
    plain = FlowPipeline(pipeline.model, pipeline.scheduler, {"event_shape": [8, 2]})
    plain.set_progress_bar_config(disable=True)
    condition = pipeline.encode_observation(window())["condition"]
    sample = plain(condition=condition, generator=draws(), num_inference_steps=4, output_type="np").samples
    np.testing.assert_allclose(out.chunk, sample * [256.0, 10.0] + [256.0, 100.0], rtol=1e-5, atol=1e-3)
    assert np.array_equal(out.actions, out.chunk[:, 1:4])
    assert out.num_evaluations == 4
    assert out.seconds > 0


def test_a_row_does_not_depend_on_the_others():
    """With a generator each, an environment acts alike alone and in a batch."""
    pipeline = policy()
    together = pipeline(window(), generator=draws()).actions
    alone = pipeline({key: value[1] for key, value in window().items()}, generator=[draws()[1]]).actions
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("scheduler", [FlowODEScheduler(solver="heun"), FlowMatchEulerDiscreteScheduler(shift=2.0)])
def test_any_flow_scheduler(scheduler):
    assert policy(scheduler=scheduler)(window(), generator=draws()).actions.shape == (3, 3, 2)


def test_tasks():
    """A policy of several tasks is told which, one for all or one a row."""
    pipeline = policy(num_tasks=2)
    one = pipeline(window(), 1, generator=draws()).actions
    assert np.array_equal(one, pipeline(window(), [1, 1, 1], generator=draws()).actions)
    assert not np.allclose(one, pipeline(window(), 0, generator=draws()).actions)


def seeing(image_size=()):
    """A policy that was trained on pictures of 16 x 16."""
    model = ConditionalUNet1D(
        event_shape=[8, 2],
        channels=[8, 16],
        groups=4,
        condition_dim=4,
        images={"top": [2, 3, 16, 16]},
        image_widths=[8, 8],
    )
    cameras = {"top": "observation.image"}
    return policy(0, random_weights(model), state_keys=["observation.state"], cameras=cameras, image_size=image_size)


def large():
    """An observation of a state and pictures of 24 x 32."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 24, 32, 3), dtype=np.uint8)
    return {"observation.state": window()["observation.state"], "observation.image": pixels}


def test_pictures_are_brought_to_the_size_of_the_data():
    """As the reader of the demonstrations does it, frame by frame, by Pillow; those that have the size stay as they are."""
    pipeline, seen = seeing([16, 16]), large()
    small = np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((16, 16), Image.Resampling.BICUBIC))
            for frame in seen["observation.image"].reshape(-1, 24, 32, 3)
        ]
    ).reshape(3, 2, 16, 16, 3)
    features = pipeline.encode_observation(seen)["image_features"]
    assert torch.equal(features, pipeline.encode_observation({**seen, "observation.image": small})["image_features"])


def test_pictures_of_another_size_or_kind_are_refused():
    """Where the data were not resized, another size is a mistake; fractions are one everywhere."""
    pipeline, seen = seeing(), large()
    with pytest.raises(ValueError, match=r"image_top must have shape \(3, 2, 3, 16, 16\)"):
        pipeline.encode_observation(seen)
    fractions = {**seen, "observation.image": seen["observation.image"] / 255}
    with pytest.raises(ValueError, match=r"must hold grey levels 0 to 255 as uint8, got torch\.float64"):
        pipeline.encode_observation(fractions)


def test_images_are_looked_at_once_a_decision(monkeypatch):
    """All steps of the solver share the features; the actions are those of the model given the images themselves."""
    pipeline = seeing()
    model = pipeline.model
    pixels = np.random.default_rng(1).integers(0, 256, (3, 2, 3, 16, 16), dtype=np.uint8)
    observation = {
        "observation.state": window()["observation.state"],
        "observation.image": pixels.transpose(0, 1, 3, 4, 2),
    }
    calls = []
    encode = model.cameras.forward
    monkeypatch.setattr(model.cameras, "forward", lambda images: calls.append(1) or encode(images))
    noise = torch.randn(3, 8, 2)
    chunk = pipeline(observation, latents=noise, num_inference_steps=3).chunk
    assert len(calls) == 1
    given = {"condition": pipeline.encode_observation(observation)["condition"], "image_top": torch.tensor(pixels)}
    x = noise
    with torch.no_grad():
        for k in range(3):
            x = x - model(x, 1000 * (1 - k / 3), **given).sample / 3
    np.testing.assert_allclose(chunk, pipeline.normalisation.undo(x).numpy(), rtol=1e-4, atol=1e-2)


def test_saved_and_loaded(tmp_path):
    """By its own class and by FlowPipeline, which both give the policy back."""
    pipeline = policy()
    pipeline.save_pretrained(tmp_path)
    for cls in (FlowPolicyPipeline, FlowPipeline):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is FlowPolicyPipeline
        loaded.set_progress_bar_config(disable=True)
        assert np.array_equal(
            loaded(window(), generator=draws()).actions, pipeline(window(), generator=draws()).actions
        )
    FlowPipeline(pipeline.model, pipeline.scheduler, {}).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="holds a 'FlowPipeline', not a FlowPolicyPipeline"):
        FlowPolicyPipeline.from_pretrained(tmp_path / "plain")


def test_with_a_residual():
    """A viscous policy starts as its base."""
    base = policy()
    viscous = policy(model=ViscousFlowModel.from_base(base.model, condition_dim=10, hidden_dim=8))
    assert np.array_equal(viscous(window(), generator=draws()).actions, base(window(), generator=draws()).actions)


# Time


def chunk_of(window):
    """A chunk that says when it was made: action j of the chunk decided at time n is 100 n + j."""
    now = window["x"][-1, 0]
    return 100 * now + np.arange(6.0)[:, None]


def run(horizon, steps=6):
    return [float(horizon.step({"x": np.array([float(n)])}, chunk_of)[0]) for n in range(steps)]


def test_receding_horizon():
    """Two observations, three executed actions: chunk of time 0 from its second action on, then that of time 3."""
    assert run(RecedingHorizon(2, 3)) == [1, 2, 3, 301, 302, 303]
    assert run(RecedingHorizon(1, 2)) == [0, 1, 200, 201, 400, 401]


def test_the_first_observation_is_repeated():
    seen = []
    horizon = RecedingHorizon(3, 1)
    for n in range(3):
        horizon.step({"x": np.array([float(n)])}, lambda w: seen.append(w["x"][:, 0].tolist()) or chunk_of(w))
    assert seen == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]


def test_temporal_ensembling():
    """Weights exp(-m i) from the oldest chunk on: 1 and e^-m for two, normalised."""
    weights = np.exp(-0.5 * np.arange(2))
    expected = (weights * [1, 100]).sum() / weights.sum()
    assert run(RecedingHorizon(1, 3, ensemble=0.5), 2) == pytest.approx([0, expected])
    assert run(RecedingHorizon(1, 3, ensemble=0.0), 3)[2] == pytest.approx(np.mean([2, 101, 200]))


def guidable(**facts):
    """A policy that sees, with the null values it was trained with, and an observation of its size."""
    pipeline = seeing()
    null = {"condition": 0.0, "image_top": 7.0}
    pipeline.register_to_config(description={**pipeline.description, "null_condition": null, **facts})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 16, 16, 3), dtype=np.uint8)
    return pipeline, {"observation.state": window()["observation.state"], "observation.image": pixels}


def test_guidance_of_a_policy_that_sees():
    """v(none) + scale (v(seen) - v(none)), where "none" are the null pictures it was trained with: in one Euler step, actions are as linear."""
    pipeline, seen = guidable()
    none = {
        "observation.state": np.full((3, 2, 2), 256.0),
        "observation.image": np.full((3, 2, 16, 16, 3), 7, np.uint8),
    }
    options = {"latents": torch.randn(3, 8, 2), "num_inference_steps": 1}
    guided = {scale: pipeline(seen, guidance_scale=scale, **options).chunk for scale in (0.0, 1.0, 2.5)}
    np.testing.assert_allclose(guided[0.0], pipeline(none, **options).chunk, rtol=0, atol=1e-2)
    assert abs(guided[1.0] - guided[0.0]).max() > 0.1
    np.testing.assert_allclose(guided[2.5], guided[0.0] + 2.5 * (guided[1.0] - guided[0.0]), rtol=0, atol=1e-2)
    network = pipeline.velocity(2.5)
    assert isinstance(network, GuidedVelocity)
    assert not network.null_condition["image_features"].requires_grad


def test_an_offloaded_policy_works_where_its_model_is_called():
    """Under CPU offload the model waits on the CPU: observations, noise and what is looked at go to the device where it will run."""
    pipeline, seen = guidable(predicts="mean")
    cpu_offload_with_hook(pipeline.model, torch.device("meta"))
    given = pipeline.encode_observation(seen)
    assert {value.device.type for value in given.values()} == {"meta"}
    for scale in (1.0, 2.0):
        x, _ = pipeline._draw(3, given, guidance_scale=scale)
        assert x.device.type == "meta"


def test_act():
    """Step by step is the call on windows."""
    pipeline = policy()
    with pytest.raises(ValueError, match=r"call reset\(\)"):
        pipeline.act({})
    pipeline.reset()
    single = {key: value[0, 0] for key, value in window().items()}
    twice = {key: np.stack([value, value]) for key, value in single.items()}
    noise = torch.randn(1, 8, 2)
    expected = pipeline(twice, latents=noise).actions[0]
    for k in range(3):
        assert np.array_equal(pipeline.act(single, latents=noise), expected[k])


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o: o.pop("observation.state"),
            "needs the observation 'observation.state', got observation.environment",
        ),
        (lambda o: o.update({"observation.state": np.zeros((3, 1, 2))}), "must be a window of 2 steps"),
        (lambda o: o.update({"observation.state": np.zeros((3, 2, 5))}), "must have 2 numbers a step, got 5"),
        (lambda o: o.update({"observation.state": np.full((3, 2, 2), np.nan)}), "holds NaN or infinite"),
        (lambda o: o.update({"observation.state": np.zeros((4, 2, 2))}), "one row an environment"),
    ],
)
def test_bad_observations(change, message):
    observation = window()
    change(observation)
    with pytest.raises(ValueError, match=message):
        policy()(observation)


def test_bad_tasks_and_horizons():
    with pytest.raises(ValueError, match="knows 0 tasks: do not give one"):
        policy()(window(), 1)
    with pytest.raises(ValueError, match="knows 2 tasks: give one"):
        policy(num_tasks=2)(window())
    with pytest.raises(ValueError, match="one task from 0 to 1"):
        policy(num_tasks=2)(window(), 2)
    with pytest.raises(ValueError, match="horizons must be at least 1"):
        RecedingHorizon(0, 1)
    with pytest.raises(ValueError, match="ensemble must be"):
        RecedingHorizon(1, 1, -1.0)
