"""A store of the cells of a study: each is computed once and kept as a file, so that a killed study goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..results import write_json

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]*(/[A-Za-z0-9_][A-Za-z0-9_.,=+-]*)*")


class Cells:
    """Results by name in one folder: `name.json` holds numbers, `name.safetensors` weights; `/` in a name makes subfolders.

    A cell is what a function returned, read back from the file it was written to, so a resumed study sees exactly what an unbroken one sees.

    Args: `folder`: made when it is missing; `settings`: what all cells have in common (sizes, seeds of the data ...), kept in `settings.json`.
    Raises: ValueError when the folder holds the cells of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any] | None = None):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if settings is not None:
            kept = self.get_or_run("settings", lambda: settings)
            if kept != json.loads(json.dumps(settings)):
                raise ValueError(
                    f"the folder {folder} holds the cells of a study with other settings: choose another folder, or delete it."
                )

    def get_or_run(self, name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The numbers of a cell: from its file, or of `function()`, which is then kept. Numbers that are not finite become None, keys text.

        Raises: ValueError for a name that is no file name, or a file that is no JSON.
        """
        path = self._path(name, ".json")
        if not path.is_file():
            write_json(path, function())
        try:
            return json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"the cell {path} is broken ({error}): delete it to have it computed again.") from error

    def get_or_run_tensors(self, name: str, function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a cell (a checkpoint, samples), kept likewise; they are returned on the CPU."""
        path = self._path(name, ".safetensors")
        if not path.is_file():
            temporary = path.with_suffix(".tmp")
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in function().items()}, temporary)
            os.replace(temporary, path)
        return load_file(path)

    def __contains__(self, name: str) -> bool:
        """Whether the numbers of a cell are there."""
        return self._path(name, ".json").is_file()

    def _path(self, name: str, suffix: str) -> Path:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"a cell's name takes letters, digits and _ . , = + - (and / between parts), got {name!r}."
            )
        path = self.folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
