"""A run returns the base bitwise unless something beat it, says so, and loses nothing when it has to stop."""

import itertools
import json
import math
import signal

import pytest
import torch
import yaml
from tiny import SMALL_RUN, network, pretrained, toy

from hf_flowft import Callback, EvalConfig, FlowMatchingObjective, FlowTrainer, Run, TrainConfig, load_config
from hf_flowft.training import NonFiniteLossError
from hf_flowft.training.checkpoint import list_checkpoints, load_tensors
from hf_flowft.training.evaluation import Evaluator, Score
from hf_flowft.training.selection import Selection
from hf_flowft.velocity import Velocity

# The rule


def selected(config, *scores):
    """A selection over scores given as (target, base domain)."""
    selection = Selection(config)
    for step, (target, base) in enumerate(scores):
        selection.add(Score(step, target, base))
    return selection


def test_the_lowest_score_is_kept():
    selection = selected(EvalConfig(), ([3.0], []), ([2.0], []), ([2.5], []), ([1.0], []), ([1.0], []))
    assert selection.best.step == 3
    assert selection.improved
    assert selection.since_best == 1


@pytest.mark.parametrize(("gain", "improved"), [(0.9, False), (1.1, True)])
def test_an_improvement_must_exceed_its_error(gain, improved):
    """Paired differences g + (-1, 1) have mean g and standard error sqrt(2) / sqrt(2) = 1."""
    base = [10.0, 20.0]
    selection = selected(EvalConfig(min_delta=1.0), (base, []), ([10 - gain + 1, 20 - gain - 1], []))
    assert selection.improvement() == pytest.approx((gain, 1.0))
    assert selection.improved is improved
    assert ("the base is returned" in selection.verdict("m", "validation")) is not improved


@pytest.mark.parametrize(("gain", "improved"), [(0.9, False), (1.1, True)])
def test_an_improvement_must_exceed_its_error_over_the_rows(gain, improved):
    """Differences g + (-3, -1, 1, 3) over four held-out rows have the standard error sqrt(20 / 3) / 2, and equal ones over the repeats none."""
    error = math.sqrt(20 / 3) / 2
    selection = Selection(EvalConfig(min_delta=1.0))
    selection.add(Score(0, [5.0, 5.0], [], rows=[5.0, 5.0, 5.0, 5.0]))
    shifts = (-3, -1, 1, 3)
    selection.add(Score(1, [5 - gain * error] * 2, [], rows=[5 - gain * error - shift for shift in shifts]))
    assert selection.improvement() == pytest.approx((gain * error, error))
    assert selection.improved is improved
    assert [score.rows for score in selection.scores] == [[5.0] * 4, []]  # the candidate's are not needed any more
    assert all("rows" not in told for told in selection.told())


def test_candidates_that_forget_are_not_eligible():
    """A factor of 1.25 on the base's own data; without a limit, or without such data, all are."""
    scores = [([3.0], [2.0]), ([1.0], [2.6]), ([2.0], [2.4])]
    assert selected(EvalConfig(forgetting_limit=1.25), *scores).best.step == 2
    assert selected(EvalConfig(), *scores).best.step == 1
    assert selected(EvalConfig(forgetting_limit=1.25), *[(target, []) for target, _ in scores]).best.step == 1


def test_a_base_that_is_at_zero_may_be_kept():
    """Unbiased distances of the base to its own samples scatter about zero: a rise within its paired standard error is none, whatever the factor."""
    limit, base = EvalConfig(forgetting_limit=1.25), [-0.02, 0.017]
    shifted = {
        rise: ([1.0], [base[0] + rise - 0.01, base[1] + rise + 0.01]) for rise in (0.0, 0.009, 0.011)
    }  # error 0.01
    kept = {rise: selected(limit, ([3.0], base), score).best.step == 1 for rise, score in shifted.items()}
    assert kept == {0.0: True, 0.009: True, 0.011: False}


def test_the_verdict_names_what_was_judged():
    """Where nothing was held out, that is the training data."""
    selection = selected(EvalConfig(), ([3.0], []), ([2.0], []))
    assert "on the train split" in selection.verdict("m", "train")


def test_what_is_not_a_number_never_wins():
    """A candidate without a finite score is passed over; a base without one is beaten by any."""
    bad = [([math.nan], []), ([math.inf], []), ([-math.inf], [])]
    assert selected(EvalConfig(), ([3.0], []), *bad).best.step == 0
    for lost in (math.nan, math.inf):
        selection = selected(EvalConfig(), ([lost], []), ([5.0], []), ([7.0], []))
        assert (selection.best.step, selection.improved) == (1, True)


def test_patience_counts_evaluations_without_a_best():
    scores = [([3.0], []), ([2.0], []), ([2.1], []), ([2.2], [])]
    assert not selected(EvalConfig(patience=3), *scores).exhausted
    assert selected(EvalConfig(patience=2), *scores).exhausted
    assert not selected(EvalConfig(), *scores).exhausted


def test_a_selection_is_kept_in_checkpoints():
    selection = selected(EvalConfig(), ([3.0], [1.0]), ([2.0], [1.5]))
    other = Selection(EvalConfig())
    other.load(json.loads(json.dumps(selection.state())))
    assert other == selection


# The run


@pytest.fixture(scope="module")
def harmed(tmp_path_factory):
    """A run whose learning rate is absurd: its folder and its base."""
    folder = tmp_path_factory.mktemp("harm")
    base = pretrained("toy")
    base.save_pretrained(folder / "base")
    settings = [
        *SMALL_RUN,
        "--train.learning_rate=1",
        "--data.train_size=32",
        "--data.eval_size=24",
        "--data.rotation=10",
    ]
    choice = {"data": {"name": "toy"}, "model": {"name": "pretrained"}, "objective": {"name": "fm"}}
    names = [f"--model.path={folder / 'base'}", f"--output_dir={folder / 'run'}"]
    result = Run(load_config(None, [*settings, *names], choice), progress=False).execute()
    return result, base


def test_the_base_is_returned_bitwise(harmed):
    """When training only harms: in memory, on disk, and described as what it is."""
    result, base = harmed
    for pipeline in (result.pipeline, type(base).from_pretrained(result.folder / "pipeline")):
        weights = pipeline.model.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in base.model.state_dict().items())
        assert pipeline.description == base.description


def test_the_verdict_is_told_everywhere(harmed):
    """In results.json and on the card: nothing beat the base, step 0, all metrics equal."""
    result, _ = harmed
    results = json.loads((result.folder / "results.json").read_text())
    selection = results["selection"]
    assert selection["verdict"].startswith("Nothing beat the base")
    assert (selection["improved"], selection["best_step"]) == (False, 0)
    assert selection["verdict"] in (result.folder / "README.md").read_text()
    assert results["metrics"]["base"] == results["metrics"]["result"]
    last = selection["scores"][-1]["target"]
    assert sum(last) > sum(selection["scores"][0]["target"])


def test_an_insignificant_best_is_not_the_returned_step(tmp_path):
    """The step reported is that of the weights returned, not of the best attempt."""
    base = pretrained("toy")
    base.save_pretrained(tmp_path / "base")
    choice = {"data": {"name": "toy"}, "model": {"name": "pretrained"}, "objective": {"name": "fm"}}
    words = [
        *SMALL_RUN,
        "--eval.min_delta=1e9",
        f"--model.path={tmp_path / 'base'}",
        f"--output_dir={tmp_path / 'run'}",
    ]
    result = Run(load_config(None, [*words, "--data.eval_size=24"], choice), progress=False).execute()
    assert result.results["selection"]["best_step"] == 0


# The loop


def trainer(folder=None, callbacks=(), metric=None, evaluation=None, objective=None, **train):
    settings = {"num_steps": 10, "batch_size": 8, "log_every": 1, "learning_rate": 1e-2, **train}
    evaluation = evaluation or EvalConfig(every=2, num_repeats=2, select_num_steps=[2])
    data, objective = toy(), objective or FlowMatchingObjective()
    model = network(data)
    return FlowTrainer(
        model, data, objective, TrainConfig(**settings), evaluation, folder, callbacks=callbacks, metric=metric
    )


def test_early_stopping():
    """Two evaluations without a new best end the run, and the best weights are the base's."""
    worse = itertools.count()
    evaluation = EvalConfig(every=2, num_repeats=1, select_num_steps=[2], patience=2)
    run = trainer(metric=lambda samples, held_out: next(worse), evaluation=evaluation)
    before = {name: p.detach().clone() for name, p in run.trained.items()}
    result = run.train()
    assert run.step == 4
    assert not result.stopped
    assert not result.improved
    assert all(torch.equal(p, before[name]) for name, p in run.trained.items())


class At(Callback):
    """Does something after a step, and keeps the weights of every step."""

    def __init__(self, step=None, action=None):
        self.step, self.action, self.weights = step, action, {}

    def on_log(self, trainer, step, logs):
        """Every step."""
        self.weights[step] = {name: p.detach().clone() for name, p in trainer.trained.items()}
        if step == self.step:
            self.action()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly_and_the_run_goes_on(tmp_path, number):
    """After the step it came in, with a checkpoint; the handlers are given back, and the rest is that of a whole run."""
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    stopped = trainer(tmp_path, [At(3, lambda: signal.raise_signal(number))]).train()
    assert stopped.stopped
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-3"]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    whole, rest = At(), At()
    trainer(None, [whole]).train()
    assert not trainer(tmp_path, [rest], resume_from_checkpoint="latest").train().stopped
    assert sorted(rest.weights) == list(range(4, 11))
    assert all(torch.equal(p, whole.weights[10][name]) for name, p in rest.weights[10].items())


def test_a_second_interrupt_interrupts(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, [At(2, twice)]).train()


class Exploding(FlowMatchingObjective):
    """Not a number at a step: the loss, or only its gradient."""

    def __init__(self, step, gradient_only):
        super().__init__()
        self.step, self.gradient_only = step, gradient_only

    def forward(self, velocity, batch, step, generator):
        """The loss, spoilt."""
        loss, logs = super().forward(velocity, batch, step, generator)
        if step == self.step:
            weight = next(velocity.parameters())
            zero = (weight * 0).sum()
            loss = loss + (torch.sqrt(zero.abs()) if self.gradient_only else zero + math.nan)  # 0 * inf backwards
        return loss, logs


@pytest.mark.parametrize(("gradient_only", "max_grad_norm"), [(False, 1.0), (True, 1.0), (True, 0.0), (False, 0.0)])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, gradient_only, max_grad_norm):
    """The step and its rows are named, and the state before it, still good, is in a checkpoint that goes on."""
    watch = At()
    run = trainer(tmp_path, [watch], objective=Exploding(3, gradient_only), max_grad_norm=max_grad_norm)
    with pytest.raises(NonFiniteLossError, match="not finite at step 3") as caught:
        run.train()
    assert str(run.order.rows(3)[:8].tolist()) in str(caught.value)
    assert "checkpoint-3" in str(caught.value)
    kept = load_tensors(tmp_path / "checkpoints" / "checkpoint-3", "weights")
    assert all(torch.equal(kept[name], weight) for name, weight in watch.weights[3].items())
    on = trainer(tmp_path, resume_from_checkpoint="latest", max_grad_norm=max_grad_norm)
    on.train()
    assert on.step == 10


def test_checkpoints_are_limited_to_the_newest(tmp_path):
    trainer(tmp_path, checkpoint_every=3, checkpoints_total_limit=2).train()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert yaml.safe_load((tmp_path / "checkpoints" / "checkpoint-9" / "state.json").read_text())["step"] == 9


def test_a_second_draw_that_runs_off_is_a_bad_score():
    """The energy score draws twice: noise of the second draw that the field sends to infinity makes the score infinite, and ends nothing."""

    class Edge(torch.nn.Module):
        """Infinite beyond a radius."""

        def __init__(self, radius):
            super().__init__()
            self.radius, self.weight = radius, torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, **condition):
            """0 inside."""
            far = x.norm(dim=1, keepdim=True) > self.radius
            return torch.where(far, torch.inf, torch.zeros_like(x)) + 0 * self.weight

    evaluator = Evaluator(toy(), EvalConfig(metric="energy_score", num_repeats=1, select_num_steps=[1], max_samples=16))
    held_out = evaluator.held_out("validation")
    reach = {repeat: evaluator.noise(held_out, repeat).norm(dim=1).max().item() for repeat in (0, 1)}
    assert not math.isfinite(evaluator.score(Velocity(Edge(sum(reach.values()) / 2)), 0).value)
    assert math.isfinite(evaluator.score(Velocity(Edge(10.0)), 0).value)
