"""Going on with a run: for more steps, into another folder, after a signal, a broken checkpoint or a loss that exploded."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
import yaml
from tiny import SMALL_RUN, network, pretrained, toy, tree
from torch import nn

from hf_flowft import (
    Callback,
    EvalConfig,
    FlowMatchingObjective,
    FlowPipeline,
    FlowTrainer,
    Run,
    TrainConfig,
    load_config,
)
from hf_flowft.cli import STOPPED, main
from hf_flowft.training import NonFiniteLossError, resume
from hf_flowft.training.batches import LoaderRows
from hf_flowft.training.checkpoint import checkpoint_path, list_checkpoints, load_tensors, read_state
from hf_flowft.training.guards import private_global_rng, restore_rng, rng_states

DATA = toy()
EVAL = EvalConfig(every=4, num_repeats=2, select_num_steps=[1], max_samples=16, min_delta=0)


def trainer(folder, checkpoint="", rows=None, **train):
    """Ten steps of a small network, with a checkpoint after the fifth."""
    settings = {"num_steps": 10, "batch_size": 16, "checkpoint_every": 5, "log_every": 1, **train}
    config = TrainConfig(resume_from_checkpoint=checkpoint, **settings)
    return FlowTrainer(network(DATA), DATA, FlowMatchingObjective(), config, EVAL, folder, rows=rows)


def last_weights(folder, group="weights"):
    """The weights at the end of a run, not those of its best step."""
    return load_tensors(list_checkpoints(folder)[-1], group)


def assert_same(one, other):
    """Bitwise: live weights, averages and losses of two run folders."""
    for group in ("weights", "ema"):
        a, b = last_weights(one, group), last_weights(other, group)
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[name]) for name, value in a.items())
    a, b = (read_state(list_checkpoints(folder)[-1])["history"] for folder in (one, other))
    assert a == b


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path):
    """Training may go on for more steps than first planned: with a constant learning rate it is the longer run."""
    trainer(tmp_path / "whole").train()
    trainer(tmp_path / "short", num_steps=5).train()
    trainer(tmp_path / "short", "latest").train()
    assert_same(tmp_path / "whole", tmp_path / "short")


class Tied(nn.Module):
    """Two layers with one weight that is trained, and two with one that is not."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        self.layers[2].weight = self.layers[0].weight
        self.layers[4].weight = self.layers[3].weight
        self.layers[3].weight.requires_grad_(False)

    def forward(self, x, t):
        """A velocity."""
        return self.layers(x)


def test_tied_weights_are_saved_and_stay_tied(tmp_path):
    """A run whose network has one weight under two names is resumed to the bit, still as one weight, and the frozen one is not among those saved."""

    def run(folder, checkpoint="", steps=10):
        config = TrainConfig(num_steps=steps, batch_size=16, log_every=1, resume_from_checkpoint=checkpoint)
        return FlowTrainer(Tied(), DATA, FlowMatchingObjective(), config, EVAL, folder).train().model

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", steps=5)
    resumed = run(tmp_path / "parts", "latest")
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert resumed.layers[0].weight is resumed.layers[2].weight
    assert not torch.equal(resumed.layers[0].weight, Tied().layers[0].weight)
    saved = last_weights(tmp_path / "parts")
    assert torch.equal(saved["velocity.model.layers.0.weight"], saved["velocity.model.layers.2.weight"])
    assert not {"velocity.model.layers.3.weight", "velocity.model.layers.4.weight"} & saved.keys()


def test_resuming_warns_of_nothing(tmp_path):
    """Where nothing is wrong."""
    trainer(tmp_path, num_steps=5).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer(tmp_path, "latest").train()


def test_the_time_of_all_parts_is_told(tmp_path):
    """A resumed run has taken what its parts have taken."""
    first = trainer(tmp_path, num_steps=5).train()
    saved = read_state(checkpoint_path(tmp_path, 5))["seconds"]
    assert 0 < saved <= first.seconds
    run = trainer(tmp_path, "latest")
    started = time.perf_counter()
    seconds = run.train().seconds
    assert saved < seconds <= saved + time.perf_counter() - started


def test_a_broken_checkpoint_does_not_cost_a_whole_one(tmp_path):
    """With a limit of one: what was just written is kept, though a broken one bears a higher number, which is written again in its turn."""
    trainer(tmp_path / "whole").train()
    trainer(tmp_path, checkpoints_total_limit=0).train()
    broken = checkpoint_path(tmp_path, 10) / "weights.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])

    class Stop(Callback):
        def on_log(self, trainer, step, logs):
            """Asks to stop after step 7."""
            if step == 7:
                signal.raise_signal(signal.SIGTERM)

    run = trainer(tmp_path, "latest", checkpoints_total_limit=1)
    run.callbacks = [Stop()]
    with pytest.warns(UserWarning, match="skipping a broken checkpoint"):
        assert run.train().stopped
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-7", "checkpoint-10"]
    with pytest.warns(UserWarning, match="skipping a broken checkpoint"):
        trainer(tmp_path, "latest", checkpoints_total_limit=1).train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10"]
    assert_same(tmp_path / "whole", tmp_path)


def test_latest_needs_a_folder():
    with pytest.raises(ValueError, match="no output_dir to look in"):
        trainer(None, "latest").train()


def test_a_run_without_a_folder_does_not_pass_for_a_whole_one_when_stopped():
    """Asked to stop with nowhere to write a checkpoint, a run interrupts its caller: a study must not keep its numbers."""
    run = trainer(None)

    class Stop(Callback):
        def on_log(self, trainer, step, logs):
            """Asks to stop after step 3."""
            if step == 3:
                signal.raise_signal(signal.SIGTERM)

    run.callbacks = [Stop()]
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.step == 3


def test_random_states_of_other_machines():
    """A process without a saved state, or a GPU that is not here, leaves the generator as it is; its own state is taken."""
    with private_global_rng(3):
        saved = rng_states(lambda x: torch.cat([x, x.roll(1, dims=1)]))
        assert [name for name in saved if name.startswith("cpu")] == ["cpu-0", "cpu-1"]
        torch.rand(5)
        before = torch.get_rng_state()
        restore_rng({**saved, "cuda-2": torch.zeros(16, dtype=torch.uint8)}, rank=2)
        assert torch.equal(torch.get_rng_state(), before)
        restore_rng(saved, rank=0)
        assert torch.equal(torch.get_rng_state(), saved["cpu-0"])


def test_the_scale_of_half_precision_goes_on(tmp_path):
    """The gradient scaler of fp16 is part of the state."""
    run = trainer(tmp_path, num_steps=5)
    run.train()
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    resume.save(run)
    other = trainer(tmp_path, "latest", num_steps=5)
    other.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    resume.restore(other)
    assert other.accelerator.scaler.get_scale() == 4096.0


@pytest.mark.slow
def test_workers_change_nothing(tmp_path):
    """Rows read by no or by two worker processes, from the start or from the middle: the same run."""
    for workers in (0, 2):
        trainer(tmp_path / str(workers), rows=LoaderRows(DATA, workers), num_workers=workers).train()
    assert_same(tmp_path / "0", tmp_path / "2")
    begun = trainer(
        tmp_path / "moved", checkpoint_path(tmp_path / "2", 5).as_posix(), LoaderRows(DATA, 0), num_workers=0
    )
    begun.train()
    assert_same(tmp_path / "0", tmp_path / "moved")


# Run folders


def config(folder, *words, **options):
    """A run on the toy from a pretrained pipeline, with checkpoints after every second of four steps."""
    base = folder.parent / "base"
    if not base.exists():
        pretrained("toy").save_pretrained(base)
    defaults = {"objective": {"name": "fm"}, "data": {"name": "toy", "train_size": 64, "eval_size": 32}}
    defaults |= {"model": {"name": "pretrained", "path": str(base)}, "output_dir": str(folder)}
    steps = ["--train.num_steps=4", "--train.checkpoint_every=2", "--train.learning_rate=0.01"]
    return load_config(None, [*SMALL_RUN, *steps, *words], defaults)


def test_a_checkpoint_is_taken_to_another_folder(tmp_path):
    """Resumed by its path into a new output_dir, the run ends as it did in the old one, which stays as it is."""
    first = Run(config(tmp_path / "first")).execute()
    before = tree(tmp_path / "first")
    words = f"--train.resume_from_checkpoint={checkpoint_path(tmp_path / 'first', 2)}"
    second = Run(config(tmp_path / "second", words)).execute()
    assert tree(tmp_path / "first") == before
    for key in ("metrics", "selection"):
        assert second.results[key] == first.results[key]
    assert_same(tmp_path / "first", tmp_path / "second")
    with pytest.raises(ValueError, match=r"train.batch_size: 8 -> 4"):
        Run(config(tmp_path / "third", words, "--train.batch_size=4")).execute()


def test_latest_in_any_folder(tmp_path):
    """One command serves a new folder, an empty one, and those that a kill left behind; a folder of other things is refused."""
    latest = "--train.resume_from_checkpoint=latest"
    settings = {name: config(tmp_path / name, latest) for name in ("new", "empty", "half", "begun")}
    for name in ("empty", "half", "begun"):
        (tmp_path / name).mkdir()
    (tmp_path / "half" / ".config.yaml.tmp").write_text("data: {na")
    (tmp_path / "begun" / "config.yaml").write_text(yaml.safe_dump(settings["begun"].as_dict()))
    (tmp_path / "begun" / "figures").mkdir()
    for name, setting in settings.items():
        Run(setting)
        assert yaml.safe_load((tmp_path / name / "config.yaml").read_text()) == setting.as_dict()
        assert not (tmp_path / name / ".config.yaml.tmp").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"no run to resume in .*other, but other files"):
        Run(config(other, latest))
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("improves", [True, False])
def test_the_best_survives_a_loss_that_is_not_finite(tmp_path, improves):
    """The pipeline of the best step until then is written, and said to be; there are no results to pass for those of a whole run."""
    run = Run(config(tmp_path / "run", "--eval.min_delta=0", f"--train.learning_rate={0.01 if improves else 1e-9}"))
    run.trainer.evaluator.distance = lambda velocity, split, n, repeat: 5.0 - run.trainer.step * improves
    run.trainer.train_step.register_forward_hook(
        lambda module, inputs, output: (output[0] * (math.nan if inputs[1] == 3 else 1), output[1])
    )
    with pytest.raises(NonFiniteLossError, match="not finite at step 3") as caught:
        run.execute()
    written = tmp_path / "run" / "pipeline"
    assert not (tmp_path / "run" / "results.json").exists()
    best = {name: value.clone() for name, value in caught.value.result.model.state_dict().items()}
    if improves:
        assert f"of step 2, is in {written}" in str(caught.value)
        saved = load_tensors(checkpoint_path(tmp_path / "run", 3), "best")
    else:
        assert "Nothing better than the start" in str(caught.value)
        assert not written.exists()
        saved = load_tensors(checkpoint_path(tmp_path / "run", 3), "base")
    pipeline = FlowPipeline.from_pretrained(written if improves else tmp_path / "base")
    for name, value in pipeline.model.state_dict().items():
        assert torch.equal(value, best[name])
        assert torch.equal(value, saved[f"velocity.model.{name}"])


def test_the_picture_over_training_is_whole(tmp_path):
    """The samples of an interrupted run begin where it began, with those of evaluations that are done again once: byte by byte the same picture."""

    class Stop(Callback):
        def on_log(self, trainer, step, logs):
            if step == 3:
                raise KeyboardInterrupt

    Run(config(tmp_path / "whole")).execute()
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        Run(config(part), callbacks=(Stop(),)).execute()
    picture = "figures/samples_over_training.png"
    for checkpoint in ("latest", str(checkpoint_path(part, 2))):
        Run(config(part, f"--train.resume_from_checkpoint={checkpoint}")).execute()
        assert (part / picture).read_bytes() == (tmp_path / "whole" / picture).read_bytes()


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_that_goes_on(tmp_path, capsys):
    """A process that is asked to stop ends cleanly, says how to go on, and goes on."""
    folder = tmp_path / "run"
    words = f"pretrain --output_dir {folder} --data.name toy --data.train_size 64 --data.eval_size 32 --model.name mlp --model.hidden_dim 16"
    words += " --model.num_layers 1 --train.batch_size 16 --train.num_steps 100000 --eval.every 100000 --eval.num_repeats 2 --train.log_every 1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_flowft", *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    while not (
        folder / "figures" / "samples_over_training.png"
    ).exists():  # the base has been evaluated: the loop begins
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED, output
    assert "resume_from_checkpoint latest" in output
    (stopped,) = list_checkpoints(folder)
    steps = int(stopped.name.removeprefix("checkpoint-")) + 5
    assert main([*words.split(), f"--train.num_steps={steps}", "--train.resume_from_checkpoint=latest"]) == 0
    assert "train.num_steps: 100000 -> " in capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert results["train"]["steps"] == steps
    assert [entry["step"] for entry in results["train"]["history"]] == list(range(1, steps + 1))
