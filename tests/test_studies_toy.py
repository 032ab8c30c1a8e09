"""The toy study: its quick form writes everything, goes on where it stopped, and compares end points; its configs run."""

import json

import pytest
import torch
from torch import nn

from hf_flowft import EvalConfig, FlowMatchingObjective, FlowTrainer, ToyConfig, TrainConfig, load_config, load_toy
from hf_flowft.cli import main as cli
from hf_flowft.metrics.distances import wasserstein_2
from hf_flowft.studies import toy, toy_report
from hf_flowft.studies.toy_metrics import CENTRES, share_matched_w2
from hf_flowft.studies.toy_runs import QUICK, TITLES, EndPoint, ToyStudy

CONFIGS = ("toy_base", "toy_mle", "toy_gav", "toy_mlp_residual")
FIGURES = ("steps", "error_map", "error_reduction", "bad_paths", "histograms", "samples", "gap")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder of a quick study."""
    out = tmp_path_factory.mktemp("study") / "toy"
    assert cli(["study", "toy", "--quick", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_the_quick_study_writes_everything(quick):
    """Every method at every seed, the tables and the figures."""
    for method in TITLES:
        assert len(list((quick / "cells" / method).glob("seed=?.json"))) == QUICK.seeds
    text = (quick / "toy.md").read_text()
    assert all(title in text for title in TITLES.values())
    results = json.loads((quick / "results.json").read_text())
    assert set(results["metrics"]) == set(TITLES)
    assert len(results["claims"]) == len(toy_report.CLAIMS)
    assert {f"toy_{name}.png" for name in FIGURES} == {path.name for path in (quick / "figures").iterdir()}


@pytest.mark.slow
def test_a_killed_study_goes_on(quick, monkeypatch):
    """Only what is missing is computed again, and the report does not change."""
    before = (quick / "toy.md").read_text()
    trained = []
    train = ToyStudy._train
    monkeypatch.setattr(ToyStudy, "_train", lambda self, *a: trained.append(a[-2:]) or train(self, *a))
    (quick / "cells" / "sorted" / "seed=1.json").unlink()
    for suffix in (".json", "-training.json", ".safetensors"):
        (quick / "cells" / "gav" / f"seed=0{suffix}").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (quick / "cells").rglob("*=?.json")}
    toy.main(quick, quick=True)
    assert trained == [("gav", 0)]
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert _without_seconds((quick / "toy.md").read_text()) == _without_seconds(before)


def _without_seconds(text):
    return [line.rsplit("|", 2)[0] for line in text.splitlines()]


@pytest.mark.slow
def test_the_report_is_made_from_the_cells(quick, tmp_path):
    """A number in the table is the number of the cell."""
    study = ToyStudy(quick, QUICK)
    cells = {method: [study.cell(method, seed) for seed in range(QUICK.seeds)] for method in TITLES}
    for cell in cells["self"]:
        cell["steps"]["16"]["distance"] = 0.123
    toy_report.write_report(study, cells, tmp_path)
    row = next(line for line in (tmp_path / "toy.md").read_text().splitlines() if TITLES["self"] in line)
    assert row.split("|")[2].strip() == "0.123"


def test_the_end_point_is_kept_when_the_base_is_returned():
    """A run that harms returns its base; the study still sees where it ended."""

    class Constant(nn.Module):
        """v = w, and the base has w = 0."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x, t):
            return self.weight.expand_as(x)

    class Away(FlowMatchingObjective):
        """A loss that drives the samples off the data."""

        def forward(self, velocity, batch, step, generator):
            return -velocity(batch.x_t, batch.t).sum(dim=1).mean(), {}

    end, train = EndPoint(), TrainConfig(num_steps=5, batch_size=8, learning_rate=1.0, ema_decay=0.0)
    data = load_toy(ToyConfig(train_size=64, eval_size=64))
    result = FlowTrainer(Constant(), data, Away(), train, EvalConfig(every=2), callbacks=[end]).train()
    assert not result.improved
    assert torch.equal(result.model.weight, torch.zeros(2))
    assert (end.weights["weight"] > 4).all()


def test_a_stopped_run_leaves_no_cell(tmp_path, monkeypatch):
    """Weights of a run that was told to stop are not an end point."""
    study = ToyStudy(tmp_path, QUICK)
    train = FlowTrainer.train

    def stopped(self):
        result = train(self)
        result.stopped = True
        return result

    monkeypatch.setattr(FlowTrainer, "train", stopped)
    with pytest.raises(SystemExit, match="stopped"):
        study.cell("fm_1000", 0)
    assert not list((tmp_path / "cells" / "fm_1000").iterdir())


@pytest.mark.parametrize(
    ("outcome", "values", "holds"),
    [
        ("lower", (0.1, 0.11), True),
        ("lower", (0.1, 0.3), False),
        ("higher", (0.3, 0.31), True),
        ("higher", (0.1, 0.11), False),
        ("not higher", (0.1, 0.3), True),
        ("not higher", (0.3, 0.31), False),
    ],
)
def test_claims_are_judged_by_paired_differences(outcome, values, holds):
    """Two standard errors of the difference decide."""
    cells = {
        "a": [{"w2": 0, "steps": {"16": {"distance": value}}} for value in values],
        "b": [{"w2": 0, "steps": {"16": {"distance": value}}} for value in (0.2, 0.21)],
    }
    verdict = toy_report.check(toy_report.Claim("a against b", "a", outcome, "b"), cells)
    assert verdict["holds"] is holds
    assert verdict["difference"]["value"] == pytest.approx(sum(values) / 2 - 0.205)


def test_shares_are_matched():
    """Wrong shares cost nothing, wrong places cost what they cost."""
    truth = CENTRES[torch.tensor([0, 0, 0, 1, 2, 3, 4, 4])]
    x = CENTRES[torch.tensor([0, 1, 1, 1, 2, 2, 3, 4])]
    assert wasserstein_2(x, truth) > 1
    assert share_matched_w2(x, truth) == 0
    assert share_matched_w2(x + 0.1, truth) == pytest.approx(0.1 * 2**0.5, rel=1e-5)
    assert share_matched_w2(x[x[:, 0] < 1], truth) > 1  # nothing at two centres: their mass comes from the others


def test_configs_train_as_the_study_does():
    """The shipped settings are the study's: batch, rate, schedule, weights without averaging."""
    for name in CONFIGS:
        config = load_config(f"configs/{name}.yaml")
        assert (config.train.batch_size, config.train.learning_rate, config.train.num_steps) == (512, 1e-3, 1000)
        assert (config.train.lr_schedule, config.train.ema_decay) == ("cosine", 0)
        assert config.train.weight_decay == (0 if name == "toy_base" else 1e-5)


@pytest.mark.slow
def test_the_configs_run(tmp_path):
    """pretrain, then every fine-tuning from it, in small."""
    base = str(tmp_path / "toy_base")
    small = [
        "--train.num_steps=2",
        "--train.batch_size=32",
        "--data.train_size=64",
        "--data.eval_size=64",
        "--eval.every=2",
    ]
    assert cli(["pretrain", "--config", "configs/toy_base.yaml", "--output_dir", base, *small]) == 0
    for name, method in zip(CONFIGS[1:], ("mle", "gav", "gav"), strict=True):
        where = ["--model.path", f"{base}/pipeline", "--output_dir", str(tmp_path / name)]
        assert cli(["finetune", method, "--config", f"configs/{name}.yaml", *where, *small]) == 0
        assert (tmp_path / name / "results.json").is_file()
