"""Data sets of the Hub: the revision that is named is the one that is read, online or from the cache; nothing of theirs is executed."""

import os
import subprocess
import sys
from collections import deque
from itertools import islice
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from datasets import config as datasets_config
from huggingface_hub import HfApi, constants
from tiny import SMALL_RUN

from hf_flowft import Run, load_config
from hf_flowft.data import VectorsConfig, load_vectors
from hf_flowft.data.sources import SourceConfig, open_source

NAME = "user/points"


def push(numbers, name=NAME, **options):
    """A data set of one column on the Hub.  Returns: its commit."""
    return Dataset.from_dict({"a": [float(n) for n in numbers]}).push_to_hub(name, **options).oid


def load(path=NAME, **options):
    """The column of a data set as a list, and its facts."""
    rows, facts = open_source(SourceConfig(path=path, **options))
    assert isinstance(rows, IterableDataset) is options.get("streaming", False)
    return [row["a"] for row in rows], facts


def refused(message, path=NAME, **options):
    """The error is one sentence and has no token in it."""
    with pytest.raises(ValueError, match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    assert "hf_" not in str(caught.value).replace("hf_flowft", "")
    return str(caught.value)


@pytest.fixture
def commits(hub):
    """Two states of a data set: the old one has a tag and a branch."""
    old = push([1, 2])
    HfApi().create_tag(NAME, tag="v1", repo_type="dataset")
    HfApi().create_branch(NAME, branch="early", repo_type="dataset")
    return old, push([3, 4, 5])


EITHER = pytest.mark.parametrize("streaming", [False, True])


@EITHER
def test_each_revision_is_the_commit_it_is(commits, streaming):
    """By nothing, branch, tag, hash and short hash; what is reported is the full hash of the commit that was read."""
    old, new = commits
    for revision in ("", "main", new):
        assert load(revision=revision, streaming=streaming) == ([3, 4, 5], facts(new))
    for revision in ("v1", "early", old, old[:8]):
        assert load(revision=revision, streaming=streaming) == ([1, 2], facts(old))


def facts(commit, split="train"):
    """What is known of the data set."""
    return {"source": NAME, "split": split, "revision": commit}


def test_a_stream_downloads_no_table(hub, commits):
    """It reads the files where they are; a table leaves them, and what it made of them, in the caches."""
    caches = [Path(constants.HF_HUB_CACHE), Path(datasets_config.HF_DATASETS_CACHE)]
    kept = [{".parquet"}, {".arrow"}]
    load(streaming=True)
    found = [{file.suffix for file in cache.rglob("*")} for cache in caches]
    assert not any(suffixes & suffix for suffixes, suffix in zip(found, kept, strict=True))
    load()
    found = [{file.suffix for file in cache.rglob("*")} for cache in caches]
    assert all(suffixes >= suffix for suffixes, suffix in zip(found, kept, strict=True))


def test_splits_and_subsets(hub):
    """The split that is named; one of several subsets must be chosen."""
    push([1], config_name="odd")
    push([2], config_name="odd", split="test")
    last = push([4], config_name="even")
    assert load(subset="odd", split="test") == ([2], {**facts(last, "test"), "subset": "odd"})
    assert load(subset="even")[0] == [4]
    refused(r"(?i)config.*odd.*even")
    refused(r"(?i)config.*missing|missing.*config|'many' not found", subset="many")
    refused(r"(?i)train", subset="odd", split="validation")


@EITHER
def test_offline_after_one_load(hub, commits, offline, streaming):
    """The very revision from the cache by each of its names, also after another one was loaded later; what was not loaded is said."""
    old, new = commits
    for revision in ("v1", "main"):
        load(revision=revision)
    hub.requests.clear()
    with offline():
        for revision in ("v1", old):
            assert load(revision=revision, streaming=streaming) == ([1, 2], facts(old))
        for revision in ("", "main", new):
            assert load(revision=revision, streaming=streaming) == ([3, 4, 5], facts(new))
        refused(r"not in the cache .*go online once", revision="early", streaming=streaming)
        refused(r"revision 0000.*the cache has nothing of it", revision="0" * 40, streaming=streaming)
        refused(r"'user/other'.*not in the cache", "user/other", streaming=streaming)
    assert hub.requests == []


def test_offline_with_several_subsets(hub, offline):
    """The one that was loaded needs no name; two do."""
    push([1], config_name="odd")
    push([2], config_name="even")
    load(subset="odd")
    with offline():
        assert load()[0] == [1]
        refused("the cache has nothing of it", subset="even")
    load(subset="even")
    with offline():
        assert load(subset="even")[0] == [2]
        refused(r"several subsets, even, odd: choose one with data.subset")


def test_offline_for_data_sets_only(hub, commits, monkeypatch):
    """HF_DATASETS_OFFLINE, which only `datasets` knows, is enough."""
    load()
    hub.requests.clear()
    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", True)
    assert load() == ([3, 4, 5], facts(commits[1]))
    assert hub.requests == []


@pytest.mark.slow
def test_a_process_that_is_offline_from_the_start(hub, commits):
    """After a load by another process, in the same cache."""
    load()
    hub.requests.clear()
    folders = {"HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_DATASETS_CACHE": datasets_config.HF_DATASETS_CACHE}
    program = (
        "from hf_flowft.data import VectorsConfig, load_vectors\n"
        "data = load_vectors(VectorsConfig(path='user/points', columns=['a'], validation=0, test=0, normalise=False))\n"
        "print(sorted(data.rows('train').x_1.flatten().tolist()), data.facts['revision'])"
    )
    environment = {**os.environ, **folders, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"[3.0, 4.0, 5.0] {commits[1]}"
    assert hub.requests == []


def test_a_hub_that_is_out_of_order(hub, commits):
    """What is in the cache is used, with a warning that says so; the rest is an error."""
    load()
    hub.fail("/api/datasets/", status=503, times=None)
    with pytest.warns(
        UserWarning, match=rf"cannot be reached: user/points is used as it is in the cache, {commits[1]}"
    ):
        assert load() == ([3, 4, 5], facts(commits[1]))
    refused("connection to the Hub failed", revision="early")


def test_a_download_that_dies_leaves_nothing_half(hub, commits):
    """An error, nothing that offline loading takes for whole, and the whole when it is repeated."""
    hub.fail(".parquet", after_bytes=20, times=None)
    refused("cannot load the data set 'user/points' at revision")
    hub.heal()
    assert load()[0] == [3, 4, 5]


def test_a_stream_that_dies_says_where(hub, monkeypatch):
    """The rows before it are there, and the whole stream when the Hub is back."""
    monkeypatch.setattr(datasets_config, "STREAMING_READ_RETRY_INTERVAL", 0)
    push(range(1200), num_shards=2)
    hub.fail("00001-of-00002", status=403, times=None)
    config = VectorsConfig(path=NAME, columns=["a"], streaming=True, epoch_size=100, held_out=20, shuffle_buffer=100)
    stream = load_vectors(config).stream
    with pytest.raises(ValueError, match=r"cannot read the stream user/points after row [1-9]\d\d: .*403") as caught:
        deque(stream.shuffled(0), maxlen=1)
    assert "\n" not in str(caught.value)
    hub.heal()
    numbers = [n for block, _ in islice(stream.shuffled(0), 11) for n in block.numbers]
    assert max(numbers) > 900


@EITHER
def test_what_is_not_open_to_us(hub, monkeypatch, streaming):
    """Missing, private to another, gated, a wrong token, a revision there is not, what can't be a name: each in its sentence."""
    push([1], "user/secret", private=True)
    push([1])
    refused(r"'user/nothing' is no file or folder here, and the Hub has no such repository", "user/nothing")
    refused("no revision 'v9'", revision="v9", streaming=streaming)
    refused("no name of a repository either", "some/where/else", streaming=streaming)
    load("user/secret")
    for token in ("hf_other", "hf_wrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        text = refused("that you may read|refuses this token", "user/secret", streaming=streaming)
        assert token not in text


@EITHER
def test_code_in_a_data_set_is_not_executed(hub, tmp_path, streaming):
    """A loading script is refused, whatever it does."""
    script = f"open({str(tmp_path / 'ran')!r}, 'w')"
    hub.create(NAME, {"points.py": script, "data.csv": "a\n1\n"}, repo_type="dataset")
    refused(r"scripts are no longer supported, but found points\.py", streaming=streaming)
    assert not (tmp_path / "ran").exists()


@EITHER
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("files", ["/etc/passwd", "http://127.0.0.1:9/rows.csv", "hf://datasets/user/else/data.csv"])
def test_a_card_can_not_name_files_elsewhere(hub, streaming, name, files):
    """Neither of this machine nor of the network: they are not even looked for."""
    hub.create("user/else", {"data.csv": "a\n1\n"}, repo_type="dataset")
    text = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ['*.csv', '{files}']\n"
    hub.create(
        NAME, {name: f"---\n{text}---\n" if name == "README.md" else text, "data.csv": "a\n1\n"}, repo_type="dataset"
    )
    refused(rf"its {name} lists files outside of it, '{files}'", streaming=streaming)
    assert not hub.matching("user/else")


def test_a_run_records_the_revision(hub, commits, tmp_path):
    """The commit is in results.json, though only a branch was named."""
    push(range(80))
    commit = HfApi().dataset_info(NAME).sha
    named = {"data": {"name": "vectors", "columns": ["a"]}, "model": {"name": "mlp"}, "objective": {"name": "fm"}}
    source = [f"--data.path={NAME}", "--data.streaming=true", "--data.epoch_size=30", "--data.held_out=10"]
    small = [
        "--model.hidden_dim=8",
        "--model.num_layers=1",
        "--data.shuffle_buffer=8",
        f"--output_dir={tmp_path / 'run'}",
    ]
    results = Run(load_config(None, [*SMALL_RUN, *source, *small], named), progress=False).execute().results
    assert results["data"]["revision"] == commit
    assert results["data"]["stream"] == {"epoch_size": 30, "shuffle_buffer": 8}
    assert commit in (tmp_path / "run" / "README.md").read_text()
