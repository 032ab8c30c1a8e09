"""A plan of a run counts what the run will need, without weights, memory or a folder."""

import re

import pytest
import torch
from tiny_latents import PIPELINES, saved, settings
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from hf_flowft import load_config
from hf_flowft.cli import main
from hf_flowft.latents import add_lora, find_base
from hf_flowft.latents.counting import count_encoders, count_needs
from hf_flowft.training.plan import plan

SIZES = {"sd3": 16, "flux": 16, "sana": 32}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A saved pipeline of each family; `base` is Stable Diffusion 3."""
    folder = tmp_path_factory.mktemp("plan")
    for name, build in PIPELINES.items():
        saved(folder / name, build)
    (folder / "base").symlink_to(folder / "sd3")
    (folder / "prompts.txt").write_text("a white circle\n")
    return folder


def adapt(transformer, family, shape=None):
    """A small adapter."""
    add_lora(transformer, family.targets, rank=2, alpha=2, dropout=0.0, seed=0)


def planned(home, **options):
    """The numbers of a plan by their names, and the whole text."""
    method = options.pop("method", "fm")
    text = plan(load_config(None, settings(home, method, **options)), 1e-3)
    return {line[:45].strip(): float(line[45:].split()[0]) for line in text.splitlines()[1:]}, text


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_it_counts_what_a_real_step_keeps(name, home):
    """Weights, the bytes autograd holds and the operations of a sample: those of the transformer itself, run for real on the CPU."""
    size = SIZES[name]
    needs = count_needs(str(home / name), "", (size, size), torch.float32, False, adapt)
    base = find_base(str(home / name))
    transformer, family = base.generator().transformer, base.family
    adapt(transformer, family)
    weights, held = {p.untyped_storage()._cdata for p in transformer.parameters()}, {}

    def keep(x):
        if x.untyped_storage()._cdata not in weights:
            held[x.untyped_storage()._cdata] = x
        return x

    sample = torch.zeros(1, family.channels(transformer.config), size // 2, size // 2)
    text = family.text_like(transformer.config)
    with FlopCounterMode(display=False) as flops, saved_tensors_hooks(keep, lambda x: x):
        output = family.output(transformer, sample, torch.full((1,), 500.0), text, 1.0)
    forward = flops.get_total_flops()
    with FlopCounterMode(display=False) as flops:
        output.sum().backward()
    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    assert (needs.trained, needs.frozen + trained) == (trained, sum(p.numel() for p in transformer.parameters()))
    assert needs.activations == sum(x.untyped_storage().nbytes() for x in held.values())
    assert (needs.forward, needs.backward) == (forward, flops.get_total_flops())


def test_recomputing_saves_memory_and_costs_a_forward(home):
    """With gradient checkpointing fewer bytes are kept, and the backward has one forward more."""
    plain, again = (count_needs(str(home / "sd3"), "", (16, 16), torch.float32, flag, adapt) for flag in (False, True))
    assert again.activations < plain.activations
    assert again.backward == plain.backward + plain.forward


def test_the_objective_counts(home):
    """Beside plain flow matching: GFT asks the base too, replay doubles the batch, direct MLE holds every step and truncated MLE the last."""
    plain, _ = planned(home)
    gft, _ = planned(home, method="gft")
    replay, _ = planned(home, method="replay")
    held, cost = "activations of 8 x {} samples", "operations of a step"
    assert list(plain)[-1] == "time of a step at 0.001 TFLOP/s"
    assert held.format(1) in plain
    assert held.format(1) in gft
    assert held.format(2) in replay
    assert plain[cost] <= gft[cost] <= replay[cost]
    direct, _ = planned(home, method="mle")
    assert held.format(2) in direct
    truncated, _ = planned(home, method="self")
    assert held.format(1) in truncated
    assert held.format(4) in planned(home, method="self", **{"objective.gradient": "direct"})[0]


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_the_encoders_are_counted_as_they_are_loaded(name, home):
    """Text encoders in their precision and the autoencoder in float32: the bytes of the pipeline that encodes."""
    loaded = find_base(str(home / name)).encoders(torch.bfloat16)
    networks = [part for part in loaded.components.values() if isinstance(part, torch.nn.Module)]
    held = sum(p.numel() * p.itemsize for network in networks for p in network.parameters())
    assert count_encoders(str(home / name), "", torch.bfloat16) == held


def test_it_is_printed_and_nothing_is_made(home, tmp_path, capsys):
    """`--plan` stops there; data that are no captioned images are refused."""
    words = settings(home, output_dir=tmp_path / "run")
    assert main(["finetune", "plain", "--plan", *words]) == 0
    assert re.search(r"together \(leave a fifth more free\) +\d", capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
    assert main(["finetune", "plain", "--plan", "--data.name=toy", "--model.path=x"]) == 2
    assert "text-to-image" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_told(tmp_path, capsys):
    """Of a path that can be no repository's name, planning and merging say that no folder is there."""
    place = str(tmp_path / "no" / "where")
    words = ["--data.name=captioned", "--data.path=x", "--model.name=lora", f"--model.path={place}"]
    for verb in (
        ["finetune", "plain", "--plan", *words],
        ["export", "x", "--merge-into", place, "--out", f"{place}-out"],
    ):
        assert main(verb) == 2
        assert "is no folder here, and it is no name of a repository either" in capsys.readouterr().err


def test_a_device_without_memory_is_told_what_to_change(home, tmp_path, capsys, monkeypatch):
    """Running out of memory ends in one sentence with the settings that save some."""

    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("hf_flowft.training.run.Run.execute", full)
    words = ["--data.name=toy", "--data.train_size=20", "--model.name=mlp", f"--output_dir={tmp_path / 'run'}"]
    assert main(["pretrain", *words]) == 2
    error = capsys.readouterr().err
    assert "train.gradient_checkpointing" in error
    assert "--plan" in error


@pytest.mark.parametrize(
    ("words", "place", "advice"),
    [
        (["sample", "x"], "hf_flowft.FlowPipeline.from_pretrained", "--num or --labels"),
        (["rollout", "x", "--env", "pusht"], "hf_flowft.FlowPolicyPipeline.from_pretrained", "--num-envs"),
        (["evaluate", "x", "--config", "CONFIG"], "hf_flowft.training.judging.judge", "eval.batch_size"),
    ],
)
def test_every_verb_says_how_to_need_less_memory(words, place, advice, tmp_path, capsys, monkeypatch):
    """Each by what it offers itself; another error of the same family is not taken for one of memory."""
    (tmp_path / "a.yaml").write_text("data: {name: toy}\nmodel: {name: mlp}\nobjective: {name: fm}\n")
    words = [str(tmp_path / "a.yaml") if word == "CONFIG" else word for word in words]

    def raising(error):
        def call(*arguments, **options):
            raise error

        return call

    monkeypatch.setattr(place, raising(torch.OutOfMemoryError("CUDA out of memory.")))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-flowft: error: the device is out of memory: ")
    assert advice in error
    monkeypatch.setattr(place, raising(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        main(words)
