"""Hostile settings and words of the command line: typed settings, or a ValueError of one line, which the command turns into exit code 2."""

import io
from contextlib import redirect_stderr, redirect_stdout

import pytest
import yaml
from hostile import MANY, byte_edits, edited, edits, spoilt, values
from hypothesis import given, settings
from hypothesis import strategies as st
from traps import confined, outcome

import hf_flowft.training.run as training_run
from hf_flowft.cli import main
from hf_flowft.training.config import FIXED, KINDS, RunConfig, build_config, load_config

SMALL = {"data": {"name": "toy"}, "model": {"name": "mlp"}, "objective": {"name": "fm"}}


def every_kind():
    """The complete settings of a run with each kind of each section."""
    for section, kinds in KINDS.items():
        for name in kinds:
            yield build_config({**SMALL, section: {"name": name}}).as_dict()


COMPLETE = list(every_kind())  # built here, for jsonargparse imports on first use what it needs


def read(text, folder, words=()):
    """What becomes of a file of settings: settings, which read back as they are, or a message."""
    path = folder / "settings.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    config = outcome(load_config, path, words)
    assert isinstance(config, str | RunConfig)
    return config


@settings(MANY, max_examples=40)
@given(complete=st.sampled_from(COMPLETE), changes=edits)
def test_edited_settings(tmp_path_factory, complete, changes):
    """Keys and values of other types, sizes and meanings at every level."""
    read(yaml.safe_dump(edited(complete, changes)), tmp_path_factory.getbasetemp())


@settings(MANY, max_examples=30)
@given(complete=st.sampled_from(COMPLETE), changes=byte_edits)
def test_spoilt_settings(tmp_path_factory, complete, changes):
    """A file that was cut or changed by bytes."""
    read(spoilt(yaml.safe_dump(complete).encode(), changes), tmp_path_factory.getbasetemp())


TAGS = "python/object/apply:os.system int float bool timestamp binary set omap pairs null"
SIGNS = "a data name , { } [ ] ' \" | > # % @ ` &a *a << ~ ! --- ... 1 0x 1e999 .nan 2001-99-99 1:60:60"
TOKENS = [": ", "- ", "? ", "\n", "\n  ", "\t", " ", "9" * 5000, "[" * 300, "train: ", "num_steps: ", *SIGNS.split()]
TOKENS += [f"!!{tag} " for tag in TAGS.split()]


@settings(MANY, max_examples=120)
@given(text=st.lists(st.sampled_from(TOKENS), max_size=25).map("".join) | st.text())
def test_any_yaml(tmp_path_factory, text):
    """Whatever YAML may say: tags, aliases, several documents, dates, numbers."""
    read(text, tmp_path_factory.getbasetemp())
    read(f"train:\n  num_steps: {text}", tmp_path_factory.getbasetemp())


sections = st.sampled_from([*KINDS, *FIXED, "output_dir", "seed", "x", ""])
FIELDS = "name num_steps learning_rate adam_betas times labels temperature.end class_path x.y"
fields = st.sampled_from(["", *FIELDS.split()])
plain = values.filter(lambda value: "\\ud800" not in repr(value)).map(
    lambda value: yaml.safe_dump(value, width=1 << 20).strip()
)
word = st.one_of(
    st.builds("--{}.{}={}".format, sections, fields, plain),
    st.builds("--{}={}".format, sections, plain),
    st.builds("--{}".format, sections),
    st.text(),
)


class NoRun:
    """Stands for a run that ends at once."""

    results, stopped = {}, False

    def __init__(self, config):
        self.config = config

    def execute(self):
        """Nothing is trained."""
        return self


@settings(MANY, max_examples=30)
@given(words=st.lists(word, max_size=4), verb=st.sampled_from([["pretrain"], ["finetune", "gft"]]))
def test_any_words(words, verb):
    """Overrides of every form, to the function and to the command: exit code 2 and one line (below the usage, when argparse speaks)."""
    outcome(load_config, None, words, SMALL)
    errors, code = io.StringIO(), None
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()), redirect_stderr(errors), confined():
        patch.setattr(training_run, "Run", NoRun)
        try:
            code = main([*verb, "--data.name=toy", "--model.name=mlp", *words])
        except SystemExit as stop:  # argparse
            code = stop.code
    lines = [line for line in errors.getvalue().splitlines() if "error:" in line]
    assert (code, len(lines)) in ((0, 0), (2, 1)), errors.getvalue()
