"""The loop trains what it should, as its settings say, with anybody's objective, model, metric and callback."""

import math

import pytest
import torch
from closed_forms import GaussianFlow, gaussian_velocity
from tiny import digits, network, toy

from hf_flowft import (
    Callback,
    EvalConfig,
    FlowMatchingObjective,
    FlowTrainer,
    FrozenVelocity,
    GradualObjective,
    Objective,
    TrainConfig,
    ViscousFlowModel,
)
from hf_flowft.data import from_tensors
from hf_flowft.objectives import ReconstructionObjective

EVAL = EvalConfig(every=2, num_repeats=2, select_num_steps=[2], report_num_steps=[1, 2], max_samples=16)


def trainer(model=None, objective=None, data=None, evaluation=EVAL, callbacks=(), metric=None, seed=0, **train):
    data = data or toy()
    settings = {"num_steps": 3, "batch_size": 8, "log_every": 1, "learning_rate": 1e-2, **train}
    return FlowTrainer(
        model or network(data),
        data,
        objective or FlowMatchingObjective(),
        TrainConfig(**settings),
        evaluation,
        seed=seed,
        callbacks=callbacks,
        metric=metric,
        null_condition={"class_labels": 10.0},
    )


def live(run):
    """The weights being trained, by name."""
    return {name: p.detach().clone() for name, p in run.trained.items()}


class Watch(Callback):
    """Keeps the live weights and the logs of every step."""

    def __init__(self):
        self.weights, self.logs, self.scores = [], [], []

    def on_log(self, trainer, step, logs):
        """Every step."""
        self.weights.append(live(trainer))
        self.logs.append(logs)

    def on_evaluate(self, trainer, score, is_best):
        """Every evaluation."""
        self.scores.append((score.step, is_best))
        if not self.weights:
            self.weights.append(live(trainer))


# What is trained


@pytest.mark.parametrize("case", ["mlp", "labels", "concat", "learned", "viscous"])
def test_everything_that_should_change_changes(case):
    """Every trained parameter moves within three steps, and no other tensor of the model does."""
    data = digits() if case == "labels" else toy()
    model = network(data, time="concat" if case == "concat" else "film")
    objective = FlowMatchingObjective()
    if case == "viscous":
        model = ViscousFlowModel.from_base(model, hidden_dim=8)
        model.dissipation.raw_gain.data.fill_(0.1)  # where it is clamped to 0, its terms have no gradient
    if case == "learned":
        objective = ReconstructionObjective(
            2, covariance="learned", event_shape=(2,), allow_independent=True, coupling=None
        )
        objective.draw = lambda batch, generator, shard: FlowMatchingObjective().draw(batch, generator, shard)
    watch = Watch()
    run = trainer(model, objective, data, callbacks=[watch], condition_dropout=0.3 if case == "labels" else 0.0)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert set(run.trained) >= {f"velocity.model.{n}" for n, p in model.named_parameters() if p.requires_grad}
    run.train()
    first, last = watch.weights[0], watch.weights[-1]
    assert [name for name in first if torch.equal(first[name], last[name])] == []
    assert all(torch.equal(frozen[name], p) for name, p in model.named_parameters() if name in frozen)
    assert bool(frozen) == (case == "viscous")
    assert ("objective.log_variance" in first) == (case == "learned")


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        trainer(network(toy()).requires_grad_(False))


def test_the_reference_stays_what_it_was():
    """Gradual fine-tuning moves the model away from a base that is not touched."""
    model = network(toy())
    reference = FrozenVelocity(model)
    before = {name: t.clone() for name, t in reference.state_dict().items()}
    trainer(model, GradualObjective(reference, num_steps=3)).train()
    assert all(torch.equal(before[name], t) for name, t in reference.state_dict().items())


def test_training_finds_the_flow():
    """A mean to be learned is learned: the data lie at 3, and samples arrive there."""
    x = 3 + 0.1 * torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    data = from_tensors("point", x, x[:50], x[50:100])
    run = trainer(network(data), data=data, num_steps=150, batch_size=64, learning_rate=2e-2)
    result = run.train()
    assert result.improved
    samples = run.evaluator.samples(run.velocity, run.evaluator.held_out("test"), 8, 0)
    assert (samples - 3).norm(dim=1).mean() < 0.5


def test_two_seeds_differ_and_one_repeats():
    """The seed decides everything; the global generator nothing, and it is left as it was."""
    ends = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before, watch = torch.get_rng_state(), Watch()
        trainer(callbacks=[watch], seed=seed).train()
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(watch.weights[-1])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def test_accumulation_is_the_batch_in_parts():
    """The same rows, noise and times; weights to float tolerance."""
    ends = {}
    for parts in (1, 2, 4):
        watch = Watch()
        trainer(callbacks=[watch], batch_size=16, gradient_accumulation_steps=parts).train()
        ends[parts] = watch
    for parts in (2, 4):
        for name, weight in ends[1].weights[-1].items():
            torch.testing.assert_close(ends[parts].weights[-1][name], weight, atol=2e-4, rtol=0)
        assert [log["loss"] for log in ends[parts].logs] == pytest.approx(
            [log["loss"] for log in ends[1].logs], rel=1e-3
        )


def test_gradients_are_clipped():
    """To the limit where there is one; without one they stay what they are."""
    norms = {}
    for limit in (0.0, 1e-3):

        class Norm(Callback):
            def on_log(self, trainer, step, logs, limit=limit):
                """The norm of what the optimiser saw."""
                norms[limit] = math.sqrt(sum(float(p.grad.square().sum()) for p in trainer.trained.values()))

        trainer(callbacks=[Norm()], num_steps=1, max_grad_norm=limit).train()
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert norms[0.0] > 0.01


def test_what_is_returned_is_the_average():
    """The weights that were judged best are the averaged ones of that step."""
    watch, shadows = Watch(), {}

    class Keep(Callback):
        def on_evaluate(self, trainer, score, is_best):
            """The weights the model carries while it is judged."""
            shadows[score.step] = live(trainer)

    run = trainer(callbacks=[watch, Keep()], num_steps=4, metric=Falling(), ema_decay=0.9, ema_mode="constant")
    result = run.train()
    assert result.step == 4
    assert all(torch.equal(p, shadows[4][name]) for name, p in run.trained.items())
    assert any(not torch.equal(p, watch.weights[-1][name]) for name, p in run.trained.items())


# Whatever the user brings


class Falling:
    """A metric that gets better with every evaluation."""

    __name__ = "falling"

    def __init__(self, step=-1.0):
        self.calls, self.step = 0, step

    def __call__(self, samples, held_out):
        """The number of the call, downwards."""
        assert samples.shape == held_out.x_1.shape
        self.calls += 1
        return self.step * self.calls


class Pull(Objective):
    """A loss of one's own: the velocity at noise should be minus the noise."""

    name = "pull"

    def forward(self, velocity, batch, step, generator):
        """The loss and a number to log."""
        noise = torch.randn(batch.x_1.shape, generator=generator)
        return (velocity(noise, 0.0, **batch.condition) + noise).square().mean(), {"double": 2.0 * step}


def test_an_objective_of_ones_own():
    """Forty lines are not needed: a forward is an objective, and what it logs is logged."""
    run = trainer(objective=Pull(), num_steps=120, batch_size=32, learning_rate=1e-2)
    run.train()
    assert run.history[-1]["loss"] < 0.3 * run.history[0]["loss"]
    assert [entry["double"] for entry in run.history[:3]] == [0, 2, 4]


class Plain(torch.nn.Module):
    """A plain network v(x, t)."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x, t):
        """The velocity itself."""
        return self.layer(torch.cat([x, t[:, None]], dim=1))


def test_a_plain_module():
    """Any module v(x, t) is trained in the papers' convention; an exact flow is at the loss's floor and does not move."""
    watch = Watch()
    trainer(Plain(), callbacks=[watch]).train()
    assert not torch.equal(
        watch.weights[0]["velocity.model.layer.weight"], watch.weights[-1]["velocity.model.layer.weight"]
    )
    x = torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    run = trainer(GaussianFlow(), data=from_tensors("normal", x, x[:100], x[100:200]), batch_size=256, num_steps=20)
    run.train()
    # E ||v_t - E[v_t | x_t]||^2 = 1 / ((1 - t)^2 + t^2), whose mean over t is pi / 2
    mean = sum(entry["loss"] for entry in run.history) / len(run.history)
    assert mean == pytest.approx(math.pi / 2, rel=0.1)
    assert gaussian_velocity(torch.zeros(1), 0.5) == 0


def test_a_metric_of_ones_own_selects():
    watch = Watch()
    run = trainer(callbacks=[watch], metric=Falling(), num_steps=6)
    result = run.train()
    assert run.evaluator.metric_name == "falling"
    assert watch.scores == [(0, True), (2, True), (4, True), (6, True)]
    assert (result.step, result.improved) == (6, True)
    assert "falling" in result.verdict


def test_features_choose_the_frechet_distance():
    """On features of one's own; without any it is refused when asked for."""
    data = toy()
    run = FlowTrainer(
        network(data), data, FlowMatchingObjective(), TrainConfig(num_steps=1, batch_size=8), EVAL, features=lambda x: x
    )
    assert run.evaluator.metric_name == "frechet"
    assert math.isfinite(run.train().selection.base.value)
    with pytest.raises(ValueError, match="needs features"):
        trainer(evaluation=EvalConfig(metric="frechet"))


def test_what_a_model_cannot_do_is_said():
    with pytest.raises(ValueError, match=r"VelocityMLP cannot recompute; set train.gradient_checkpointing to false"):
        trainer(gradient_checkpointing=True)
