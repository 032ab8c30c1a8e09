"""Files and folders as sources: which rows a split, a subset or a saved data set has, and by what a result can be traced to them."""

import hashlib
import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from datasets import config as datasets_config

from hf_flowft.data import VectorsConfig, load_vectors, sources
from hf_flowft.data.sources import SourceConfig, digest, open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What `datasets` converts goes to the test's own folder."""
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def values(path, **options):
    """The column `a` of a source, read as a table and as a stream, which agree; and its facts."""
    rows, facts = open_source(SourceConfig(path=str(path), **options))
    stream, same = open_source(SourceConfig(path=str(path), streaming=True, **options))
    assert isinstance(stream, IterableDataset)
    assert facts == same
    found = rows["a"][:]
    assert [row["a"] for row in stream] == found
    return found, facts


def write(path, *numbers):
    """A CSV file with a column `a`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["a", *map(str, numbers)]))


# Which rows


@pytest.mark.parametrize("names", ["train/1.csv test/1.csv", "train.csv test.csv", "data/train-0.csv data/test-0.csv"])
def test_a_folder_with_splits(tmp_path, names):
    """By folders or by the names of files, as on the Hub; what is not there is said with what is."""
    for number, name in enumerate(names.split()):
        write(tmp_path / "set" / name, number, 7)
    assert values(tmp_path / "set")[0] == [0, 7]
    assert values(tmp_path / "set", split="test")[0] == [1, 7]
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"validation.*train.*test") as caught:
            open_source(SourceConfig(path=str(tmp_path / "set"), split="validation", streaming=streaming))
        assert "\n" not in str(caught.value)


def test_a_folder_without_splits_is_one_table(tmp_path):
    """All its files in the order of their names are `train`."""
    for number, name in enumerate(["b.csv", "a.csv", "deeper/c.csv"]):
        write(tmp_path / "set" / name, number)
    assert sorted(values(tmp_path / "set")[0]) == [0, 1, 2]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json", "jsonl", "arrow"])
def test_every_kind_of_file(tmp_path, suffix):
    """A file alone, and the folder it is in."""
    path, dataset = tmp_path / "set" / f"rows.{suffix}", Dataset.from_dict({"a": [3, 1, 2]})
    path.parent.mkdir()
    if suffix == "arrow":
        dataset.save_to_disk(tmp_path / "saved")
        next((tmp_path / "saved").glob("*.arrow")).rename(path)
    elif suffix in ("json", "jsonl"):
        dataset.to_json(path, lines=suffix == "jsonl")
    else:
        {"parquet": dataset.to_parquet, "csv": dataset.to_csv}[suffix](path)
    found, facts = values(path)
    assert found == values(path.parent)[0] == [3, 1, 2]
    assert (facts["source"], facts["split"]) == (path.name, "train")


def test_saved_data_sets(tmp_path):
    """What `save_to_disk` wrote, one data set or several splits."""
    one, two = Dataset.from_dict({"a": [1, 2]}), Dataset.from_dict({"a": [3]})
    one.with_format("torch").save_to_disk(tmp_path / "one")
    DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    assert values(tmp_path / "one")[0] == [1, 2]
    assert values(tmp_path / "both")[0] == [1, 2]
    assert values(tmp_path / "both", split="test")[0] == [3]
    with pytest.raises(ValueError, match=r"has no split 'validation', only train, test"):
        open_source(SourceConfig(path=str(tmp_path / "both"), split="validation"))


def test_a_folder_with_subsets(tmp_path):
    """The card of a folder names them; one must be chosen when there are several."""
    write(tmp_path / "set" / "odd.csv", 1, 3)
    write(tmp_path / "set" / "even.csv", 2)
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in ("odd", "even"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    found, facts = values(tmp_path / "set", subset="even")
    assert (found, facts["subset"]) == ([2], "even")
    with pytest.raises(ValueError, match=r"(?i)config.*odd.*even"):
        open_source(SourceConfig(path=str(tmp_path / "set")))


@pytest.mark.parametrize("streaming", [False, True])
def test_code_beside_the_data_is_refused(tmp_path, streaming):
    """A loading script is neither run nor passed over in silence."""
    write(tmp_path / "points" / "rows.csv", 1)
    (tmp_path / "points" / "points.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"scripts are no longer supported, but found points\.py"):
        open_source(SourceConfig(path=str(tmp_path / "points"), streaming=streaming))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("files", ["../mine.csv", "{}/mine.csv", "http://127.0.0.1:9/rows.csv", "zip://x::../a.zip"])
def test_a_card_can_not_name_files_elsewhere(tmp_path, streaming, files):
    """A folder got from somebody is read, and what lies beside it is not; nor is the network asked."""
    write(tmp_path / "set" / "rows.csv", 1)
    write(tmp_path / "mine.csv", 2)
    card = f"configs:\n- config_name: default\n  data_files: {files.format(tmp_path)}\n"
    (tmp_path / "set" / "README.md").write_text(f"---\n{card}---\n")
    with pytest.raises(ValueError, match=r"its README.md lists files outside of it"):
        open_source(SourceConfig(path=str(tmp_path / "set"), streaming=streaming))


def test_what_only_the_hub_has_is_refused(tmp_path):
    write(tmp_path / "rows.csv", 1)
    with pytest.raises(ValueError, match=r"data.revision 'v1' is for data sets on the Hub, but .*rows.csv is here"):
        open_source(SourceConfig(path=str(tmp_path / "rows.csv"), revision="v1"))


# What it can be traced by


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    """So that `sha256sum` tells whether a file is the one; the name does not matter."""
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, 1, 2)
        expected = hashlib.sha256(b"a\n1\n2").hexdigest()[:16]
        assert digest(tmp_path / name) == values(tmp_path / name)[1]["digest"] == f"sha256:{expected}"


def test_the_digest_of_a_folder_follows_its_files(tmp_path, monkeypatch):
    """Content, names and number of files count; where the folder is and what is hidden in it do not."""
    folder = tmp_path / "set"

    def changed(action):
        before = digest(folder)
        action()
        return digest(folder) != before

    write(folder / "train" / "a.csv", 1)
    assert changed(lambda: write(folder / "train" / "a.csv", 2))
    assert changed(lambda: write(folder / "train" / "b.csv", 1))
    assert changed(lambda: (folder / "train" / "b.csv").rename(folder / "train" / "c.csv"))
    assert not changed(lambda: write(folder / ".git" / "index.csv", 1))
    here = digest(folder)
    assert digest(folder.rename(tmp_path / "moved")) == here
    monkeypatch.setattr(sources, "DIGEST_BYTES", 3)
    folder = tmp_path / "moved"
    assert digest(folder).startswith("sizes:")
    assert not changed(lambda: write(folder / "train" / "a.csv", 3))
    assert changed(lambda: write(folder / "train" / "a.csv", 33))


@pytest.mark.parametrize("kind", ["file", "folder", "npz", "relative"])
def test_facts_hold_no_path_of_this_machine(tmp_path, monkeypatch, kind):
    """They go to results and cards: the source is a name."""
    path = tmp_path / "set" / "rows.csv"
    write(path, *range(30))
    if kind == "npz":
        path = path.with_suffix(".npz")
        np.savez(path, a=np.arange(30.0))
    if kind == "relative":
        monkeypatch.chdir(path.parent)
    used = {"folder": path.parent, "relative": "."}.get(kind, path)
    facts = load_vectors(VectorsConfig(path=str(used), columns=["a"])).facts
    assert facts["source"] == ("set" if kind in ("folder", "relative") else path.name)
    assert facts["digest"] == digest(path if kind in ("file", "npz") else path.parent)
    assert str(tmp_path) not in json.dumps(facts)
