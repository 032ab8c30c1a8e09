"""What the card of a data set may point at: its own files and nothing else, neither of this machine nor anywhere on the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import metadata_load

CARD_FILES = ("README.md", ".huggingface.yaml")
"""Where `datasets` reads which files make up a data set."""


def require_own_files(folder: Path) -> None:
    """Raises ValueError when the card in a folder lists files outside of it; called before anything looks for these files."""
    for name in CARD_FILES:
        path = folder / name
        if not path.is_file():
            continue
        metadata = metadata_load(path) if path.suffix == ".md" else yaml.safe_load(path.read_text())
        configs = metadata.get("configs") if isinstance(metadata, dict) else None
        foreign = [pattern for pattern in _patterns(configs) if _is_outside(pattern)]
        if foreign:
            raise ValueError(f"its {name} lists files outside of it, {foreign[0]!r}")


def _patterns(configs: Any) -> Iterator[str]:
    """Every text below `data_files` and `data_dir`; what YAML repeats by reference is looked at once."""
    entries = [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []
    stack, seen = [config.get(key) for config in entries for key in ("data_files", "data_dir")], set[int]()
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict | list) and id(item) not in seen:
            seen.add(id(item))
            stack += item.values() if isinstance(item, dict) else item


def _is_outside(pattern: str) -> bool:
    path = PurePosixPath(pattern.replace("\\", "/"))
    return ":" in pattern or path.is_absolute() or ".." in path.parts or pattern.startswith("~")
