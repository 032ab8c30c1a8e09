"""Text-to-image pipelines of diffusers as flows: opened, encoded for, sampled as their own pipelines do, and refused when they are none."""

import json
import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from tiny_latents import CAPTIONS, PIPELINES, captioned, flux, sana, saved, sd3

from hf_flowft.cards.text_to_image import image_usage
from hf_flowft.conventions import sigma_grid, time_grid
from hf_flowft.data import CaptionedConfig, load_captioned
from hf_flowft.data.captioned import read_prompts
from hf_flowft.latents import FAMILIES, NOTHING, Decoder, Encoder, LatentFlowModel, encode, find_base
from hf_flowft.sampling import generate
from hf_flowft.times import TimeDensity
from hf_flowft.training.latents import latent_trainee
from hf_flowft.velocity import Velocity

SIZES = {"sd3": 16, "flux": 16, "sana": 32}
EVERY = pytest.mark.parametrize("name", sorted(PIPELINES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved pipeline of each family."""
    root = tmp_path_factory.mktemp("pipelines")
    return {name: saved(root / name, build) for name, build in PIPELINES.items()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of `datasets`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hf_flowft"


def data(tmp_path, size=16, **options):
    """Twenty captioned images and two prompts of the base."""
    folder = tmp_path / "images"
    if not folder.exists():
        captioned(folder, size)
        (tmp_path / "prompts.txt").write_text("a white circle\n\na red ground\n")
    given = {"path": str(folder), "resolution": size, "base_prompts": str(tmp_path / "prompts.txt"), **options}
    return load_captioned(CaptionedConfig(**given))


def flow(folder, tmp_path, size=16):
    """The model of a saved pipeline, the latents of the data, and the pipeline without what reads text."""
    base = find_base(str(folder))
    latents, table = encode(data(tmp_path, size), Encoder(base))
    pipeline = base.generator()
    return LatentFlowModel(pipeline.transformer, base.family, table).eval(), latents, pipeline


def stock(folder, **options):
    """The pipeline as diffusers loads it, run by diffusers."""
    pipeline = next(f for f in FAMILIES.values() if f.pipeline == class_name(folder)).pipeline_class()
    pipeline = pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def class_name(folder):
    """The class of a saved pipeline."""
    return json.loads((folder / "model_index.json").read_text())["_class_name"]


@EVERY
def test_samples_are_those_of_the_pipeline_itself(name, folders, tmp_path, cache):
    """From the same noise, the same prompt and the same grid, velocity, solver and decoder give the images of diffusers' own loop."""
    size, steps = SIZES[name], 3
    model, latents, pipeline = flow(folders[name], tmp_path, size)
    shape, family = latents.event_shape, model.family
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    shift = family.shift(pipeline.scheduler, model.transformer, shape)
    prompt = model.prompts.numbers(["a red square", "a white circle"])
    ours = generate(Velocity(model), noise, {"prompt": prompt}, time_grid(steps, shift))
    theirs = stock(folders[name])
    given = theirs._pack_latents(noise, 2, *shape) if name == "flux" else noise
    extra = {"sana": {"use_resolution_binning": False}, "flux": {"guidance_scale": 3.5}}.get(name, {})
    extra = {"guidance_scale": 1.0, **extra}
    sigmas = [1 - i / steps for i in range(steps)]
    images = theirs(["a red square", "a white circle"], sigmas=sigmas, num_inference_steps=steps, latents=given,
                    height=size, width=size, output_type="pt", **extra).images  # fmt: skip
    assert torch.equal(theirs.scheduler.sigmas, sigma_grid(steps, shift)) or torch.allclose(
        theirs.scheduler.sigmas, sigma_grid(steps, shift), atol=1e-6
    )
    torch.testing.assert_close(torch.stack(Decoder(family, pipeline.vae)(ours, {})), images, rtol=0, atol=1e-4)


def multistep_sana():
    """Sana with the scheduler that diffusers' conversion gives it, which takes no grid."""
    options = {"algorithm_type": "dpmsolver++", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return sana(DPMSolverMultistepScheduler(flow_shift=3.0, **options))


def short_sd3():
    """Stable Diffusion 3 whose T5 reads eight tokens."""
    pipeline = sd3()
    pipeline.tokenizer_3.model_max_length = 8
    return pipeline


@pytest.mark.parametrize("build", [short_sd3, flux, multistep_sana])
def test_the_code_of_a_card_draws_what_was_trained(build, tmp_path, cache):
    """By diffusers alone: the image of the model itself, from the same noise, of each family."""
    steps, size = 3, 32 if build is multistep_sana else 16
    folder = saved(tmp_path / "pipeline", build)
    trainee = latent_trainee(str(folder), "", data(tmp_path, size, base_samples=0), guidance=2.5)
    drawn, family = trainee.data.facts["text_to_image"], trainee.model.family
    code = image_usage(str(folder), drawn, "", steps).split("```python\n")[1].split("```")[0]
    for gpu, here in {"bfloat16": "float32", '"cuda"': '"cpu"', "image = pipeline(": "image = draw("}.items():
        code = code.replace(gpu, here)
    names = {"draw": lambda *a, **k: names["pipeline"](*a, **k, generator=torch.manual_seed(0), output_type="pt")}
    exec(code, names)
    noise = torch.randn(1, *trainee.data.event_shape, generator=torch.manual_seed(0))
    prompt = trainee.model.prompts.numbers([drawn["prompt"]])
    ours = generate(Velocity(trainee.model), noise, {"prompt": prompt}, time_grid(steps, trainee.base.shift))
    expected = Decoder(family, find_base(str(folder)).generator().vae)(ours, {})[0]
    torch.testing.assert_close(names["image"], expected, rtol=0, atol=1e-4)


@EVERY
def test_nothing_is_what_the_pipeline_guides_away_from(name, folders, tmp_path, cache):
    """Number 0 is the embedding that classifier-free guidance uses for an empty negative prompt."""
    pipeline = find_base(str(folders[name])).encoders()
    if name == "sana":
        _, _, embeds, mask = pipeline.encode_prompt("a red square")
        expected = {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}
    elif name == "sd3":
        _, embeds, _, pooled = pipeline.encode_prompt("a red square", None, None)
        expected = {"encoder_hidden_states": embeds, "pooled_projections": pooled}
    else:
        embeds, pooled, _ = pipeline.encode_prompt("", None)
        expected = {"encoder_hidden_states": embeds, "pooled_projections": pooled}
    _, table = encode(data(tmp_path, SIZES[name]), Encoder(find_base(str(folders[name]))))
    found = table.rows(torch.tensor([NOTHING]))
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key].to(value.dtype), rtol=1e-3, atol=1e-4)


def test_prompts_are_numbered_and_looked_up(folders, tmp_path, cache):
    """Each row of the data carries the number of its caption, and rows of numbers come back in their order."""
    latents, table = encode(data(tmp_path), Encoder(find_base(str(folders["sd3"]))))
    rows = latents.rows("train")
    assert rows.x_1.shape == (16, 4, 8, 8)
    assert {table.prompts[i] for i in rows.condition["prompt"].tolist()} <= set(CAPTIONS)
    assert table.prompts[NOTHING] == ""
    assert set(table.prompts[1:]) == {*CAPTIONS, "a white circle", "a red ground"}
    numbers = torch.tensor([3, 1, 3])
    found, alone = table.rows(numbers), table.rows(torch.tensor([3]))
    assert all(torch.equal(value[[0]], alone[key]) and torch.equal(value[2], value[0]) for key, value in found.items())
    with pytest.raises(ValueError, match="numbered 0 to 6"):
        table.rows(torch.tensor([7]))


@EVERY
def test_decoding_undoes_encoding_units(name, folders, tmp_path, cache):
    """Latents are in the transformer's units: what `decode` gives is the autoencoder's own reconstruction."""
    model, latents, pipeline = flow(folders[name], tmp_path, SIZES[name])
    x = latents.rows("train", range(2)).x_1
    raw = data(tmp_path, SIZES[name])
    assert latents.splits["train"]["prompt"][:2] == model.prompts.numbers(raw.splits["train"]["text"][:2]).tolist()
    pixels = raw.rows("train", range(2)).x_1
    with torch.no_grad():
        code = pipeline.vae.encode(pixels)
        expected = pipeline.vae.decode(code.latent if name == "sana" else code.latent_dist.mode()).sample
    torch.testing.assert_close(
        torch.stack(Decoder(model.family, pipeline.vae)(x, {})), (expected / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0
    )


def test_encoding_happens_once_and_changes_nothing(folders, tmp_path, cache, monkeypatch):
    """A second run reads the same latents and embeddings without loading an encoder; another size or base is encoded anew."""
    base = find_base(str(folders["sd3"]))
    first, table = encode(data(tmp_path), Encoder(base))
    direct = base.family.encode_images(base.encoders().vae, data(tmp_path).rows("train").x_1)
    torch.testing.assert_close(first.rows("train").x_1, direct.detach(), rtol=0, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "pipeline", property(lambda self: pytest.fail("an encoder was loaded")))
        again, table_again = encode(data(tmp_path), Encoder(base))
    assert torch.equal(first.rows("train").x_1, again.rows("train").x_1)
    numbers = torch.arange(len(table))
    assert all(torch.equal(value, table_again.rows(numbers)[key]) for key, value in table.rows(numbers).items())
    assert first.identity == again.identity
    other, _ = encode(data(tmp_path, resolution=8), Encoder(base))
    assert other.event_shape == (4, 4, 4)
    assert other.identity["encoded"] != first.identity["encoded"]


def test_an_interrupted_encoding_leaves_nothing(folders, tmp_path, cache, monkeypatch):
    """What was half encoded is not taken for the whole."""
    base, real = find_base(str(folders["sd3"])), Encoder.images

    def broken(self, *arguments):
        yield next(real(self, *arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "images", broken)
    with pytest.raises(KeyboardInterrupt):
        encode(data(tmp_path), Encoder(base))
    monkeypatch.undo()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert not [path for path in cache.rglob(".making-*")]
    assert len(encode(data(tmp_path), Encoder(base))[0].rows("train")) == 16


def test_the_shift_is_the_pipelines_at_every_resolution(folders):
    """Fixed: the scheduler's number. Dynamic: exp(mu), mu linear in the tokens, as the pipeline's own loop computes it."""
    fixed, dynamic = find_base(str(folders["sd3"])), find_base(str(folders["flux"]))
    one, other = fixed.generator(), dynamic.generator()
    assert fixed.family.shift(one.scheduler, one.transformer, (4, 8, 8)) == 3.0
    for size in (8, 16):
        tokens = (size // 2) ** 2
        mu = 0.5 + (tokens - 4) * (1.15 - 0.5) / (64 - 4)
        assert dynamic.family.shift(other.scheduler, other.transformer, (4, size, size)) == pytest.approx(math.exp(mu))


def test_training_times_take_the_shift_of_the_scheduler():
    """A shift of 0 is the scheduler's; any other is one's own; unresolved it is an error."""
    generator = torch.Generator().manual_seed(0)
    expected = TimeDensity(shift=3.0).sample(8, generator)
    assert torch.equal(TimeDensity(shift=0.0).on(3.0).sample(8, generator.manual_seed(0)), expected)
    assert TimeDensity(shift=2.0).on(3.0).shift == 2.0
    with pytest.raises(ValueError, match="stands for the scheduler's"):
        TimeDensity(shift=0.0).sample(2)


@pytest.mark.parametrize("option", ["shift_terminal", "use_karras_sigmas"])
def test_bent_grids_are_refused(option, folders):
    """A schedule that is no shifted uniform grid would be trained for wrongly."""
    base = find_base(str(folders["sd3"]))
    pipeline = base.generator()
    pipeline.scheduler.register_to_config(**{option: 0.1})
    with pytest.raises(ValueError, match=option):
        base.family.shift(pipeline.scheduler, pipeline.transformer, (4, 8, 8))


def test_models_that_predict_noise_are_refused(tmp_path, folders):
    """A pipeline of another kind, and one whose scheduler takes noise, are no flows."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ValueError, match="predict noise"):
        find_base(str(tmp_path))
    from diffusers import DDIMScheduler

    pipeline = sd3()
    pipeline.scheduler = DDIMScheduler()
    pipeline.save_pretrained(tmp_path / "noise")
    with pytest.raises(ValueError, match=r"DDIMScheduler takes 'epsilon'"):
        find_base(str(tmp_path / "noise")).generator()


def test_missing_captions_are_named(tmp_path, folders, cache):
    """No caption column, an empty caption, and images without any words."""
    with pytest.raises(ValueError, match="no column 'words' of captions"):
        data(tmp_path, caption_column="words")
    lines = (tmp_path / "images" / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join([lines[0].replace(CAPTIONS[0], ""), *lines[1:]]))
    with pytest.raises(
        ValueError, match=r"row \d+ of split '\w+' of 'images' \(\w+\.png\) has no caption but '': give it one"
    ):
        encode(data(tmp_path), Encoder(find_base(str(folders["sd3"]))))


def test_one_prompt_stands_for_all_captions(tmp_path, folders, cache):
    """With `data.prompt` no captions are needed."""
    latents, table = encode(data(tmp_path, prompt="a photo of sks"), Encoder(find_base(str(folders["sd3"]))))
    assert {table.prompts[i] for i in latents.rows("train").condition["prompt"].tolist()} == {"a photo of sks"}


def test_a_general_list_of_prompts_comes_with_the_package(tmp_path):
    """Without a file of one's own there are prompts of many kinds; an empty file is refused."""
    assert len(read_prompts("")) >= 50
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(str(tmp_path / "empty.txt"))


def test_images_of_a_wrong_size_are_refused(tmp_path, folders, cache):
    """Sizes that do not divide into the transformer's patches are named before anything is loaded."""
    encoder = Encoder(find_base(str(folders["sd3"])))
    with pytest.raises(
        ValueError, match=r"data.resolution must be a multiple of 4 for sd3, which takes no images of 18 x 18"
    ):
        encode(data(tmp_path, resolution=18), encoder)
    assert "pipeline" not in vars(encoder)
