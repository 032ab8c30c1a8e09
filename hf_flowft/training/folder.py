"""The run folder: that it is the right one, and the settings in it."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from .config import RunConfig, read_yaml
from .resume import check_same_run


def check_folder(folder: Path, config: RunConfig) -> None:
    """Make the run folder where there is none.

    Raises: ValueError when it cannot be made, or holds more than a config.yaml and the run does not resume; when it resumes, and the folder
    holds other things than a run, or a run with other settings.
    """
    existing, temporary = _config_files(folder)
    others = [path for path in folder.iterdir() if path not in (existing, temporary)] if folder.is_dir() else []
    if not config.train.resume_from_checkpoint:
        if others:
            raise ValueError(
                f"the output folder {folder} is not empty: choose another output_dir, resume with --train.resume_from_checkpoint latest, or delete it."
            )
    elif existing.is_file():
        check_same_run(read_yaml(existing), config.as_dict(), folder)
    elif others and not (folder / "checkpoints").is_dir():
        raise ValueError(f"there is no run to resume in {folder}, but other files: choose another output_dir.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot make the output folder {folder}: {error.strerror}; choose another output_dir."
        ) from error


def _config_files(folder: Path) -> tuple[Path, Path]:
    """config.yaml, and what it is called while it is being written."""
    return folder / "config.yaml", folder / ".config.yaml.tmp"


def write_config(folder: Path, config: RunConfig) -> None:
    """Write config.yaml atomically, once everything fits together.  Raises: ValueError when the folder cannot be written to."""
    path, temporary = _config_files(folder)
    try:
        temporary.write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"cannot write to the output folder {folder}: {error.strerror}; choose another output_dir."
        ) from error
