"""The rows of the policy study: what is trained from what, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Group = Literal["few steps", "converged", "early"]
GROUPS: dict[Group, str] = {
    "few steps": "Few steps, from the converged base",
    "converged": "From the converged base",
    "early": "From the early base",
}
CONDITIONS = {
    "clean": "",
    "gaussian-0.05": "gaussian:0.05",
    "gaussian-0.1": "gaussian:0.1",
    "salt-pepper-0.02": "salt_pepper:0.02",
    "salt-pepper-0.05": "salt_pepper:0.05",
    "delay-2": "delay:2",
}
"""What the sensors and the actuator do in test rollouts: name of a column -> corruption, in standard deviations of the observations."""


@dataclass(frozen=True)
class Row:
    """A policy of the study.

    `config`: the shipped config it is trained with, "" for one that samples `start` in another way; `start`: the row it starts from, "" for none;
    `options`: settings in place of the config's; `steps`: solver steps of its clean rollouts, the first also of the noisy ones; `control`: the row it
    must beat; `sampling`: options of `FlowPolicyPipeline.__call__`.
    """

    title: str
    groups: tuple[Group, ...]
    config: str = ""
    start: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] = (4,)
    control: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)


def _mle(
    title: str, groups: tuple[Group, ...], start: str, counts: list[int], steps: tuple[int, ...], **options: Any
) -> Row:
    """Reconstructions of demonstrated chunks from a bank of noises that the base has chosen."""
    given = {
        "objective.num_steps": counts,
        **deployed(steps[0]),
        **{key.replace("__", "."): v for key, v in options.items()},
    }
    return Row(title, groups, "pusht_bank", start, given, steps, control_of(start))


def _gav(title: str, structure: str, start: str = "base", group: Group = "converged", **options: Any) -> Row:
    """A residual on the frozen base, trained on the same bank."""
    given = {"model.structure": structure, **{key.replace("__", "."): value for key, value in options.items()}}
    return Row(title, (group,), "pusht_gav", start, given, (4,), control_of(start))


def _baseline(title: str, options: dict[str, Any], **row: Any) -> Row:
    """Trained from nothing as the base is, but otherwise."""
    steps = row.get("steps", (4,))[0]
    return Row(title, ("converged",), "pusht_base", options=deployed(steps) | options, control="plain", **row)


def deployed(steps: int) -> dict[str, Any]:
    """A run that is selected and reported at the number of steps it is meant for."""
    return {"eval.select_num_steps": [steps], "eval.report_num_steps": [steps]}


def control_of(start: str) -> str:
    """Flow matching continued from the same start, for 2,400 steps."""
    return {"base": "plain", "early": "early_plain"}[start]


WITH_PAIRS = {"pusht_bank", "pusht_gav", "pusht_few_steps"}
"""Configs that train on pairs, a bank of which serves all rows that would make the same one."""
FRESH: dict[str, Any] = {"pairs__name": "independent", "pairs__allow_independent": True}
ROWS: dict[str, Row] = {
    "base": Row("base", ("few steps", "converged"), "pusht_base", steps=(4, 1, 2, 8, 16)),
    "early": Row(
        "early base",
        ("early",),
        "pusht_base",
        options={"train.num_steps": 800, "train.lr_schedule": "constant", "eval.every": 800, "train.checkpoint_every": 0},
        steps=(4, 1),
    ),
    "plain": Row("flow matching continued", ("few steps", "converged"), "pusht_plain", "base", steps=(4, 1, 2, 8, 16)),
    "bank_1": _mle("MLE, bank, N = 1", ("few steps",), "base", [1], (1, 2, 4)),
    "self": Row("MLE, self, random N", ("few steps",), "pusht_few_steps", "base", steps=(2, 1, 4, 8, 16), control="plain"),
    "bank_2": _mle("MLE, bank, N = 2", ("few steps",), "base", [2], (2, 1, 4)),
    "early_plain": Row("flow matching continued", ("early",), "pusht_plain", "early", steps=(4, 1, 2)),
    "early_bank_4": _mle("MLE, bank, N = 4", ("early",), "early", [4], (4,), train__num_steps=600),
    "early_bank_1": _mle("MLE, bank, N = 1", ("early",), "early", [1], (1, 4)),
    "early_mixed": _mle(
        "MLE, bank, N = 4, with the FM loss", ("early",), "early", [4], (4,), train__num_steps=600, objective__flow_matching_weight=1.0
    ),
    "bank_4": _mle("MLE, bank, N = 4", ("converged",), "base", [4], (4,), train__num_steps=600, train__learning_rate=5e-5),
    "mlp_residual": _gav("MLP residual, bank", "mlp"),
    "gav_gradient": _gav("GAV gradient (P1), bank", "gradient"),
    "mixed": _mle(
        "MLE, bank, N = 4, with the FM loss", ("converged",), "base", [4], (4,), train__num_steps=600, objective__flow_matching_weight=1.0
    ),
    "plain_noise": Row(
        "flow matching continued, with noise in training", ("converged",), "pusht_plain", "base",
        {"train.augment": "gaussian:0.1+salt_pepper:0.05"}, control="plain",
    ),
    "plain_self": Row(
        "flow matching continued, then MLE, self, random N", ("few steps",), "pusht_few_steps", "plain",
        {"pairs.num_pairs": 65536, "train.num_steps": 1600}, (2, 1, 4, 8, 16), "plain",
    ),
    "gft": Row("GFT, target measure", ("converged",), "pusht_plain", "base", {"objective.name": "gft", "objective.measure": "target"}, control="plain"),
    "bank_random": _mle("MLE, bank, random N", ("few steps",), "base", [1, 2, 4, 8], (2, 1, 4, 8, 16), train__num_steps=800),
    "fresh": _mle("MLE, fresh noise", ("converged",), "base", [4], (4,), train__num_steps=600, **FRESH),
    "mlp_fresh": _gav("MLP residual, fresh noise", "mlp", **FRESH),
    "gav_fresh": _gav("GAV gradient (P1), fresh noise", "gradient", **FRESH),
    "gav_metric": _gav("GAV metric (P2), bank", "metric"),
    "gav_dominance": _gav("GAV dominance (P3), bank", "dominance"),
    "gav_paper": _gav("GAV as printed, bank", "paper"),
    "inverse": _mle("MLE, inverse ODE", ("converged",), "base", [4], (4,), train__num_steps=600, pairs__name="inverse"),
    "anchored": _mle(
        "MLE, bank, N = 4, anchored by GFT", ("converged",), "base", [4], (4,), train__num_steps=600, objective__anchor_weight=1.0
    ),
    "last_2": _mle(
        "MLE, bank, N = 4, last 2 steps", ("converged",), "base", [4], (4,), train__num_steps=600,
        objective__gradient="truncated", objective__last_steps=2,
    ),
    "early_gav": _gav("GAV gradient (P1), bank", "gradient", "early", "early"),
    "early_self": Row("MLE, self, random N", ("early",), "pusht_few_steps", "early", steps=(2, 1, 4), control="early_plain"),
    "sde": Row("base, SDE sampling", ("converged",), start="base", steps=(16,), control="plain", sampling={"scheduler": "sde"}),
    "bc": _baseline("behaviour cloning", {"objective.name": "bc"}, steps=(1,)),
    "ddim": _baseline("noise prediction, DDIM", {"objective.name": "noise_prediction"}, steps=(16,), sampling={"scheduler": "ddim"}),
    "transformer": _baseline("flow matching, transformer", {"model.name": "transformer1d", "model.hidden_dim": 128, "model.num_layers": 4}),
    "ddpm": Row("noise prediction, DDPM", ("converged",), start="ddim", steps=(100,), control="plain", sampling={"scheduler": "ddpm"}),
    "dpm": Row("noise prediction, DPM-Solver++", ("converged",), start="ddim", steps=(16,), control="plain", sampling={"scheduler": "dpm"}),
}  # fmt: skip
"""In the order in which they are trained: what matters most first."""
