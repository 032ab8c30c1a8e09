"""The networks of action chunks in runs: built from the data, trained, saved and loaded, and the base of viscous flows."""

import pytest
import torch
from tiny import SMALL_RUN, digits
from tiny_policies import SMALL, build, chunks, inputs

import hf_flowft.training.run
from hf_flowft import (
    ActionTransformer,
    ConditionalUNet1D,
    FlowODEScheduler,
    FlowPipeline,
    FlowTrainer,
    ViscousFlowModel,
)
from hf_flowft.cli import main
from hf_flowft.metrics.flow import held_out_loss
from hf_flowft.models.bases import event_shape
from hf_flowft.objectives import FlowMatchingObjective
from hf_flowft.training import EvalConfig, TrainConfig
from hf_flowft.training.models import MODELS, ViscosityConfig
from hf_flowft.velocity import Velocity

NAMES = {"unet1d": ConditionalUNet1D, "transformer1d": ActionTransformer}
SMALL_MODEL = {name: {**SMALL[cls], "image_widths": [8, 16]} for name, cls in NAMES.items()}
EACH = pytest.mark.parametrize("name", NAMES)
CLASSES = pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.__name__)


def config(name, **options):
    """The typed settings of a small network."""
    return MODELS[name](**SMALL_MODEL[name], **options)


@EACH
def test_networks_are_built_for_the_data(name):
    """Shapes of chunks, states and images come from the rows; the seed alone decides the weights, and no global generator moves."""
    data = chunks(cameras=("top", "wrist"), num_classes=3)
    state = torch.get_rng_state()
    model = config(name, shift=2.0, share_image_encoder=True).build(data, data.num_classes, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.scheduler.config.shift == 2.0
    assert type(model.model) is NAMES[name]
    kept = model.model.config
    assert (kept.event_shape, kept.condition_dim, kept.num_classes) == ([8, 2], 4, 3)
    assert kept.images == {"top": [1, 1, 32, 32], "wrist": [1, 1, 32, 32]}
    assert len(model.model.cameras.encoders) == 1
    again, other = (config(name, share_image_encoder=True).build(data, 3, seed).model.state_dict() for seed in (0, 1))
    assert all(torch.equal(x, again[key]) for key, x in model.model.state_dict().items())
    assert any(not torch.equal(x, again[key]) for key, x in other.items())


@EACH
def test_data_that_are_no_chunks_are_refused(name):
    """Vectors and pictures are named, with the model to use."""
    with pytest.raises(ValueError, match=r"takes action chunks .*\(1, 8, 8\); use model.name mlp"):
        MODELS[name]().build(digits(), 10, 0)


def test_an_mlp_sees_no_images():
    """Data with images are refused by the model that has no use for them, with those that have."""
    with pytest.raises(ValueError, match=r"the data give 'image_top'; use model\.name unet1d or transformer1d"):
        MODELS["mlp"]().build(chunks(), 0, 0)


@EACH
@pytest.mark.parametrize("cameras", [(), ("top",)], ids=["states", "images"])
def test_a_small_set_is_learned(name, cameras):
    """A hundred steps on 32 strokes take away most of the loss the network starts with, on the same noise; under the observations of
    other strokes it is more than twice as large, so it is the states, or the pictures, that the network has learned to read."""
    data = chunks(cameras)
    if cameras:
        data.condition_columns = {"image_top": "image_top"}
    options = {"channels": [16, 32]} if name == "unet1d" else {"hidden_dim": 32}
    model = MODELS[name](**{**SMALL_MODEL[name], **options}).build(data, 0, 0).model
    rows = data.rows("train")

    def loss(shift=0):
        seen = {key: value.roll(shift, dims=0) for key, value in rows.condition.items()}
        return held_out_loss(Velocity(model), rows.x_1, seen, generator=torch.Generator().manual_seed(0))

    before = loss()
    settings = TrainConfig(num_steps=100, batch_size=32, learning_rate=5e-3, lr_warmup_steps=0, ema_decay=0.0)
    evaluation = EvalConfig(every=100, metric="held_out_loss", num_repeats=2)
    FlowTrainer(model, data, FlowMatchingObjective(), settings, evaluation).train()
    assert loss() < 0.5 * before
    assert loss(shift=1) > 2 * loss()


@EACH
def test_pretraining_from_the_command_line(name, tmp_path, monkeypatch):
    """`hf-flowft pretrain` with images, recomputed activations and dropped observations leaves a pipeline that loads and gives its
    velocity, and viscosity can be put on it."""
    data = chunks()
    monkeypatch.setattr(hf_flowft.training.run, "load_data", lambda config: data)
    words = [f"--model.{key}={value}" for key, value in SMALL_MODEL[name].items()]
    words += [
        f"--output_dir={tmp_path / 'run'}",
        "--train.gradient_checkpointing=true",
        "--train.condition_dropout=0.1",
    ]
    assert main(["pretrain", "--data.name=toy", f"--model.name={name}", *words, *SMALL_RUN]) == 0
    pipeline = FlowPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert type(pipeline.model) is NAMES[name]
    assert set(pipeline.conditions) == {"condition"}
    rows = data.rows("test")
    assert pipeline.velocity()(rows.x_1, 0.5, **rows.condition).shape == rows.x_1.shape
    viscous = ViscosityConfig(path=str(tmp_path / "run" / "pipeline")).build(data, 0, 0).model
    assert viscous.config.condition_dim == 4
    assert torch.equal(
        Velocity(viscous)(rows.x_1, 0.5, **rows.condition), pipeline.velocity()(rows.x_1, 0.5, **rows.condition)
    )


def test_pictures_are_drawn_from_the_data_and_not_kept(tmp_path, monkeypatch, capsys):
    """A policy is fine-tuned on its own chunks under the pictures of the demonstrations; neither pipeline keeps any."""
    data = chunks()
    monkeypatch.setattr(hf_flowft.training.run, "load_data", lambda config: data)
    base = MODELS["unet1d"](**SMALL_MODEL["unet1d"]).build(data, 0, 0)
    conditions = {"condition": data.rows("train").condition["condition"]}
    FlowPipeline(base.model, base.scheduler, {"event_shape": [8, 2]}, conditions).save_pretrained(tmp_path / "base")
    words = [f"--model.path={tmp_path / 'base'}", f"--output_dir={tmp_path / 'run'}", "--data.name=toy"]
    words += ["--pairs.name=self", "--pairs.num_pairs=16", "--pairs.num_steps=1", "--eval.metric=reconstruction"]
    assert main(["finetune", "mle", *words, *SMALL_RUN]) == 0
    assert set(FlowPipeline.from_pretrained(tmp_path / "run" / "pipeline").conditions) == {"condition"}
    capsys.readouterr()
    for name in ("gft", "prior"):
        refused = [words[0], words[2], f"--output_dir={tmp_path / name}", "--model.name=pretrained", *SMALL_RUN]
        assert main(["finetune", name, *refused]) == 2
        assert "but images are not kept with a policy: use objective.measure target" in capsys.readouterr().err


@CLASSES
@pytest.mark.parametrize("observed", ["task", "images", "all"])
def test_untrained_viscosity_is_the_base_bit_for_bit(cls, observed, generator):
    """In the loop, and as the cascade's first half at double speed; images reach the base, and m and g see labels and states only."""
    base = build(cls, observed)
    assert event_shape({"_class_name": cls.__name__, **base.config}) == [8, 2]
    sample, seen = inputs(base, generator)
    sees = {key: base.config[key] for key in ("num_classes", "condition_dim")}
    in_loop = ViscousFlowModel.from_base(base, **sees)
    expected = base(sample, 321.0, **seen).sample
    assert torch.equal(in_loop(sample, 321.0, **seen).sample.view(torch.int32), expected.view(torch.int32))
    cascade = ViscousFlowModel.from_base(base, wiring="cascade", **sees)
    torch.testing.assert_close(Velocity(cascade)(sample, 0.2, **seen), 2 * Velocity(base)(sample, 0.4, **seen))
    assert not Velocity(cascade)(sample, 0.7, **seen).any()


@CLASSES
def test_viscous_policies_come_back_bitwise(cls, generator, tmp_path):
    """With the base inside, through a pipeline, after the residual has moved."""
    model = ViscousFlowModel.from_base(build(cls, "all"), num_classes=3, condition_dim=5, hidden_dim=8)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    sample, seen = inputs(model.base_model, generator)
    expected = model(sample, 10.0, **seen).sample
    assert not torch.equal(expected, model.base_model(sample, 10.0, **seen).sample)
    FlowPipeline(model, FlowODEScheduler()).save_pretrained(tmp_path)
    loaded = FlowPipeline.from_pretrained(tmp_path).model
    assert torch.equal(loaded(sample, 10.0, **seen).sample, expected)
