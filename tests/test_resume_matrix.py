"""A run that was killed and resumed is the run that was not, bit for bit: every pair of choices on the axes of a run, with every place to stop."""

import hashlib
import itertools

import pytest
import torch
from datasets import Dataset

from hf_flowft import (
    Callback,
    EvalConfig,
    FlowMatchingObjective,
    FlowTrainer,
    FrozenVelocity,
    GradualObjective,
    TrainConfig,
    VelocityMLP,
    ViscousFlowModel,
)
from hf_flowft.couplings import IndependentCoupling, OTCoupling
from hf_flowft.data import FlowData
from hf_flowft.objectives import ReconstructionObjective, ReplayObjective
from hf_flowft.pairs import PairBuilder, PairsConfig
from hf_flowft.randomness import keyed_generator
from hf_flowft.replay import build_replay
from hf_flowft.training import checkpoint
from hf_flowft.training.batches import BankRows

STEPS, BATCH, ROWS = 8, 12, 36  # three steps an epoch: the run sees three epochs, a refreshed bank three times
FACTORS = {
    "objective": ("fm", "gft target", "gft replay", "mle self", "mle ot_output"),
    "coupling": ("independent", "ot", "ot within labels"),  # of mle: that of the flow matching mixed into it
    "accumulation": (1, 2),
    "model": ("mlp", "gav", "dropout"),
    "ema": ("off", "warmup", "power"),
    "lr": ("constant", "cosine", "alpha"),
    "condition dropout": (0.0, 0.2),
    "refresh": (0, 1),
    "stop": ("step", "log", "evaluation", "write", "written", "beginning", "end"),
}
RULES = {
    "only a bank of pairs is refreshed": lambda c: c.get("refresh") and not c.get("objective", "mle").startswith("mle"),
    "pairs keep their conditions": lambda c: (
        c.get("condition dropout") and (c.get("refresh") or c.get("objective", "fm").startswith("mle"))
    ),
}


def forbidden(case):
    """The rule that a case, perhaps with choices still open, breaks; None for a case that can be run."""
    return next((rule for rule, breaks in RULES.items() if breaks(case)), None)


def pairs_of(case):
    """Every two choices of a case."""
    return set(itertools.combinations(case.items(), 2))


def every_pair():
    """The pairs of choices that no rule forbids."""
    crossed = itertools.combinations(FACTORS, 2)
    pairs = [((f, a), (g, b)) for f, g in crossed for a in FACTORS[f] for b in FACTORS[g]]
    return [pair for pair in pairs if forbidden(dict(pair)) is None]


def all_pairs_cases():
    """Few cases that hold every pair: each begins with a pair still missing and takes the choices that add most."""
    missing, cases = dict.fromkeys(every_pair()), []
    while missing:
        chosen = dict(next(iter(missing)))
        for factor, levels in FACTORS.items():
            if factor in chosen:
                continue

            def gain(level, chosen=chosen, factor=factor):
                case = {f: level if f == factor else chosen[f] for f in FACTORS if f == factor or f in chosen}
                return -1 if forbidden(case) else len(pairs_of(case) & missing.keys())

            chosen[factor] = max(levels, key=gain)
        case = {factor: chosen[factor] for factor in FACTORS}
        cases.append(case)
        for pair in pairs_of(case):
            missing.pop(pair, None)
    return cases


CASES = all_pairs_cases()


def test_the_matrix_is_whole():
    """Every pair of choices is in a case, unless a rule says why it cannot be; no case breaks a rule."""
    assert set().union(*map(pairs_of, CASES)) == set(every_pair())
    assert [forbidden(case) for case in CASES] == [None] * len(CASES)


class Dropping(VelocityMLP):
    """An MLP with dropout, which draws from torch's global generator."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        """The MLP's output with dropout."""
        out = super().forward(sample, timestep, class_labels, return_dict=False)[0]
        return (torch.nn.functional.dropout(out, 0.2, self.training),)


class InBlocks(VelocityMLP):
    """An MLP that names what is gathered by itself where it is divided over processes: a block, and the layers in it and around it."""

    _no_split_modules = ["_FiLMBlock", "Linear"]


NETWORKS = {"dropout": Dropping, "blocks": InBlocks}


def points(labelled):
    """Two clouds of points in the plane, with or without their labels."""

    def split(seed, size):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (size,), generator=generator)
        x = torch.randn(size, 2, generator=generator) + 2.0 * labels[:, None]
        return Dataset.from_dict({"sample": x.tolist(), "label": labels.tolist()})

    splits = {"train": split(0, ROWS), "validation": split(1, 8), "test": split(2, 8)}
    return FlowData("points", splits, (2,), condition_columns={"class_labels": "label"} if labelled else {})


DATA = {labelled: points(labelled) for labelled in (False, True)}
COUPLINGS = {
    "independent": IndependentCoupling(),
    "ot": OTCoupling(condition_mode="ignore"),
    "ot within labels": OTCoupling(condition_mode="labels"),
}


def build_objective(case, reference, data):
    """The loss of a case, and the bank of pairs it trains on where there is one."""
    coupling, name = COUPLINGS[case["coupling"]], case["objective"]
    conditions = data.conditions("train")
    if name == "fm":
        return FlowMatchingObjective(coupling=coupling), None
    if name == "gft target":
        return GradualObjective(reference, num_steps=STEPS, coupling=coupling), None
    if name == "gft replay":
        bank = build_replay(reference, conditions, (2,), keyed_generator(0, "replay"), num_samples=20, num_steps=2)
        return ReplayObjective(bank, coupling=coupling), None
    pairs = PairsConfig(name.split()[1], num_steps=2, num_pairs=ROWS)
    builder = PairBuilder(pairs, reference)

    def bank(version):
        return builder.build(data.rows("train"), conditions, keyed_generator(0, "pairs", version))

    mixture = FlowMatchingObjective(coupling=coupling)
    options = {"covariance": "learned", "event_shape": (2,)} if name == "mle self" else {}
    steps = [1, 2, 3] if name == "mle self" else 2
    objective = ReconstructionObjective(steps, mixture=mixture, mixture_weight=0.5, **options)
    return objective, BankRows(bank, case["refresh"])


def build(case, folder, resume=""):
    """A fresh trainer of the case, and the rows it is going to see: step -> their digests."""
    labelled = case["coupling"] == "ot within labels" or case["condition dropout"] > 0
    data = DATA[labelled]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        kind = NETWORKS.get(case["model"], VelocityMLP)
        network = kind(event_shape=[2], hidden_dim=8, num_layers=1, num_classes=data.num_classes)
        model = ViscousFlowModel.from_base(network, hidden_dim=8) if case["model"] == "gav" else network
    objective, rows = build_objective(case, FrozenVelocity(network), data)
    train = TrainConfig(
        num_steps=STEPS,
        batch_size=BATCH,
        gradient_accumulation_steps=case["accumulation"],
        learning_rate=1e-2,
        lr_schedule=case["lr"],
        condition_dropout=case["condition dropout"],
        checkpoint_every=2 if case["stop"] else 0,
        ema_decay=0.0 if case["ema"] == "off" else 0.9,
        ema_mode="warmup" if case["ema"] == "off" else case["ema"],
        log_every=1,
        resume_from_checkpoint=resume,
    )
    evaluation = EvalConfig(every=4, num_repeats=2, select_num_steps=[1])
    null = {"class_labels": 2.0}
    trainer = FlowTrainer(model, data, objective, train, evaluation, folder, rows=rows, null_condition=null)
    seen = {}
    trainer.train_step.register_forward_pre_hook(lambda _, inputs: note(seen, *inputs))
    return trainer, seen


def note(seen, batch, step, generator):
    """Note the rows of a batch, with all that was drawn for them, as one digest a row."""
    rows = [hashlib.sha256() for _ in range(len(batch))]
    batch.map(lambda x: [row.update(x[i].contiguous().numpy()) for i, row in enumerate(rows)] and x)
    seen.setdefault(step, []).extend(row.hexdigest() for row in rows)


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def kill():
    raise Killed


def stop_at(trainer, place, monkeypatch):
    """Let the run die at a place: checkpoints are written after steps 2, 4, 6 and 8, and step 4 and 8 are evaluated."""

    class Stop(Callback):
        def on_log(self, trainer, step, logs):
            if (place, step) in (("log", 5), ("beginning", 1)):
                kill()

        def on_evaluate(self, trainer, score, is_best):
            if (place, score.step) == ("evaluation", 4):
                kill()

    trainer.callbacks = [Stop()]
    if place == "step":
        trainer.train_step.register_forward_hook(lambda _, inputs, output: kill() if inputs[1] == 5 else None)
    if place in ("write", "written"):
        operation = {"write": "save", "written": "prune"}[place]
        target = {"save": (checkpoint.torch, "save"), "prune": (checkpoint, "prune_checkpoints")}[operation]
        original = getattr(*target)
        monkeypatch.setattr(*target, lambda *a: kill() if trainer.step == 4 else original(*a))
    if place == "end":
        monkeypatch.setattr(trainer, "_finish", lambda stopped: kill())


def final_state(folder):
    """Everything in the last checkpoint but what depends on the clock, or on how far ahead the pairs were drawn."""
    last = checkpoint.list_checkpoints(folder)[-1]
    state = checkpoint.read_state(last)
    groups = {stem: checkpoint.load_tensors(last, stem) for stem in ("weights", "ema", "best", "base", "rng")}
    optimizer = checkpoint.load_optimizer(last)
    groups["optimizer"] = {f"{i}.{k}": v for i, moments in optimizer["state"].items() for k, v in moments.items()}
    return {key: state[key] for key in ("step", "history", "selection")} | {"lr": optimizer["param_groups"]}, groups


def assert_same(one, other):
    """Bitwise."""
    (facts, groups), (facts_2, groups_2) = one, other
    assert facts == facts_2
    for stem, tensors in groups.items():
        assert tensors.keys() == groups_2[stem].keys()
        assert [name for name, value in tensors.items() if not torch.equal(value, groups_2[stem][name])] == [], stem


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(str(level).replace(" ", "_") for level in case.values())
)
def test_killed_and_resumed_is_whole(case, tmp_path, monkeypatch):
    """Weights, averages, optimiser, learning rate, random states, batches, pairs, losses and scores."""
    whole, seen = build({**case, "stop": None}, tmp_path / "whole")
    whole.train()
    killed, _ = build(case, tmp_path / "killed")
    with monkeypatch.context() as patch:
        stop_at(killed, case["stop"], patch)
        with pytest.raises(Killed):
            killed.train()
    resumed, after = build(case, tmp_path / "killed", resume="latest")
    resumed.train()
    first = {"beginning": 0, "evaluation": 2, "write": 2, "end": STEPS}.get(case["stop"], 4)
    assert after == {step: seen[step] for step in range(first, STEPS)}
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "killed"))
    results = [{name: tensor.clone() for name, tensor in run.weights().items()} for run in (whole, resumed)]
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
