"""results.json: everything a run measured, in one schema; the card and the tables are made from it and from nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from scipy.special import ndtr, stdtrit

RESULTS_VERSION = 2
PACKAGES = ("torch", "diffusers", "accelerate", "datasets", "huggingface_hub", "numpy")
UNPAIRED = 0.02
"""The relative change that counts for numbers of a single draw."""
HOMES = {"home": 2, "Users": 2, "root": 1}
"""The first parts of absolute paths that name a person, and how many parts that is."""
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
HOME = re.compile(r"~[\w.-]*/")
PATH_INSIDE = re.compile(r"(?<![\w.:/~@])(?:/[\w.+@-]+){2,}/?|(?<![\w/])~[\w.-]*/[\w.+@/-]+|\b[A-Za-z]:\\[\w.+@\\-]+")
TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b")
SECRET = re.compile(r"(?:^|_)(?:token|secret|password|api_key)$", re.IGNORECASE)


def environment() -> dict[str, str]:
    """Versions and machine, without names or paths."""
    from . import __version__

    versions = {"hf_flowft": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}
    return {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores", **versions}


def public_name(path: str) -> str:
    """A path as results and cards name it: a Hub id or a relative path as given; of an absolute path the last two parts, without the home folder."""
    if not _is_absolute(path):
        return path
    parts = (PureWindowsPath if WINDOWS.match(path) else PurePosixPath)(path).parts[1:]
    return "/".join(parts[HOMES.get(parts[0], 0) if parts else 0 :][-2:])


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or bool(WINDOWS.match(path) or HOME.match(path))


def published(value: Any) -> Any:
    """Nested results or settings as anybody may read them: absolute paths by their `public_name`, also inside of sentences, and no secrets."""
    if isinstance(value, Mapping):
        return {key: published(item) for key, item in value.items() if not SECRET.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [published(item) for item in value]
    if isinstance(value, str):
        whole = public_name(value) if "\n" not in value else value
        return TOKEN.sub("[removed]", PATH_INSIDE.sub(lambda match: public_name(match[0]), whole))
    return value


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
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != RESULTS_VERSION:
        raise ValueError(
            f"{path} is not a results file of format version {RESULTS_VERSION} but of {version}: repeat the run with this version."
        )
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def mean_and_error(values: list[float]) -> dict[str, Any]:
    """The entry of repeats in a results file: their mean, its standard error, their number, and themselves for paired comparisons."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
    return {"value": mean, "stderr": spread / math.sqrt(len(values)), "repeats": len(values), "values": list(values)}


def changes(base: dict[str, Any], result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How every metric that both have moved, and whether that is more than chance.

    Where both were measured on the same noise draws, by the differences draw by draw: a change counts beyond two standard errors of their
    mean, with Student's t in place of the normal distribution because draws are few. Numbers of a single draw count from 2 % on.

    Args: `base`, `result`: name -> {value, direction, values?}; entries that are not finite are left out.
    Returns: name -> {difference: result - base, stderr or None, verdict: better, worse, unclear; higher, lower for metrics without direction}.
    """
    found = {}
    for name, before in base.items():
        after = result.get(name)
        if after is None or not (_is_number(before["value"]) and _is_number(after["value"])):
            continue
        difference, error, noise = _difference(before, after)
        words = {"lower": ("worse", "better"), "higher": ("better", "worse"), "neither": ("higher", "lower")}
        up, down = words[before["direction"]]
        verdict = "unclear" if not abs(difference) > noise else up if difference > 0 else down
        found[name] = {"difference": difference, "stderr": error, "verdict": verdict}
    return found


def _difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float | None, float]:
    """result - base, the standard error of that, and from what size on it counts."""
    first, second = before.get("values", []), after.get("values", [])
    if len(first) != len(second) or len(first) < 2 or not all(map(_is_number, (*first, *second))):
        return after["value"] - before["value"], None, UNPAIRED * abs(before["value"])
    paired = mean_and_error([b - a for a, b in zip(first, second, strict=True)])
    return paired["value"], paired["stderr"], float(stdtrit(len(first) - 1, ndtr(2.0))) * paired["stderr"]


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def compare(base: dict[str, Any], result: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The names of the metrics that got better and of those that got worse, by `changes`."""
    verdicts = {name: change["verdict"] for name, change in changes(base, result).items()}
    better, worse = ([name for name, verdict in verdicts.items() if verdict == word] for word in ("better", "worse"))
    return better, worse


COMPARED = ("data", "test_split", "evaluation")


def add_baselines(results: dict[str, Any], others: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of a run with those of other runs beside them, as columns of its metrics.

    Args: `others`: name of a column -> the results of a run on the same data, judged in the same way.  Returns: a new dictionary.
    Raises: ValueError naming what differs (data, counts, test split, a setting of the evaluation), or for a name that is taken.
    """
    columns, told = dict(results["metrics"]), dict(results["baselines"])
    for name, other in others.items():
        if name in ("base", "result") or not name.strip() or set(name) & set("|\n"):
            raise ValueError(
                f"a baseline cannot be called {name!r}: choose a name without | that is neither base nor result."
            )
        for key in COMPARED:
            _require_same(results[key], other[key], f"{key}", name)
        columns[name] = other["metrics"]["result"]
        told[name] = {key: other[key] for key in ("method", "method_title", "seed")} | {
            "steps": other["train"]["steps"],
            "best_step": other["selection"]["best_step"],
        }
    return {**results, "metrics": columns, "baselines": told}


def _require_same(ours: Any, theirs: Any, where: str, name: str) -> None:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in (*ours, *(key for key in theirs if key not in ours)):
            _require_same(ours.get(key), theirs.get(key), f"{where}.{key}", name)
    elif ours != theirs:
        raise ValueError(
            f"the baseline {name!r} cannot stand beside this run: its {where} is {theirs!r}, here {ours!r}; judge both on the same data with "
            "the same eval settings and seed."
        )
