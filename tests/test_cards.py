"""A card says what results.json and config.yaml say and nothing else, its metadata are valid, and its code runs."""

import copy
import json
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from tiny import SMALL_RUN, pretrained

from hf_flowft import FlowPipeline, Run, load_config
from hf_flowft.cards import merge_card, pipeline_card, render_card, write_card
from hf_flowft.cards.merge import SECTIONS, find_sections
from hf_flowft.objectives import FlowMatchingConfig, GradualConfig, ObjectiveContext, ReconstructionConfig
from hf_flowft.pairs import PairsConfig, PairsName
from hf_flowft.results import add_baselines, public_name, read_results
from hf_flowft.studies.digits import show_baseline
from hf_flowft.tables import number
from hf_flowft.times import TemperatureName, TemperatureSchedule, TimeDensity, TimeDensityName
from hf_flowft.training.models import ViscosityConfig

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
DIGITS = ["--data.name=digits", "--data.labels=[5,6,7]", "--data.base_labels=[0,1]", "--data.train_size=20"]
TOY = ["--data.name=toy", "--data.train_size=64", "--data.eval_size=32"]
FRESH = ["--model.name=mlp", "--model.hidden_dim=8", "--model.num_layers=1"]
TABLE = ["--data.name=vectors", "--data.path={folder}/t.npz", "--data.columns=[x]", "--data.label_column=k"]
KINDS = {
    "pretrain": [*TOY, *FRESH, "--objective.name=fm"],
    "vectors": [*TABLE, "--data.condition_columns=[c]", *FRESH, "--objective.name=fm"],
    "plain": [*DIGITS, "--model.name=pretrained", "--model.path={folder}/digits", "--objective.name=fm"],
    "gft": [*DIGITS, "--model.name=pretrained", "--model.path={folder}/digits", "--objective.name=gft"],
    "mle": [*TOY, "--model.name=pretrained", "--model.path={folder}/toy", "--objective.name=mle", "--pairs.name=self"],
    "gav": [*DIGITS, "--model.name=viscosity", "--model.path={folder}/digits", "--objective.name=mle"],
    "gav unconditional": [*TOY, "--model.name=viscosity", "--model.path={folder}/toy", "--objective.name=fm"],
    "nothing better": [*TOY, "--model.name=pretrained", "--model.path={folder}/toy", "--objective.name=fm"],
}
MORE = {
    "gft": ["--objective.replay_samples=32"],
    "mle": ["--objective.num_steps=[1,2]", "--pairs.num_pairs=32", "--pairs.num_steps=2"],
    "gav": ["--pairs.num_steps=2", "--model.hidden_dim=8"],
    "gav unconditional": ["--model.hidden_dim=8"],
    "nothing better": ["--train.learning_rate=1e-12"],
}
STRUCTURES = ("gradient", "metric", "dominance", "paper", "mlp")
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small run of every kind, made when it is first asked for; bases and data stand at absolute paths."""
    folder = tmp_path_factory.mktemp("cards")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator).numpy()
    np.savez(folder / "t.npz", x=x, c=x[:, :2], k=np.arange(40) % 2)
    for data in ("digits", "toy"):
        pretrained(data).save_pretrained(folder / data)
    made = {}

    def run(kind):
        if kind not in made:
            words = [word.format(folder=folder) for word in KINDS[kind]] + MORE.get(kind, [])
            words.append(f"--eval.min_delta={2 if kind == 'nothing better' else 0}")
            config = load_config(None, [*SMALL_RUN, *words, f"--output_dir={folder / kind.replace(' ', '_')}"])
            made[kind] = Run(config, progress=False).execute()
        return made[kind]

    return run


def files(result):
    """What the two files of a run folder hold: results and settings."""
    results = json.loads((result.folder / "results.json").read_text())
    return results, yaml.safe_load((result.folder / "config.yaml").read_text())


def readme(result):
    return (result.folder / "README.md").read_text()


def section(card, name):
    found = find_sections(card)[name]
    return card[found.start : found.end]


def told(card):
    """What the card says about the model: without metadata, code, settings, names of papers, links and pictures."""
    text = card.split("---\n", 2)[2]
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"\[.*?\]\(.*?\)|`[^`]*`", "", text)


def numbers_in(value):
    """Every number in nested results, those inside of sentences and names included."""
    if isinstance(value, dict):
        return [n for item in value.items() for n in numbers_in(list(item))]
    if isinstance(value, (list, tuple)):
        return [n for item in value for n in numbers_in(item)]
    if isinstance(value, str):
        return [float(n) for n in NUMBER.findall(value)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def is_rounded(shown, known):
    """Whether a printed number is a known one, to the digits that are printed."""
    digits = max(len(shown.lstrip("+-").split("e")[0].replace(".", "").lstrip("0")), 1)
    return any(float(shown) == float(f"{value:.{digits}g}") for value in known)


def unfounded(text, *sources):
    known = numbers_in(sources)
    return [n for n in NUMBER.findall(text) if not is_rounded(n, known)]


# Numbers


@EACH_KIND
def test_no_number_is_made_up(runs, kind):
    """Every number outside of code and settings is in results.json or config.yaml, to the digits printed; the metadata hold them whole."""
    card, (results, config) = readme(runs(kind)), files(runs(kind))
    assert unfounded(told(card), results, config) == []
    assert len(NUMBER.findall(told(card))) > 40
    parts = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    measured = {m["name"]: m["value"] for part in parts for m in part["metrics"]}
    column = results["metrics"]["result"]
    assert measured == {name: e["value"] for name, e in column.items() if e["direction"] != "neither"}


def test_the_checker_finds_what_is_made_up(runs):
    """A number changed in its last digits is found, and one that follows from others but is not in the results."""
    card, (results, config) = readme(runs("gav")), files(runs("gav"))
    value = results["metrics"]["result"]["held_out_loss"]["value"]
    shown, wrong = f"{value:.4g}", f"{value * 1.003:.4g}"
    assert shown in card
    assert set(unfounded(told(card).replace(shown, wrong), results, config)) == {wrong}
    assert unfounded("better by 12.7 %", results, config) == ["12.7"]


@EACH_KIND
def test_the_card_is_a_function_of_two_files(runs, kind, tmp_path):
    """Rendered elsewhere from results.json and config.yaml it is the README of the run folder, byte for byte."""
    results, config = files(runs(kind))
    assert render_card(results, config) == readme(runs(kind))
    assert write_card(results, config, tmp_path).read_text() == readme(runs(kind))


@EACH_KIND
def test_every_metric_is_on_the_card(runs, kind):
    """With base and result, samples and draws; figures are embedded and certificates told in full."""
    card, (results, _) = readme(runs(kind)), files(runs(kind))
    for column in results["metrics"].values():
        for name, entry in column.items():
            row = next(line for line in card.splitlines() if line.startswith(f"| {name} "))
            assert {number(entry), str(entry["count"])} <= {cell.strip() for cell in row.split("|")}
    assert results["figures"]
    assert all(f"]({figure})" in card and (runs(kind).folder / figure).is_file() for figure in results["figures"])
    certificate = section(card, "certificate")
    assert all(sentence in certificate for sentence in results["certificate"])
    assert bool(certificate.strip()) == kind.startswith("gav")


def test_the_settings_on_the_card_are_those_of_the_run(runs):
    """The block reads back as the resolved settings, but for the folders of this machine."""
    card, (_, config) = readme(runs("gav")), files(runs("gav"))
    expected = {key: config[key] for key in ("seed", "data", "model", "objective", "pairs", "train", "eval")}
    expected["model"]["path"] = public_name(expected["model"]["path"])
    for key in ("resume_from_checkpoint", "report_to"):
        del expected["train"][key]
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1]) == expected


# What got better and what got worse


def test_what_moved_is_grouped_in_words(runs):
    """Forgetting, step counts and diversity have names; every metric with a direction stands in the list of its verdict, with its numbers."""
    results, config = files(runs("gft"))
    verdicts = {"target/energy@1": "worse", "base_domain/energy@2": "worse", "path_length": "better"}
    for name, change in results["changes"].items():
        change["verdict"] = verdicts.get(name, "unclear")
    results["changes"]["diversity"]["verdict"] = "lower"
    text = section(render_card(results, config), "changes")
    better, worse, unclear, samples = re.split(r"\*\*(?:Worse|No clear|Diversity).*?\*\*", text)
    assert re.search(r"- The flow itself: length of the paths .* → .* \(.* ± .*\)", better)
    assert re.search(r"- .*at other numbers of solver steps: energy distance at 1 step [\d.]+ → ", worse)
    assert re.search(r"- The base's own data \(forgetting\): energy distance at 2 steps ", worse)
    assert "at the numbers of solver steps it was selected at: energy distance at 2 steps" in unclear
    assert "diversity" in samples
    assert "): lower." in samples
    assert "nearer to the training data" in samples


def test_forgetting_that_was_not_measured_is_named(runs):
    """Among what got worse, and among the limits."""
    card = readme(runs("mle"))
    assert "Forgetting was not measured" in section(card, "changes").split("**Worse")[1].split("**No clear")[0]
    assert "What it has forgotten of the base's domain was not measured." in section(card, "limits")
    assert "not measured" not in section(readme(runs("gft")), "changes")


def test_a_run_in_which_nothing_got_better_says_so(runs):
    """The base is what is returned, and the card says it twice."""
    card, (results, _) = readme(runs("nothing better")), files(runs("nothing better"))
    assert not results["selection"]["improved"]
    assert "the base is returned" in section(card, "summary")
    assert "the base is what is returned" in section(card, "changes")


def test_memorisation_is_named_from_the_numbers(runs):
    """Nearer to the training data than held-out data are: may be memorisation; not nearer: not."""
    results, config = files(runs("gft"))
    entry = results["metrics"]["result"]["nearest_train"]
    for value, words in ((0.5, "Samples lie nearer"), (1.5, "Samples do not lie nearer")):
        entry["value"] = value * results["metrics"]["result"]["nearest_train_of_test"]["value"]
        assert words in section(render_card(results, config), "limits")


def test_what_selected_is_not_called_a_test(runs):
    """Without a test split the card says that the numbers flatter."""
    results, config = files(runs("gav"))
    assert "Measured on the test split, which selected nothing" in render_card(results, config)
    text = render_card({**results, "test_split": "validation"}, config)
    assert "Measured on the validation split, which also SELECTED the model" in text


# Methods in words


def test_every_choice_has_words():
    """All couplings, densities, schedules and pairs can be told, in sentences whose every number is a setting."""
    context = ObjectiveContext(event_shape=(2,), num_steps=10)
    told = []
    for coupling in ("independent", "ot", "sinkhorn"):
        for name in get_args(TimeDensityName):
            config = FlowMatchingConfig(coupling=coupling, times=TimeDensity(name, shift=3.0), weighting="kl")
            told.append((config.describe(context), asdict(config)))
    for name in get_args(TemperatureName):
        context = ObjectiveContext((2,), 10, temperature=TemperatureSchedule(name, 4.5, 0.25, 0.7))
        for config in (GradualConfig("target"), ReconstructionConfig([3], anchor_weight=0.3)):
            told.append(
                (config.describe(context), (asdict(config), asdict(context.temperature), asdict(context.pairs)))
            )
    for name in get_args(PairsName):
        pairs = PairsConfig(name, num_steps=7, repeats=5, refresh_epochs=6, allow_independent=True)
        config = ReconstructionConfig([3, 9], gradient="truncated", last_steps=2, flow_matching_weight=0.4)
        told.append((config.describe(ObjectiveContext((2,), 10, pairs=pairs)), (asdict(config), asdict(pairs))))
    for text, settings in told:
        assert unfounded(re.sub(r"x_[01]", "", text), settings) == []
        assert text.endswith(".")
    assert len({text for text, _ in told}) == len(told)


@pytest.mark.parametrize(
    ("kind", "words", "papers"),
    [
        ("gft", ["gradual fine-tuning (GFT) on the replay measure", "with the constant weight 1", "32 samples"], ["2601.22495"]),
        ("mle", ["MLE of reconstructions", "N drawn from 1, 2 at every step", "Pairs `self`: 32 noises"], ["2510.02081"]),
        ("gav unconditional", ["flow matching", "dissipative residual"], ["2210.02747", "2510.02081"]),
    ],
)  # fmt: skip
def test_methods_are_told_with_their_papers(runs, kind, words, papers):
    """In the words of the objective, with the loop's; title, link and bibtex of each paper, that of GAV beside the loss's."""
    card = readme(runs(kind))
    assert all(word in section(card, "summary") + section(card, "method") for word in words)
    assert "At most 2 steps of AdamW with batches of 8 at learning rate 0.0003 (constant)" in section(card, "method")
    assert re.findall(r"\[arXiv:(.*?)\]", card) == papers
    assert card.count("```bibtex\n@") == len(papers)


def test_the_viscosity_is_told_by_its_structure(runs):
    """Certified rates are claimed of the structures that have them; a GAV run is called one, and the ablation is not."""
    told = {name: ViscosityConfig(structure=name).describe() for name in STRUCTURES}
    assert {name for name, text in told.items() if "dissipative residual" in text} == {
        "gradient",
        "metric",
        "dominance",
    }
    assert "without dissipation" in told["mlp"]
    assert "second half" in ViscosityConfig(structure="paper", wiring="cascade").describe()
    results, config = files(runs("gav"))
    assert "generalized artificial viscosity (GAV) by maximum likelihood" in section(
        render_card(results, config), "summary"
    )
    config["model"]["structure"] = "mlp"
    assert "gav" not in ModelCard(render_card(results, config)).data.tags


def test_the_optimiser_is_named(runs):
    """The one of eight bits is not called by the other's name."""
    results, config = files(runs("gav"))
    config["train"]["optimizer"] = "adamw_8bit"
    assert "steps of AdamW with 8-bit moments with batches of 8 " in section(render_card(results, config), "method")


# Metadata


@EACH_KIND
def test_the_metadata_are_valid(runs, kind):
    """As huggingface_hub reads them, the model-index included; tasks and relations are names the Hub knows; what is not on the Hub is not linked."""
    data, (results, _) = ModelCard(readme(runs(kind))).data, files(runs(kind))
    is_image = len(results["data"]["event_shape"]) == 3
    assert (data.library_name, data.license) == ("diffusers", "apache-2.0")
    assert data.pipeline_tag == ("unconditional-image-generation" if is_image else None)
    gav = {"gav"} if kind.startswith("gav") else set()
    assert {"flow-matching", "diffusers", "hf_flowft", results["method"], *gav} == set(data.tags)
    assert (data.base_model, data.datasets) == (None, None)
    assert set(data.metrics) == {r.metric_type for r in data.eval_results}
    assert {r.dataset_name for r in data.eval_results} == {results["data"]["name"]}
    forgetting = {r.dataset_split for r in data.eval_results if r.metric_name.startswith("base_domain/")}
    assert forgetting <= {"base_test"}
    assert {r.dataset_split for r in data.eval_results} - forgetting == {"test"}
    assert data.eval_results[0].task_type == ("unconditional-image-generation" if is_image else "other")


def test_what_is_on_the_hub_is_linked(runs):
    """Base and data set, at their revisions, in metadata and text; a residual pushed alone is an adapter."""
    results, config = files(runs("gav"))
    results["base_model"] = {"id": "user/base", "revision": "abc123", "source": "hub", "relation": "finetune"}
    results["data"] |= {"source": "user/digits", "split": "train", "revision": "def456"}
    card = render_card(results, config, source="user/tuned")
    data = ModelCard(card).data
    assert (data.base_model, data.base_model_relation, data.datasets) == ("user/base", "finetune", ["user/digits"])
    assert data.eval_results[0].dataset_type == "user/digits"
    assert data.eval_results[0].dataset_revision == "def456"
    assert "[user/base](https://huggingface.co/user/base) at revision `abc123`" in section(card, "summary")
    assert "[user/digits](https://huggingface.co/datasets/user/digits), split `train`, revision `def456`" in card
    assert 'from_pretrained("user/tuned")' in section(card, "use")
    results["base_model"]["relation"] = "adapter"
    adapter = render_card(results, config)
    assert ModelCard(adapter).data.base_model_relation == "adapter"
    assert "a residual on the frozen [user/base]" in section(adapter, "summary")


def test_a_base_of_the_hub_is_recorded_at_its_commit(runs, hub, tmp_path):
    """What the run was asked for is a name; what is told is the commit it stood for."""
    pretrained("toy").save_pretrained(tmp_path / "base")
    content = {
        str(p.relative_to(tmp_path / "base")): p.read_bytes() for p in (tmp_path / "base").rglob("*") if p.is_file()
    }
    commit = hub.create("user/base", content)
    words = ["--model.name=pretrained", "--model.path=user/base", "--objective.name=fm", "--train.num_steps=1"]
    result = Run(
        load_config(None, [*SMALL_RUN, *TOY, *words, f"--output_dir={tmp_path / 'run'}"]), progress=False
    ).execute()
    assert result.results["base_model"] == {
        "id": "user/base",
        "revision": commit,
        "source": "hub",
        "relation": "finetune",
    }
    assert ModelCard(readme(result)).data.base_model == "user/base"
    assert f"at revision `{commit}`" in readme(result)


# What must not be on a card


@EACH_KIND
def test_no_path_of_this_machine_is_published(runs, kind):
    """Neither in the card nor in the results nor in the pipeline; bases and tables keep their names."""
    folder = runs(kind).folder
    published = [folder / "README.md", folder / "results.json", *(folder / "pipeline").rglob("*")]
    home = str(folder.parent).encode()
    assert not [path for path in published if path.is_file() and home in path.read_bytes()]


def test_no_path_person_or_token_of_the_settings_is_told(runs):
    """Wherever in results or settings they stand."""
    results, config = copy.deepcopy(files(runs("gav")))
    token = "hf_" + "a1B2" * 9
    config["model"]["path"] = "/home/alice/models/base"
    config["data"]["path"] = "C:\\Users\\alice\\data.csv"
    config["hub"] |= {"intended_use": f"As in /home/alice/notes/use.md, with {token}.", "token": token}
    config["train"]["resume_from_checkpoint"] = "/home/alice/runs/run/checkpoints/step_3"
    results["data"]["source"] = "/home/alice/data/digits.parquet"
    results["base_model"]["id"] = "/home/alice/models/base"
    results["selection"]["verdict"] += " See /home/alice/log."
    card = render_card(results, config)
    assert not re.search(r"alice|/home|Users|hf_[A-Za-z0-9]{16}", card)
    assert "models/base" in card
    assert "notes/use.md" in card


# Code


def code(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


SAMPLES = {
    "pretrain": 4,
    "vectors": 4,
    "plain": 3,
    "gft": 3,
    "mle": 4,
    "gav": 3,
    "gav unconditional": 4,
    "nothing better": 4,
}


@EACH_KIND
def test_the_code_runs(runs, kind, monkeypatch):
    """Pasted into an interpreter in the run's folder it draws samples, of labels or conditions the run was trained on."""
    monkeypatch.chdir(runs(kind).folder)
    names = {}
    exec(code(readme(runs(kind))), names)
    assert len(names["samples"]) == SAMPLES[kind]


def test_the_code_runs_in_a_repository(runs, tmp_path):
    """Where the pipeline lies at the root; of a plain card too, with and without conditions."""
    for kind in ("gft", "mle", "vectors"):
        repository = tmp_path / kind
        shutil.copytree(runs(kind).folder / "pipeline", repository)
        pipeline = FlowPipeline.from_pretrained(repository)
        plain = pipeline_card(kind, type(pipeline.model).__name__, pipeline.description, str(repository))
        for card in (render_card(*files(runs(kind)), source=str(repository)), plain):
            names = {}
            exec(code(card), names)
            assert len(names["samples"]) == (SAMPLES[kind] if card is not plain else 4)


# Baselines


def test_a_baseline_is_a_column_and_a_sentence(runs):
    """Its own numbers, its method and seed; the model-index stays the result's."""
    (results, config), (other, _) = files(runs("gft")), files(runs("plain"))
    card = render_card(add_baselines(results, {"plain fine-tune": other}), config)
    row = next(line for line in card.splitlines() if line.startswith("| target/energy@2 "))
    assert [cell.strip() for cell in row.split("|")[2:5]] == [
        number(metrics["target/energy@2"])
        for metrics in (results["metrics"]["base"], results["metrics"]["result"], other["metrics"]["result"])
    ]
    assert "`plain fine-tune` is another run on the same data, judged in the same way: flow matching, seed 0" in card
    assert ModelCard(card).data.eval_results == ModelCard(readme(runs("gft"))).data.eval_results
    assert unfounded(told(card), add_baselines(results, {"plain fine-tune": other}), config) == []
    with pytest.raises(ValueError, match=r"data\.name is 'five_gaussians'"):
        add_baselines(results, {"toy": files(runs("mle"))[0]})


def test_the_demo_shows_the_plain_fine_tune_beside_every_method(runs, tmp_path):
    """In results.json and on the card; showing it again changes nothing, and the plain one stays alone."""
    (results, config), (other, _) = files(runs("gft")), files(runs("plain"))
    beside = {}
    for name, source in (("plain", runs("plain")), ("GFT", runs("gft"))):
        shutil.copytree(source.folder, tmp_path / name)
        beside[name] = type(source)(source.pipeline, files(source)[0], tmp_path / name)
    settings = load_config(None, [], config)
    for _ in range(2):
        for name in beside:
            show_baseline(beside, name, settings)
        written, _ = files(beside["GFT"])
        assert list(written["metrics"]) == ["base", "result", "plain"]
        assert written["metrics"]["plain"] == other["metrics"]["result"]
        assert readme(beside["GFT"]) == render_card(add_baselines(results, {"plain": other}), config)
        assert readme(beside["plain"]) == readme(runs("plain"))


# Cards that a person edits


def test_writing_again_keeps_what_a_person_wrote(runs, tmp_path):
    """In bytes: ends of lines and characters that are no UTF-8 included; every section of a real card is renewed."""
    results, config = files(runs("gft"))
    path = write_card(results, config, tmp_path)
    path.write_bytes(path.read_bytes() + b"Mine, \xff\r\n")
    changed = copy.deepcopy(results)
    changed["metrics"]["result"]["target/energy@2"]["value"] = math.pi
    write_card(changed, config, tmp_path)
    expected = merge_card(render_card(changed, config), render_card(results, config) + "Mine.")
    assert path.read_bytes() == expected.removesuffix("Mine.").encode() + b"Mine, \xff\r\n"
    assert "3.142" in section(expected, "results")
    assert list(find_sections(expected)) == list(SECTIONS)


# The shipped cards


@pytest.mark.parametrize("folder", sorted((Path(__file__).parents[1] / "model_cards").iterdir()), ids=lambda p: p.name)
def test_shipped_cards_are_made_from_their_numbers(folder):
    """Each card in model_cards is what the program renders from the results and settings beside it, with its pictures there."""
    results, config = read_results(folder / "results.json"), yaml.safe_load((folder / "config.yaml").read_text())
    assert (folder / "README.md").read_text() == render_card(results, config)
    assert results["figures"]
    assert all((folder / name).is_file() for name in results["figures"])


def test_every_config_has_a_card():
    """The shipped configs were run: each has its card; other cards are of runs that configs/README.md names."""
    root = Path(__file__).parents[1]
    text = (root / "configs/README.md").read_text()
    configs = {path.stem for path in (root / "configs").glob("*.yaml")}
    cards = {path.name for path in (root / "model_cards").iterdir()}
    assert configs <= cards
    assert all(f"`{name}`" in text for name in cards - configs)
