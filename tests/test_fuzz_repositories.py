"""Hostile repositories: each is loaded or refused by a ValueError of one line, and what was loaded runs; see `traps` for what must not happen."""

import shutil
from contextlib import suppress

import pytest
import tiny_policies
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hostile import MANY, byte_edits, deep, edited_header, edited_json, edits, spoilt
from hypothesis import given, settings
from hypothesis import strategies as st
from spoiling import LABELS, mlp, unet
from traps import outcome

from hf_flowft import (
    ActionTransformer,
    ConditionalUNet1D,
    FlowODEScheduler,
    FlowPipeline,
    FlowPolicyPipeline,
    FlowSDEScheduler,
    FourierUNet2DModel,
    ViscousFlowModel,
)
from hf_flowft.models.reference import BaseReference
from hf_flowft.models.saved import weights_digest

FACTS = {
    "normalisation": {"mean": 0.5, "std": 2.0},
    "is_image": False,
    "value_range": [0.0, 1.0],
    "label_names": ["a", "b", "c"],
    "coupling": "ot",
    "null_condition": {"class_labels": 3.0},
}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
KINDS = {
    "mlp": lambda: (mlp(num_classes=0), FlowODEScheduler(solver="heun"), {}),
    "vectors": lambda: (
        mlp(num_classes=0, condition_dim=3, time="concat"),
        FlowSDEScheduler(),
        {"condition": torch.randn(5, 3)},
    ),
    "unet": lambda: (unet(num_class_embeds=4), FlowMatchEulerDiscreteScheduler(shift=3.0), LABELS),
    "viscous": lambda: (
        ViscousFlowModel.from_base(mlp(), num_classes=3, structure="metric", hidden_dim=4),
        UniPCMultistepScheduler(**FLOW),
        LABELS,
    ),
    "policy": lambda: (
        tiny_policies.build(ConditionalUNet1D, condition_dim=4, images={"top": [2, 3, 16, 16]}, image_widths=[4]),
        FlowODEScheduler(),
        {"condition": torch.randn(2, 4), "image_top": torch.ones(2, 2, 3, 16, 16, dtype=torch.uint8)},
    ),
    "chunks": lambda: (tiny_policies.build(ActionTransformer), FlowODEScheduler(), {"condition": torch.randn(2, 5)}),
    "fourier": lambda: (
        FourierUNet2DModel([1, 4, 4], channels=[2, 4], layers_per_block=1, time_dim=4, label_dim=2, num_classes=3),
        FlowODEScheduler(),
        LABELS,
    ),
    "diffusion": lambda: (mlp(num_classes=0), DDIMScheduler(num_train_timesteps=100), {}),
    "residual": lambda: (
        ViscousFlowModel.from_base(unet(num_class_embeds=4), num_classes=3, hidden_dim=4, wiring="cascade"),
        DPMSolverMultistepScheduler(**FLOW),
        LABELS,
    ),
}
"""Every class a pipeline may name but two schedulers; of the residual the base is saved elsewhere."""
POLICY = {
    "policy": {
        "state_keys": ["state"],
        "cameras": {"top": "image"},
        "observation_horizon": 2,
        "action_horizon": 3,
        "num_tasks": 0,
    },
    "observation_normalisation": {"state": {"mean": [0.0, 1.0], "std": 2.0}},
}
OBSERVATION = {"state": torch.ones(1, 2, 2), "image": torch.ones(1, 2, 16, 16, 3, dtype=torch.uint8)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of one pipeline of each kind, by name."""
    files = {}
    for kind, build in KINDS.items():
        model, scheduler, conditions = build()
        shape = [1, 8, 8] if "event_shape" not in model.config else model.config.event_shape
        facts = {"event_shape": shape, **FACTS, **({"predicts": "noise"} if kind == "diffusion" else {})}
        cls, facts = (FlowPolicyPipeline, {**facts, **POLICY}) if kind == "policy" else (FlowPipeline, facts)
        pipe = cls(model, scheduler, facts, conditions)
        folder = tmp_path_factory.mktemp(kind)
        base = None
        if kind == "residual":
            base = BaseReference("user/base", "0" * 40, weights_digest(model.base_model))
        pipe.save_pretrained(folder, base=base)
        files[kind] = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        with suppress(ValueError):  # libraries import on first use what they need
            FlowPipeline.from_pretrained(folder)
        told = load(files[kind], folder / "again")
        assert told is None or (kind == "residual" and "not in the cache" in told)
    return files


def load(files, folder):
    """What comes of a repository: the message of its refusal, or None when it was loaded and drew samples, or refused to."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    pipe = outcome(FlowPipeline.from_pretrained, folder)
    if isinstance(pipe, str):
        return pipe
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipe, FlowPolicyPipeline):
        return outcome(lambda: pipe(OBSERVATION, num_inference_steps=2) and None)
    conditions = {key: rows[:2] for key, rows in pipe.conditions.items()}
    return outcome(lambda: pipe(**conditions or {"batch_size": 2}, num_inference_steps=2, output_type="pt") and None)


def choose(data, files, suffix):
    """A kind of pipeline and one of its files."""
    kind = data.draw(st.sampled_from(sorted(files)))
    return files[kind], data.draw(st.sampled_from([name for name in sorted(files[kind]) if name.endswith(suffix)]))


@settings(MANY, max_examples=150)
@given(data=st.data(), changes=edits)
def test_edited_descriptions(saved, tmp_path_factory, data, changes):
    """Index, configs and reference with values of other types, sizes and meanings."""
    files, name = choose(data, saved, ".json")
    load({**files, name: edited_json(files[name], changes)}, tmp_path_factory.getbasetemp() / "edited")


@settings(MANY, max_examples=60)
@given(data=st.data(), changes=byte_edits)
def test_spoilt_files(saved, tmp_path_factory, data, changes):
    """Truncated, flipped and lengthened bytes in any file."""
    files, name = choose(data, saved, ("json", "safetensors"))
    load({**files, name: spoilt(files[name], changes)}, tmp_path_factory.getbasetemp() / "spoilt")


@settings(MANY, max_examples=80)
@given(data=st.data(), changes=edits)
def test_edited_headers(saved, tmp_path_factory, data, changes):
    """Weights and conditions whose header says something else: names, types, shapes, places."""
    files, name = choose(data, saved, ".safetensors")
    load({**files, name: edited_header(files[name], changes)}, tmp_path_factory.getbasetemp() / "headers")


@settings(MANY, max_examples=20)
@given(data=st.data(), text=deep | st.text() | st.binary())
def test_other_files(saved, tmp_path_factory, data, text):
    """Anything else in the place of a file."""
    files, name = choose(data, saved, ("json", "safetensors"))
    content = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    load({**files, name: content}, tmp_path_factory.getbasetemp() / "other")
