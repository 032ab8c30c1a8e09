"""Images of several aspect ratios: each in the bucket next to its own, seen by the transformer in its own size, at no cost for the padding."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image
from tiny_latents import CAPTIONS, PIPELINES, saved, settings

from hf_flowft import Run, load_config
from hf_flowft.conventions import time_grid
from hf_flowft.couplings import Shard
from hf_flowft.data import CaptionedConfig, load_captioned
from hf_flowft.data.buckets import Buckets, bucket_numbers, buckets_of, on_white
from hf_flowft.latents import FAMILIES, NOTHING
from hf_flowft.sampling import generate
from hf_flowft.solvers import integrate
from hf_flowft.training.report import report
from hf_flowft.training.sharding import _blocks
from hf_flowft.velocity import Velocity

SIZES = [(16, 16), (30, 50), (50, 30)]
"""(height, width) of the images; their ratios are those of the three buckets of resolution 16 in steps of 4."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images of three aspect ratios, each in a colour, prompts of the base, and a saved Stable Diffusion 3."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "images").mkdir()
    with (folder / "images" / "metadata.jsonl").open("w") as metadata:
        for row in range(21):
            height, width = SIZES[row % 3]
            pixels = np.full((height, width, 3), 40 + 50 * (row % 3) + row, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{row:02}.png")
            metadata.write(json.dumps({"file_name": f"{row:02}.png", "text": CAPTIONS[row % len(CAPTIONS)]}) + "\n")
    (folder / "prompts.txt").write_text("a white circle\na red ground\n")
    saved(folder / "base", PIPELINES["sd3"])
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(home):
    """A cache of `datasets` of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", home / "cache")
        yield


def run(home, folder, method="fm", **options):
    """A small run with buckets, built but not executed."""
    options = {"data.bucket_step": 4, "output_dir": folder, **options}
    return Run(load_config(None, settings(home, method, **options)), progress=False)


def images(home, **options):
    """The images of `home` in buckets."""
    given = {"path": str(home / "images"), "resolution": 16, "bucket_step": 4, **options}
    return load_captioned(CaptionedConfig(**given))


def test_sizes_fill_the_area_of_the_resolution():
    """For 512 and 64 they are the five sizes counted by hand: no side can grow by a step within 512^2 and twice as long as wide."""
    found = buckets_of(512, 64)
    assert found.sizes == ((512, 512), (384, 640), (448, 576), (576, 448), (640, 384))
    assert found.canvas == (640, 640)
    assert buckets_of(16, 16).sizes == ((16, 16),)
    for step in (0, -8, 100):
        with pytest.raises(ValueError, match=r"bucket_step must divide data.resolution 512 \(for 512: 64\)"):
            buckets_of(512, step)


def test_the_nearest_ratio_is_taken():
    """On a logarithmic scale, so that a portrait falls where the same landscape does, turned."""
    found = buckets_of(512, 64)
    assert [found.sizes[found.nearest(h, w)] for h, w in [(100, 100), (300, 500), (3000, 2000), (10, 1000)]] == [
        (512, 512),
        (384, 640),
        (640, 384),
        (384, 640),
    ]
    for height, width in [(7, 9), (640, 480), (1080, 1920)]:
        one, other = found.sizes[found.nearest(height, width)], found.sizes[found.nearest(width, height)]
        assert one == other[::-1]


def test_images_lie_in_their_buckets(home):
    """Every image fills the size of its bucket and nothing else of the canvas; cameras held upright are turned first."""
    data = images(home)
    rows = data.rows("train")
    assert data.event_shape == (3, 20, 20)
    assert set(rows.condition["size"].tolist()) == {0, 1, 2}
    for x, number in zip(rows.x_1, rows.condition["size"].tolist(), strict=True):
        height, width = data.buckets.sizes[number]
        assert (x[:, :height, :width] > -1).all()
        assert (x[:, height:] == -1).all()
        assert (x[:, :, width:] == -1).all()


def test_a_turned_photograph_falls_where_it_is_shown(tmp_path):
    """EXIF orientation 6 means a quarter turn: stored as landscape, shown and kept as portrait."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for row in range(12):
        picture = Image.new("RGB", (50, 30), (200, 10 * row, 0))
        picture.save(tmp_path / f"{row:02}.jpg", **({"exif": exif} if row % 2 else {}))
    data = load_captioned(
        CaptionedConfig(path=str(tmp_path), resolution=16, bucket_step=4, prompt="red", validation=0.2, test=0.2)
    )
    rows = data.rows("train")
    upright = (rows.x_1[:, 0, 19, 0] > 0.5).long()  # the last row of a portrait
    assert torch.equal(rows.condition["size"], 1 + upright)


def test_the_transformer_sees_each_latent_in_its_own_size(home, tmp_path):
    """A batch of several sizes gives what the transformer of diffusers gives for each latent alone."""
    built = run(home, tmp_path / "run")
    model, rows = built.trainee.model, built.data.rows("train")
    assert built.data.event_shape == (4, 10, 10)
    timestep, found = (
        torch.full((len(rows),), 600.0),
        model(rows.x_1, torch.full((len(rows),), 600.0), **rows.condition),
    )
    for i in range(len(rows)):
        height, width = model.buckets.sizes[int(rows.condition["size"][i])]
        latent, text = rows.x_1[i : i + 1, :, :height, :width], model.prompts.rows(rows.condition["prompt"][i : i + 1])
        alone = model.transformer(hidden_states=latent, timestep=timestep[:1], **text, return_dict=False)[0]
        torch.testing.assert_close(found.sample[i : i + 1, :, :height, :width], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_padding_flows_to_zero(solver, home, tmp_path):
    """From noise, whatever the solver; what lies in the bucket is what the same noise gives without a canvas."""
    built = run(home, tmp_path / "run")
    model, shape = built.trainee.model, built.data.event_shape
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    condition = {"prompt": torch.tensor([1, 2, 3]), "size": torch.tensor([0, 1, 2])}
    x = generate(Velocity(model), noise, condition, [0.0, 0.3, 0.7, 1.0], solver)
    for i, (height, width) in enumerate(model.buckets.sizes):
        padding = torch.ones(shape, dtype=torch.bool)
        padding[:, :height, :width] = False
        assert (x[i][padding] == 0).all()
        square = {"prompt": condition["prompt"][i : i + 1]}
        alone = generate(Velocity(model), noise[i : i + 1, :, :height, :width], square, [0.0, 0.3, 0.7, 1.0], solver)
        torch.testing.assert_close(x[i : i + 1, :, :height, :width], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_padding_needs_no_correction(solver, home, tmp_path):
    """Solvers that do not ask at t = 1 end in zero by the velocity alone, also inside of a loss."""
    built = run(home, tmp_path / "run")
    noise = torch.randn(1, *built.data.event_shape, generator=torch.Generator().manual_seed(0))
    field = Velocity(built.trainee.model).field({"prompt": torch.tensor([1]), "size": torch.tensor([1])})
    with torch.no_grad():
        x = integrate(field, noise, [0.0, 0.3, 0.7, 1.0], solver).x
    height, width = built.data.buckets.sizes[1]
    assert x[..., height:, :].abs().max() < 1e-5
    assert x[..., :height, :width].abs().max() > 0.1


def test_padding_adds_nothing_to_a_loss(home, tmp_path):
    """The squared errors of the canvas are those of the buckets: flow matching's own target in the padding is what the model says there."""
    built = run(home, tmp_path / "run")
    batch = built.objective.draw(built.data.rows("train"), torch.Generator().manual_seed(0), Shard())
    velocity = Velocity(built.trainee.model)
    error = velocity(batch.x_t, batch.t, **batch.condition) - (batch.x_1 - batch.x_0)
    for row, number in zip(error, batch.condition["size"].tolist(), strict=True):
        height, width = built.data.buckets.sizes[number]
        padding = torch.ones(row.shape, dtype=torch.bool)
        padding[:, :height, :width] = False
        assert row[padding].abs().max() < 1e-3
        assert row[~padding].abs().max() > 0.1


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_padding_adds_nothing_to_a_reconstruction(solver, home, tmp_path):
    """With a solver that asks at t = 1 too, the loss is the mean of the squared errors inside of the buckets alone, over the canvas."""
    built = run(home, tmp_path / "run", "mle", **{"objective.solver": solver})
    rows = built.data.rows("train").rows(slice(0, 3))
    batch = replace(rows, x_0=torch.randn(rows.x_1.shape, generator=torch.Generator().manual_seed(0)))
    velocity = Velocity(built.trainee.model)
    loss, _ = built.objective(velocity, batch, 0, torch.Generator())
    end, squares = generate(velocity, batch.x_0, batch.condition, time_grid(2, 3.0), solver), 0.0
    for x, x_1, number in zip(end, batch.x_1, batch.condition["size"].tolist(), strict=True):
        height, width = built.data.buckets.sizes[number]
        squares += (x - x_1)[:, :height, :width].square().sum().item()
    assert loss.item() == pytest.approx(squares / batch.x_1.numel(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["replay", "mle", "self"])
def test_every_objective_trains_on_buckets(method, home, tmp_path):
    """The run ends, forgetting is measured on samples of all sizes, and diffusers loads the adapter and draws an image of a bucket."""
    finished = run(home, tmp_path / "run", method, **{"data.base_samples": 6}).execute()
    assert finished.results["selection"]["improved"]
    assert any(name.startswith("base_domain/") for name in finished.results["metrics"]["result"])
    pipeline = FAMILIES["StableDiffusion3Pipeline"].pipeline_class().from_pretrained(home / "base")
    pipeline.load_lora_weights(tmp_path / "run" / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(CAPTIONS[0], height=12, width=20, num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (1, 3, 12, 20)


def test_missing_and_broken_images_are_named_by_their_rows(home, tmp_path):
    """They are in some bucket, and whoever reads them says which row it is."""
    column = [{"bytes": (home / "images" / "00.png").read_bytes()}, None, {"bytes": b"no image"}]
    rows = Dataset.from_dict({"image": column}, Features({"image": ImageColumn(decode=False)}))
    assert bucket_numbers(rows, "image", buckets_of(16, 4)) == [0, 0, 0]
    table = {"image": [{"bytes": (home / "images" / "01.png").read_bytes()}] * 12 + [None]}
    Dataset.from_dict(table, Features({"image": ImageColumn()})).to_parquet(tmp_path / "rows.parquet")
    given = {"path": str(tmp_path / "rows.parquet"), "prompt": "red", "validation": 0.2, "test": 0.2}
    data = load_captioned(CaptionedConfig(resolution=16, bucket_step=4, **given))
    with pytest.raises(ValueError, match="has no image"):
        [data.rows(split) for split in data.splits]


def test_dropped_prompts_keep_their_sizes(home, tmp_path):
    """Condition dropout takes the prompt and leaves the size."""
    built = run(home, tmp_path / "run", **{"train.condition_dropout": 0.5})
    batch = built.data.rows("train")
    dropped = built.trainer.dropout(batch, torch.Generator().manual_seed(0), Shard()).condition
    assert (dropped["prompt"] == NOTHING).any()
    assert torch.equal(dropped["size"], batch.condition["size"])


def test_pictures_show_each_size_on_white(home, tmp_path):
    """Decoded samples are the autoencoder's images of the latents in their own size; the rest of the canvas is white."""
    built = run(home, tmp_path / "run")
    rows = built.data.rows("train")
    shown = built.data.to_unit(rows.x_1, rows.condition)
    sizes = built.data.buckets.sizes
    assert shown.shape[1:] == (3, 20, 20)
    for image, latent, number in zip(shown, rows.x_1, rows.condition["size"].tolist(), strict=True):
        height, width = sizes[number]
        decoder = built.data.to_images
        alone = decoder.family.decode(decoder.vae, latent[None, :, :height, :width])[0]
        torch.testing.assert_close(image[:, : 2 * height, : 2 * width], (alone / 2 + 0.5).clamp(0, 1))
        assert (image[:, 2 * height :] == 1).all()
        assert (image[:, :, 2 * width :] == 1).all()


def test_numbers_of_paths_are_those_of_samples(home, tmp_path):
    """The padding would count in the length of a path, and its end keeps an adaptive solver busy: with buckets they are not reported."""
    options = {"eval.path_numbers": True, "eval.max_samples": 3, "eval.num_repeats": 1}
    built = run(home, tmp_path / "run", **options)
    numbers = report(built.trainer.evaluator, Velocity(built.trainee.model))
    assert not {"path_length", "straightness", "nfe_dopri5"} & set(numbers)


def test_models_of_several_sizes_are_gathered_whole(home, tmp_path):
    """Block by block, processes that see other numbers of sizes would wait for each other."""
    built = run(home, tmp_path / "run")
    assert _blocks(built.trainer.whole) == []
    square = run(home, tmp_path / "square", **{"data.bucket_step": 0})
    assert _blocks(square.trainer.whole) != []


def test_steps_that_do_not_fit_are_refused(home, tmp_path):
    """A step the resolution is no multiple of, and sizes the autoencoder does not divide."""
    with pytest.raises(ValueError, match=r"bucket_step must divide data.resolution 16"):
        run(home, tmp_path / "run", **{"data.bucket_step": 5})
    with pytest.raises(ValueError, match=r"data.bucket_step must be a multiple of 4 for base.* no images of 14 x 18"):
        run(home, tmp_path / "run", **{"data.bucket_step": 2})


def test_buckets_are_cut_and_padded():
    """Crops come back by their size, in the order of the buckets; padding is where the canvas is larger."""
    buckets = Buckets(((2, 2), (1, 3)))
    x = torch.arange(18.0).reshape(3, 1, 2, 3)
    found = [(rows.tolist(), part.tolist(), size) for rows, part, size in buckets.crops(x, torch.tensor([1, 0, 1]))]
    assert found == [([1], [[[[6, 7], [9, 10]]]], (2, 2)), ([0, 2], [[[[0, 1, 2]]], [[[12, 13, 14]]]], (1, 3))]
    assert buckets.pad(torch.ones(1, 1, 3)).tolist() == [[[1, 1, 1], [0, 0, 0]]]
    assert on_white([torch.zeros(1, 2, 1), torch.zeros(1, 1, 2)]).tolist() == [[[[0, 1], [0, 1]]], [[[0, 0], [1, 1]]]]
