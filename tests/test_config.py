"""Settings: YAML and overrides become typed values, round trips lose nothing, and a wrong key is told the nearest right one."""

import dataclasses
import difflib

import pytest
import yaml

from hf_flowft.choices import choices_of
from hf_flowft.training.config import (
    FIXED,
    KINDS,
    build_config,
    load_config,
    parse_overrides,
    print_settings,
    read_yaml,
)

SMALL = {"data": {"name": "toy"}, "model": {"name": "mlp"}, "objective": {"name": "fm"}}


def config(*overrides, path=None, **settings):
    return load_config(path, overrides, {**SMALL, **settings})


def refused(message, *overrides, **settings):
    with pytest.raises(ValueError, match=message) as caught:
        config(*overrides, **settings)
    assert "\n" not in str(caught.value)


# What is read


def test_overrides_beat_the_file_which_beats_the_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("train: {num_steps: 7, batch_size: 9}\nseed: 3\n")
    read = config("--train.batch_size=11", path=file, train={"num_steps": 5, "log_every": 4})
    assert (read.train.num_steps, read.train.batch_size, read.train.log_every, read.seed) == (7, 11, 4, 3)


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001"])
def test_numbers_are_numbers(tmp_path, text):
    """YAML reads 1e-3 as a string; as a setting it is the number."""
    file = tmp_path / "a.yaml"
    file.write_text(f"train: {{learning_rate: {text}}}\n")
    assert config(path=file).train.learning_rate == config(f"--train.learning_rate={text}").train.learning_rate == 1e-3
    assert config("--train.weight_decay", text).train.weight_decay == 1e-3


def test_a_bare_no_is_the_word_where_that_is_a_choice():
    """YAML reads no as false; train.mixed_precision has the choice "no", and a false train.gradient_checkpointing stays false."""
    train = config("--train.mixed_precision", "no", "--train.gradient_checkpointing", "no").train
    assert (train.mixed_precision, train.gradient_checkpointing) == ("no", False)


def test_both_spellings_of_an_override():
    assert parse_overrides(["--a.b", "1", "--a.c=x=y", "--d=[1, 2]"]) == {"a": {"b": 1, "c": "x=y"}, "d": [1, 2]}


def test_nested_settings():
    read = config("--objective.times.name=logit_normal", "--objective.times.mean=0.5", "--train.temperature.end=0.5")
    assert (read.objective.times.name, read.objective.times.mean) == ("logit_normal", 0.5)
    assert read.train.temperature.end == 0.5


def test_another_name_starts_a_section_afresh():
    """Options of one kind do not leak into another; options before their name are kept."""
    settings = {"objective": {"name": "fm", "coupling": "ot"}}
    assert config("--objective.name=mle", **settings).objective.num_steps == [8]
    read = config("--objective.num_steps=[3]", "--objective.name=mle")
    assert read.objective.num_steps == [3]


def test_defaults_are_not_changed_by_reading():
    settings = {"objective": {"name": "fm", "times": {"name": "uniform"}}}
    load_config(None, ["--objective.coupling=ot", "--objective.times.shift=2"], {**SMALL, **settings})
    assert settings == {"objective": {"name": "fm", "times": {"name": "uniform"}}}


# Round trips


def every_kind():
    for section, kinds in KINDS.items():
        for name in kinds:
            yield section, name


@pytest.mark.parametrize(("section", "name"), every_kind())
def test_as_dict_reads_back_equal(section, name):
    """Through YAML text too, tuples and lists included, for every kind of every section."""
    written = config(f"--{section}.name={name}", "--train.adam_betas=[0.8,0.9]", "--eval.select_num_steps=[1,4]")
    text = yaml.safe_dump(written.as_dict())
    assert build_config(written.as_dict()) == written
    assert build_config(yaml.safe_load(text)) == written
    assert written.train.adam_betas == (0.8, 0.9)
    assert written.as_dict()[section]["name"] == name


# What is refused


def paths(kind, prefix):
    """Every dotted setting below a section: (prefix, its siblings)."""
    names = [f.name for f in dataclasses.fields(kind)]
    yield prefix, names
    for f in dataclasses.fields(kind):
        default = f.default if f.default is not dataclasses.MISSING else None
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        if dataclasses.is_dataclass(default):
            yield from paths(type(default), f"{prefix}.{f.name}")


LEVELS = [(section, level) for section, kind in FIXED.items() for level in paths(kind, section)]
LEVELS += [
    (f"{section}.name={name}", level)
    for section, kinds in KINDS.items()
    for name, kind in kinds.items()
    for level in paths(kind, section)
    if level[1]
]


@pytest.mark.parametrize(("kind", "level"), LEVELS, ids=[f"{kind}:{level[0]}" for kind, level in LEVELS])
def test_unknown_settings_are_told_the_nearest(kind, level):
    """A misspelling (the last letter twice) of the first and the longest setting of every level of nesting."""
    prefix, names = level
    chosen = [f"--{kind}"] if "=" in kind else []
    for name in {names[0], max(names, key=len)}:
        wrong = name + name[-1]
        assert difflib.get_close_matches(wrong, names, n=1) == [name]
        refused(rf"unknown setting {prefix}.{wrong}\. Did you mean '{name}'\?", *chosen, f"--{prefix}.{wrong}=1")


def classes(kind):
    """A settings class and those of its settings that are classes."""
    inner = [f.default_factory for f in dataclasses.fields(kind) if isinstance(f.default_factory, type)]
    return [kind, *(found for part in inner if dataclasses.is_dataclass(part) for found in classes(part))]


ALL = {found for kinds in (*KINDS.values(), FIXED) for kind in kinds.values() for found in classes(kind)}


@pytest.mark.parametrize("kind", sorted(filter(choices_of, ALL), key=str), ids=lambda kind: kind.__name__)
def test_names_are_checked_in_python_as_on_the_command_line(kind):
    """Every setting that is one of a few names refuses another one where it is made, and tells the nearest."""
    for name, choices in choices_of(kind).items():
        near = max(choices, key=lambda choice: len(str(choice)))
        with pytest.raises(
            ValueError, match=rf"{kind.__name__}\.{name} must be one of .*, got .*\. Did you mean '{near}'\?"
        ):
            kind(**{name: f"{near}x"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--trian.num_steps=3", r"unknown setting trian\. Did you mean 'train'\?"),
        ("--sead=3", r"Did you mean 'seed'\?"),
        (
            "--data.name=digit",
            r"data.name must be one of toy, digits, images, vectors, robot, captioned, got 'digit'\. Did you mean 'digits'\?",
        ),
        ("--model.name=unet", r"got 'unet'\. Did you mean 'unet2d'\?"),
        ("--objective.name=mlee", r"objective.name must be one of fm, gft, mle, .*, got 'mlee'\. Did you mean 'mle'\?"),
        ("--objective={name: bc, rate: 1}", r"unknown setting objective.rate\. Known here: none\."),
        ("--objective.name=[fm]", r"got \['fm'\]"),
        ("--data.name=", "must be one of toy"),
        (
            "--train.lr_schedule=cosin",
            r"one of constant, cosine, linear, alpha\. Got value: cosin\. Did you mean 'cosine'\?",
        ),
        ("--objective.coupling=OT", "one of independent, ot, sinkhorn"),
        ("--pairs.name=best", r"Did you mean 'best_of_k'\?"),
        ("--objective.times.name=uniforms", r"Did you mean 'uniform'\?"),
        ("--data.distribution=moon", r"Did you mean 'moons'\?"),
        ("--train.num_steps=ten", "train.num_steps.*Expected int.*ten"),
        ("--train.num_steps=2.5", "Expected int"),
        ("--train.ema_decay=high", "Expected float"),
        ("--eval.select_num_steps=[1,x]", "eval.select_num_steps"),
        ("--train.adam_betas=[0.9]", "train.adam_betas"),
        ("--train.num_steps=0", r"train.num_steps must be at least 1, got 0"),
        ("--train.learning_rate=-1", "must be positive, got -1"),
        ("--train.learning_rate=.nan", "must be positive, got nan"),
        ("--eval.select_num_steps=[]", "must name numbers of steps >= 1"),
        ("--eval.report_num_steps=[4,0]", "must name numbers of steps >= 1"),
        ("--eval.forgetting_limit=0.5", "a factor >= 1"),
        ("--eval.patience=-1", r"eval.patience must be >= 0, got -1"),
        ("--eval.min_delta=-1", r"eval.min_delta must be >= 0"),
        ("--train.gradient_accumulation_steps=3", "multiple of gradient_accumulation_steps 3"),
        ("--train.temperature.initial_temperature=-2", "negative temperature has no meaning"),
        ("--train.temperature.final_temperature=-1", "must be a number >= 0, got -1"),
        ("--pairs.num_steps=0", r"pairs.num_steps must be at least 1"),
        ("--pairs.name=independent", "collapses to the mean"),
        ("--train=5", "section train must hold settings by name, got 5"),
        ("--train.temperature=5", "section train.temperature must hold settings by name, got 5"),
        ("--model=mlp", "section model must hold settings by name, got 'mlp'"),
        ("--output_dir=", "name of a folder, got None"),
        ("--seed=-1", "whole number >= 0, got -1"),
        ("--seed=true", "whole number >= 0, got True"),
        ("--seed=[", "cannot read the value of --seed"),
        ("--seed", "--seed needs a value"),
        ("--plan", "unknown setting plan. Known here: output_dir, seed, data,"),
        ("seed=3", "expected an option such as"),
    ],
)
def test_wrong_values_are_refused(override, message):
    """Each in one sentence that names the setting, the value and what is accepted."""
    refused(message, override)


def test_sections_that_are_needed():
    for section in KINDS:
        with pytest.raises(
            ValueError, match=f"nothing says what {section} is: give --config FILE, or --{section}.name, one of"
        ):
            build_config({k: v for k, v in SMALL.items() if k != section})


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "is not valid YAML"), ("- 1", "must hold settings by name, got list"), ("", "got NoneType")],
)
def test_broken_files_are_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(path)
    with pytest.raises(ValueError, match="cannot read the config"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="cannot read the config"):
        read_yaml(tmp_path)


# What is printed


def test_settings_are_printed_with_their_documentation(capsys):
    """Every setting of every kind, and the sentence below each field."""
    print_settings()
    text = capsys.readouterr().out
    for section, kinds in [*KINDS.items(), *((s, {"": k}) for s, k in FIXED.items())]:
        for kind in kinds.values():
            for f in dataclasses.fields(kind):
                assert f"--{section}.{f.name}" in text
    assert "Optimiser steps." in text
    assert "CONFIG" not in text  # a section takes no file of its own
    assert "cosine or linear to zero" in " ".join(text.split())
