"""Low-rank adapters trained by every objective: the base stays inside, only the adapter learns, and diffusers alone can use the result."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from test_resume import assert_same, last_weights
from tiny import pretrained
from tiny_latents import PIPELINES, captioned, saved, settings

from hf_flowft import Callback, FlowPipeline, FrozenVelocity, Run, load_config
from hf_flowft.cli import main
from hf_flowft.conventions import time_grid
from hf_flowft.couplings import Shard
from hf_flowft.latents import FAMILIES, Decoder, adapters_off, add_lora, find_base
from hf_flowft.latents.lora import ADAPTER, START, WEIGHTS
from hf_flowft.randomness import keyed_generator
from hf_flowft.sampling import generate
from hf_flowft.velocity import SharedVelocity, Velocity

METHODS = ["fm", "gft", "replay", "prior", "mle", "self"]
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
PROMPT = "a photo of a sks circle"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images, prompts of the base, and a saved Stable Diffusion 3."""
    folder = tmp_path_factory.mktemp("home")
    captioned(folder / "images")
    (folder / "prompts.txt").write_text("a white circle\na red ground\n")
    saved(folder / "base", PIPELINES["sd3"])
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(home):
    """A cache of `datasets` of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", home / "cache")
        yield


def run(home, folder, method="fm", callbacks=(), **options):
    """A small run, built but not executed."""
    return Run(load_config(None, settings(home, method, output_dir=folder, **options)), callbacks, progress=False)


def stock_images(pipeline, prompt=PROMPT):
    """The same by diffusers alone."""
    pipeline.set_progress_bar_config(disable=True)
    options = {"sigmas": [1, 0.75, 0.5, 0.25], "num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "pt"}
    return pipeline([prompt] * 2, latents=NOISE, height=16, width=16, **options).images


def stock(folder):
    """The pipeline as diffusers loads it."""
    return FAMILIES["StableDiffusion3Pipeline"].pipeline_class().from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_diffusers_alone_draws_the_same_images(method, home, tmp_path):
    """Each objective trains, and `load_lora_weights` on the run's folder gives the images of the trained velocity, not those of the base."""
    chosen = {"seed": 1} if method == "self" else {}  # two steps that made it better on two images
    finished = run(home, tmp_path / "run", method, **chosen).execute()
    pipeline = stock(home / "base")
    before = stock_images(pipeline)
    pipeline.load_lora_weights(tmp_path / "run" / "pipeline")
    after = stock_images(pipeline)
    model = finished.pipeline.model
    numbers = model.prompts.numbers([PROMPT, PROMPT])
    latents = generate(finished.pipeline.velocity(), NOISE, {"prompt": numbers}, time_grid(4, 3.0))
    ours = torch.stack(Decoder(model.family, pipeline.vae)(latents, {}))
    assert finished.results["selection"]["improved"]
    torch.testing.assert_close(ours, after, rtol=0, atol=1e-4)
    assert (after - before).abs().max() > 1e-3


class Looks(Callback):
    """Compares the reference with a frozen copy of the base after every step."""

    def __init__(self):
        self.same, self.copy = [], None

    def on_log(self, trainer, step, logs):
        """The reference is asked in the middle of a run, by a model in training mode."""
        reference = trainer.objective.reference
        assert isinstance(reference, SharedVelocity)
        assert trainer.velocity.model.training
        x, t, prompt = NOISE, torch.tensor([0.2, 0.9]), torch.tensor([1, 2])
        moved = (trainer.velocity(x, t, prompt=prompt).detach() - reference(x, t, prompt=prompt)).abs().max()
        self.same.append((torch.equal(reference(x, t, prompt=prompt), self.copy(x, t, prompt=prompt)), float(moved)))
        assert trainer.velocity.model.training
        assert all(p.requires_grad for p in trainer.trained.values())


@pytest.mark.parametrize("method", ["gft", "replay"])
def test_the_reference_is_the_base_bit_for_bit(method, home, tmp_path):
    """Before, while and after the adapter learns, the network with its adapters off is the pipeline's own transformer."""
    looks = Looks()
    built = run(home, tmp_path / "run", method, (looks,), **{"model.dropout": 0.2})
    fresh = find_base(str(home / "base")).generator().transformer
    same = type(built.trainee.model)(fresh, built.trainee.model.family, built.trainee.model.prompts)
    looks.copy = FrozenVelocity(same)
    x, t, prompt = NOISE, torch.tensor([0.2, 0.9]), torch.tensor([1, 2])
    assert torch.equal(Velocity(built.trainee.model.eval())(x, t, prompt=prompt), looks.copy(x, t, prompt=prompt))
    built.trainer.train()
    assert [same for same, _ in looks.same] == [True, True]
    assert looks.same[-1][1] > 1e-4
    assert torch.equal(built.reference(x, t, prompt=prompt), looks.copy(x, t, prompt=prompt))


def test_adapters_come_back_whatever_happens(home, tmp_path):
    """An error inside of the block leaves the adapters on and trained."""
    transformer = run(home, tmp_path / "run").trainee.model.transformer
    with pytest.raises(KeyboardInterrupt), adapters_off(transformer):
        raise KeyboardInterrupt
    trained = [name for name, p in transformer.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_only_the_adapter_learns(home, tmp_path):
    """After a run every weight of the transformer is what it was, and the adapter has moved where its output is used."""
    built = run(home, tmp_path / "run", "gft")
    transformer = built.trainee.model.transformer
    before = {name: p.detach().clone() for name, p in transformer.named_parameters()}
    built.trainer.train()
    moved = {name for name, p in transformer.named_parameters() if not torch.equal(p, before[name])}
    assert all("lora_" in name for name in moved)
    assert all("lora_" in name for name in last_weights(tmp_path / "run"))
    assert {name for name in before if "lora_B" in name and "attn.to_" in name and "to_add_out" not in name} <= moved


@pytest.mark.slow
def test_gft_at_alpha_one_is_plain(home, tmp_path):
    """With no temperature GFT is flow matching, bit for bit."""
    cold = {"train.temperature.initial_temperature": 0.0, "train.temperature.final_temperature": 0.0}
    run(home, tmp_path / "gft", "gft", **cold).trainer.train()
    run(home, tmp_path / "fm", "fm", **cold).trainer.train()
    one, other = last_weights(tmp_path / "gft"), last_weights(tmp_path / "fm")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gft", "self"])
def test_recomputed_activations_change_nothing(method, home, tmp_path):
    """Gradient checkpointing gives the same weights, also with the base asked in between."""
    for flag in (False, True):
        run(home, tmp_path / str(flag), method, **{"train.gradient_checkpointing": flag}).trainer.train()
    one, other = last_weights(tmp_path / "False"), last_weights(tmp_path / "True")
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6)


def test_averages_follow_the_adapter(home, tmp_path):
    """The moving average of a GFT run is that of its live weights, although the base was asked at every step."""
    seen = []

    class Keeps(Callback):
        def on_log(self, trainer, step, logs):
            """The live weights after every step."""
            seen.append({name: p.detach().clone() for name, p in trainer.trained.items()})

    options = {"train.ema_decay": 0.5, "train.ema_mode": "constant", "train.num_steps": 3}
    built = run(home, tmp_path / "run", "gft", (Keeps(),), **options)
    average = {name: p.detach().clone() for name, p in built.trainer.trained.items()}
    built.trainer.train()
    for live in seen:
        average = {name: 0.5 * average[name] + 0.5 * live[name] for name in average}
    for name, value in last_weights(tmp_path / "run", "ema").items():
        torch.testing.assert_close(value, average[name])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["replay", "mle"])
def test_a_resumed_run_is_the_uninterrupted_one(method, home, tmp_path):
    """Two steps and two more are four, bit for bit, with the banks of the first part."""
    steps = {"train.num_steps": 4, "train.checkpoint_every": 2}
    run(home, tmp_path / "whole", method, **steps).trainer.train()
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-2", tmp_path / "half")
    again = run(home, tmp_path / "parts", method, **steps, **{"train.resume_from_checkpoint": tmp_path / "half"})
    again.trainer.train()
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_run_on_cached_encodings_is_the_same_run(home, tmp_path, monkeypatch):
    """Encoding now or reading what was encoded before: the same weights and numbers, bit for bit."""
    run(home, tmp_path / "warm").trainer.train()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "other")
    run(home, tmp_path / "cold").trainer.train()
    assert_same(tmp_path / "warm", tmp_path / "cold")


def test_replay_keeps_the_bases_prompts(home, tmp_path):
    """The bank holds the base's samples under the base's prompts, and its targets are the base's velocity."""
    built = run(home, tmp_path / "run", "replay")
    bank, table = built.objective.replay, built.trainee.model.prompts
    assert {table.prompts[i] for i in bank.condition["prompt"].tolist()} == {"a white circle", "a red ground"}
    assert bank.states is None
    assert bank.z_1.shape == (8, 4, 8, 8)


@pytest.mark.slow
def test_replay_is_drawn_once(home, tmp_path, monkeypatch):
    """A second run reads the same samples without asking the base; another seed, or an adapter that became the base, draws its own."""
    first = run(home, tmp_path / "first", "replay")
    with monkeypatch.context() as patch:
        patch.setattr("hf_flowft.replay.generate", lambda *a, **k: pytest.fail("the base was asked"))
        second = run(home, tmp_path / "second", "replay")
    assert torch.equal(first.objective.replay.z_1, second.objective.replay.z_1)
    other = run(home, tmp_path / "other", "replay", seed=1)
    assert not torch.equal(first.objective.replay.z_1, other.objective.replay.z_1)
    first.trainer.train()
    start = first._pipeline(first.trainee.model)
    start.save_pretrained(tmp_path / "adapter")
    moved = run(home, tmp_path / "moved", "replay", **{"model.start": tmp_path / "adapter"})
    assert not torch.equal(first.objective.replay.z_1, moved.objective.replay.z_1)


def test_training_times_are_shifted_like_the_grid(home, tmp_path):
    """With `times.shift: 0` the shift of training times, of the pairs' grid and of evaluation is the pipeline's one number."""
    built = run(home, tmp_path / "run", "fm", **{"objective.times.shift": 0})
    assert built.objective.times.shift == built.trainer.evaluator.sampler.shift == built.shift == 3.0


def test_conditions_are_dropped_for_nothing(home, tmp_path):
    """With condition dropout a prompt becomes number 0, which is what guidance asks for."""
    built = run(home, tmp_path / "run", **{"train.condition_dropout": 0.5})
    batch = built.data.rows("train")
    dropped = built.trainer.dropout(batch, torch.Generator().manual_seed(0), Shard()).condition["prompt"]
    assert 0 < (dropped == 0).sum() < len(dropped)
    assert torch.equal(dropped[dropped != 0], batch.condition["prompt"][dropped != 0])
    built.trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "sana"])
def test_other_families_train_the_same_way(name, home, tmp_path):
    """GFT with replay on Flux and Sana, loaded into diffusers' pipeline."""
    saved(tmp_path / "base", PIPELINES[name])
    size = 32 if name == "sana" else 16
    options = {"model.path": tmp_path / "base", "data.resolution": size, "objective.times.shift": 0}
    finished = run(home, tmp_path / "run", "replay", **options).execute()
    cls = find_base(str(tmp_path / "base")).family.pipeline_class()
    pipeline = cls.from_pretrained(tmp_path / "base")
    pipeline.set_progress_bar_config(disable=True)
    assert finished.results["selection"]["improved"]
    before, after = [], []
    for images in (before, after):
        options = {"num_inference_steps": 2, "height": size, "width": size, "output_type": "pt"}
        options |= {"use_resolution_binning": False} if name == "sana" else {}
        images.append(pipeline(PROMPT, generator=torch.Generator().manual_seed(0), **options).images)
        pipeline.load_lora_weights(tmp_path / "run" / "pipeline")
    assert (after[0] - before[0]).abs().max() > 1e-4


@pytest.mark.slow
def test_half_precision_is_the_bases_alone(home, tmp_path):
    """A base in bfloat16 under adapters, averages and latents in float32."""
    finished = run(home, tmp_path / "run", "gft", **{"model.dtype": "bfloat16"}).execute()
    kinds = {p.dtype for name, p in finished.pipeline.model.transformer.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32}
    assert finished.pipeline.model.working_dtype == torch.bfloat16
    weights = load_file(tmp_path / "run" / "pipeline" / "pytorch_lora_weights.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.mark.slow
def test_the_whole_transformer_is_trained_and_saved_as_a_pipeline(home, tmp_path):
    """Without an adapter the reference is a copy, and the run's folder is a whole pipeline of diffusers."""
    built = run(home, tmp_path / "run", "gft", model="pretrained")
    assert type(built.reference) is FrozenVelocity
    finished = built.execute()
    whole = stock(tmp_path / "run" / "pipeline")
    trained = finished.pipeline.model.transformer.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in whole.transformer.state_dict().items())
    assert not torch.equal(stock_images(whole), stock_images(stock(home / "base")))


def test_the_card_says_how_diffusers_loads_it(home, tmp_path):
    """Base, adapter, trigger words and the grid are on the card; the code on it is Python."""
    run(home, tmp_path / "run", "fm", **{"data.prompt": "a photo of sks"}).execute()
    card = (tmp_path / "run" / "README.md").read_text()
    for text in ("pipeline_tag: text-to-image", "instance_prompt: a photo of sks", "- lora", "load_lora_weights"):
        assert text in card
    assert "SD3Transformer2DModel" in card
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    shown = ModelCard(card).data.to_dict()["widget"]
    assert [entry["text"] for entry in shown] == ["a photo of sks", "a white circle", "a red ground"]
    for entry in shown:
        assert PILImage.open(tmp_path / "run" / entry["output"]["url"]).size == (16, 16)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["base_model"]["relation"] == "adapter"
    assert results["data"]["text_to_image"]["pipeline"] == "StableDiffusion3Pipeline"


@pytest.mark.slow
def test_forgetting_is_measured_on_the_bases_own_samples(home, tmp_path):
    """Under prompts that replay does not use, by rows that no run's seed changes; the base's and the result's numbers are in the report."""
    (home / "four.txt").write_text("a white circle\na red ground\na photo\na square\n")
    words = {"data.base_samples": 3, "data.base_prompts": home / "four.txt"}
    built = run(home, tmp_path / "run", "replay", **words)
    named = {split: {built.trainee.model.prompts.prompts[i] for i in built.data.rows(split).condition["prompt"].tolist()}
             for split in ("base_validation", "base_test")}  # fmt: skip
    assert named == {"base_validation": {"a photo"}, "base_test": {"a square"}}
    kept = {built.trainee.model.prompts.prompts[i] for i in built.objective.replay.condition["prompt"].tolist()}
    assert kept == {"a white circle", "a red ground"}
    prompt = built.data.rows("base_test").condition["prompt"]
    noise = torch.randn(3, 4, 8, 8, generator=keyed_generator(0, "own samples", "base_test"))
    expected = generate(built.reference, noise, {"prompt": prompt}, time_grid(28, 3.0))
    torch.testing.assert_close(built.data.rows("base_test").x_1, expected, rtol=0, atol=1e-4)
    again = run(home, tmp_path / "again", "fm", **words, seed=5)
    assert torch.equal(again.data.rows("base_test").x_1, built.data.rows("base_test").x_1)
    results = built.execute().results
    assert "base_domain/held_out_loss" in results["metrics"]["base"]
    assert len(results["selection"]["scores"][0]["base_domain"]) == 2


@pytest.mark.slow
def test_a_fine_tune_of_a_fine_tune_is_held_to_the_first_base(home, tmp_path):
    """With `data.base_pipeline` forgetting is measured on that pipeline's samples, whatever the run starts from; another family is refused."""
    first = run(home, tmp_path / "first", model="pretrained", **{"data.base_samples": 2})
    first.execute()
    start = {"model.path": tmp_path / "first" / "pipeline", "data.base_samples": 2}
    own = run(home, tmp_path / "own", model="pretrained", **start)
    held = run(home, tmp_path / "held", model="pretrained", **start, **{"data.base_pipeline": home / "base"})
    expected = first.data.rows("base_test").x_1
    assert torch.equal(held.data.rows("base_test").x_1, expected)
    assert not torch.equal(own.data.rows("base_test").x_1, expected)
    saved(tmp_path / "flux", PIPELINES["flux"])
    with pytest.raises(ValueError, match="flux is a FluxPipeline, but pipeline is a StableDiffusion3Pipeline"):
        run(home, tmp_path / "other", model="pretrained", **start, **{"data.base_pipeline": tmp_path / "flux"})


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_a_few_images_are_enough(count, home, tmp_path):
    """One is trained and judged on; of eight, one is held out for each purpose. What needs two samples is left out of the report, or refused before."""
    captioned(tmp_path / "images", rows=count)
    words = {
        "data.path": tmp_path / "images",
        "data.base_samples": 2,
        "eval.metric": "held_out_loss",
        "train.batch_size": 1,
    }
    results = run(home, tmp_path / "run", **words).execute().results
    assert results["data"]["counts"]["test"] == 1 if count > 1 else "test" not in results["data"]["counts"]
    assert "nearest_train" in results["metrics"]["result"]
    assert "diversity" not in results["metrics"]["result"]
    with pytest.raises(ValueError, match="kid needs two"):
        run(home, tmp_path / "kid", **words, **{"eval.kid": True})


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(home, tmp_path):
    """GFT with replay on two processes (DDP) ends at the adapter of one process, to rounding."""
    words = ["finetune", "gft", *settings(home, "replay", output_dir=tmp_path / "two")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(home / "cache")
    script = [str(Path(__file__).with_name("distributed_run.py")), "command", str(tmp_path / "two"), *words]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, *script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    run(home, tmp_path / "one", "replay").trainer.train()
    one, two = (last_weights(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_a_run_goes_on_from_an_adapter(home, tmp_path):
    """Replay first, reconstructions after it: the base of the second run is the result of the first, bit for bit, and one adapter comes out."""
    first = run(home, tmp_path / "first", "replay").execute().pipeline
    second = run(home, tmp_path / "second", "self", **{"model.start": tmp_path / "first" / "pipeline"})
    x, t, prompt = NOISE, torch.tensor([0.2, 0.9]), torch.tensor([1, 2])
    start = first.velocity()(x, t, prompt=prompt).detach()
    torch.testing.assert_close(second.reference(x, t, prompt=prompt), start, rtol=0, atol=1e-5)
    own = Velocity(second.trainee.model.eval())(x, t, prompt=prompt).detach()
    assert torch.equal(own, second.reference(x, t, prompt=prompt))
    reference = second.reference(x, t, prompt=prompt)
    second.execute()
    assert torch.equal(second.reference(x, t, prompt=prompt), reference)
    trained = {name for name, p in second.trainee.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".default." in name for name in trained)
    pipeline = stock(home / "base")
    pipeline.load_lora_weights(tmp_path / "second" / "pipeline")
    latents = generate(Velocity(second.trainee.model), NOISE, {"prompt": prompt}, time_grid(4, 3.0))
    assert latents.isfinite().all()
    assert len(load_file(tmp_path / "second/pipeline/pytorch_lora_weights.safetensors")) == len(
        load_file(tmp_path / "first/pipeline/pytorch_lora_weights.safetensors")
    )
    with pytest.raises(ValueError, match="nowhere' is no folder here"):
        run(home, tmp_path / "third", **{"model.start": tmp_path / "nowhere"})


@pytest.mark.slow
def test_adapters_may_be_a_part_of_the_base(home, tmp_path):
    """A second adapter is learned on a base with the first: it starts as that base, which never changes, and diffusers draws with the two together."""
    run(home, tmp_path / "first", "fm", **{"eval.num_repeats": 1, "eval.min_delta": 0}).execute()
    first = tmp_path / "first" / "pipeline"
    fused, plain = f"[{first}]", run(home, tmp_path / "plain", "fm")
    second = run(home, tmp_path / "second", "gft", **{"model.fused": fused, "data.base_samples": 4})
    pipeline = stock(home / "base")
    pipeline.load_lora_weights(first)
    x, t, prompt = NOISE, torch.tensor([0.2, 0.9]), torch.tensor([1, 2])
    model = second.trainee.model.eval()
    both = type(model)(pipeline.transformer, model.family, model.prompts)
    reference = second.reference(x, t, prompt=prompt)
    torch.testing.assert_close(reference, Velocity(both)(x, t, prompt=prompt).detach(), rtol=0, atol=1e-5)
    assert not torch.allclose(reference, plain.reference(x, t, prompt=prompt), atol=1e-4)
    assert torch.equal(Velocity(model)(x, t, prompt=prompt), reference)
    finished = second.execute()
    assert torch.equal(second.reference(x, t, prompt=prompt), reference)
    card = (tmp_path / "second" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert (
        code.index("first/pipeline")
        < code.index("fuse_lora()")
        < code.index("unload_lora")
        < code.index('weights("pipe')
    )
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(tmp_path / "second" / "pipeline")
    numbers = model.prompts.numbers([PROMPT, PROMPT])
    latents = generate(finished.pipeline.velocity(), NOISE, {"prompt": numbers}, time_grid(4, 3.0))
    expected = torch.stack(Decoder(model.family, pipeline.vae)(latents, {}))
    torch.testing.assert_close(stock_images(pipeline), expected, rtol=0, atol=1e-4)
    assert find_base(str(home / "base"), fused=[str(first)]).fingerprint("transformer")[:-1] == find_base(
        str(home / "base")
    ).fingerprint("transformer")


@pytest.mark.slow
def test_an_adapter_says_what_it_was_trained_beside(home, tmp_path, capsys):
    """Merged, or gone on from, without the adapters that were a part of its base it is refused by their names; with them it is the run's result."""
    run(home, tmp_path / "first", "fm", **{"eval.num_repeats": 1, "eval.min_delta": 0}).execute()
    first, base = str(tmp_path / "first" / "pipeline"), str(home / "base")
    words = {"model.fused": f"[{first}]", "eval.min_delta": 0, "data.base_samples": 2}
    finished = run(home, tmp_path / "second", "fm", **words).execute()
    second, whole = str(tmp_path / "second" / "pipeline"), tmp_path / "whole"
    assert main(["export", second, "--merge-into", base, "--out", str(whole)]) == 2
    assert "trained on a base with first/pipeline added to it" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"first/pipeline added to it, .* as model\.fused"):
        run(home, tmp_path / "third", **{"model.start": second})
    assert main(["export", second, "--fused", first, "--out", str(whole)]) == 2
    assert "give the pipeline too, with --merge-into" in capsys.readouterr().err
    assert main(["export", second, "--merge-into", base, "--fused", first, "--out", str(whole)]) == 0
    merged = stock(whole)
    numbers = finished.pipeline.model.prompts.numbers([PROMPT, PROMPT])
    latents = generate(finished.pipeline.velocity(), NOISE, {"prompt": numbers}, time_grid(4, 3.0))
    expected = torch.stack(Decoder(finished.pipeline.model.family, merged.vae)(latents, {}))
    torch.testing.assert_close(stock_images(merged), expected, rtol=0, atol=1e-4)
    config = str(tmp_path / "second" / "config.yaml")
    assert main(["evaluate", str(whole), "--config", config, "--out", str(tmp_path / "numbers.json")]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())["metrics"]
    for name, entry in finished.results["metrics"]["result"].items():
        assert numbers[name]["value"] == pytest.approx(entry["value"], rel=1e-3), name


def test_an_adapter_keeps_its_precision_on_a_base_of_less(home, tmp_path):
    """Gone on from on a base in bfloat16, the frozen copy and the one that is trained are what is in the file, bit for bit."""
    run(home, tmp_path / "first", "fm", **{"eval.num_repeats": 1, "eval.min_delta": 0}).execute()
    start = tmp_path / "first" / "pipeline"
    second = run(home, tmp_path / "second", **{"model.start": start, "model.dtype": "bfloat16"})
    kept, weights = load_file(start / WEIGHTS), dict(second.trainee.model.transformer.named_parameters())
    assert second.trainee.model.working_dtype == torch.bfloat16
    for key, expected in kept.items():
        name, _, end = key.removeprefix("transformer.").rpartition(".weight")
        for adapter in (START, ADAPTER):
            assert torch.equal(weights[f"{name}.{adapter}.weight{end}"], expected), name
    with pytest.raises(ValueError, match=r"no dropout: leave out model.dropout 0.1"):
        run(home, tmp_path / "third", **{"model.start": start, "model.dropout": 0.1})


def test_a_flow_of_our_own_takes_no_adapter(home, tmp_path):
    """A pipeline of this package, whose class in the index is a pair of names, is told what it is."""
    pretrained("toy").save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"own holds a .*FlowPipeline.*; the text-to-image flows that can be"):
        run(home, tmp_path / "run", **{"model.path": tmp_path / "own"})


def test_what_cannot_be_a_part_of_the_base(home, tmp_path):
    """A folder without an adapter, a name that is nowhere, and an adapter that changes what reads the prompts."""
    with pytest.raises(ValueError, match=r"no adapter in .*images: it must hold pytorch_lora"):
        find_base(str(home / "base"), fused=[str(home / "images")])
    with pytest.raises(ValueError, match="'no/where' is no folder here"):
        find_base(str(home / "base"), fused=["no/where"])
    save_file({"text_encoder.x.lora_A.weight": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match=r"changes a text encoder too .*leave it out"):
        find_base(str(home / "base"), fused=[str(tmp_path)])


def test_base_and_adapter_travel_over_the_hub(hub, home, tmp_path):
    """A base by its name, at the commit it was read at; the pushed run loads by `load_lora_weights("user/name")`, and the best on its branch."""
    api = HfApi()
    api.create_repo("user/flow")
    commit = api.upload_folder(repo_id="user/flow", folder_path=home / "base").oid
    words = {"model.path": "user/flow", "hub.push_to_hub": "user/adapter", "hub.push_best_to": "best"}
    run(home, tmp_path / "run", "fm", **words).execute()
    card = ModelCard.load("user/adapter")
    assert (card.data.base_model, card.data.to_dict()["base_model_relation"]) == ("user/flow", "adapter")
    assert commit in card.text
    for revision in ("main", "best"):
        pipeline = stock(home / "base")
        before = stock_images(pipeline)
        pipeline.load_lora_weights("user/adapter", revision=revision, weight_name="pytorch_lora_weights.safetensors")
        assert not torch.equal(stock_images(pipeline), before)
    text = ModelCard.load(hf_hub_download("user/adapter", "README.md", revision="best")).text
    assert "load_lora_weights" in text


def test_an_adapter_is_merged_into_its_pipeline(home, tmp_path, capsys):
    """`export --merge-into` writes a whole pipeline that draws, without peft, what base and adapter draw together; a wrong adapter is refused."""
    run(home, tmp_path / "run", "fm", **{"eval.num_repeats": 1, "eval.min_delta": 0}).execute()
    adapter, base = str(tmp_path / "run" / "pipeline"), str(home / "base")
    assert main(["export", adapter, "--merge-into", base, "--out", str(tmp_path / "whole")]) == 0
    pipeline = stock(home / "base")
    pipeline.load_lora_weights(adapter)
    whole = stock(tmp_path / "whole")
    assert not any("lora" in name for name, _ in whole.transformer.named_parameters())
    torch.testing.assert_close(stock_images(whole), stock_images(pipeline), rtol=0, atol=1e-4)
    assert main(["export", str(home / "images"), "--merge-into", base, "--out", str(tmp_path / "other")]) == 2
    assert "it must hold pytorch_lora_weights.safetensors" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lora", "pretrained"])
def test_what_was_saved_is_judged_as_the_run_judged_it(model, home, tmp_path, capsys):
    """`evaluate` on the adapter, or the whole pipeline, that a run has left gives the numbers of its report."""
    finished = run(home, tmp_path / "run", model=model, **{"data.base_samples": 2}).execute()
    saved_at, config = tmp_path / "run" / "pipeline", tmp_path / "run" / "config.yaml"
    assert main(["evaluate", str(saved_at), "--config", str(config), "--out", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())["metrics"]
    expected = finished.results["metrics"]["result"]
    assert again.keys() == expected.keys()
    for name, entry in again.items():
        assert entry["value"] == pytest.approx(expected[name]["value"], rel=1e-4), name


def test_an_adapter_is_not_taken_for_a_pipeline(home, tmp_path):
    """Who loads an adapter as a pipeline of ours is told what it is."""
    run(home, tmp_path / "run").trainee.base.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds an adapter.*--merge-into"):
        FlowPipeline.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"model.target_modules": "[nowhere]"},
            r"name no layer of the SD3Transformer2DModel; its linear layers end in .*to_q",
        ),
        ({"model.rank": 0}, "model.rank must be at least 1"),
        ({"data.base_samples": -1}, "data.base_samples must be >= 0, got -1"),
        ({"data.name": "images", "data.caption_column": None}, "have none: use data.name captioned"),
        ({"model.name": "mlp", "model.path": None, "model.rank": None}, "only text-to-image pipelines read captions"),
        ({"model.path": ""}, "model.path must name the pretrained pipeline"),
    ],
)
def test_what_does_not_fit_is_refused(options, text, home, tmp_path):
    """Layers, data and models that do not belong together end in one sentence."""
    words = [word for word in settings(home, output_dir=tmp_path / "run")]
    for key, value in options.items():
        words = [word for word in words if not word.startswith(f"--{key}=")]
        words += [] if value is None else [f"--{key}={value}"]
    if options.get("data.name") == "images":
        words = [word for word in words if not word.startswith("--data.base_")]
    with pytest.raises(ValueError, match=text):
        Run(load_config(None, words), progress=False)


def test_the_package_does_not_need_peft(home, tmp_path, monkeypatch):
    """Everything but adapters works without it, and adapters say what to install."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install hf_flowft\[lora\]"):
        add_lora(torch.nn.Linear(1, 1), ["x"], rank=1, alpha=1, dropout=0.0, seed=0)


def test_a_frozen_copy_elsewhere(home, tmp_path):
    """All weights trained by GFT: with the copy parked on the CPU the run is the same, with it in half precision nearly so."""
    losses = {}
    for name, options in {
        "beside": {},
        "parked": {"model.reference_device": "cpu"},
        "half": {"model.reference_dtype": "bfloat16"},
    }.items():
        words = settings(home, "gft", "pretrained", output_dir=tmp_path / name, **options)
        finished = Run(load_config(None, words), progress=False).execute()
        losses[name] = [entry["loss"] for entry in finished.results["train"]["history"]]
    assert losses["beside"] == losses["parked"] != losses["half"]
    assert losses["half"] == pytest.approx(losses["beside"], rel=0.02)
