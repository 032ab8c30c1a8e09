"""The verbs of sharing: push RUN, export PIPELINE, space RUN."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_sharing_verbs(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them to the console command."""
    push = verb(verbs, "push", "upload a run to the Hub: pipeline, card, results, figures", _push)
    push.add_argument("run_folder", help="the folder of a finished run (or of a Space, with --space)")
    push.add_argument("--repo", required=True, help="user/name on the Hub")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", help="the branch to push to; made where there is none")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    push.add_argument(
        "--base", default="", help="user/name[@revision] that holds the frozen base: push the residual alone"
    )
    push.add_argument("--space", action="store_true", help="upload a page made by `space` instead")
    export = verb(verbs, "export", "write a pipeline, whole, to a folder", _export)
    export.add_argument("pipeline", help="a pipeline folder or a repository on the Hub")
    export.add_argument("--out", required=True, help="an empty or new folder")
    export.add_argument(
        "--stock", action="store_true", help="as diffusers' own pipeline, loadable without this package"
    )
    export.add_argument("--merge-into", default="", help="of an adapter: the text-to-image pipeline it belongs to")
    export.add_argument(
        "--fused", nargs="*", default=[], help="with --merge-into: adapters that it was trained on (model.fused)"
    )
    space = verb(verbs, "space", "write a Gradio page that shows a run", _space)
    space.add_argument("run_folder", help="the folder of a finished run")
    space.add_argument("--out", required=True, help="an empty or new folder")


def _push(options: argparse.Namespace, settings: list[str]) -> None:
    from .hub import push_run, push_space

    target = {"private": options.private or None, "revision": options.revision, "create_pr": options.create_pr}
    if options.space:
        print(push_space(Path(options.run_folder), options.repo, **target))
    else:
        print(push_run(Path(options.run_folder), options.repo, base=options.base, **target))


def _export(options: argparse.Namespace, settings: list[str]) -> None:
    from .latents import find_base, merge
    from .pipelines import FlowPipeline
    from .pipelines.stock import to_stock

    out = empty_folder(options.out)
    if options.fused and not options.merge_into:
        raise ValueError("--fused names adapters of a pipeline: give the pipeline too, with --merge-into.")
    if options.merge_into:
        merge(options.pipeline, find_base(options.merge_into, fused=options.fused), out)
    else:
        pipeline = FlowPipeline.from_pretrained(options.pipeline)
        (to_stock(pipeline) if options.stock else pipeline).save_pretrained(out)
    print(f"Written to {out}.")


def _space(options: argparse.Namespace, settings: list[str]) -> None:
    from .space import write_space

    out = empty_folder(options.out)
    write_space(Path(options.run_folder), out)
    print(
        f"Written to {out}: run it with `python {out}/app.py`, share it with `hf-flowft push {out} --space --repo USER/NAME`."
    )


def empty_folder(name: str) -> Path:
    """A folder to write to.  Raises: ValueError when it holds something."""
    folder = Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: choose another --out, or delete it.")
    return folder
