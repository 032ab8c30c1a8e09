"""A policy through the whole house: judged by rollouts, returned as a policy, with a card whose code decides."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from tiny import SMALL_RUN
from tiny_policies import pusht_policy

from hf_flowft import EvalConfig, FlowODEScheduler, FlowPipeline, FlowPolicyPipeline, Run, Velocity, load_config
from hf_flowft.cli import main
from hf_flowft.data import RobotConfig, load_robot
from hf_flowft.results import read_results
from hf_flowft.studies import policy as study
from hf_flowft.studies import tasks as tasks_study
from hf_flowft.studies.cells import Cells
from hf_flowft.studies.common import study_config
from hf_flowft.studies.estimates import over_episodes
from hf_flowft.studies.policy_report import Found, signed
from hf_flowft.training.rollouts import Rollouts

pytest.importorskip("gym_pusht", reason="the simulators of hf_flowft[policy] are not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Demonstrations and a base."""
    folder = tmp_path_factory.mktemp("policy")
    pusht_policy(folder / "demonstrations").save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def run(place):
    """A fine-tune for two steps that is judged by two rollouts."""
    choice = {"data": {"name": "robot"}, "model": {"name": "pretrained"}, "objective": {"name": "mle"}}
    words = [f"--data.path={place / 'demonstrations'}", f"--model.path={place / 'base'}", "--pairs.name=self"]
    words += ["--pairs.num_pairs=16", "--pairs.num_steps=2", "--eval.environment=pusht", "--eval.episodes=1"]
    words += [f"--output_dir={place / 'run'}", "--eval.report_num_steps=[1]", "--eval.select_num_steps=[1]"]
    Run(load_config(None, [*SMALL_RUN, *words], choice), progress=False).execute()
    return place / "run"


def test_it_is_judged_by_what_it_reaches(run):
    """Base and result have the shortfall of the reward, from test starts; the selection was on validation starts."""
    results = json.loads((run / "results.json").read_text())
    assert results["selection"]["metric"] == "reward_shortfall"
    for column in ("base", "result"):
        entry = results["metrics"][column]["target/reward_shortfall@1"]
        assert 0 <= entry["value"] <= 1
        assert len(entry["values"]) == 2


def test_evaluate_says_what_the_run_said(run, tmp_path):
    """By the run's config its pipeline is judged by the same episodes: the very numbers of its card."""
    assert (
        main(
            ["evaluate", str(run / "pipeline"), "--config", str(run / "config.yaml"), "--out", str(tmp_path / "e.json")]
        )
        == 0
    )
    again, known = (
        json.loads((tmp_path / "e.json").read_text())["metrics"],
        json.loads((run / "results.json").read_text()),
    )
    name = "target/reward_shortfall@1"
    assert again[name]["values"] == known["metrics"]["result"][name]["values"]


def test_it_comes_back_as_a_policy(run):
    pipeline = FlowPipeline.from_pretrained(run / "pipeline")
    assert type(pipeline) is FlowPolicyPipeline
    assert pipeline.policy["state_keys"] == ["observation.state", "observation.environment_state"]


def test_the_base_of_a_report_may_be_a_parked_copy(place, tmp_path):
    """GFT whose frozen copy stays on the CPU in half precision: trained, rolled out and reported to the end."""
    words = [
        f"--data.path={place / 'demonstrations'}",
        f"--model.path={place / 'base'}",
        f"--output_dir={tmp_path / 'run'}",
    ]
    words += [
        "--data.name=robot",
        "--objective.measure=target",
        "--model.reference_device=cpu",
        "--model.reference_dtype=bfloat16",
    ]
    assert main(["finetune", "gft", *words, *SMALL_RUN, "--eval.metric=reconstruction"]) == 0
    results = read_results(tmp_path / "run" / "results.json")
    assert {"action_diversity", "held_out_loss"} <= results["metrics"]["base"].keys()


def test_its_card_decides(run, monkeypatch):
    """The code on the card loads the policy and gives actions for now; the Hub is told that it is a robot's, and the reader by what it was judged."""
    card = ModelCard((run / "README.md").read_text())
    (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert card.data.pipeline_tag == card.data.eval_results[0].task_type == "robotics"
    assert "in 2 episodes of the simulator `pusht` and on at most " in card.text
    monkeypatch.chdir(run)
    scope: dict = {}
    exec(code, scope)
    assert scope["actions"].shape == (1, 8, 2)


def test_rollouts_are_those_of_the_policy(place):
    """One minus the reward of each start, other ones for each repeat and split; the same again the same."""
    base = FlowPolicyPipeline.from_pretrained(place / "base")

    def make(model):
        return FlowPolicyPipeline(model, FlowODEScheduler(), base.description)

    judge = Rollouts(EvalConfig(environment="pusht", episodes=2), make)
    velocity = Velocity(base.model)
    values = [judge(velocity, split, 1, repeat) for split in ("validation", "test") for repeat in range(2)]
    assert all(len(episodes) == 2 and all(0 <= value <= 1 for value in episodes) for episodes in values)
    assert len({value for episodes in values for value in episodes}) > 2
    assert judge(velocity, "test", 1, 1) == values[-1]
    with pytest.raises(ValueError, match="not the split 'base_test'"):
        judge(velocity, "base_test", 1, 0)
    plain = Rollouts(EvalConfig(environment="pusht", episodes=1), lambda model: FlowPipeline(model, FlowODEScheduler()))
    with pytest.raises(ValueError, match="needs a policy"):
        plain(velocity, "test", 1, 0)


def test_means_over_seeds_and_episodes():
    """The error is the larger of that between the seeds' means and that between the starts'."""
    apart = [np.array([0.2, 0.2]), np.array([0.4, 0.4]), np.array([0.9, 0.9])]
    assert over_episodes(apart) == pytest.approx((0.5, np.std([0.2, 0.4, 0.9], ddof=1) / np.sqrt(3), 3))
    alike = [np.array([0.0, 1.0]), np.array([0.0, 0.8])]
    assert over_episodes(alike) == pytest.approx((0.45, np.std([0, 0.9], ddof=1) / np.sqrt(2), 2))


def test_a_gain_is_paired_by_start(tmp_path):
    """Differences on the same starts: a constant gain has no error, and a seed that one of them lacks is left out."""
    cells = Cells(tmp_path)
    for name, values in {"ours-0": [0.3, 0.9], "theirs-0": [0.1, 0.7], "ours-1": [0.5, 0.5]}.items():
        cells.get_or_run(f"{name}/clean/4", lambda values=values: {"max_reward": {"values": values}})
    gain = Found(cells, 2).gain("ours", "theirs", "clean", (4, 4))
    assert gain == pytest.approx((0.2, 0.0, 1))
    assert signed(gain) == "**+0.200 ± 0.000**"


def test_rows_start_from_rows_and_are_measured_against_rows():
    """The study's table names configs that are shipped, and starts and controls of its own."""
    for row in study.ROWS.values():
        assert not row.config or (study_config(row.config, {}).objective is not None)
        assert row.start in ("", *study.ROWS)
        assert row.control in ("", *study.ROWS)
    order = [name for wave in study.waves() for name in wave]
    assert order == list(study.ROWS)
    assert not any(study.ROWS[name].start in wave for wave in study.waves() for name in wave)


@pytest.mark.slow
def test_the_study_runs_and_is_reused(place, monkeypatch):
    """The small version leaves its table and reuses every cell; a run that keeps its base is judged by what it ended with."""
    chosen = {name: study.ROWS[name] for name in ("base", "plain", "self")}
    monkeypatch.setattr(study, "ROWS", {name: replace(row, steps=row.steps[:1]) for name, row in chosen.items()})
    monkeypatch.setattr(study, "CONDITIONS", {"clean": "", "gaussian-0.05": "gaussian:0.05"})
    folder = place / "study"
    study.main(folder, quick=True, data=str(place / "demonstrations"))
    first = (folder / "policy.md").read_text()
    assert "| base " in first
    assert "MLE, self, random N" in first
    monkeypatch.setattr(study, "rollout", None)
    study.main(folder, quick=True, data=str(place / "demonstrations"))
    assert (folder / "policy.md").read_text() == first
    last = study.trained_policy(folder / "plain-0", last=True).model.state_dict()
    start = FlowPipeline.from_pretrained(folder / "base-0" / "pipeline").model.state_dict()
    assert any(not torch.equal(last[name], start[name]) for name in start)


@pytest.mark.slow
def test_the_study_of_tasks_runs(tmp_path, monkeypatch):
    """One start of each of two tasks: every method stands in its table."""
    pytest.importorskip("metaworld")
    monkeypatch.setattr(tasks_study, "MAX_STEPS", 8)
    tasks_study.main(tmp_path / "tasks", quick=True)
    text = (tmp_path / "tasks" / "tasks.md").read_text()
    assert all(f"| {title} " in text for title in tasks_study.TITLES.values())


# The console


@pytest.mark.slow
def test_demonstrate_and_roll_out(place, tmp_path, capsys):
    """Planned demonstrations are a data set that loads; a rollout prints its table, and leaves numbers and videos of two episodes."""
    assert main(["demonstrate", "pusht", "--episodes", "3", "--out", str(tmp_path / "planned")]) == 0
    assert "3 demonstrations, of " in capsys.readouterr().out
    data = load_robot(RobotConfig(path=str(tmp_path / "planned"), validation=0.34, test=0.34))
    assert data.facts["episodes"] == {"train": 1, "validation": 1, "test": 1}
    words = ["--env", "pusht", "--episodes", "2", "--steps", "1", "--noise", "gaussian:0.02"]
    words += ["--video", str(tmp_path / "videos"), "--out", str(tmp_path / "numbers.json")]
    assert main(["rollout", str(place / "base"), *words]) == 0
    assert "max_reward" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["metrics"]["success"]["count"] == 2
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["bad.gif", "good.gif"]


def test_demonstrations_are_planned_in_processes(monkeypatch, tmp_path):
    """As many as are asked for; the numbers are those of one (see the tests of demonstrations)."""
    given = {}
    plan = "hf_flowft.environments.demonstrations.write_demonstrations"
    monkeypatch.setattr(plan, lambda *arguments, **options: given.update(options) or {})
    assert main(["demonstrate", "pusht", "--processes", "3", "--out", str(tmp_path / "planned")]) == 0
    assert given == {"noise": 0.0, "processes": 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout", "BASE", "--env", "push"], "pusht"),
        (["rollout", "BASE", "--env", "pusht", "--noise", "gauss:1"], "gaussian"),
        (["demonstrate", "kitchen", "--out", "x"], "expert"),
        (["demonstrate", "pusht", "--out", "BASE"], "is there already"),
    ],
)
def test_what_cannot_be_done_is_told(place, capsys, words, message):
    """Exit code 2 and one line."""
    assert main([str(place / "base") if word == "BASE" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error[error.index("hf-flowft: error: ") :]
