"""Runs of two steps, whose pages are tested."""

from pathlib import Path

from tiny import SMALL_RUN, pretrained

from hf_flowft import Run, load_config

SIZES = {"toy": ["--data.train_size=64", "--data.eval_size=24"], "digits": ["--data.train_size=20"]}


def train(folder: Path | str, kind: str, base: Path | str = "") -> None:
    """A run on a kind of data into a folder: a fine-tune of `base` that takes whatever is better, or a fresh network where that is empty."""
    fresh = {"name": "mlp", "hidden_dim": 8, "num_layers": 1}
    model = {"name": "pretrained", "path": str(base)} if base else fresh
    choice = {"data": {"name": kind}, "model": model, "objective": {"name": "fm"}, "output_dir": str(folder)}
    words = [*SMALL_RUN, *SIZES[kind], "--train.learning_rate=0.01", "--eval.min_delta=0"]
    Run(load_config(None, words, choice), progress=False).execute()


def fine_tune(folder: Path, kind: str) -> Path:
    """A base and its fine-tune, in `folder`/base and `folder`/run; the latter."""
    pretrained(kind).save_pretrained(folder / "base")
    train(folder / "run", kind, folder / "base")
    return folder / "run"
