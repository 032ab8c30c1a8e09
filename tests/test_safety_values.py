"""What a stranger's repository or settings claimed by sizes, types and meanings: refused before memory, time or a sample is spent on it."""

import itertools
import json
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from spoiling import WEIGHTS, edit, load, mlp
from spoiling import first_use as first_use
from spoiling import images as images
from spoiling import vectors as vectors
from traps import outcome

from hf_flowft import FlowPipeline
from hf_flowft.cli import main
from hf_flowft.pipelines.loading import KNOWN_CLASSES
from hf_flowft.repository import parse_yaml

# Sizes


@pytest.mark.parametrize("name", [name for name in KNOWN_CLASSES if "Scheduler" in name])
@pytest.mark.parametrize(
    ("option", "value"), [("num_train_timesteps", 10**10), ("solver_order", 10**10), ("shift", 0), ("shift", "1")]
)
def test_schedulers_of_any_size_are_refused(images, name, option, value):
    """They would make lists of so many numbers, or divide by nothing."""
    edit(images / "model_index.json", scheduler=["diffusers", name])
    (images / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": name, option: value}))
    assert isinstance(load(images), str)


def test_a_scheduler_that_cannot_run_is_refused(vectors):
    """Known on loading, not after the first network evaluations: thresholding is for images."""
    name = "UniPCMultistepScheduler"
    edit(vectors / "model_index.json", scheduler=["diffusers", name])
    config = {"_class_name": name, "use_flow_sigmas": True, "prediction_type": "flow_prediction", "thresholding": True}
    (vectors / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert f"the {name} cannot take a step" in load(vectors)


@pytest.mark.parametrize(
    "size", [{"num_layers": 10**9}, {"num_layers": 9_000}, {"hidden_dim": 10**6}, {"event_shape": [10**9]}]
)
def test_networks_far_larger_than_their_weights_are_refused(vectors, size):
    """Before anything of that size is made, in memory or in time."""
    edit(vectors / "model" / "config.json", **size)
    assert isinstance(load(vectors), str)


def test_many_modules_from_few_numbers_are_refused(images):
    """Counts that are modest by themselves and multiply: 900 blocks of 9000 layers."""
    many = {"block_out_channels": [4] * 900, "layers_per_block": 9_000}
    blocks = {"down_block_types": ["DownBlock2D"] * 900, "up_block_types": ["UpBlock2D"] * 900}
    edit(images / "model" / "config.json", **many, **blocks)
    assert "far more tensors than are saved" in load(images)


def test_threads_do_not_count_each_others_modules(vectors):
    """While one thread checks a small network, others may build large ones."""
    stop, built = threading.Event(), []

    def build():
        while not stop.is_set():
            built.append(mlp(num_layers=8))

    thread = threading.Thread(target=build)
    thread.start()
    try:
        for _ in range(20):
            FlowPipeline.from_pretrained(vectors)
    finally:
        stop.set()
        thread.join()
    assert built


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" " * (5 << 20), "is too large to be a description"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper than 64 levels"),
        (b"[" * 200_000, "is broken"),
        (b'{"num_layers": ' + b"9" * 5000 + b"}", "is broken"),
        (b'{"num_layers": NaN}', "NaN is no value"),
        (b"\xff\xfe", "is broken"),
    ],
    ids=["large", "deep", "deeper", "digits", "nan", "bytes"],
)
def test_configs_no_parser_likes(vectors, content, message):
    """Each is refused before it costs memory, time or the stack."""
    (vectors / "model" / "config.json").write_bytes(content)
    assert message in load(vectors)


def test_a_header_of_any_size_is_refused(vectors):
    """The first eight bytes say how much the reader would take."""
    (vectors / WEIGHTS).write_bytes((64 << 20).to_bytes(8, "little") + b"{}")
    assert "its header is too large" in load(vectors)
    many = {f"t{i}": torch.zeros(0) for i in range(10_001)}
    save_file(many, vectors / WEIGHTS)
    assert "holds 10001 tensors, more than 10000" in load(vectors)


def test_whole_numbers_as_weights_are_refused(vectors):
    """Of the right shapes, and yet no weights."""
    save_file({name: x.to(torch.int8) for name, x in load_file(vectors / WEIGHTS).items()}, vectors / WEIGHTS)
    assert "of whole numbers where" in load(vectors)


# The description


@pytest.mark.parametrize(
    "facts",
    [
        [1],
        5,
        {"event_shape": [-1]},
        {"event_shape": [10**12]},
        {"event_shape": [3]},
        {"event_shape": "2"},
        {"event_shape": [True, 2]},
        {"normalisation": {"mean": "x"}},
        {"normalisation": {"std": 0}},
        {"normalisation": {"std": [1.0, 2.0, 3.0]}},
        {"normalisation": {"scale": 1}},
        {"normalisation": None},
        {"is_image": "yes"},
        {"value_range": [0, 0]},
        {"value_range": [1]},
        {"value_range": "ab"},
        {"label_names": {"0": "a"}},
        {"coupling": ["ot"]},
        {"null_condition": 5},
        {"null_condition": {"class_labels": 99}},
        {"null_condition": {"class_labels": "x"}},
    ],
    ids=str,
)
def test_descriptions_that_mean_nothing(vectors, facts):
    """Refused on loading, so that sampling need not be tried to know."""
    edit(vectors / "model_index.json", description=facts)
    assert load(vectors).startswith("the pipeline's ")


def test_images_of_other_channels_are_refused(images):
    edit(images / "model_index.json", description={"event_shape": [3, 8, 8]})
    assert load(images) == "the pipeline's model turns 1 channels into 1, but event_shape is [3, 8, 8]."
    edit(images / "model_index.json", description={"event_shape": [1, 16, 16]})
    assert load(images).event_shape == (1, 16, 16)
    edit(images / "model_index.json", description={})
    edit(images / "model" / "config.json", sample_size=None)
    assert "gives its samples the shape [1, None, None]" in load(images)


@pytest.mark.parametrize(
    "tensors",
    [
        {"labels": torch.zeros(3)},
        {"class_labels": torch.zeros(3)},
        {"class_labels": torch.zeros(3, 1, dtype=torch.int64)},
        {"class_labels": torch.tensor(1)},
        {"class_labels": torch.zeros(0, dtype=torch.int64)},
        {"class_labels": torch.tensor([0, 4])},
        {"class_labels": torch.tensor([-1])},
        {"condition": torch.zeros(3)},
        {"condition": torch.full((3, 2), torch.nan)},
        {"condition": torch.zeros(3, 2), "class_labels": torch.zeros(4, dtype=torch.int64)},
        {"condition": torch.zeros(1 << 12, (1 << 12) + 1, dtype=torch.float16)},
    ],
    ids=lambda tensors: str({name: (*x.shape, x.dtype) for name, x in tensors.items()}),
)
def test_conditions_that_mean_nothing(vectors, tensors):
    """Other names, kinds, shapes and numbers than the model's, or too many."""
    save_file(tensors, vectors / "conditions.safetensors")
    assert "conditions" in load(vectors) or "labels" in load(vectors)


# Settings and the command


def test_aliases_do_not_multiply():
    """A few lines that would fill any memory, as lists and as merged mappings; a modest use is fine."""
    names = "abcdefghij"
    for first, line in (("[x, x]", "[{}]"), ("{k: v}", "{{<<: [{}]}}")):
        bomb = f"a: &a {first}\n" + "".join(
            f"{new}: &{new} {line.format(', '.join([f'*{old}'] * 9))}\n" for old, new in itertools.pairwise(names)
        )
        assert "more than 10000 entries" in outcome(parse_yaml, bomb)
    assert "nested deeper" in outcome(parse_yaml, "&a [*a]")
    assert "is too large" in outcome(parse_yaml, "a" * 300_000)
    assert outcome(parse_yaml, "a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


def test_a_key_given_twice_is_refused():
    """The first would be lost without a word."""
    assert outcome(parse_yaml, "train: {num_steps: 1}\ntrain: {batch_size: 2}") == "the key 'train' is given twice"


def test_a_setting_is_never_nan(tmp_path, capsys):
    """Every comparison lets it pass."""
    (tmp_path / "a.yaml").write_text("data: {name: toy}\nmodel: {name: mlp}\ntrain: {weight_decay: .nan}\n")
    assert main(["pretrain", "--config", str(tmp_path / "a.yaml")]) == 2
    assert capsys.readouterr().err == "hf-flowft: error: train.weight_decay must be a number, got nan.\n"


@pytest.mark.parametrize("verb", ["sample", "export", "evaluate"])
def test_the_command_refuses_in_one_line(vectors, tmp_path, capsys, verb):
    """Exit code 2, one line, nothing written."""
    edit(vectors / "model" / "config.json", num_layers=10**9)
    (tmp_path / "a.yaml").write_text("data: {name: toy}\nmodel: {name: mlp}\nobjective: {name: fm}\n")
    words = {"sample": ["--out", str(tmp_path / "x.npy")], "export": ["--out", str(tmp_path / "x")]}
    words["evaluate"] = ["--config", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "x.json")]
    assert main([verb, str(vectors), *words[verb]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-flowft: error: cannot load the VelocityMLP")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("x*"))
