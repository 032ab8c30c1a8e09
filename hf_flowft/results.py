"""results.json: everything a run measured, in one schema; the card and the tables are made from it and from nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

RESULTS_VERSION = 1
PACKAGES = ("torch", "diffusers", "accelerate", "datasets", "numpy")


def environment() -> dict[str, str]:
    """Versions and machine, without names or paths."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores", **versions}


def public_name(path: str) -> str:
    """A path as results and cards name it: a Hub id or a relative path as given, of an absolute path the last two parts."""
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically, making its folder; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_finite(content), indent=1) + "\n")
    os.replace(temporary, path)


def read_results(path: Path) -> dict[str, Any]:
    """Raises: ValueError when the file is missing, broken or of another version."""
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the results {path}: {error}.") from error
    if not isinstance(content, dict) or content.get("format_version") != RESULTS_VERSION:
        raise ValueError(f"{path} is not a results file of format version {RESULTS_VERSION}.")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def compare(base: dict[str, Any], result: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The metrics that got better and that got worse by more than two standard errors (of the repeats; 2 % where there are none).

    Args: `base`, `result`: name -> {value, stderr, direction}.  Metrics without a direction are left out.
    """
    better: list[str] = []
    worse: list[str] = []
    for name, before in base.items():
        after = result.get(name)
        if after is None or before["direction"] not in ("lower", "higher") or None in (before["value"], after["value"]):
            continue
        noise = 2 * math.hypot(before.get("stderr", 0.0), after.get("stderr", 0.0)) or 0.02 * abs(before["value"])
        gain = (before["value"] - after["value"]) * (1 if before["direction"] == "lower" else -1)
        if abs(gain) > noise:
            (better if gain > 0 else worse).append(name)
    return better, worse
