"""What studies share: runs that are reused when they are already there, and the configs they start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from ..pipelines import FlowPipeline
from ..results import read_results
from ..training import Callback
from ..training.config import RunConfig, load_config
from ..training.run import Run, RunResult

CONFIGS = Path(__file__).parents[2] / "configs"


def study_config(name: str, overrides: dict[str, Any]) -> RunConfig:
    """A shipped config with settings replaced: `{"train.num_steps": 100}`.

    Raises: ValueError when the configs are not there: studies are run from a clone of the repository.
    """
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"{path.name} is not there: studies start from the configs of the repository, run them in a clone of it."
        )
    return load_config(
        path, [f"--{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in overrides.items()]
    )


def is_finished(config: RunConfig) -> bool:
    """Whether a run is there.  Raises: ValueError when its folder holds one with other settings."""
    folder = Path(config.output_dir)
    settings = folder / "config.yaml"
    if settings.is_file() and load_config(settings).as_dict() != config.as_dict():
        raise ValueError(f"{folder} holds a run with other settings: delete it, or give the study another folder.")
    return (folder / "results.json").is_file()


def run_or_reuse(config: RunConfig, callbacks: tuple[Callback, ...] = ()) -> RunResult:
    """Run a config under `callbacks`, resume what an earlier call began, or read what it finished.

    Raises: ValueError when the folder holds a run with other settings; KeyboardInterrupt when the run was asked to stop.
    """
    folder = Path(config.output_dir)
    if is_finished(config):
        tqdm.write(f"{folder.name}: reusing what is there")
        return RunResult(
            FlowPipeline.from_pretrained(folder / "pipeline"), read_results(folder / "results.json"), folder
        )
    resume = ["--train.resume_from_checkpoint=latest"] if folder.is_dir() else []
    result = Run(load_config(None, resume, config.as_dict()), callbacks).execute()
    if not result.results:  # asked to stop: the checkpoint is there, the next call goes on from it
        raise KeyboardInterrupt
    return result
