"""What a stranger's repository tried by names and places, and the sentence that came of it: nothing is imported, unpickled, fetched or written."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from spoiling import INDEX, WEIGHTS, edit, load, mlp
from spoiling import first_use as first_use
from spoiling import images as images
from spoiling import vectors as vectors

from hf_flowft import FlowODEScheduler, FlowPipeline, VelocityMLP, ViscousFlowModel
from hf_flowft.models.reference import BASE_FILE, BaseReference
from hf_flowft.models.saved import weights_digest

# Names that would be imported, unpickled or connected to


def test_quantised_weights_are_refused(images, vectors):
    """diffusers would import the library the config names, for every model class."""
    for folder in (images, vectors):
        edit(
            folder / "model" / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
        )
        assert "asks for quantised weights" in load(folder)


@pytest.mark.parametrize("part", ["model/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("name", ["AudioLDM2Pipeline", "os.system", 7, None, ["stub", "UNet2DModel"]])
def test_the_config_of_another_class_is_refused(images, part, name):
    """diffusers would import the module of a class of its own that is named."""
    edit(images / part, _class_name=name)
    assert "its config is that of a" in load(images)
    assert not [module for module in sys.modules if "audioldm2" in module]


def test_an_index_beside_the_weights_decides(vectors):
    """diffusers follows the index even where there is a whole file: what is checked must be what is loaded, and a shard no pickle."""
    tensors = load_file(vectors / WEIGHTS)
    other = {name: torch.ones_like(x) for name, x in tensors.items()}
    torch.save(other, vectors / "model" / "shard.bin")
    save_file(other, vectors / "model" / "shard.safetensors", metadata={"format": "pt"})
    for name in (
        "shard.bin",
        "../model/shard.safetensors",
        str(vectors / "model" / "shard.safetensors"),
        "a\0.safetensors",
        5,
    ):
        (vectors / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}))
        assert "must name .safetensors files beside it" in load(vectors)
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": [1]}', "[]"):
        (vectors / INDEX).write_text(text)
        assert "must name .safetensors files beside it" in load(vectors) or "must hold a JSON object" in load(vectors)
    (vectors / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "none.safetensors")}))
    assert "has no 'none.safetensors', which its index names" in load(vectors)
    (vectors / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "shard.safetensors")})
    )
    assert all((x == 1).all() for x in load(vectors).model.state_dict().values())


def test_a_tensor_in_two_shards_is_refused(vectors):
    """Only one of the two would have been checked."""
    tensors = load_file(vectors / WEIGHTS)
    save_file(tensors, vectors / "model" / "a.safetensors")
    save_file({"output.bias": torch.zeros(9)}, vectors / "model" / "b.safetensors")
    names = dict.fromkeys(tensors, "a.safetensors") | {"x": "b.safetensors"}
    (vectors / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert "holds 'output.bias' a second time" in load(vectors)


def test_variants_are_not_loaded(vectors):
    """They are other files than those that are checked."""
    with pytest.raises(ValueError, match="variants of the weights are not loaded here, got variant='fp16'"):
        VelocityMLP.from_pretrained(vectors / "model", variant="fp16")


@pytest.mark.parametrize("key", ["get", "items", "__frozen", "a b", "x", "event_size", "num_class_embeds"])
def test_keys_that_are_no_options_are_refused(vectors, key):
    """A config's keys become attributes of it, its methods included; options of no effect would be believed."""
    edit(vectors / "model" / "config.json", **{key: 1})
    assert "which can be no option" in load(vectors) or "has no option" in load(vectors)


def test_parts_in_each_others_place_are_refused(vectors):
    """A scheduler as the model."""
    index = vectors / "model_index.json"
    edit(index, model=["hf_flowft", "FlowODEScheduler"])
    shutil.copytree(vectors / "scheduler", vectors / "model", dirs_exist_ok=True)
    assert "is a FlowODEScheduler, which is no model" in load(vectors)


def test_a_reference_to_a_base_is_a_name_on_the_hub(tmp_path):
    """Neither a folder beside the repository nor anything but text."""
    base = mlp()
    model = ViscousFlowModel.from_base(base, num_classes=3, hidden_dim=4)
    reference = BaseReference("user/base", "0" * 40, weights_digest(base))
    FlowPipeline(model, FlowODEScheduler()).save_pretrained(tmp_path / "user" / "residual", base=reference)
    FlowPipeline(base, FlowODEScheduler()).save_pretrained(tmp_path)
    path = tmp_path / "user" / "residual" / "model" / BASE_FILE
    for change in (
        {"repository": "../.."},
        {"repository": "./user"},
        {"revision": int("1" * 40)},
        {"digest": ["0" * 64]},
    ):
        reference.write(path.parent)
        edit(path, **change)
        assert f"must give {next(iter(change))} as" in load(tmp_path / "user" / "residual")


def test_a_residual_in_shards_is_loaded(hub, tmp_path):
    """Its own weights are read from wherever they were checked, not left random."""
    base = mlp()
    FlowPipeline(base, FlowODEScheduler()).save_pretrained(tmp_path / "base")
    files = {
        str(p.relative_to(tmp_path / "base")): p.read_bytes() for p in (tmp_path / "base").rglob("*") if p.is_file()
    }
    commit = hub.create("user/base", files=files)
    model = ViscousFlowModel.from_base(base, num_classes=3, hidden_dim=4)
    for parameter in model.head.parameters():
        torch.nn.init.ones_(parameter)
    folder = tmp_path / "residual"
    FlowPipeline(model, FlowODEScheduler()).save_pretrained(
        folder, base=BaseReference("user/base", commit, weights_digest(base))
    )
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "model" / "one.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "one.safetensors")}))
    loaded = ViscousFlowModel.from_pretrained(folder / "model", local_files_only=False)
    assert weights_digest(loaded) == weights_digest(model)


# Places


def test_links_are_followed(vectors, tmp_path):
    """The cache of the Hub is made of links: a folder of them loads; what they lead to is read as what it should be, and never shown."""
    shutil.move(vectors / "model", tmp_path / "elsewhere")
    (vectors / "model").symlink_to(tmp_path / "elsewhere")
    assert isinstance(load(vectors), FlowPipeline)
    (tmp_path / "secret").write_text("password: tr0ub4dor")
    for name in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "conditions.safetensors",
        WEIGHTS,
        "model/config.json",
    ):
        (vectors / name).unlink()
        (vectors / name).symlink_to(tmp_path / "secret")
        assert "broken" in load(vectors)
        assert "tr0ub4dor" not in load(vectors)


def test_a_pipe_is_not_waited_for(vectors):
    """Nothing would ever come of it."""
    for name in (
        "conditions.safetensors",
        "scheduler/scheduler_config.json",
        WEIGHTS,
        "model/config.json",
        "model_index.json",
    ):
        (vectors / name).unlink()
        os.mkfifo(vectors / name)
        result = load(vectors)
        assert isinstance(result, FlowPipeline if name == "conditions.safetensors" else str)
        assert isinstance(result, FlowPipeline) or "no" in result


@pytest.mark.parametrize(
    "name", ["", "a\0b", "x" * 5000, "../" * 50 + "etc", "a/b/c", "a//b", "-/-", "\ud800/x", "a\nb/c"]
)
def test_names_that_are_nowhere(name, monkeypatch, tmp_path):
    """Whatever is given as a name: one sentence, and no request for what can be no name."""
    monkeypatch.chdir(tmp_path)
    assert "is no folder here" in load(name) or "holds no pipeline" in load(name)


def test_a_listing_that_leads_outside(hub, tmp_path):
    """The Hub lists files whose names climb out of the cache: they are not written there."""
    FlowPipeline(mlp(), FlowODEScheduler()).save_pretrained(tmp_path / "p")
    files = {str(p.relative_to(tmp_path / "p")): p.read_bytes() for p in (tmp_path / "p").rglob("*") if p.is_file()}
    cache = tmp_path / "deep" / "cache"
    for name in ("../../../../../../evil.json", "/tmp/evil_hf_flowft.json", "model/../../../../../../evil.json"):
        hub.create(f"user/r{len(name)}", files={**files, name: b"{}"})
        with pytest.raises(ValueError):
            FlowPipeline.from_pretrained(f"user/r{len(name)}", cache_dir=cache)
    assert [path for path in tmp_path.rglob("*evil*") if cache not in path.parents] == []
    assert not Path("/tmp/evil_hf_flowft.json").exists()
