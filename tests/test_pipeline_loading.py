"""Pipelines come back bitwise, from safe files and known classes only; nothing in a folder is ever executed."""

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from hf_flowft import FlowODEScheduler, FlowPipeline, FlowSDEScheduler, VelocityMLP, ViscousFlowModel
from hf_flowft.pipelines.loading import KNOWN_CLASSES


def mlp(**options):
    torch.manual_seed(0)
    model = VelocityMLP(**{"event_shape": [2], "hidden_dim": 8, "num_layers": 1, **options})
    for parameter in model.parameters():  # not the zeros some layers start from
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def unet():
    torch.manual_seed(0)
    options = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    return UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=4, num_class_embeds=4, **options)


def viscous():
    model = ViscousFlowModel.from_base(mlp(num_classes=3), num_classes=3, hidden_dim=8)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


LABELS = {"class_labels": torch.tensor([0, 1, 2])}
CASES = {
    "mlp": (mlp, FlowODEScheduler(solver="heun", shift=2.0), {}),
    "conditioned": (lambda: mlp(condition_dim=3), FlowSDEScheduler(), {"condition": torch.randn(5, 3)}),
    "unet": (unet, FlowMatchEulerDiscreteScheduler(shift=3.0), LABELS),
    "viscous": (viscous, FlowODEScheduler(), LABELS),
}


def pipeline(case="mlp", dtype=torch.float32, **description):
    build, scheduler, conditions = CASES[case]
    return FlowPipeline(build().to(dtype).eval(), scheduler, description, conditions)


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    given = {key: value[:3] for key, value in pipe.conditions.items()} or {"batch_size": 3}
    generator = torch.Generator().manual_seed(0)
    return pipe(**given, num_inference_steps=2, generator=generator, output_type="pt").samples


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_is_the_same_bitwise(tmp_path, case, dtype):
    """Weights, scheduler, description, conditions and samples."""
    facts = {"normalisation": {"mean": 1.5, "std": 0.1}, "coupling": "ot", "label_names": ["a", "b"]}
    before = pipeline(case, dtype, **facts)
    before.save_pretrained(tmp_path)
    after = FlowPipeline.from_pretrained(tmp_path, dtype=dtype)
    assert type(after.model) is type(before.model)
    saved = before.model.state_dict()
    assert {name: t.dtype for name, t in after.model.state_dict().items()} == {n: t.dtype for n, t in saved.items()}
    assert all(torch.equal(saved[name], tensor) for name, tensor in after.model.state_dict().items())
    assert after.description == facts
    assert {k: v for k, v in after.scheduler.config.items() if k[0] != "_"} == {
        k: v for k, v in before.scheduler.config.items() if k[0] != "_"
    }
    assert all(torch.equal(after.conditions[key], value) for key, value in before.conditions.items())
    assert not after.model.training
    assert torch.equal(draw(after), draw(before))


def test_only_safe_files_are_written(tmp_path):
    """JSON, safetensors and the stub, none of them with a path of this machine, also after a second saving."""
    pipeline("viscous").save_pretrained(tmp_path / "one")
    FlowPipeline.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    files = [path for path in (tmp_path / "two").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".py"}
    assert {path.name for path in files if path.suffix == ".py"} == {"hf_flowft_stub.py"}
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]


def test_components_can_be_replaced(tmp_path):
    pipeline().save_pretrained(tmp_path)
    other = FlowPipeline.from_pretrained(tmp_path, scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0))
    assert other.shift == 5.0
    with pytest.raises(ValueError, match="knows no 'torch_dtype'; it takes model, scheduler, dtype"):
        FlowPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16)


def test_conditions_are_kept_up_to_a_number():
    many = FlowPipeline(mlp(num_classes=3), FlowODEScheduler(), {}, {"class_labels": torch.zeros(5000, dtype=int)})
    assert len(many.conditions["class_labels"]) == 2048


def test_nothing_in_the_folder_is_executed(tmp_path):
    """Python files anywhere in it, under any name that loaders look for, are left alone."""
    pipeline().save_pretrained(tmp_path)
    trap = f"open({str(tmp_path / 'trapped')!r}, 'w')"
    for name in ("pipeline.py", "model.py", "model/model.py", "model/modeling.py", "model/hf_flowft.models.mlp.py"):
        (tmp_path / name).write_text(trap)
    for name in ("scheduler/scheduler.py", "__init__.py", "model/__init__.py", "sitecustomize.py"):
        (tmp_path / name).write_text(trap)
    FlowPipeline.from_pretrained(tmp_path)
    assert not (tmp_path / "trapped").exists()


@pytest.fixture
def saved(tmp_path):
    """A saved pipeline to be spoilt."""
    pipeline("unet").save_pretrained(tmp_path / "p")
    return tmp_path / "p"


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as caught:
        FlowPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_pickled_weights_are_refused(saved):
    """Also when they are named like diffusers' own; they are never opened."""
    weights = saved / "model" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    refused(saved, r"offers its weights as a pickle \(diffusion_pytorch_model.bin\).*convert it to safetensors")
    weights.with_suffix(".bin").unlink()
    refused(saved, "has no weights: expected diffusion_pytorch_model.safetensors")


def test_a_pickle_named_safetensors_is_refused(saved):
    weights = saved / "model" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()  # the tensors may be mapped from it
    torch.save(tensors, weights)
    refused(saved, "cannot load the UNet2DModel")


@pytest.mark.parametrize("name", ["AutoencoderKL", "Evil", "os.system", "", None, 7])
def test_other_classes_are_refused(saved, name):
    """The message lists the classes there are, for a model and for a scheduler."""
    edit(saved / "model_index.json", model=["diffusers", name])
    text = refused(saved, "component 'model'")
    if isinstance(name, str):
        assert all(known in text for known in KNOWN_CLASSES)
        edit(saved / "model_index.json", model=["diffusers", "UNet2DModel"], scheduler=["diffusers", name])
        assert "FlowODEScheduler" in refused(saved, "component 'scheduler'")


def test_the_library_named_is_not_imported(saved, tmp_path, monkeypatch):
    """A class is found by its name in the list, not in the module the index points to."""
    (tmp_path / "malice.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    edit(saved / "model_index.json", model=["malice", "UNet2DModel"])
    assert isinstance(FlowPipeline.from_pretrained(saved).model, UNet2DModel)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "model_index.json is broken"),
        ("[1]", "must hold a JSON object, got list"),
        ("{}", "holds a None, not a FlowPipeline"),
        ('{"_class_name": "StableDiffusionPipeline"}', "holds a 'StableDiffusionPipeline', not a FlowPipeline"),
        ('{"_class_name": ["pipeline", "FlowPipeline"]}', "not a FlowPipeline"),
        ('{"_class_name": "FlowPipeline"}', r"not described as \[library, class\]: None"),
    ],
)
def test_broken_indices_are_refused(saved, text, message):
    (saved / "model_index.json").write_text(text)
    refused(saved, message)


def test_incomplete_folders_are_refused(saved):
    shutil.rmtree(saved / "scheduler")
    refused(saved, "incomplete: it has no folder 'scheduler' for its FlowMatchEulerDiscreteScheduler")
    (saved / "scheduler").mkdir()
    refused(saved, "cannot load the FlowMatchEulerDiscreteScheduler")
    (saved / "model_index.json").unlink()
    refused(saved, r"no model_index.json \(of a run folder, load its `pipeline` folder\)")
    refused(saved / "nowhere", "is no folder here")
    refused("someone/something", "is no folder here")


def test_weights_that_are_not_of_the_config_are_refused(saved):
    """A missing, an additional or a differently shaped tensor must not end in random weights."""
    path = saved / "model" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    first = sorted(weights)[0]
    for wrong in (
        {k: v for k, v in weights.items() if k != first},
        {**weights, "more": torch.zeros(1)},
        {**weights, first: torch.zeros(1)},
    ):
        save_file(wrong, path)
        refused(saved, "cannot load the UNet2DModel")
    path.write_bytes(path.read_bytes()[:-20])
    refused(saved, "cannot load the UNet2DModel")


def test_broken_conditions_are_refused(saved):
    (saved / "conditions.safetensors").write_bytes(b"x")
    refused(saved, "conditions.safetensors is broken")
