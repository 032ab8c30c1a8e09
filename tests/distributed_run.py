"""Run by test_distributed on two processes: small trainings of every kind, or a command of which only the main process may write files."""

import json
import os
import sys
from pathlib import Path

import torch
from test_resume_matrix import Killed, build, stop_at
from torch.distributed.tensor import DTensor

from hf_flowft.training.sharding import gather

CASES = {
    "fm": ("fm", "ot", 1, "mlp", "warmup", "cosine", 0.0, 0),
    "gft": ("gft target", "ot within labels", 2, "mlp", "power", "constant", 0.2, 0),
    "replay": ("gft replay", "ot within labels", 1, "gav", "warmup", "alpha", 0.2, 0),
    "blocks": ("gft target", "ot", 2, "blocks", "constant", "cosine", 0.0, 0),
    "self": ("mle self", "ot", 2, "mlp", "off", "cosine", 0.0, 0),
    "gav": ("mle ot_output", "independent", 1, "gav", "power", "constant", 0.0, 1),
}
NAMES = ("objective", "coupling", "accumulation", "model", "ema", "lr", "condition dropout", "refresh")
CASES = {name: {**dict(zip(NAMES, choices, strict=True)), "stop": "log"} for name, choices in CASES.items()}


def fail(module, inputs):
    """What is whole is not trained with, nor is its reference asked."""
    raise AssertionError(f"a whole {type(module).__name__} was called")


def run(folder, case, resume=""):
    """Train a case and write what this process has seen, and the gradient that every process had in the end.

    Returns: the trainer.
    """
    trainer, seen = build(case, folder, resume)
    if trainer.processes.divided:
        for part in trainer.whole.objective.modules():
            part.register_forward_pre_hook(fail)
    trainer.train()
    gradients = gather({name: p.grad for name, p in trainer.trained.items()}, trainer.whole.state_dict())
    held = [p.to_local() if isinstance(p, DTensor) else p for p in trainer.train_step.parameters()]
    facts = {
        "seen": seen,
        "gradients": {name: gradient.tolist() for name, gradient in gradients.items()},
        "processes": trainer.processes.count,
        "held": sum(p.numel() for p in held),
        "of": sum(p.numel() for p in trainer.whole.parameters()),
    }
    (folder / f"rank-{trainer.processes.shard.rank}.json").write_text(json.dumps(facts))
    return trainer


def cases(folder, one):
    """Every case; one that was begun by one process, in the folder `one`; and one with dropout, whole and interrupted."""
    for name, case in CASES.items():
        run(folder / name, case)
    run(folder / "moved", CASES["fm"], resume=str(one / "fm" / "checkpoints" / "checkpoint-6"))
    dropping = {**CASES["fm"], "model": "dropout"}
    run(folder / "whole", dropping)
    trainer, _ = build(dropping, folder / "stopped")
    stop_at(trainer, "step", None)
    try:
        trainer.train()
    except Killed:
        run(folder / "stopped", dropping, resume="latest")


def command(folder, words):
    """A command of hf-flowft; what a process writes into the folder, by the name of the operation, goes to writes-<rank>.json beside it."""
    from hf_flowft.cli import main

    written = []

    def watch(event, arguments):
        writes = event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        writes |= event == "open" and isinstance(arguments[1], str) and any(c in arguments[1] for c in "wax+")
        if writes and str(arguments[0]).startswith(str(folder)):
            written.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)
    code = main(words)
    Path(f"{folder}-writes-{os.environ['RANK']}.json").write_text(json.dumps(written))
    return code


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "cases":
        cases(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(command(Path(sys.argv[2]), sys.argv[3:]))
