"""The store of a study's cells: computed once, read back alike, safe against other settings and bad names."""

import math

import pytest
import torch

from hf_flowft.studies.cells import Cells


def refuse():
    """A cell that is there must not be computed again."""
    raise AssertionError("computed twice")


def test_a_cell_is_computed_once_and_read_back_alike(tmp_path):
    """The first call returns what every later one returns: text keys, and None for what is not finite."""
    first = Cells(tmp_path).get_or_run("mle/seed=0", lambda: {"mean": {16: 0.1}, "bad": math.nan, "steps": (1, 2)})
    assert first == {"mean": {"16": 0.1}, "bad": None, "steps": [1, 2]}
    assert Cells(tmp_path).get_or_run("mle/seed=0", refuse) == first
    assert "mle/seed=0" in Cells(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_failed_cell_leaves_nothing(tmp_path):
    """A study that was killed inside a cell computes that cell again."""
    cells = Cells(tmp_path)
    with pytest.raises(AssertionError):
        cells.get_or_run("a", refuse)
    assert "a" not in cells
    assert cells.get_or_run("a", lambda: {"x": 1}) == {"x": 1}


def test_tensors_are_kept_bitwise(tmp_path):
    """Weights come back as they were."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T
    kept = Cells(tmp_path).get_or_run_tensors("weights", lambda: {"x": x})
    assert torch.equal(kept["x"], x)
    assert torch.equal(Cells(tmp_path).get_or_run_tensors("weights", refuse)["x"], x)


def test_other_settings_are_refused(tmp_path):
    """The cells of a quick study never enter a full one."""
    Cells(tmp_path, {"quick": True, "steps": [1, 2]})
    Cells(tmp_path, {"quick": True, "steps": [1, 2]})
    with pytest.raises(ValueError, match="other settings"):
        Cells(tmp_path, {"quick": False, "steps": [1, 2]})


@pytest.mark.parametrize("name", ["", "../a", "/a", "a b", "a/", ".a"])
def test_bad_names_are_refused(tmp_path, name):
    """A cell stays inside its folder."""
    with pytest.raises(ValueError, match="cell's name"):
        Cells(tmp_path).get_or_run(name, dict)


def test_a_broken_cell_is_named(tmp_path):
    """The user learns which file to delete."""
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json"):
        Cells(tmp_path).get_or_run("a", refuse)
