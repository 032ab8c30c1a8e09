"""results.json holds what a run measured, draw by draw, and nothing of the machine it ran on; tables show it."""

import copy
import getpass
import math
from pathlib import Path

import pytest
import torch
from tiny import network, toy

from hf_flowft import BankRows, EvalConfig, FlowMatchingObjective, FlowTrainer, TrainConfig, Velocity
from hf_flowft.couplings import OTCoupling
from hf_flowft.data import from_tensors
from hf_flowft.objectives import ReconstructionObjective
from hf_flowft.results import add_baselines, changes, compare, public_name, published, read_results, write_json
from hf_flowft.tables import markdown_table, metrics_table, number
from hf_flowft.training.evaluation import Evaluator
from hf_flowft.training.report import report

# Tables


def test_tables():
    """Four digits and an error of two; missing values are a dash; directions are in words."""
    assert number({"value": 0.123456, "stderr": 0.01234}) == "0.1235 ± 0.012"
    assert number({"value": 38.0}) == "38"
    assert number(None) == number({"value": None}) == "-"
    assert markdown_table(["a", "bb"], [["xxx", "y"]]) == "| a   | bb |\n|-----|----|\n| xxx | y  |"
    entry = {"value": 1.0, "count": 5, "direction": "lower"}
    rows = metrics_table(
        {"base": {"m": entry}, "result": {"n": {**entry, "direction": "higher", "repeats": 3}}}
    ).splitlines()
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == ["m", "1", "-", "5", "-", "lower is better"]
    assert [cell.strip() for cell in rows[3].split("|")[1:-1]] == ["n", "-", "1", "5", "3", "higher is better"]


# Differences


def test_better_and_worse_are_judged_draw_by_draw():
    """The paired standard error of differences 1, 2, 3 is 1 / sqrt(3), and Student's t with two degrees of freedom reaches 4.53 at two sigma.

    4.53 / sqrt(3) = 2.61, so a mean of 2.7 counts and one of 2.5 does not, however far the draws lie apart themselves.
    """
    draws = [100.0, 50.0, 10.0]
    base = {kind: {"value": 160 / 3, "values": draws, "direction": kind} for kind in ("lower", "higher", "neither")}

    def moved(by):
        after = [d + by + s for d, s in zip(draws, (-1, 0, 1), strict=True)]
        return {kind: {**entry, "value": 160 / 3 + by, "values": after} for kind, entry in base.items()}

    assert compare(base, moved(2.7)) == (["higher"], ["lower"])
    assert compare(base, moved(-2.7)) == (["lower"], ["higher"])
    assert compare(base, moved(2.5)) == ([], [])
    found = changes(base, moved(-2.7))
    assert found["lower"]["difference"] == pytest.approx(-2.7)
    assert found["lower"]["stderr"] == pytest.approx(1 / math.sqrt(3))
    words = {kind: change["verdict"] for kind, change in found.items()}
    assert words == {"lower": "better", "higher": "worse", "neither": "lower"}


def test_numbers_of_one_draw_count_from_two_per_cent():
    """Where nothing is known of the noise; what is not finite is left out."""
    exact = {"low": {"value": 100.0, "direction": "lower"}}
    assert compare(exact, {"low": {"value": 97.9, "direction": "lower"}}) == (["low"], [])
    assert compare(exact, {"low": {"value": 98.1, "direction": "lower"}}) == ([], [])
    assert changes(exact, {"low": {"value": 100.0, "direction": "lower"}})["low"]["verdict"] == "unclear"
    assert changes(exact, {"low": {"value": None, "direction": "lower"}}) == {}
    assert changes(exact, {"low": {"value": math.nan, "direction": "lower"}}) == {}


def test_the_report_keeps_every_draw():
    """As many values as repeats, whose mean and standard error are those of the entry; a second report of the same model is the same."""
    data = toy()
    evaluator = Evaluator(data, EvalConfig(num_repeats=3, report_num_steps=[2], max_samples=16))
    found = report(evaluator, Velocity(network(data)))
    drawn = {name: entry for name, entry in found.items() if "values" in entry}
    assert set(found) - set(drawn) == {"nfe_dopri5", "nearest_train_of_test"}
    for entry in drawn.values():
        values = entry["values"]
        assert len(set(values)) == entry["repeats"] == 3
        mean = sum(values) / 3
        assert entry["value"] == pytest.approx(mean)
        assert entry["stderr"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3))
    again = report(evaluator, Velocity(network(data)))
    assert {change["difference"] for change in changes(found, again).values()} == {0.0}


def test_what_selects_without_a_choice():
    """The loss of large samples says nothing after MLE, which trains where paths end: then it is the energy distance; chosen by name it is refused."""
    large = from_tensors("large", *(torch.randn(4, 300) for _ in range(3)))
    settings = EvalConfig(num_repeats=2)
    assert Evaluator(large, settings).metric_name == "held_out_loss"
    assert Evaluator(large, settings, lowers_loss=False).metric_name == "energy"
    assert (
        Evaluator(toy(), settings).metric_name == Evaluator(toy(), settings, lowers_loss=False).metric_name == "energy"
    )
    with pytest.raises(ValueError, match="says nothing of a run of MLE"):
        Evaluator(large, EvalConfig(metric="held_out_loss"), lowers_loss=False)


@pytest.mark.parametrize(
    ("objective", "options", "by_loss"),
    [
        (FlowMatchingObjective(), {}, True),
        (FlowMatchingObjective(), {"base_coupling": "independent"}, True),
        (FlowMatchingObjective(coupling=OTCoupling()), {}, False),
        (FlowMatchingObjective(), {"base_coupling": "ot"}, False),
        (FlowMatchingObjective(), {"rows": BankRows(lambda version: None)}, False),
        (ReconstructionObjective(allow_independent=True), {}, False),
    ],
)
def test_the_loss_of_independent_pairs_judges_what_was_trained_on_them(objective, options, by_loss):
    """The exact velocity of OT pairs from N(0, I) to N(0, s^2 I) is (s - 1) x_0, with a loss of 2 s against independent pairs a coordinate, while the
    velocity that is best for those stays below: by that loss a perfect flow of OT pairs would be given back for any base of independent ones."""
    large = from_tensors("large", *(torch.randn(4, 300) for _ in range(3)))
    built = FlowTrainer(
        network(large), large, objective, TrainConfig(num_steps=1, batch_size=2), EvalConfig(num_repeats=2), **options
    )
    assert built.evaluator.metric_name == ("held_out_loss" if by_loss else "energy")


# Baselines


def results_of(value, **data):
    """The parts of a results file that a comparison needs."""
    entry = {"value": value, "count": 5, "direction": "lower"}
    return {
        "data": {"name": "digits", "counts": {"train": 10, "test": 5}, **data},
        "test_split": "test",
        "evaluation": {"metric": "energy", "seed": 0},
        "metrics": {"base": {"m": entry}, "result": {"m": {**entry, "value": value + 1}}},
        "baselines": {},
        "method": "fm",
        "method_title": "flow matching",
        "seed": 3,
        "train": {"steps": 7},
        "selection": {"best_step": 5},
    }


def test_baselines_stand_beside_the_result():
    """As columns, after base and result, with what they are; the results that were given stay as they were, and twice is once."""
    ours, other = results_of(1.0), results_of(2.0)
    before = copy.deepcopy(ours)
    shown = add_baselines(ours, {"plain": other})
    assert ours == before
    assert {name: column["m"]["value"] for name, column in shown["metrics"].items()} == {
        "base": 1,
        "result": 2,
        "plain": 3,
    }
    assert shown["baselines"] == {
        "plain": {"method": "fm", "method_title": "flow matching", "seed": 3, "steps": 7, "best_step": 5}
    }
    assert add_baselines(shown, {"plain": other}) == shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"name": "toy", "counts": {"train": 10, "test": 5}}}, r"data\.name is 'toy', here 'digits'"),
        ({"data": {"name": "digits", "counts": {"train": 9, "test": 5}}}, r"data\.counts\.train is 9, here 10"),
        ({"data": {"name": "digits", "counts": {"train": 10, "test": 5}, "split": "b"}}, r"data\.split is 'b'"),
        ({"evaluation": {"metric": "frechet", "seed": 0}}, r"evaluation\.metric is 'frechet'"),
        ({"evaluation": {"metric": "energy", "seed": 1}}, r"evaluation\.seed is 1, here 0"),
        ({"test_split": "validation"}, "test_split is 'validation'"),
    ],
)
def test_what_was_measured_otherwise_is_no_baseline(change, message):
    """The error names what differs, and by how much."""
    with pytest.raises(ValueError, match=message):
        add_baselines(results_of(1.0), {"plain": {**results_of(2.0), **change}})


@pytest.mark.parametrize("name", ["base", "result", " ", "a|b"])
def test_names_of_baselines(name):
    """What is taken, or would break the table, is refused."""
    with pytest.raises(ValueError, match="cannot be called"):
        add_baselines(results_of(1.0), {name: results_of(2.0)})


# Files, and what may be published


def test_results_are_json(tmp_path):
    """Numbers that are not finite become null, folders are made, and what is not ours is refused."""
    path = tmp_path / "a" / "results.json"
    write_json(path, {"format_version": 2, "x": [float("nan"), 1.5], 3: (float("inf"),)})
    assert read_results(path) == {"format_version": 2, "x": [None, 1.5], "3": [None]}
    assert not list(path.parent.glob("*.tmp"))
    for text in ("{", "[]", '{"format_version": 7}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"results.json"):
            read_results(path)
    with pytest.raises(ValueError, match="cannot read the results"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("user/model", "user/model"),
        ("runs/base/pipeline", "runs/base/pipeline"),
        ("../base", "../base"),
        ("/data/deep/runs/base", "runs/base"),
        ("/home/alice", ""),
        ("/home/alice/base", "base"),
        ("/Users/alice/runs/base", "runs/base"),
        ("/root/base", "base"),
        ("~/base", "base"),
        ("~alice/runs/base", "runs/base"),
        ("C:\\Users\\alice\\runs\\base", "runs/base"),
        ("\\\\server\\share\\runs\\base", "runs/base"),
    ],
)
def test_names_of_paths(path, name):
    """Of an absolute path the last two parts, never the name of a person; everything else as it is."""
    assert public_name(path) == name


def test_what_is_published():
    """Paths inside of sentences and lists, tokens and secrets are gone; links, fractions, units and numbers are as they were."""
    token = "hf_" + "a1B2" * 9
    told = {
        "path": "/home/alice/runs/base",
        "said": f"see /home/alice/notes.txt, ~/more/notes and C:\\Users\\alice\\x with {token}",
        "several": ["/srv/a/b", ("relative/name", 3)],
        "hub_token": "abc",
        "num_tokens": 5,
    }
    text = str(published(told))
    assert "alice" not in text
    assert token not in text
    assert published(told)["path"] == "runs/base"
    assert published(told)["several"] == ["a/b", ["relative/name", 3]]
    assert "hub_token" not in published(told)
    assert published(told)["num_tokens"] == 5
    kept = [
        "https://huggingface.co/user/base",
        "target/energy@16",
        "1 / (1 + tau)",
        "hf_flowft and/or",
        "0.5 in [0, 1]",
    ]
    assert published(kept) == kept
    assert getpass.getuser() not in str(published({"p": str(Path.home() / "x" / "y")})).split("'")
