"""Settings that several objectives share, in words for the card."""

from __future__ import annotations

from ..pairs import PairsConfig
from ..times import TemperatureSchedule, TimeDensity

COUPLINGS = {
    "independent": "independently of each other",
    "ot": "by exact optimal transport within each batch",
    "sinkhorn": "by entropic optimal transport within each batch",
}
PAIRS = {
    "ot_output": "each data point with a noise, by exact assignment of the frozen base's outputs to the data",
    "best_of_k": "each data point with that of {candidates} noises whose frozen-base output is nearest",
    "inverse": "each data point with the noise that the reverse ODE of the frozen base takes it to",
    "fixed": "each data point with a noise, by exact assignment of noise to data",
    "self": "{pairs} noises with the frozen base's own fine solutions from them",
    "sorted": "noise and data by exact assignment, drawn anew in every batch",
    "independent": "noise and data at random, drawn anew in every batch",
}


def path_words(coupling: str, times: TimeDensity, weighting: str) -> str:
    """How noise and data are paired, and how training times are drawn and weighted, in a sentence."""
    density = {
        "uniform": "uniform",
        "logit_normal": f"logit-normal (mean {times.mean:g}, std {times.std:g})",
        "beta": f"Beta({times.a:g}, {times.b:g})",
    }[times.name]
    shift = f", shifted by {times.shift:g}" if times.shift != 1 else ""
    weight = ", weighted as the path KL of an SDE" if weighting == "kl" else ""
    return f"Noise and data are paired {COUPLINGS[coupling]}; training times are {density}{shift}{weight}."


def temperature_words(schedule: TemperatureSchedule) -> str:
    """From where to where, by which schedule and how long, as the end of a sentence."""
    stages = f" in {schedule.num_stages} stages" if schedule.name == "step" else ""
    return (
        f"as the temperature falls from {schedule.initial_temperature:g} to {schedule.final_temperature:g} (`{schedule.name}`{stages}) over the "
        f"first {schedule.end:g} of the run"
    )


def pairs_words(pairs: PairsConfig) -> str:
    """What a pair is and how the frozen base was solved for it, in a sentence."""
    what = PAIRS[pairs.name].format(candidates=pairs.num_candidates, pairs=pairs.num_pairs)
    solved = pairs.name in ("ot_output", "best_of_k", "inverse", "self")
    how = f" ({pairs.num_steps} steps of `{pairs.solver}`)" if solved else ""
    often = f", {pairs.repeats} times over" if pairs.is_bank and pairs.name != "self" and pairs.repeats > 1 else ""
    again = f"; a new bank after every {pairs.refresh_epochs} passes" if pairs.is_bank and pairs.refresh_epochs else ""
    return f"Pairs `{pairs.name}`: {what}{how}{often}{again}."
