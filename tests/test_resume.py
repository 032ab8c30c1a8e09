"""A run that is stopped and resumed is the run that was not, bit for bit."""

import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch

from hf_flowft import (
    Callback,
    EvalConfig,
    FlowMatchingObjective,
    FlowTrainer,
    FrozenVelocity,
    GradualObjective,
    TrainConfig,
    VelocityMLP,
)
from hf_flowft.couplings import OTCoupling
from hf_flowft.data import ToyConfig, load_toy
from hf_flowft.objectives import ReconstructionObjective
from hf_flowft.pairs import PairBuilder, PairsConfig
from hf_flowft.randomness import keyed_generator
from hf_flowft.training.batches import BankRows
from hf_flowft.training.checkpoint import CheckpointError, list_checkpoints

DATA = load_toy(ToyConfig(train_size=100, eval_size=32))
EVAL = EvalConfig(every=4, num_repeats=2, select_num_steps=[2])


class Dropping(VelocityMLP):
    """An MLP with dropout, which draws from torch's global generator."""

    def forward(self, sample, timestep, return_dict=True):
        """The MLP's output with dropout."""
        out = torch.nn.functional.dropout(super().forward(sample, timestep).sample, 0.2, self.training)
        return (out,)


def model(cls=VelocityMLP):
    """A small network with fixed initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return cls(event_shape=[2], hidden_dim=16, num_layers=1)


def trainer(folder, objective="fm", resume="", num_steps=10, cls=VelocityMLP, **train):
    """A trainer of the small network; `objective` names a case."""
    network = model(cls)
    reference = FrozenVelocity(model(cls))
    rows = None
    if objective == "mle":
        bank = PairBuilder(PairsConfig("ot_output", num_steps=2), reference)
        rows = BankRows(lambda k: bank.build(DATA.rows("train"), {}, keyed_generator(0, "pairs", k)), refresh_epochs=1)
    built = {
        "fm": lambda: FlowMatchingObjective(),
        "ot": lambda: FlowMatchingObjective(coupling=OTCoupling()),
        "gft": lambda: GradualObjective(reference, num_steps=10),
        "mle": lambda: ReconstructionObjective([1, 2, 4], covariance="learned", event_shape=(2,)),
    }[objective]()
    config = TrainConfig(
        num_steps=num_steps, batch_size=32, checkpoint_every=5, resume_from_checkpoint=resume, log_every=1, **train
    )
    identity = {"objective": objective, "train": {"learning_rate": config.learning_rate}}
    return FlowTrainer(network, DATA, built, config, EVAL, folder, rows=rows, identity=identity)


def state(run):
    """Everything that must be equal: live weights, EMA, optimiser, history and scores."""
    flat = {**{f"w.{k}": v for k, v in run.weights().items()}, **{f"e.{k}": v for k, v in run.ema.shadow.items()}}
    moments = run.optimizer.state_dict()["state"]
    flat |= {f"o.{i}.{k}": v for i, entry in moments.items() for k, v in entry.items()}
    return flat, run.history, run.selection.state()


def assert_same(a, b):
    """Bitwise equality of two runs."""
    tensors_a, *rest_a = state(a)
    tensors_b, *rest_b = state(b)
    assert tensors_a.keys() == tensors_b.keys()
    for name in tensors_a:
        assert torch.equal(torch.as_tensor(tensors_a[name]), torch.as_tensor(tensors_b[name])), name
    assert rest_a == rest_b


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("fm", {}),
        ("fm", {"gradient_accumulation_steps": 2}),
        ("fm", {"cls": Dropping}),
        ("ot", {"lr_schedule": "cosine"}),
        ("gft", {"ema_mode": "power"}),
        ("mle", {}),
    ],
    ids=["fm", "accumulation", "dropout", "ot", "gft", "mle"],
)
def test_five_and_five_are_ten(tmp_path, objective, options):
    """10 steps = 5 + stopped + resumed 5, bitwise: weights, EMA, optimiser, losses and scores."""
    whole = trainer(None, objective, **options)
    whole.train()
    trainer(tmp_path, objective, num_steps=10, **options).train()
    for late in list_checkpoints(tmp_path)[1:]:
        for file in late.iterdir():
            file.unlink()
        late.rmdir()
    resumed = trainer(tmp_path, objective, resume="latest", **options)
    resumed.train()
    # `train` ends by loading the best weights: compare what both returned, and everything else
    assert_same(whole, resumed)


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path):
    """Training may go on for more steps than first planned (constant learning rate: the same run)."""
    whole = trainer(None, num_steps=10)
    whole.train()
    trainer(tmp_path, num_steps=5).train()
    longer = trainer(tmp_path, resume=str(list_checkpoints(tmp_path)[-1]))
    longer.train()
    weights = {name: value for name, value in state(longer)[0].items() if not name.startswith("w.")}
    assert all(torch.equal(value, state(whole)[0][name]) for name, value in weights.items())


def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    """`latest` skips a truncated checkpoint with a warning; naming it is an error."""
    trainer(tmp_path).train()
    newest = list_checkpoints(tmp_path)[-1]
    file = newest / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    run = trainer(tmp_path, resume="latest")
    with pytest.warns(UserWarning, match=r"damaged"):
        run.train()
    assert run.step == 10
    (newest / "weights.safetensors").write_bytes(b"x")
    other = trainer(tmp_path / "other", resume=str(newest))
    with pytest.raises(CheckpointError, match=r"damaged"):
        other.train()


def test_another_run_is_refused(tmp_path):
    """Resuming under changed settings names the change."""
    trainer(tmp_path, num_steps=5).train()
    with pytest.raises(CheckpointError, match=r"train.learning_rate: 0.0003 -> 0.1"):
        trainer(tmp_path, resume="latest", learning_rate=0.1).train()


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_that_goes_on(tmp_path):
    """A subprocess that is asked to stop ends cleanly, says how to go on, and goes on."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "hf_flowft", "pretrain", "--output_dir", str(folder), "--data.name", "toy"]
    command += [
        "--data.train_size=256",
        "--data.eval_size=64",
        "--model.name=mlp",
        "--model.hidden_dim=16",
        "--model.num_layers=1",
    ]
    command += ["--train.num_steps=100000", "--train.batch_size=32", "--eval.every=100000", "--eval.num_repeats=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    wait_for(lambda: (folder / "config.yaml").is_file())
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "resume_from_checkpoint latest" in output
    (stopped,) = list_checkpoints(folder)
    steps = int(stopped.name.removeprefix("checkpoint-"))
    finish = [*command, f"--train.num_steps={steps + 5}", "--train.resume_from_checkpoint=latest"]
    assert subprocess.run(finish, env=environment, check=False, capture_output=True).returncode == 0
    assert (folder / "results.json").is_file()


def wait_for(condition, seconds=60):
    """Poll until a condition holds."""
    for _ in range(seconds * 10):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_resume_warns_of_nothing_else(tmp_path):
    """A clean resume raises no warning of ours."""
    trainer(tmp_path, num_steps=5).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer(tmp_path, resume="latest").train()


def test_a_run_without_a_folder_does_not_pass_for_a_whole_one_when_stopped():
    """Asked to stop with nowhere to write a checkpoint, a run interrupts its caller: a study must not keep its numbers."""
    run = trainer(None)

    class Stop(Callback):
        def on_log(self, trainer, step, logs):
            if step == 3:
                signal.raise_signal(signal.SIGTERM)

    run.callbacks = [Stop()]
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.step == 3
