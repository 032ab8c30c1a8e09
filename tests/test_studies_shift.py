"""The shift study: its quick form writes everything and goes on where it stopped, its comparison is right, its configs run."""

import json
import math

import numpy as np
import pytest
import torch

from hf_flowft import load_config
from hf_flowft.cli import main as cli
from hf_flowft.metrics.distances import energy_distance
from hf_flowft.studies import shift
from hf_flowft.studies.shift_fronts import Comparison, area, chosen, difference, mixing_curve
from hf_flowft.studies.shift_methods import BASELINES, FAMILIES, METHODS, SETTINGS, compared, full_plan, quick_plan
from hf_flowft.studies.shift_report import matched, verdict_table, verdicts
from hf_flowft.studies.shift_runs import ShiftRuns, interpolated
from hf_flowft.studies.shift_settings import QUICK, Sizes, all_runs, base_data, target_data
from hf_flowft.training.models import MLPConfig
from hf_flowft.velocity import FrozenVelocity

CONFIGS = {"plain": "plain", "warmup": "plain", "gft": "gft", "replay": "gft"}


# -------------------------------------------------------------------------------------------------------- the comparison
def cell(forgetting, target, held_out, gap=1.0, rate=1e-3):
    """What a run leaves of its curve."""
    curve = {"step": list(range(len(target))), "held_out": held_out}
    for metric in ("energy", "sliced"):
        curve |= {f"base_{metric}": [f * gap for f in forgetting], f"target_{metric}": [t * gap for t in target]}
    return {"curve": curve, "gap": {"energy": gap, "sliced": gap}, "rate": rate}


def test_the_checkpoint_is_chosen_on_held_out_data_within_the_limit():
    """Not by the test split, and in units of the distance between the domains."""
    curves = [cell([0.0, 0.4], [1.0, 0.2], [9, 2], gap=3.0), cell([0.2, 0.9], [0.5, 0.3], [3, 1], gap=3.0)]
    assert chosen(curves, "energy", 0.1) == pytest.approx(1.0)
    assert chosen(curves, "energy", 0.3) == pytest.approx(0.5)
    assert chosen(curves, "energy", 0.5) == pytest.approx(0.2)
    assert chosen(curves, "sliced", math.inf) == pytest.approx(0.3)


def test_where_nothing_is_within_the_limit_the_least_forgetful_counts():
    """The base's own error may exceed a tight limit."""
    assert chosen([cell([0.05, 0.3], [1.0, 0.1], [5, 1])], "energy", 0.01) == 1.0


def test_area_of_a_front():
    """By hand, also with dominated points and points outside of the square."""
    assert area([cell([0.5], [0.5], [0])], "energy") == pytest.approx(0.25)
    assert area([cell([0.5, 0.2, 0.6, 1.4], [0.2, 0.6, 0.9, 0.0], [0] * 4)], "energy") == pytest.approx(
        0.8 * 0.4 + 0.5 * 0.4
    )
    assert area([cell([0.0], [1.0], [0])], "energy") == 0


def test_the_mixing_curve_dominates_five_sixths():
    """1 - the integral of (1 - sqrt f)^2."""
    f = np.linspace(0, 1, 20001)
    assert area([cell(f.tolist(), mixing_curve(f), [0] * len(f))], "energy") == pytest.approx(5 / 6, abs=1e-3)


def test_no_model_passes_the_mixing_curve(generator):
    """sqrt D(p, target) + sqrt D(p, base) >= sqrt D(target, base); mixtures reach it, displacements do not."""
    base, target = torch.randn(1500, 2, generator=generator), torch.randn(1500, 2, generator=generator) + 3
    gap = energy_distance(base, target)
    chance = torch.rand(1500, 1, generator=generator) < 0.5
    between = {"mixture": torch.where(chance, base.roll(1, 0), target.roll(1, 0)), "displacement": (base + target) / 2}
    excess = {
        name: math.sqrt(energy_distance(x, target)) + math.sqrt(energy_distance(x, base)) - math.sqrt(gap)
        for name, x in between.items()
    }
    assert abs(excess["mixture"]) < 0.06
    assert excess["displacement"] > 0.1


def test_differences_are_paired():
    """The spread between seeds does not blur a difference that every seed shows."""
    entry = difference([1.1, 5.1, 9.1], [1.0, 5.0, 9.0])
    assert entry["value"] == pytest.approx(0.1)
    assert entry["stderr"] == pytest.approx(0, abs=1e-12)


def test_a_verdict_needs_both_baselines():
    """Better than one of them only is undecided; the area counts the other way round."""
    seeds = {
        "plain": [[cell([0.5], [t], [0])] for t in (0.50, 0.52)],
        "warmup": [[cell([0.5], [t], [0])] for t in (0.30, 0.32)],
        "gft": [[cell([0.5], [t], [0])] for t in (0.40, 0.42)],
        "gft_1": [[cell([0.5], [t], [0])] for t in (0.20, 0.22)],
    }
    (rows,) = verdicts(Comparison(seeds)).values()
    found = {(row["method"], row["measure"]): row["verdict"] for row in rows}
    assert found["gft", "inf"] == "undecided"
    assert found["gft_1", "inf"] == found["gft_1", "area"] == "better"


def test_methods_are_judged_at_their_own_learning_rates():
    """One with fewer candidates does not compete with the best of many."""
    two = [cell([0.5], [0.5], [2], rate=1e-3), cell([0.5], [0.1], [1], rate=3e-3)]
    comparison = Comparison({"gft_step": [two[:1]], "plain": [two]})
    assert matched(comparison, ["gft_step", "plain"]).values("plain", "energy", math.inf) == [0.5]


def test_the_table_shows_the_harder_baseline():
    """The difference to the better of the two, with the verdict."""
    seeds = {
        "plain": [[cell([0.5], [t], [0])] for t in (0.50, 0.52)],
        "warmup": [[cell([0.5], [t], [0])] for t in (0.30, 0.32)],
        "gft": [[cell([0.5], [t], [0])] for t in (0.20, 0.22)],
    }
    (rows,) = verdicts(Comparison(seeds)).values()
    rows = [row for row in rows if row["metric"] == "energy"]
    last = verdict_table(rows).splitlines()[-1].split("|")
    assert last[1].strip() == "GFT"
    assert last[-3].strip().startswith("-0.1 ")
    assert last[-3].strip().endswith("better")


def test_families_choose_among_their_members():
    """The union has the candidates of all."""
    seeds = {name: [[cell([0.5], [0.1 * i], [i])]] for i, name in enumerate(["plain", "warmup"], 1)}
    assert compared(seeds).values("baseline_chosen", "energy", math.inf) == [pytest.approx(0.1)]
    assert "gft_chosen" not in compared(seeds).cells


# ------------------------------------------------------------------------------------------------------------- the study
def test_every_run_of_the_plan_is_known():
    """Settings and methods exist, names differ, and baselines are run wherever something is compared with them."""
    sizes = Sizes()
    some = {rate for rates in full_plan(sizes.rates)["few"].values() for rate in rates}
    assert some == set(sizes.rates)
    for plan in (full_plan(sizes.rates), quick_plan()):
        runs = list(all_runs(sizes, plan))
        assert len({run.name for run in runs}) == len(runs)
        assert {run.setting for run in runs} <= set(SETTINGS)
        assert {run.method for run in runs} <= set(METHODS)
        assert all(set(BASELINES) <= set(methods) for methods in plan.values())


@pytest.mark.parametrize("name", ["few", "tiny", "conditional"])
def test_data_of_a_setting(name):
    """Few samples fill a batch by repetition; selection has as few; nothing of the base is in them."""
    setting, sizes = SETTINGS[name], Sizes(num_exact=100, num_samples=80)
    data = target_data(setting, sizes, 0)
    train = data.rows("train").x_1
    assert len(train) >= sizes.batch_size
    assert len(train.unique(dim=0)) == data.counts["validation"] == setting.train_size
    assert not (set(map(tuple, train.tolist())) & set(map(tuple, base_data(False, 0).rows("train").x_1.tolist())))
    if setting.conditional:
        assert data.rows("test", [0]).condition["condition"].tolist() == [[0.0, 1.0]]
        assert data.rows("base_test", [0]).condition["condition"].tolist() == [[1.0, 0.0]]
        assert base_data(True, 0).rows("train", [0]).condition["condition"].tolist() == [[1.0, 0.0]]


def test_all_methods_stop_where_they_say():
    """The temperature's end, and the warm-up's shape."""
    ends = {name: method.temperature.alpha(0.99) for name, method in METHODS.items()}
    assert ends["gft_0.25"] == pytest.approx(0.8)
    assert ends["gft_1"] == pytest.approx(0.5)
    assert all(ends[name] == 1 for name in ends if name not in ("gft_0.25", "gft_1", "ot_gft_0.25"))
    assert all(method.temperature.alpha(0.0) == pytest.approx(0.1) for method in METHODS.values())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder of a quick study."""
    out = tmp_path_factory.mktemp("study") / "shift"
    assert cli(["study", "shift", "--quick", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_the_quick_study_writes_everything(quick):
    """Every cell of its plan, the tables and the figures."""
    assert all((quick / "cells" / f"{run.name}.json").is_file() for run in all_runs(QUICK, quick_plan()))
    text = (quick / "shift.md").read_text()
    assert all(SETTINGS[name].title in text for name in quick_plan())
    assert all(FAMILIES[name][0] in text for name in ("baseline_chosen", "gft_chosen"))
    results = json.loads((quick / "results.json").read_text())
    assert set(results["settings"]) == set(quick_plan())
    assert len(results["settings"]["few"]["verdicts"]) == 2
    figures = {path.name for path in (quick / "figures").iterdir()}
    assert figures == {"shift_trade_off.png", "shift_over_steps.png", "shift_samples.png"}


@pytest.mark.slow
def test_curves_begin_with_the_base(quick):
    """Step 0 is the same for all methods of a seed, and the selected step is on the curve."""
    cells = [json.loads((quick / "cells" / "few" / m / "lr0.001" / "seed0.json").read_text()) for m in ("plain", "gft")]
    first, second = ({key: values[0] for key, values in c["curve"].items()} for c in cells)
    assert first == second
    assert first["step"] == 0
    assert cells[0]["curve"]["target_energy"][-1] != cells[1]["curve"]["target_energy"][-1]
    assert all(c["selected_step"] in c["curve"]["step"] for c in cells)


@pytest.mark.slow
def test_interpolations_go_from_the_base_to_plain(quick):
    """At 0 % the base, at 100 % the selected model of plain fine-tuning, whichever way one goes."""
    curves = [
        json.loads((quick / "cells" / "few" / m / "lr0.001" / "seed0.json").read_text())
        for m in ("weights", "velocities")
    ]
    plain = json.loads((quick / "cells" / "few" / "plain" / "lr0.001" / "seed0.json").read_text())
    index = plain["curve"]["step"].index(plain["selected_step"])
    for cell in (c["curve"] for c in curves):
        assert cell["step"] == [0, 50, 100]
        assert cell["target_energy"][0] == pytest.approx(plain["curve"]["target_energy"][0], abs=1e-5)
        assert cell["target_energy"][-1] == pytest.approx(plain["curve"]["target_energy"][index], abs=1e-5)
        assert cell["held_out"][-1] == pytest.approx(plain["curve"]["held_out"][index], abs=1e-5)


def test_velocities_and_weights_between_two_models():
    """By hand, at a quarter."""
    data = base_data(False, 0)
    base, tuned = (MLPConfig(8, 1, time="concat").build(data, 0, seed).model for seed in (0, 1))
    x, t = torch.randn(5, 2), torch.rand(5)
    frozen = FrozenVelocity(base)
    mixed = interpolated(frozen, tuned, 0.25, "velocities")
    torch.testing.assert_close(mixed(x, t), 0.75 * frozen(x, t) + 0.25 * FrozenVelocity(tuned)(x, t))
    weights = interpolated(frozen, tuned, 0.25, "weights").model.state_dict()
    for key, value in weights.items():
        torch.testing.assert_close(value, 0.75 * base.state_dict()[key] + 0.25 * tuned.state_dict()[key])


@pytest.mark.slow
def test_a_killed_study_goes_on(quick, monkeypatch):
    """Only what is missing is computed again, with the same result."""
    before = (quick / "shift.md").read_text()
    trained = []
    tune = ShiftRuns._finetuned
    monkeypatch.setattr(ShiftRuns, "_finetuned", lambda self, run: trained.append(run.name) or tune(self, run))
    (quick / "cells" / "few" / "gft" / "lr0.001" / "seed1.json").unlink()
    shift.main(quick, quick=True)
    assert trained == ["few/gft/lr0.001/seed1"]
    assert (quick / "shift.md").read_text() == before


# --------------------------------------------------------------------------------------------------------------- configs
def test_configs_train_as_the_study_does():
    """The same shift, sizes and temperature."""
    sizes, setting = Sizes(), SETTINGS["few"]
    for name, key in {"plain": "plain", "warmup": "warmup", "gft": "gft", "replay": "replay_1"}.items():
        config = load_config(f"configs/shift_{name}.yaml")
        method = METHODS[key]
        assert (config.data.rotation, config.data.scale, config.data.move) == (36, 0.8, 0.5)
        assert (config.data.train_size, config.train.ema_decay) == (setting.train_size, setting.ema_decay)
        assert (config.train.num_steps, config.train.batch_size) == (sizes.num_steps, sizes.batch_size)
        assert config.train.lr_schedule == ("alpha" if name == "warmup" else "constant")
        if name in ("warmup", "gft"):
            assert config.train.temperature == method.temperature
    assert load_config("configs/shift_base.yaml").train.num_steps == sizes.pretrain_steps


@pytest.mark.slow
def test_the_configs_run(tmp_path):
    """Pretrained and fine-tuned from the command line, in small."""
    small = ["--train.num_steps=2", "--train.batch_size=16", "--eval.every=2", "--eval.max_samples=16"]
    small += ["--eval.num_repeats=2", "--eval.report_num_steps=[2]"]
    base = str(tmp_path / "base")
    tiny = [*small, "--data.train_size=32", "--data.eval_size=32"]
    assert cli(["pretrain", "--config", "configs/shift_base.yaml", "--output_dir", base, *tiny]) == 0
    for name, method in CONFIGS.items():
        where = ["--output_dir", str(tmp_path / name), "--model.path", f"{base}/pipeline"]
        assert cli(["finetune", method, "--config", f"configs/shift_{name}.yaml", *where, *tiny]) == 0
