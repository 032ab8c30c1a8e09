"""A card says what results.json says and nothing else, its metadata are valid, and its code runs."""

import json
import math
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny import SMALL_RUN, pretrained

from hf_flowft import Run, load_config
from hf_flowft.cards import render_card
from hf_flowft.results import changes, compare, public_name, read_results, write_json
from hf_flowft.tables import markdown_table, metrics_table, number

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fine-tune of labelled digits by viscosity, whose base stands at an absolute path: its card has every section."""
    folder = tmp_path_factory.mktemp("card")
    pretrained("digits").save_pretrained(folder / "base")
    choice = {"data": {"name": "digits"}, "model": {"name": "viscosity"}, "objective": {"name": "mle"}}
    words = ["--data.labels=[5,6,7]", "--data.base_labels=[0,1]", "--data.train_size=20", "--pairs.num_steps=2"]
    words += ["--model.hidden_dim=8", f"--model.path={folder / 'base'}", f"--output_dir={folder / 'run'}"]
    config = load_config(None, [*SMALL_RUN, *words, "--train.resume_from_checkpoint="], choice)
    return Run(config, progress=False).execute(), config


@pytest.fixture(scope="module")
def card(run):
    return (run[0].folder / "README.md").read_text()


def told(card):
    """What the card says about the model: without code, settings, names of papers, links and pictures."""
    text = card.split("---\n", 2)[2]
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"\[.*?\]\(.*?\)|`[^`]*`", "", text)


def numbers_in(value):
    """Every number in nested results, those inside of sentences included."""
    if isinstance(value, dict):
        return [n for item in value.items() for n in numbers_in(list(item))]
    if isinstance(value, (list, tuple)):
        return [n for item in value for n in numbers_in(item)]
    if isinstance(value, str):
        return [float(n) for n in NUMBER.findall(value)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def is_rounded(shown, known):
    """Whether a printed number is a known one, to the digits that are printed."""
    digits = shown.lstrip("+-").split("e")[0].replace(".", "").lstrip("0")
    return any(
        float(shown) == float(f"{value:.{max(len(digits), 1)}g}") or float(shown) == round(value) for value in known
    )


def unfounded(text, results):
    known = numbers_in(results)
    return [n for n in NUMBER.findall(text) if not is_rounded(n, known)]


# Numbers


def test_no_number_is_made_up(run, card):
    """Every number outside of code and settings is in results.json, to the digits printed; the metadata hold them whole."""
    results = json.loads((run[0].folder / "results.json").read_text())
    assert unfounded(told(card), [results, run[1].as_dict()]) == []
    assert len(NUMBER.findall(told(card))) > 40
    parts = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    metrics = [metric for part in parts for metric in part["metrics"]]
    measured = results["metrics"]["result"]
    assert {m["name"]: m["value"] for m in metrics} == {
        name: entry["value"] for name, entry in measured.items() if entry["direction"] != "neither"
    }


def test_the_checker_finds_what_is_made_up(run, card):
    """A number changed in its last digit is found."""
    results = run[0].results
    value = results["metrics"]["result"]["held_out_loss"]["value"]
    shown = f"{value:.4g}"
    wrong = f"{value * 1.003:.4g}"
    assert shown in card
    assert set(unfounded(told(card).replace(shown, wrong), [results, run[1].as_dict()])) == {wrong}
    assert unfounded("better by 12.7 %", results) == ["12.7"]


def test_every_metric_is_on_the_card(run, card):
    for column in run[0].results["metrics"].values():
        for name, entry in column.items():
            row = next(line for line in card.splitlines() if line.startswith(f"| {name} "))
            assert number(entry) in row
    assert all(f"![{figure}]({figure})" in card for figure in run[0].results["figures"])
    assert all(sentence in card for sentence in run[0].results["certificate"])


def test_the_settings_on_the_card_are_those_of_the_run(run, card):
    """The block reads back as the resolved settings, but for the folders of this machine."""
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    expected = {key: run[1].as_dict()[key] for key in ("seed", "data", "model", "objective", "pairs", "train", "eval")}
    expected["model"]["path"] = public_name(expected["model"]["path"])
    for key in ("resume_from_checkpoint", "report_to"):
        del expected["train"][key]
    assert block == expected


# Metadata


def test_the_metadata_are_valid(card):
    """As huggingface_hub reads them, the model-index included."""
    data = ModelCard(card).data
    assert data.library_name == "diffusers"
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert {"flow-matching", "hf_flowft", "mle"} <= set(data.tags)
    assert [r.metric_name for r in data.eval_results][:2] == ["target/energy@1", "target/energy@2"]
    assert data.eval_results[0].dataset_name == "digits"


def test_no_path_of_this_machine_is_published(run, card):
    """Neither in the card nor in the results nor in the pipeline; the base keeps its last two names."""
    folder = run[0].folder
    home = str(folder.parent)
    assert f"{folder.parent.name}/base`" in card
    published = [folder / "README.md", folder / "results.json", *(folder / "pipeline").rglob("*")]
    assert not [path for path in published if path.is_file() and home.encode() in path.read_bytes()]
    assert public_name("user/model") == "user/model"
    assert public_name("runs/base/pipeline") == "runs/base/pipeline"


# Code


def code(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def test_the_code_runs(run, card, monkeypatch):
    """Pasted into an interpreter in the run's folder it draws samples, of labels the run was trained on."""
    monkeypatch.chdir(run[0].folder)
    names = {}
    exec(code(card), names)
    assert len(names["samples"]) == 3
    assert "class_labels=[5, 6, 7]" in card


def test_the_code_runs_for_vectors_under_conditions(tmp_path, monkeypatch, generator):
    """Labels and vectors together: the card takes them from the pipeline."""
    import numpy as np
    import torch

    x = torch.randn(40, 3, generator=generator).numpy()
    np.savez(tmp_path / "table.npz", x=x, c=x[:, :2], k=np.arange(40) % 2)
    choice = {"data": {"name": "vectors"}, "model": {"name": "mlp"}, "objective": {"name": "fm"}}
    words = [
        f"--data.path={tmp_path / 'table.npz'}",
        "--data.columns=[x]",
        "--data.label_column=k",
        "--data.condition_columns=[c]",
    ]
    words += ["--model.hidden_dim=8", "--model.num_layers=1", f"--output_dir={tmp_path / 'run'}"]
    result = Run(load_config(None, [*SMALL_RUN, *words], choice), progress=False).execute()
    card = (result.folder / "README.md").read_text()
    monkeypatch.chdir(result.folder)
    names = {}
    exec(code(card), names)
    assert names["samples"].shape == (4, 3)
    assert str(tmp_path) not in card
    assert "trained from scratch" in card
    assert "untrained network" in card or "best model" in card


def test_what_selected_is_not_called_a_test(run):
    """Without a test split the card says that the numbers flatter."""
    result, config = run
    results = {**result.results, "test_split": "validation"}
    text = render_card(results, config.as_dict())
    assert "Measured on the validation split, which also SELECTED the model" in text
    assert "Measured on the test split, which selected nothing" in render_card(result.results, config.as_dict())


# Tables and results


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


def test_better_and_worse_are_judged_draw_by_draw():
    """The paired standard error of differences 1, 2, 3 is 1 / sqrt(3), and Student's t with two degrees of freedom reaches 4.53 at two sigma.

    4.53 / sqrt(3) = 2.61, so a mean of 2.7 counts and one of 2.5 does not, however far the draws lie apart themselves.
    """
    draws = [100.0, 50.0, 10.0]
    kinds = ("lower", "higher", "neither")
    base = {kind: {"value": 160 / 3, "values": draws, "direction": kind} for kind in kinds}

    def moved(by):
        return {
            kind: {
                **e,
                "value": e["value"] + by,
                "values": [d + by + s for d, s in zip(draws, (-1, 0, 1), strict=True)],
            }
            for kind, e in base.items()
        }

    assert compare(base, moved(2.7)) == (["higher"], ["lower"])
    assert compare(base, moved(-2.7)) == (["lower"], ["higher"])
    assert compare(base, moved(2.5)) == ([], [])
    found = changes(base, moved(-2.7))
    assert found["lower"]["difference"] == pytest.approx(-2.7)
    assert found["lower"]["stderr"] == pytest.approx(1 / math.sqrt(3))
    assert {kind: change["verdict"] for kind, change in found.items()} == {
        "lower": "better",
        "higher": "worse",
        "neither": "lower",
    }


def test_numbers_of_one_draw_count_from_two_per_cent():
    """Where nothing is known of the noise; what is not finite is left out."""
    exact = {"low": {"value": 100.0, "direction": "lower"}}
    assert compare(exact, {"low": {"value": 97.9, "direction": "lower"}}) == (["low"], [])
    assert compare(exact, {"low": {"value": 98.1, "direction": "lower"}}) == ([], [])
    assert changes(exact, {"low": {"value": None, "direction": "lower"}}) == {}
    assert changes(exact, {"low": {"value": math.nan, "direction": "lower"}}) == {}


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
