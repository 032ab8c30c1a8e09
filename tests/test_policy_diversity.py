"""Action diversity: what it is, and that its loss is told while a policy trains and on the card."""

import json
import warnings

import pytest
import torch
from tiny import SMALL_RUN, network
from tiny_policies import pusht_policy

from hf_flowft import FlowMatchingObjective, FlowTrainer, Run, Velocity, load_config
from hf_flowft.batch import Batch
from hf_flowft.cards import render_card
from hf_flowft.data import RobotConfig, load_robot
from hf_flowft.randomness import keyed_generator
from hf_flowft.training import EvalConfig, TrainConfig
from hf_flowft.training.diversity import action_diversity, collapse
from hf_flowft.training.evaluation import Evaluator, Score
from hf_flowft.training.report import report


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Demonstrations of random numbers, and a base that has learned them: there is no one answer to an observation."""
    folder = tmp_path_factory.mktemp("diversity")
    pipeline = pusht_policy(folder / "demonstrations")
    data = load_robot(RobotConfig(path=str(folder / "demonstrations")))
    model = network(data, condition_dim=36, hidden_dim=64)
    settings = TrainConfig(num_steps=300, batch_size=64, learning_rate=3e-3, ema_decay=0.0)
    FlowTrainer(model, data, FlowMatchingObjective(), settings, EvalConfig(every=300, metric="held_out_loss")).train()
    pipeline.model = model
    pipeline.save_pretrained(folder / "base")
    return folder


def fine_tune(place, name, *words):
    """MLE of two steps from the base; returns the run and its warnings."""
    choice = {"data": {"name": "robot"}, "model": {"name": "pretrained"}, "objective": {"name": "mle"}}
    told = [f"--data.path={place / 'demonstrations'}", f"--model.path={place / 'base'}", "--objective.num_steps=[2]"]
    told += [f"--output_dir={place / name}", "--eval.select_num_steps=[2]", "--eval.report_num_steps=[2]"]
    told += [
        "--train.num_steps=200",
        "--train.batch_size=64",
        "--train.learning_rate=3e-3",
        "--train.lr_schedule=cosine",
        "--train.ema_decay=0",
    ]
    told += ["--eval.every=100", "--eval.metric=reconstruction"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = Run(load_config(None, [*SMALL_RUN, *told, *words], choice), progress=False)
        run.execute()
    return run, [str(w.message) for w in caught if "collapsed" in str(w.message)]


def test_it_is_the_spread_of_the_answers_to_one_observation():
    """By numpy: chunks that are the noise times the observation have the observation as their spread; a policy without noise has none."""
    observed = Batch(torch.zeros(50, 16, 2), {"condition": torch.linspace(0, 2, 50)[:, None]})

    def scaled(x_0, condition):
        return x_0 * condition["condition"][:, :, None]

    assert action_diversity(scaled, observed, torch.Generator().manual_seed(0)) == pytest.approx(0.965, rel=0.02)
    assert action_diversity(lambda x, c: torch.zeros_like(x), observed, torch.Generator()) == 0


def test_evaluations_measure_it(place):
    """At the numbers of steps of the selection, always with the same noise, under held-out observations; nothing for other data."""
    data = load_robot(RobotConfig(path=str(place / "demonstrations")))
    velocity = Velocity(network(data, condition_dim=36))
    config = EvalConfig(metric="held_out_loss", num_repeats=1, select_num_steps=[1, 2])
    evaluator = Evaluator(data, config)
    measured = evaluator.score(velocity, 0).action_diversity
    assert measured == evaluator.score(velocity, 0).action_diversity
    rows = data.rows("validation")
    assert len(rows) == 40
    x_0 = torch.randn(8 * len(rows), 16, 2, generator=keyed_generator(0, "action diversity"))
    condition = {"condition": rows.condition["condition"].repeat(8, 1)}
    spreads = [
        evaluator.sampler(velocity, x_0, condition, n).reshape(8, -1, 32).std(dim=0).mean().item() for n in (1, 2)
    ]
    assert measured == pytest.approx(sum(spreads) / 2, rel=1e-5)
    found = report(evaluator, velocity)
    assert found["action_diversity"]["direction"] == "neither"
    assert {"reconstruction@1", "reconstruction@2"} <= set(found)


def test_fresh_noise_collapses_and_is_told(place):
    """Once in a warning, with the numbers in the results, and on the card among what got worse."""
    run, told = fine_tune(place, "fresh", "--pairs.name=independent", "--pairs.allow_independent=true")
    results = json.loads((run.folder / "results.json").read_text())
    values = [score["action_diversity"] for score in results["selection"]["scores"]]
    assert values[-1] < values[0] / 3
    assert len(told) == 1
    assert told[0] == results["selection"]["collapse"]
    card = (run.folder / "README.md").read_text()
    assert "The actions have collapsed" in card.partition("## What got better and what got worse")[2]
    results["selection"]["improved"] = False
    assert "The actions have collapsed" in render_card(results, run.config.as_dict())


@pytest.mark.parametrize("pairs", ["self", "best_of_k"])
def test_a_bank_keeps_it(place, pairs):
    """The same run on noises that the base has chosen says nothing."""
    words = ["--pairs.num_steps=1", "--pairs.num_pairs=256", "--pairs.num_candidates=4"]
    run, told = fine_tune(place, pairs, f"--pairs.name={pairs}", *words)
    results = json.loads((run.folder / "results.json").read_text())
    assert not told
    assert results["selection"]["collapse"] == ""
    assert "collapsed" not in (run.folder / "README.md").read_text()


def test_the_limit_is_a_third_of_the_base():
    """Nothing is said where it was not measured, as in older checkpoints, and where there was none to lose."""
    assert "from step 2 on" in collapse(
        [Score(0, [1.0], [], 0.9), Score(1, [1.0], [], 0.31), Score(2, [1.0], [], 0.29)]
    )
    assert collapse([Score(0, [1.0], [], 0.9), Score(1, [1.0], [], 0.31)]) == ""
    assert collapse([Score(0, [1.0], []), Score(1, [1.0], [], 0.1)]) == ""
    assert collapse([Score(0, [1.0], [], 0.0), Score(1, [1.0], [], 0.0)]) == ""
