"""A run as typed settings: YAML and dotted overrides in, dataclasses out; unknown keys are refused with the nearest valid name."""

from __future__ import annotations

import argparse
import copy
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from ..choices import nearest
from ..data import DATA
from ..objectives import OBJECTIVES
from ..pairs import PairsConfig
from ..repository import MAX_YAML_BYTES, one_line, parse_yaml, shown
from .models import MODELS
from .settings import EvalConfig, TrainConfig


@dataclass(frozen=True)
class HubConfig:
    """Where the result goes, and what its card says that no measurement can."""

    push_to_hub: str = ""
    """The repository (user/name) the finished run is pushed to; empty pushes nothing."""
    push_best_to: str = ""
    """A branch of that repository to which each new best model is pushed while the run goes on; empty for none."""
    private: bool = False
    """Make a new repository private."""

    licence: str = "apache-2.0"
    """The licence of the weights."""
    intended_use: str = ""
    """One or two sentences for the card; empty for a neutral one."""

    def __post_init__(self) -> None:
        if self.push_best_to and not self.push_to_hub:
            raise ValueError(
                "hub.push_best_to names a branch of hub.push_to_hub, which is empty: give the repository too."
            )


@dataclass(frozen=True)
class RunConfig:
    """One run. The sections data, model and objective each have a `name` that says which kind they are."""

    output_dir: str
    """The run folder."""
    data: Any
    """What is learned from."""
    model: Any
    """What is trained."""
    objective: Any
    """The loss."""
    pairs: PairsConfig = field(default_factory=PairsConfig)
    """How reconstructions are paired (objective mle)."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """How models are judged."""
    hub: HubConfig = field(default_factory=HubConfig)
    """For the card."""
    seed: int = 0
    """Seed of initialisation, batch order, noise and times."""

    def as_dict(self) -> dict[str, Any]:
        """The resolved settings as plain data, with the names of the sections: what config.yaml holds and `load_config` reads."""
        plain: dict[str, Any] = {"output_dir": self.output_dir, "seed": self.seed}
        for section, kinds in KINDS.items():
            value = getattr(self, section)
            name = next(name for name, kind in kinds.items() if kind is type(value))
            plain[section] = {"name": name, **_plain(asdict(value))}
        return plain | {
            section: _plain(asdict(getattr(self, section))) for section in ("pairs", "train", "eval", "hub")
        }


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


KINDS: dict[str, dict[str, type]] = {
    "data": {name: kind for name, (kind, _) in DATA.items()},
    "model": MODELS,
    "objective": OBJECTIVES,
}
FIXED: dict[str, type] = {"pairs": PairsConfig, "train": TrainConfig, "eval": EvalConfig, "hub": HubConfig}
TOP_LEVEL = ("output_dir", "seed", *KINDS, *FIXED)


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), defaults: dict[str, Any] | None = None
) -> RunConfig:
    """Read a run's settings.

    Args: `path`: a YAML file; `overrides`: command-line words such as `--train.learning_rate=1e-4` or `--seed 3`; `defaults`: settings that the
    file and the overrides may replace.  Raises: ValueError naming an unknown key (with the nearest valid one), a bad value, or a missing file.
    """
    settings: dict[str, Any] = {}
    for source in (defaults or {}, read_yaml(path) if path else {}, parse_overrides(overrides)):
        _merge(settings, copy.deepcopy(source))
    return build_config(settings)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping.  Raises: ValueError when the file is missing, is not YAML or not a mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_YAML_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the config {path}: {error}.") from error
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings by name, got {type(content).__name__}.")
    return content


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`--a.b value` or `--a.b=value` as nested settings; values are YAML.  Raises: ValueError for anything else."""
    settings: dict[str, Any] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise ValueError(f"expected an option such as --train.num_steps 100, got {shown(word)}.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                _require_known({key.partition(".")[0]: None}, TOP_LEVEL, "")
                raise ValueError(f"the option --{_printed(key)} needs a value.")
            text = remaining.pop(0)
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f"cannot read the value of --{_printed(key)}: {shown(text)}.") from error
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(settings, nested)
    return settings


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    """Merge nested settings in place. A section whose `name` changes starts afresh: its old keys belong to another kind."""
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _same_name(old, value):
            _merge(old, value)
        else:
            into[key] = value if not isinstance(value, dict) else dict(value)


def _same_name(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return "name" not in old or "name" not in new or old["name"] == new["name"]


def build_config(settings: dict[str, Any]) -> RunConfig:
    """Typed settings from nested ones.  Raises: ValueError as `load_config`."""
    _require_known(settings, TOP_LEVEL, "")
    sections = {section: _typed(section, KINDS[section], settings.get(section)) for section in KINDS}
    sections |= {
        section: _parse(section, kind, _mapping(section, settings.get(section) or {}))
        for section, kind in FIXED.items()
    }
    output_dir, seed = settings.get("output_dir", "runs/run"), settings.get("seed", 0)
    if not isinstance(output_dir, str) or not output_dir:
        raise ValueError(f"output_dir must be the name of a folder, got {shown(output_dir)}.")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {shown(seed)}.")
    return RunConfig(output_dir=output_dir, seed=seed, **sections)


def _typed(section: str, kinds: dict[str, type], values: Any) -> Any:
    if values is None:
        raise ValueError(
            f"nothing says what {section} is: give --config FILE, or --{section}.name, one of {', '.join(kinds)}."
        )
    values = _mapping(section, values)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(f"{section}.name must be one of {', '.join(kinds)}, got {shown(name)}.{nearest(name, kinds)}")
    return _parse(section, kinds[name], values)


def _mapping(section: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"the section {section} must hold settings by name, got {shown(values)}.")
    return dict(values)


def _parse(section: str, kind: type, values: dict[str, Any]) -> Any:
    """Check and convert one section's values by the types of its dataclass; where "no" is a choice, YAML's reading of the bare word is undone."""
    _require_fields(section, kind, values)
    hints = get_type_hints(kind)
    values = {key: "no" if value is False and "no" in get_args(hints[key]) else value for key, value in values.items()}
    try:
        parser = section_parser(section, kind)
        typed = parser.instantiate(parser.parse_object({section: values}))[section]
    except (argparse.ArgumentError, TypeError) as error:
        raise ValueError(f"bad value in the section {section}: {_readable(error)}") from error
    except ValueError as error:  # of the dataclass itself, which shows the whole value
        raise ValueError(one_line(error, 600)) from error
    _require_numbers(section, asdict(typed))
    return typed


def _require_numbers(name: str, value: Any) -> None:
    """No setting means anything by NaN, which every comparison lets pass."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_numbers(f"{name}.{key}", inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _require_numbers(name, inner)
    elif isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name} must be a number, got nan.")


def section_parser(section: str, kind: type) -> ArgumentParser:
    """The jsonargparse parser of one section, which also prints its help."""
    parser = ArgumentParser(exit_on_error=False, prog="hf-flowft", usage=argparse.SUPPRESS)
    parser.add_argument(f"--{section}", type=kind)
    return parser


def print_settings() -> None:
    """Every setting of every section, with its documentation and default."""
    print("  --output_dir FOLDER   The folder of the run. (default: runs/run)")
    print("  --seed SEED           Of initial weights, batches, noise and pairs. (type: int, default: 0)")
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    for section, kinds in KINDS.items():
        for name, kind in kinds.items():
            print(f"\n== {section}, with name: {name}")
            _print_section(section, kind)
    for section, kind in FIXED.items():
        print(f"\n== {section}")
        _print_section(section, kind)


def _print_section(section: str, kind: type) -> None:
    text = section_parser(section, kind).format_help().partition("\n\n")[2]  # after the help of help itself
    print(re.sub(r"  --[\w.]+ CONFIG\s+Path to a configuration file\.\n|, --[\w.]+\+ \[ITEM,\.\.\.\]", "", text))


def _readable(error: Exception) -> str:
    """jsonargparse's text in one line, types as a user would name them, with the nearest of the choices."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("Expected a ", "Expected ")
    match = re.search(r"typing\.Literal\[(.*?)\]\. Got value: (.*)", text)
    if match:
        choices = [choice.strip(" '\"") for choice in match[1].split(",")]
        text = f"{text[: match.start()]}one of {', '.join(choices)}. Got value: {match[2]}.{nearest(match[2], choices)}"
    return text[:600]


def _require_fields(section: str, kind: type, values: dict[str, Any]) -> None:
    hints = get_type_hints(kind)
    _require_known(values, [f.name for f in fields(kind)], f"{section}.")
    for key, value in values.items():
        if is_dataclass(hints[key]):
            _require_fields(f"{section}.{key}", hints[key], _mapping(f"{section}.{key}", value))


def _require_known(values: dict[str, Any], known: Sequence[str], prefix: str) -> None:
    for key in values:
        if key not in known:
            raise ValueError(
                f"unknown setting {prefix}{_printed(key)}.{nearest(key, known)} Known here: {', '.join(known) or 'none'}."
            )


def _printed(key: Any) -> str:
    return key if isinstance(key, str) and key.isprintable() and len(key) < 80 else shown(key)
