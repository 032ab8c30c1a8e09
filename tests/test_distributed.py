"""Two processes, with the whole model on each or divided over them, and two micro-steps are one process with the same effective batch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from distributed_run import CASES, run
from safetensors.torch import load_file
from test_resume_matrix import STEPS, assert_same, final_state
from tiny import pretrained
from tiny_latents import PIPELINES, captioned, saved, settings

from hf_flowft import FlowPipeline
from hf_flowft.cli import main
from hf_flowft.training.checkpoint import list_checkpoints
from hf_flowft.training.processes import Processes, device_of_whole_models, refuse_engines, training_device
from hf_flowft.training.settings import TrainConfig

SCRIPT = Path(__file__).with_name("distributed_run.py")
LAUNCHES = Path(__file__).parents[1] / "configs" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def facts(folder):
    """What each process wrote of its run."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


def rows_seen(folder):
    """The rows of every step and what was drawn for them, over all processes in their order."""
    ranks = [fact["seen"] for fact in facts(folder)]
    return {step: [row for seen in ranks for row in seen[step]] for step in ranks[0]}


def assert_close(one, other):
    """The same rows, noise, times and pairs to the bit; losses, scores, gradients, weights and averages to rounding."""
    assert rows_seen(one) == rows_seen(other)
    (state, groups), (state_2, groups_2) = final_state(one), final_state(other)
    for a, b in zip(state["history"], state_2["history"], strict=True):
        assert a["lr"] == b["lr"]
        assert a == pytest.approx(b, rel=1e-4)
    for a, b in zip(state["selection"]["scores"], state_2["selection"]["scores"], strict=True):
        assert a["target"] == pytest.approx(b["target"], rel=1e-3)
    for stem in ("weights", "ema", "best", "base"):
        # Adam turns the rounding of tiny gradients into steps of up to the learning rate, 1e-2
        torch.testing.assert_close(groups[stem], groups_2[stem], rtol=0, atol=2e-4)
    for name, gradient in facts(one)[0]["gradients"].items():
        torch.testing.assert_close(facts(other)[0]["gradients"][name], gradient, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_two_micro_steps_are_one_batch(tmp_path, name):
    """Gradient accumulation changes the memory, not the rows, the draws, the pairs or the weights."""
    for parts in (1, 2):
        run(tmp_path / str(parts), {**CASES[name], "accumulation": parts})
    assert_close(tmp_path / "1", tmp_path / "2")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Every case by one process."""
    folder = tmp_path_factory.mktemp("one")
    for name, case in CASES.items():
        run(folder / name, case)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["ddp", "fsdp"])
def test_two_processes_are_one(tmp_path, one, launch):
    """One OT assignment over both, the same losses, gradients, weights, averages, scores; runs move between one process and two.

    Launched by the shipped configurations for several GPUs, on the CPU: with the whole model on each process, and with a part of every tensor.
    """
    two = tmp_path / "two"
    done = subprocess.run(
        [*LAUNCH, str(LAUNCHES / f"{launch}.yaml"), str(SCRIPT), "cases", str(two), str(one)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in CASES:
        assert [fact["processes"] for fact in facts(two / name)] == [2, 2]
        assert facts(two / name)[0]["gradients"] == facts(two / name)[1]["gradients"]
        held, of = [fact["held"] for fact in facts(two / name)], facts(one / name)[0]["of"]
        assert held == [of, of] if launch == "ddp" else (sum(held) == of and max(held) < 0.6 * of)
        assert_close(one / name, two / name)
        assert [path.name for path in list_checkpoints(two / name)] == ["checkpoint-6", "checkpoint-8"]
    assert done.stdout.count("Step 8 is the best") + done.stdout.count("Nothing beat the base") <= len(CASES) + 3
    assert_same(
        final_state(two / "whole"), final_state(two / "stopped")
    )  # with dropout: each process its own random state
    run(tmp_path / "moved", CASES["fm"], resume=str(two / "fm" / "checkpoints" / "checkpoint-6"))
    for moved in (two / "moved", tmp_path / "moved"):
        state, groups = final_state(moved)
        whole, whole_groups = final_state(one / "fm")
        torch.testing.assert_close(groups["weights"], whole_groups["weights"], rtol=0, atol=2e-4)
        assert (
            [entry["step"] for entry in state["history"]]
            == [entry["step"] for entry in whole["history"]]
            == list(range(1, STEPS + 1))
        )
    assert "processes: 1 -> 2 (the same run to rounding" in done.stdout


def end(process, number):
    """Send a signal to all of a launch (SIGKILL), or to its head, which passes it on."""
    everyone = psutil.Process(process.pid).children(recursive=True) if number == signal.SIGKILL else []
    process.send_signal(number)
    for child in everyone:
        child.kill()
    process.wait(timeout=60)


@pytest.mark.slow
def test_a_run_of_two_processes_killed_stopped_and_finished(tmp_path, capsys):
    """A whole run by the command: kill -9 of both processes, SIGTERM, and the end; its folder is that of one process, written by one process.

    It goes on, after the kill, with the model divided over the processes.
    """
    pretrained("toy").save_pretrained(tmp_path / "base")
    words = f"finetune gft --model.path {tmp_path / 'base'} --data.name toy --data.train_size 64 --data.eval_size 33 --objective.coupling ot"
    words += " --objective.replay_samples 64 --train.num_steps 120 --train.batch_size 16 --train.checkpoint_every 5 --train.log_every 1"
    words += " --train.lr_schedule cosine --eval.every 60 --eval.num_repeats 2 --eval.report_num_steps [1,2] --train.resume_from_checkpoint latest"
    two, one = tmp_path / "two", tmp_path / "one"
    divided = {**ENVIRONMENT, "ACCELERATE_USE_FSDP": "true"}
    for number, environment in ((signal.SIGKILL, ENVIRONMENT), (signal.SIGTERM, divided)):
        known, log = len(seen := list_checkpoints(two)) and seen[-1], (tmp_path / "log").open("w")
        with log:
            process = subprocess.Popen(
                [*TORCHRUN, "-m", "hf_flowft", *words.split(), "--output_dir", str(two)],
                env=environment,
                stdout=log,
                stderr=log,
            )
            while not (found := list_checkpoints(two)) or found[-1] == known:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.01)
            end(process, number)
        assert not (two / "results.json").exists()
    assert (tmp_path / "log").read_text().count("Stopped: go on with") == 1
    done = subprocess.run(
        [*TORCHRUN, str(SCRIPT), "command", str(two), *words.split(), "--output_dir", str(two)],
        env=divided,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [done.stdout.count(text) for text in ("Going on after step", "Written to")] == [1, 1]
    assert main([*words.split(), "--output_dir", str(one)]) == 0

    writes = [json.loads(Path(f"{two}-writes-{rank}.json").read_text()) for rank in range(2)]
    assert any("results" in write for write in writes[0])
    assert writes[1] == []
    assert {path.relative_to(two) for path in two.rglob("*.*")} == {path.relative_to(one) for path in one.rglob("*.*")}
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert [entry["step"] for entry in b["train"]["history"]] == list(range(1, 121))
    assert [e["loss"] for e in b["train"]["history"]] == pytest.approx(
        [e["loss"] for e in a["train"]["history"]], rel=0.02
    )
    for model, metrics in a["metrics"].items():
        for name, entry in metrics.items():
            assert b["metrics"][model][name].get("count") == entry.get("count")
            if name != "nfe_dopri5":  # a whole number of steps that were accepted or not: it jumps
                assert b["metrics"][model][name]["value"] == pytest.approx(entry["value"], rel=0.02), name
    assert a["metrics"]["result"]["target/energy@1"]["count"] == 33
    weights, weights_2 = (FlowPipeline.from_pretrained(folder / "pipeline").model.state_dict() for folder in (one, two))
    torch.testing.assert_close(weights, weights_2, rtol=0, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "verb", "method", "model", "file", "moved"),
    [
        ("fsdp", "gft", "gft", "lora", "pytorch_lora_weights.safetensors", "lora_B"),
        ("fsdp", "gav", "mle", "viscosity", "diffusion_pytorch_model.safetensors", "head.output"),
        ("ddp", "gav", "mle", "viscosity", "diffusion_pytorch_model.safetensors", "head.output"),
    ],
)
def test_adapters_on_two_processes(launch, verb, method, model, file, moved, tmp_path, monkeypatch):
    """Whole on each process, or divided with its frozen base, a LoRA or a viscosity ends as on one: what is on disk is the same.

    (A LoRA under DDP is in test_lora.py.)
    """
    cache = str(tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path(cache))
    captioned(tmp_path / "images")
    (tmp_path / "prompts.txt").write_text("a white circle\n")
    saved(tmp_path / "base", PIPELINES["sd3"])
    words = ["finetune", verb, *settings(tmp_path, method, model)]
    assert main([*words, "--output_dir", str(tmp_path / "one")]) == 0
    done = subprocess.run(
        [*TORCHRUN, "-m", "hf_flowft", *words, "--output_dir", str(tmp_path / "two")],
        env={**ENVIRONMENT, "ACCELERATE_USE_FSDP": str(launch == "fsdp").lower(), "HF_DATASETS_CACHE": cache},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / run / "pipeline" / file) for run in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
    assert max(weight.abs().max() for name, weight in one.items() if moved in name) > 1e-2


# What the trainer does not take part in


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM"])
def test_other_engines_are_refused(monkeypatch, name):
    """A launch that asks for one is refused by name, with what to do instead, before anything is built."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=rf"not written for {name}, .* with FSDP \(configs/accelerate/fsdp.yaml\)"):
        Processes(TrainConfig(), None, torch.nn.Identity())
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    assert Processes(TrainConfig(), None, torch.nn.Identity()).count == 1
    refuse_engines([])


def test_constants_are_not_sent_in_every_step():
    """DDP sends buffers that a state holds (running statistics), and none where all are constants, which may be a gigabyte."""

    def sent(model):
        return Processes(TrainConfig(), None, model).accelerator.ddp_handler.broadcast_buffers

    constant = torch.nn.Identity()
    constant.register_buffer("table", torch.ones(3), persistent=False)
    assert not sent(constant)
    assert sent(torch.nn.BatchNorm1d(3))


def test_what_is_gathered_travels_on_the_device():
    """Batches wait on the CPU, but NCCL sends from the device only: couplings and numbers go there and come back; one process sends nothing."""
    processes = Processes(TrainConfig(), None, torch.nn.Identity())
    x = torch.ones(2, 3)
    assert processes.shard.gather(x) is x
    sent, answer = [], MagicMock()

    def gather(tensor):
        sent.append((tensor.device.type, tensor.shape))
        return answer

    processes.accelerator, processes.count = SimpleNamespace(device=torch.device("meta"), gather=gather), 2
    processes.shard.gather(x)
    assert sent == [("meta", (2, 3))]
    answer.to.assert_called_once_with(x.device)


def test_one_process_has_nothing_to_divide(monkeypatch, tmp_path):
    """A launch of one process that asks for FSDP is the run without it, to the bit; one with fp16 is refused."""
    run(tmp_path / "plain", CASES["fm"])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run(tmp_path / "asked", CASES["fm"])
    assert_same(final_state(tmp_path / "plain"), final_state(tmp_path / "asked"))
    with pytest.raises(ValueError, match="fp16 scales gradients, which is not written for FSDP; use bf16"):
        Processes(TrainConfig(mixed_precision="fp16"), None, torch.nn.Identity())


@pytest.mark.parametrize(("name", "kind"), [("one_gpu", "NO"), ("ddp", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_launches_are_configured(name, kind):
    """Every configuration that is shipped is read by accelerate as what its page says, and asks for nothing that is refused."""
    shipped = load_config_from_file(str(LAUNCHES / f"{name}.yaml"))
    assert (shipped.distributed_type, shipped.mixed_precision) == (kind, "no")
    assert {path.name for path in LAUNCHES.iterdir()} == {"one_gpu.yaml", "ddp.yaml", "fsdp.yaml", "README.md"}
    assert f"`{name}.yaml`" in (LAUNCHES / "README.md").read_text()


def test_accumulation_is_a_setting_of_the_run(monkeypatch, tmp_path):
    """What `accelerate launch` is told of it does not divide the loss a second time."""
    run(tmp_path / "plain", CASES["fm"])
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    run(tmp_path / "told", CASES["fm"])
    assert_same(final_state(tmp_path / "plain"), final_state(tmp_path / "told"))


def test_the_device_is_known_before_the_trainer(monkeypatch):
    """The process's own accelerator where there is one; the CPU when it is asked for; whole models stay with the host under FSDP."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert training_device() == device_of_whole_models() == torch.device("cuda", 1)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert (training_device(), device_of_whole_models()) == (torch.device("cuda", 1), torch.device("cpu"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert training_device() == torch.device("cpu")
