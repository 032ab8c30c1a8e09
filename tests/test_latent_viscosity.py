"""Artificial viscosity on text-to-image pipelines: nothing at the start, its own time and prompt in every family, trained alone, drawn with in diffusers."""

import json
import shutil

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from test_lora import NOISE, PROMPT, cache, home, run, stock, stock_images  # noqa: F401 (fixtures)
from test_resume import assert_same
from tiny_latents import PIPELINES, saved, settings

from hf_flowft import FlowMatchingObjective, FlowPipeline, load_config, load_viscosity
from hf_flowft.cli import main
from hf_flowft.conventions import time_grid
from hf_flowft.latents import FAMILIES, Decoder, LatentViscosity, find_base, viscosity_off
from hf_flowft.latents.viscosity import add_fresh_viscosity
from hf_flowft.sampling import generate
from hf_flowft.training.plan import plan
from hf_flowft.training.step import TrainStep
from hf_flowft.velocity import SharedVelocity, Velocity

EVERY = pytest.mark.parametrize("name", sorted(PIPELINES))
SHAPES = {"sd3": (4, 8, 8), "flux": (4, 8, 8), "sana": (4, 16, 16)}


def changing(model):
    """What training changes of a model, by name."""
    return TrainStep(Velocity(model), FlowMatchingObjective()).changing()


def asked(name, **options):
    """A transformer of a family under a fresh viscosity, and what `LatentFamily.output` takes: latents, times and text."""
    transformer = PIPELINES[name]().transformer.eval()
    family = next(f for f in FAMILIES.values() if f.name == name)
    add_fresh_viscosity(transformer, family, SHAPES[name], **options)
    text = {key: torch.cat([x, x]) for key, x in family.text_like(transformer.config).items()}
    text = {key: torch.randn_like(x) if x.is_floating_point() and x.ndim > 1 else x for key, x in text.items()}
    return transformer, family, (torch.randn(2, *SHAPES[name]), torch.tensor([250.0, 900.0]), text, 3.5)


@EVERY
@pytest.mark.parametrize("structure", ["gradient", "mlp"])
def test_it_starts_as_the_base_and_can_be_switched_off(name, structure):
    """Bit for bit: untrained it changes nothing, and switched off nothing, whatever it has learned; an error leaves it on."""
    transformer, family, given = asked(name, structure=structure)
    same = family.output(transformer, *given)
    with viscosity_off(transformer):
        base = family.output(transformer, *given)
    assert torch.equal(same, base)
    with torch.no_grad():
        for p in transformer.viscosity.parameters():
            p.add_(0.1)
    assert not torch.equal(family.output(transformer, *given), base)
    with viscosity_off(transformer):
        assert torch.equal(family.output(transformer, *given), base)
    with pytest.raises(KeyboardInterrupt), viscosity_off(transformer):
        raise KeyboardInterrupt
    assert not torch.equal(family.output(transformer, *given), base)


def test_only_the_viscosity_is_kept_and_compared(home, tmp_path):  # noqa: F811
    """Of what training changes nothing is the transformer's: no weight, and no table of positions."""
    model = run(home, tmp_path / "run", "mle", model="viscosity").trainee.model
    assert "transformer.pos_embed.pos_embed" in dict(model.named_buffers())
    assert all(name.startswith("velocity.model.transformer.viscosity.") for name in changing(model))
    assert changing(model)


@EVERY
def test_it_is_told_the_time_and_the_prompt_of_its_family(name, monkeypatch):
    """1000 sigma whatever unit the transformer takes, the pooled prompt (Sana: the mean of its tokens), and latents of the transformer's own shape."""
    transformer, family, given = asked(name)
    told = []

    def constant(taken, timestep, labels, vector):
        told.append((taken.shape, timestep, vector))
        return torch.ones_like(taken)

    with viscosity_off(transformer):
        base = family.output(transformer, *given)
    monkeypatch.setattr(transformer.viscosity, "residual", constant)
    torch.testing.assert_close(family.output(transformer, *given), base - 1)  # v + 1; the output is -v
    (shape, timestep, vector), text = told[0], given[2]
    assert tuple(shape[1:]) == ((16, 16) if name == "flux" else SHAPES[name])
    torch.testing.assert_close(timestep, given[1])
    expected = text["encoder_hidden_states"].mean(1) if name == "sana" else text["pooled_projections"]
    torch.testing.assert_close(vector, expected)


def test_padding_of_a_prompt_is_not_averaged():
    """Sana's prompts are as long as their mask says."""
    _, family, (_, _, text, _) = asked("sana")
    text["encoder_attention_mask"][:, 5:] = 0
    torch.testing.assert_close(family.text_vector(text), text["encoder_hidden_states"][:, :5].mean(1))


def test_a_learned_variance_is_left_alone():
    """A transformer whose output has more channels than the latents: the first ones are the velocity."""
    from hf_flowft.latents.viscosity import _added

    transformer, _, (x, timestep, text, _) = asked("sana")
    with torch.no_grad():
        transformer.viscosity.head.output.bias.add_(1.0)
    whole = torch.randn(2, 8, 16, 16)
    changed = _added(transformer, (x,), {"timestep": timestep, **text}, (whole,))[0]
    assert torch.equal(changed[:, 4:], whole[:, 4:])
    assert not torch.equal(changed[:, :4], whole[:, :4])


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["gradient", "mlp"])
def test_diffusers_draws_what_was_trained(structure, home, tmp_path):  # noqa: F811
    """Only the viscosity learns, it alone is saved, and diffusers' pipeline with `load_viscosity` draws the images of the trained velocity."""
    options = {"model.structure": structure, "train.learning_rate": 0.003}
    built = run(home, tmp_path / "run", "mle", model="viscosity", **options)
    assert isinstance(built.reference, SharedVelocity)
    before = {name: p.clone() for name, p in built.trainee.model.named_parameters()}
    finished = built.execute()
    assert finished.results["selection"]["improved"]
    model, results = finished.pipeline.model, finished.results
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("transformer.viscosity.") for name in changed)
    assert ("Proven" in results["certificate"][0]) is (structure == "gradient")
    kept = load_file(tmp_path / "run" / "pipeline" / "diffusion_pytorch_model.safetensors")
    assert sum(x.numel() for x in kept.values()) == sum(p.numel() for p in model.transformer.viscosity.parameters())
    pipeline = stock(home / "base")
    base = stock_images(pipeline)
    load_viscosity(pipeline, tmp_path / "run" / "pipeline")
    numbers = model.prompts.numbers([PROMPT, PROMPT])
    latents = generate(finished.pipeline.velocity(), NOISE, {"prompt": numbers}, time_grid(4, 3.0))
    expected, drawn = torch.stack(Decoder(model.family, pipeline.vae)(latents, {})), stock_images(pipeline)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
    assert (drawn - base).abs().max() > 1e-3
    card = (tmp_path / "run" / "README.md").read_text()
    assert "from hf_flowft import load_viscosity" in card
    assert "- lora" not in card
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")


@pytest.mark.slow
def test_other_families_train_and_draw(tmp_path, home):  # noqa: F811
    """Flux packs its latents; the image of a larger size is refused in a sentence."""
    saved(tmp_path / "base", PIPELINES["flux"])
    options = {"model.path": tmp_path / "base", "train.learning_rate": 0.003}
    assert run(home, tmp_path / "run", "mle", model="viscosity", **options).execute().results["selection"]["improved"]
    pipeline = find_base(str(tmp_path / "base")).family.pipeline_class().from_pretrained(tmp_path / "base")
    pipeline.set_progress_bar_config(disable=True)
    load_viscosity(pipeline, tmp_path / "run" / "pipeline")
    drawn = {"num_inference_steps": 1, "output_type": "pt"}
    assert pipeline(PROMPT, height=16, width=16, **drawn).images.isfinite().all()
    with pytest.raises(ValueError, match=r"trained on latents of shape \(16, 16\), got \(64, 16\): draw images"):
        pipeline(PROMPT, height=32, width=32, **drawn)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(home, tmp_path):  # noqa: F811
    """Two steps and two more are four, bit for bit."""
    steps = {"train.num_steps": 4, "train.checkpoint_every": 2, "train.ema_decay": 0.9}
    run(home, tmp_path / "whole", "mle", model="viscosity", **steps).trainer.train()
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-2", tmp_path / "half")
    steps["train.resume_from_checkpoint"] = tmp_path / "half"
    run(home, tmp_path / "parts", "mle", model="viscosity", **steps).trainer.train()
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_what_was_saved_is_judged_as_the_run_judged_it(home, tmp_path):  # noqa: F811
    """`evaluate` on the folder that a run has left gives the numbers of its report."""
    finished = run(home, tmp_path / "run", "mle", model="viscosity").execute()
    saved_at, config = tmp_path / "run" / "pipeline", tmp_path / "run" / "config.yaml"
    assert main(["evaluate", str(saved_at), "--config", str(config), "--out", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())["metrics"]
    expected = finished.results["metrics"]["result"]
    assert again.keys() == expected.keys()
    for key, entry in again.items():
        assert entry["value"] == pytest.approx(expected[key]["value"], rel=1e-4), key


def test_the_plan_counts_it(home):  # noqa: F811
    """The viscosity alone is trained; its weights are those of the module."""
    text = plan(load_config(None, settings(home, "fm", "viscosity")), 1e-3)
    expected = LatentViscosity("StableDiffusion3Pipeline", [4, 8, 8], 64, num_terms=2)
    assert f"{sum(p.numel() for p in expected.parameters()):,} of them trained" in text


def test_what_does_not_fit_is_refused(home, tmp_path):  # noqa: F811
    """Other wirings, other pipelines, several sizes, two of them, and a viscosity taken for a pipeline: a sentence each."""
    with pytest.raises(ValueError, match=r"set model.wiring to in_loop"):
        run(home, tmp_path / "a", "mle", model="viscosity", **{"model.wiring": "cascade"})
    with pytest.raises(ValueError, match=r"latents of one size: leave out data.bucket_step"):
        run(home, tmp_path / "b", "mle", model="viscosity", **{"data.bucket_step": 4, "data.resolution": 16})
    with pytest.raises(ValueError, match=r"unknown pipeline 'X'; choose one of StableDiffusion3Pipeline, FluxPipeline"):
        LatentViscosity("X", [4, 8, 8], 1)
    viscosity = LatentViscosity("StableDiffusion3Pipeline", [4, 8, 8], 64)
    viscosity.save_pretrained(tmp_path / "viscosity")
    with pytest.raises(ValueError, match=r"holds a viscosity, no pipeline: .*load_viscosity"):
        FlowPipeline.from_pretrained(tmp_path / "viscosity")
    with pytest.raises(ValueError, match="belongs to a StableDiffusion3Pipeline, not to a FluxPipeline"):
        load_viscosity(PIPELINES["flux"](), tmp_path / "viscosity")
    pipeline = PIPELINES["sd3"]()
    load_viscosity(pipeline, tmp_path / "viscosity")
    with pytest.raises(ValueError, match="has a viscosity already"):
        load_viscosity(pipeline, tmp_path / "viscosity")
    with pytest.raises(ValueError, match="no-such"):
        load_viscosity(pipeline, tmp_path / "no-such")


@pytest.mark.slow
def test_it_travels_over_the_hub(hub, home, tmp_path):  # noqa: F811
    """A pushed run is drawn with by `load_viscosity(pipeline, "user/name")`, at the commit of its base that the card names."""
    api = HfApi()
    api.create_repo("user/flow")
    api.upload_folder(repo_id="user/flow", folder_path=home / "base")
    words = {"model.path": "user/flow", "hub.push_to_hub": "user/gav", "train.learning_rate": 0.003}
    run(home, tmp_path / "run", "mle", model="viscosity", **words).execute()
    data = ModelCard.load("user/gav").data
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("user/flow", "adapter")
    pipeline = stock(home / "base")
    before = stock_images(pipeline)
    load_viscosity(pipeline, "user/gav")
    pushed = stock_images(pipeline)
    assert not torch.equal(pushed, before)
    local = stock(home / "base")
    load_viscosity(local, tmp_path / "run" / "pipeline")
    assert torch.equal(stock_images(local), pushed)
