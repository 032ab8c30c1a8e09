"""The loading table: what is on the Hub comes back bitwise by every road, and what cannot be loaded is told in one sentence."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel

from hf_flowft import FlowODEScheduler, FlowPipeline, FlowSDEScheduler, VelocityMLP, ViscousFlowModel
from hf_flowft.latents.opening import read_described
from hf_flowft.models.reference import BASE_FILE, BaseReference
from hf_flowft.models.saved import weights_digest
from hf_flowft.pipelines.stock import to_stock

NAME = "user/flow"


def mlp(**options):
    torch.manual_seed(0)
    model = VelocityMLP(**{"event_shape": [2], "hidden_dim": 8, "num_layers": 1, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def unet(**options):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    return UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=4, **blocks, **options).eval()


def labelled():
    """A pipeline with labels and recorded conditions."""
    return FlowPipeline(
        mlp(num_classes=3), FlowODEScheduler(solver="heun"), {}, {"class_labels": torch.tensor([0, 1, 2])}
    )


def images(**options):
    """An image pipeline in the units diffusers has."""
    facts = {"normalisation": {"mean": 127.5, "std": 127.5}, "is_image": True, "value_range": [0.0, 255.0]}
    return FlowPipeline(unet(**options), FlowODEScheduler(), facts)


def viscous(base):
    """A residual on a base, with weights that do something."""
    model = ViscousFlowModel.from_base(base, num_classes=3, hidden_dim=8)
    for name, parameter in model.named_parameters():
        if not name.startswith("base_model."):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def files_of(pipeline, folder, **options):
    """The files a pipeline is saved as."""
    pipeline.save_pretrained(folder, **options)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def draw(pipeline, seed=0):
    """Two samples of a pipeline, in data units."""
    pipeline.set_progress_bar_config(disable=True)
    given = {"class_labels": [0, 2]} if "num_classes" in pipeline.model.config else {"batch_size": 2}
    generator = torch.Generator().manual_seed(seed)
    return pipeline(**given, num_inference_steps=2, generator=generator, output_type="pt").samples


def python(code, environment):
    """Run a script in a fresh process; returns what it printed, and its last line of error."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


@pytest.fixture
def pushed(hub, tmp_path):
    """A labelled pipeline, and itself on the Hub."""
    pipeline = labelled()
    hub.create(NAME, files=files_of(pipeline, tmp_path / "saved"))
    return pipeline


def test_by_our_pipeline(pushed, tmp_path):
    """From the Hub and from a folder: bitwise, with its conditions, and no Python file is downloaded."""
    for source in (NAME, tmp_path / "saved"):
        loaded = FlowPipeline.from_pretrained(source)
        assert torch.equal(draw(loaded), draw(pushed))
        assert torch.equal(loaded.conditions["class_labels"], pushed.conditions["class_labels"])


def test_no_code_is_downloaded(pushed, hub):
    """The client never asks for a Python file, the stub included."""
    hub.requests.clear()
    FlowPipeline.from_pretrained(NAME)
    asked = [path for method, path in hub.requests if "/resolve/" in path]
    assert asked
    assert not [path for path in asked if path.endswith(".py")]


def test_by_our_classes(pushed):
    """Each model and scheduler of ours by its own class, with `subfolder=`."""
    model = VelocityMLP.from_pretrained(NAME, subfolder="model")
    assert weights_digest(model) == weights_digest(pushed.model)
    assert FlowODEScheduler.from_pretrained(NAME, subfolder="scheduler").config.solver == "heun"
    with pytest.raises(ValueError, match=r"cannot read .*config.json|holds|not those"):
        VelocityMLP.from_pretrained(NAME, subfolder="scheduler")


def test_every_scheduler_of_ours(hub, tmp_path):
    """Schedulers come back by the pipeline and by themselves."""
    scheduler = FlowSDEScheduler()
    hub.create(NAME, files=files_of(FlowPipeline(mlp(), scheduler), tmp_path / "p"))
    assert isinstance(FlowPipeline.from_pretrained(NAME).scheduler, FlowSDEScheduler)
    loaded = FlowSDEScheduler.from_pretrained(NAME, subfolder="scheduler")
    kept = {key: value for key, value in scheduler.config.items() if key[0] != "_"}
    assert {key: value for key, value in loaded.config.items() if key[0] != "_"} == kept


def test_at_a_revision(pushed, hub, tmp_path):
    """Branch, tag and commit; an unknown one is named."""
    first = hub.repo(NAME).find("main").sha
    other = labelled()
    torch.nn.init.ones_(other.model.output.bias)
    hub.commit(NAME, files_of(other, tmp_path / "other"))
    assert torch.equal(draw(FlowPipeline.from_pretrained(NAME)), draw(other))
    assert torch.equal(draw(FlowPipeline.from_pretrained(NAME, revision=first)), draw(pushed))
    with pytest.raises(ValueError, match="has no revision 'nowhere': give a branch, a tag or a commit"):
        FlowPipeline.from_pretrained(NAME, revision="nowhere")


def test_of_another_kind(pushed):
    """A repository without the file that is looked for is there, and the connection too: it is something else."""
    with pytest.raises(ValueError, match=r"lacks a file .*nothing.json.*is it of another kind"):
        read_described(NAME, "", "nothing.json")


def test_in_a_dtype_onto_a_device(pushed):
    """`dtype=` converts the weights, `.to` moves the pipeline."""
    loaded = FlowPipeline.from_pretrained(NAME, dtype=torch.bfloat16).to("cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.model.output.weight, pushed.model.output.weight.bfloat16())


def test_offline_after_one_load(pushed, hub, offline):
    """From the cache, without a single request; what was never loaded is not found, in one sentence."""
    FlowPipeline.from_pretrained(NAME)
    hub.requests.clear()
    with offline():
        assert torch.equal(draw(FlowPipeline.from_pretrained(NAME)), draw(pushed))
        with pytest.raises(ValueError, match=r"not in the cache .* go online once"):
            FlowPipeline.from_pretrained("user/other")
    assert torch.equal(draw(FlowPipeline.from_pretrained(NAME, local_files_only=True)), draw(pushed))
    assert hub.requests == []


def test_missing_and_private(pushed, hub, monkeypatch, tmp_path):
    """A repository that is not there and one that may not be read are told alike, as the Hub does; the token is not shown."""
    with pytest.raises(ValueError, match=r"'user/missing' is no folder here, and the Hub has no such repository"):
        FlowPipeline.from_pretrained("user/missing")
    with pytest.raises(ValueError, match="no name of a repository either"):
        FlowPipeline.from_pretrained(str(tmp_path / "no" / "folder"))
    hub.create("user/secret", files=files_of(labelled(), tmp_path / "secret"), private=True)
    assert torch.equal(draw(FlowPipeline.from_pretrained("user/secret")), draw(pushed))
    for token in ("hf_wrong_token", False):
        with pytest.raises(ValueError, match=r"log in with `hf auth login`|refuses this token") as caught:
            FlowPipeline.from_pretrained("user/secret", token=token, cache_dir=tmp_path / "empty")
        assert "hf_wrong_token" not in str(caught.value)


def test_a_download_that_breaks_is_never_half_loaded(pushed, hub, tmp_path):
    """The connection dies within the weights, again and again: an error, then nothing in the cache that offline loading takes for whole."""
    hub.fail("diffusion_pytorch_model.safetensors", after_bytes=100, times=1000)
    with pytest.raises(ValueError, match=r"connection to the Hub failed|cannot be reached"):
        FlowPipeline.from_pretrained(NAME)
    with pytest.raises(ValueError, match=r"has no weights|not in the cache"):
        FlowPipeline.from_pretrained(NAME, local_files_only=True)
    hub.heal()
    assert torch.equal(draw(FlowPipeline.from_pretrained(NAME)), draw(pushed))


DRAW = """
import torch
from diffusers import DiffusionPipeline
{before}
p = DiffusionPipeline.from_pretrained({source!r}{options})
import hf_flowft
assert type(p) is hf_flowft.FlowPipeline, type(p)
p.set_progress_bar_config(disable=True)
print(p(class_labels=[0, 2], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").samples.tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["hub", "folder"])
def test_by_diffusers_where_the_package_is_installed(pushed, hub_env, tmp_path, place):
    """With trust_remote_code diffusers gives our pipeline, in a process that has not imported us; without, it refuses."""
    source = NAME if place == "hub" else str(tmp_path / "saved")
    printed, error = python(DRAW.format(before="", source=source, options=", trust_remote_code=True"), hub_env)
    assert json.loads(printed or error) == draw(pushed).tolist()
    printed, error = python(DRAW.format(before="", source=source, options=""), hub_env)
    assert printed == ""
    assert "trust_remote_code" in error


@pytest.mark.slow
@pytest.mark.parametrize("place", ["hub", "folder"])
def test_by_diffusers_where_it_is_not(pushed, hub_env, tmp_path, place):
    """One sentence says what to install."""
    source = NAME if place == "hub" else str(tmp_path / "saved")
    without = "import sys; sys.modules['hf_flowft'] = None"
    printed, error = python(DRAW.format(before=without, source=source, options=", trust_remote_code=True"), hub_env)
    assert (printed, error) == ("", "ImportError: This model needs the package hf_flowft: pip install hf_flowft")


def test_stock_parts_in_stock_diffusers(hub, tmp_path):
    """An exported pipeline is diffusers' own: by `DiffusionPipeline` alone, nothing to trust, the images equal to the byte."""
    ours = images()
    stock = to_stock(ours)
    hub.create(NAME, files=files_of(stock, tmp_path / "stock"))
    assert not [path for path in hub.files(NAME) if path.endswith(".py")]
    loaded = DiffusionPipeline.from_pretrained(NAME)
    assert type(loaded) is DDPMPipeline
    with_stock_scheduler = FlowPipeline(ours.model, FlowMatchEulerDiscreteScheduler(), ours.description)
    for pipe in (loaded, with_stock_scheduler):
        pipe.set_progress_bar_config(disable=True)
    theirs = loaded(batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images
    mine = with_stock_scheduler(2, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images
    assert [image.convert("L").tobytes() for image in theirs] == [image.convert("L").tobytes() for image in mine]


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (labelled, "diffusers has no VelocityMLP"),
        (lambda: images(num_class_embeds=3), "gives its network no labels"),
        (lambda: FlowPipeline(unet(), FlowODEScheduler()), "not images"),
        (lambda: FlowPipeline(unet(), FlowODEScheduler(), {**images().description, "normalisation": {}}), "mean 0.0"),
        (lambda: FlowPipeline(unet(), FlowODEScheduler(solver="heun"), images().description), "samples with heun"),
    ],
)
def test_what_stock_diffusers_cannot_run_is_not_exported(pipeline, message):
    """Each refusal names the part."""
    with pytest.raises(ValueError, match=message):
        to_stock(pipeline())


@pytest.fixture
def residual(hub, tmp_path):
    """A viscous pipeline on the base "user/base", which is on the Hub, and the reference to it."""
    base = labelled()
    commit = hub.create("user/base", files=files_of(base, tmp_path / "base"))
    pipeline = FlowPipeline(viscous(base.model), FlowODEScheduler(), {}, base.conditions)
    return pipeline, BaseReference("user/base", commit, weights_digest(base.model))


def test_a_residual_alone(residual, hub, tmp_path, offline):
    """Small, loaded with its base in one line, bitwise; also offline, by its class, and whole again when saved."""
    pipeline, reference = residual
    files = files_of(pipeline, tmp_path / "r", base=reference)
    assert len(files["model/diffusion_pytorch_model.safetensors"]) < len(
        files_of(pipeline, tmp_path / "whole")["model/diffusion_pytorch_model.safetensors"]
    )
    hub.create("user/residual", files=files)
    loaded = FlowPipeline.from_pretrained("user/residual")
    assert torch.equal(draw(loaded), draw(pipeline))
    assert not loaded.model.base_model.training
    assert not any(p.requires_grad for p in loaded.model.base_model.parameters())
    with offline():
        assert torch.equal(draw(FlowPipeline.from_pretrained("user/residual")), draw(pipeline))
        assert torch.equal(draw(FlowPipeline.from_pretrained(tmp_path / "r")), draw(pipeline))
    model = ViscousFlowModel.from_pretrained("user/residual", subfolder="model")
    assert weights_digest(model) == weights_digest(pipeline.model)
    loaded.save_pretrained(tmp_path / "again")
    assert weights_digest(FlowPipeline.from_pretrained(tmp_path / "again").model) == weights_digest(pipeline.model)
    half = FlowPipeline.from_pretrained("user/residual", dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


def test_a_residual_on_another_base_is_refused(residual, hub, tmp_path):
    """The base was replaced under the same name, or the reference lies: it is said, and nothing is loaded."""
    pipeline, reference = residual
    with pytest.raises(ValueError, match="does not hold the base of this model"):
        pipeline.save_pretrained(tmp_path / "x", base=BaseReference("user/base", reference.revision, "0" * 64))
    other = labelled()
    torch.nn.init.ones_(other.model.output.bias)
    commit = hub.commit("user/base", files_of(other, tmp_path / "other"))
    files = files_of(pipeline, tmp_path / "r", base=reference)
    files[f"model/{BASE_FILE}"] = files[f"model/{BASE_FILE}"].replace(reference.revision.encode(), commit.encode())
    hub.create("user/residual", files=files)
    with pytest.raises(ValueError, match="has other weights than the base this residual was trained on"):
        FlowPipeline.from_pretrained("user/residual")


def test_a_residual_in_a_folder_does_not_go_online(residual, hub, tmp_path):
    """A folder from a stranger looks for its base in the cache only."""
    pipeline, reference = residual
    pipeline.save_pretrained(tmp_path / "r", base=reference)
    hub.requests.clear()
    with pytest.raises(ValueError, match="not in the cache"):
        FlowPipeline.from_pretrained(tmp_path / "r")
    assert hub.requests == []


@pytest.mark.parametrize("key", ["repository", "revision", "digest"])
def test_a_broken_reference_is_refused(residual, tmp_path, key):
    """A reference that is no repository, commit or digest."""
    pipeline, reference = residual
    pipeline.save_pretrained(tmp_path / "r", base=reference)
    path = tmp_path / "r" / "model" / BASE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "http://elsewhere/../x"}))
    with pytest.raises(ValueError, match=f"must give {key} as"):
        FlowPipeline.from_pretrained(tmp_path / "r")
