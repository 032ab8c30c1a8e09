"""A kill between any two operations on files loses no whole checkpoint, and the next command goes on as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny import SMALL_RUN, network, pretrained, toy, tree

from hf_flowft import EvalConfig, FlowMatchingObjective, FlowTrainer, Run, TrainConfig, load_config
from hf_flowft.cli import main
from hf_flowft.pipelines import saved
from hf_flowft.training import checkpoint, resume
from hf_flowft.training.checkpoint import checkpoint_path, list_checkpoints, load_tensors, read_state, recover

STEPS = 6
DATA = toy()


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


class Disk:
    """Counts the operations on files that pass through Python, and dies before the one numbered `last`.

    Writing a file counts twice: it may be left half written.
    """

    PLAIN = ((os, "replace"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (os, "fsync"))
    WRITES = ((checkpoint, "save_file", 1), (checkpoint.torch, "save", 1), (Path, "write_text", 0))

    def __init__(self, patch, last):
        self.count, self.last = 0, last
        for owner, name in self.PLAIN:
            patch.setattr(owner, name, self._plain(getattr(owner, name)))
        for owner, name, where in self.WRITES:
            patch.setattr(owner, name, self._write(getattr(owner, name), where))

    def _tick(self):
        if self.count == self.last:
            raise Killed
        self.count += 1

    def _plain(self, operation):
        def ticking(*arguments, **options):
            self._tick()
            return operation(*arguments, **options)

        return ticking

    def _write(self, operation, where):
        def ticking(*arguments, **options):
            self._tick()
            result = operation(*arguments, **options)
            if self.count == self.last:
                path = Path(arguments[where])
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            self._tick()
            return result

        return ticking


def trainer(folder, resume=""):
    """A run of six steps that keeps one checkpoint, of every second step."""
    config = TrainConfig(
        num_steps=STEPS,
        batch_size=8,
        checkpoint_every=2,
        checkpoints_total_limit=1,
        log_every=1,
        resume_from_checkpoint=resume,
    )
    evaluation = EvalConfig(every=3, num_repeats=2, select_num_steps=[1], max_samples=8)
    return FlowTrainer(network(DATA), DATA, FlowMatchingObjective(), config, evaluation, folder)


def final(folder):
    """What a run left: the tensors of its last checkpoint, its losses and scores."""
    last = list_checkpoints(folder)[-1]
    state = read_state(last)
    tensors = {stem: load_tensors(last, stem) for stem in ("weights", "ema", "best", "base", "rng")}
    return tensors, {key: state[key] for key in ("step", "history", "selection")}


def assert_same(one, other):
    """Bitwise."""
    assert one[1] == other[1]
    for stem, group in one[0].items():
        assert group.keys() == other[0][stem].keys()
        assert all(torch.equal(value, other[0][stem][name]) for name, value in group.items()), stem


def hidden(folder):
    """What a kill has left in the folder of checkpoints."""
    return [path.name for path in (folder / "checkpoints").glob(".*")]


@contextmanager
def begun(folder):
    """A copy of a run that has written its checkpoint of step 2."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    yield copy
    shutil.rmtree(copy)


def test_a_kill_while_a_checkpoint_is_written(tmp_path, monkeypatch, capsys):
    """Before every operation of writing the checkpoint of step 4 and deleting that of step 2, and in the middle of every file."""
    trainer(tmp_path / "whole").train()
    whole, save = final(tmp_path / "whole"), resume.save
    first = trainer(tmp_path / "begun")
    with monkeypatch.context() as patch:
        patch.setattr(resume, "save", lambda t: save(t) if t.step == 2 else (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            first.train()
    resumed_from = []
    for number in range(1000):
        with begun(tmp_path / "begun") as folder:
            run, disk = trainer(folder, "latest"), None
            with monkeypatch.context() as patch:

                def dying(trainer, patch=patch, number=number):
                    nonlocal disk
                    disk = disk or Disk(patch, number if trainer.step == 4 else None)
                    save(trainer)
                    disk.last = None

                patch.setattr(resume, "save", dying)
                try:
                    run.train()
                    break
                except Killed:
                    pass
            for listed in list_checkpoints(folder):
                read_state(listed)  # whatever bears the name of a checkpoint is whole
            capsys.readouterr()
            trainer(folder, "latest").train()
            resumed_from.append(int(capsys.readouterr().out.split("Going on after step ")[1].split(",")[0]))
            assert_same(final(folder), whole)
            assert hidden(folder) == []
            assert [path.name for path in list_checkpoints(folder)] == [f"checkpoint-{STEPS}"]
    assert resumed_from == sorted(resumed_from)  # from the older until the newer is whole, then from the newer
    assert set(resumed_from) == {2, 4}
    assert number > 30


def content(value):
    """A checkpoint of one number."""
    groups = {"weights": {"w": torch.tensor(float(value))}, "ema": {"w": torch.tensor(float(value))}}
    facts = {key: {} for key in ("selection", "identity", "data", "scaler")}
    return groups, {}, {**facts, "step": 1, "history": [], "frozen": "", "seconds": 0.0}


def test_a_kill_while_a_checkpoint_is_replaced(tmp_path, monkeypatch):
    """A checkpoint of the same step is there at every moment, old or new; also when the clearing up is killed in its turn."""
    run = tmp_path / "run"
    folder = checkpoint_path(run, 1)

    def killed(work, last):
        with monkeypatch.context() as patch:
            Disk(patch, last)
            try:
                work()
            except Killed:
                return True
        return False

    writing = clearing = 0
    while True:
        shutil.rmtree(run, ignore_errors=True)
        checkpoint.save_checkpoint(folder, *content(1))
        died = killed(lambda: checkpoint.save_checkpoint(folder, *content(2)), writing)
        died_again = killed(lambda: recover(run), clearing)
        recover(run)
        assert hidden(run) == []
        assert list_checkpoints(run) == [folder]
        read_state(folder)
        assert float(load_tensors(folder, "weights")["w"]) in ((1.0, 2.0) if died else (2.0,))
        if not died:
            break
        writing, clearing = (writing, clearing + 1) if died_again else (writing + 1, 0)
    assert writing > 20


def test_a_kill_while_a_pipeline_is_written(tmp_path, monkeypatch):
    """A run folder has no pipeline, or a whole one: the old until the new is on disk; the run that goes on leaves nothing else behind."""
    base, run = tmp_path / "base", tmp_path / "run"
    pretrained("toy").save_pretrained(base)
    model, data = {"name": "pretrained", "path": str(base)}, {"name": "toy", "train_size": 64, "eval_size": 32}
    defaults = {"objective": {"name": "fm"}, "data": data, "model": model, "output_dir": str(run)}
    config = load_config(None, [*SMALL_RUN, "--train.resume_from_checkpoint=latest"], defaults)

    def dying():
        with monkeypatch.context() as patch:
            patch.setattr(saved, "write_stub", lambda folder: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                Run(config).execute()

    dying()
    assert not (run / "pipeline").exists()
    Run(config).execute()
    whole = tree(run / "pipeline")
    dying()
    assert tree(run / "pipeline") == whole
    Run(config).execute()
    assert tree(run / "pipeline") == whole
    assert list(run.glob(".*")) == []


# Real kills


def words(base, folder):
    """The command, the same every time, as a scheduler repeats it."""
    text = f"finetune gft --model.path {base} --output_dir {folder} --data.name toy --data.train_size 64 --data.eval_size 32"
    text += " --objective.coupling ot --objective.replay_samples 64 --train.num_steps 40 --train.batch_size 16 --train.log_every 1"
    text += " --train.checkpoint_every 1 --train.lr_schedule cosine --train.resume_from_checkpoint latest"
    text += " --eval.every 20 --eval.num_repeats 2 --eval.max_samples 32 --eval.report_num_steps [1,2]"
    return text.split()


def kill_when(moment, base, folder):
    """Start the command in a process of its own, and kill -9 it as soon as the moment has come."""
    command = [sys.executable, "-m", "hf_flowft", *words(base, folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder.parent / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 120
        while not moment():
            assert process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        process.kill()
        assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_kill_9_again_and_again(tmp_path, capsys):
    """One command, killed before its first checkpoint, after it, while one is written, and before the results are: all is as if it had not been."""
    base, folder, whole = tmp_path / "base", tmp_path / "killed", tmp_path / "whole"
    pretrained("toy").save_pretrained(base)
    checkpoints, last = folder / "checkpoints", checkpoint_path(folder, 40)

    kill_when((folder / "config.yaml").is_file, base, folder)
    assert not checkpoints.exists()
    kill_when(lambda: list_checkpoints(folder), base, folder)
    assert not last.exists()
    kill_when(lambda: any(checkpoints.glob(".checkpoint-*.tmp/weights.safetensors")), base, folder)
    assert not last.exists()
    kill_when(last.is_dir, base, folder)
    assert not (folder / "results.json").exists()
    assert main(words(base, folder)) == 0
    assert "Going on after step 40" in capsys.readouterr().out
    assert main(words(base, whole)) == 0
    assert "training starts from the beginning" in capsys.readouterr().out

    assert hidden(folder) == []
    assert_same(final(folder), final(whole))
    results = [json.loads((run / "results.json").read_text()) for run in (folder, whole)]
    for key in ("metrics", "selection"):
        assert results[0][key] == results[1][key]
    assert results[0]["train"]["history"] == results[1]["train"]["history"]
    assert len(results[0]["train"]["history"]) == results[0]["train"]["steps"] == 40
    weights = [tree(run / "pipeline").values() for run in (folder, whole)]
    assert list(weights[0]) == list(weights[1])
