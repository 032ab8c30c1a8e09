"""What got better and what got worse against the base, metric by metric, by what the metrics are about."""

from __future__ import annotations

import re
from typing import Any

NAMES = {
    "energy": "energy distance",
    "frechet": "Frechet distance",
    "reward_shortfall": "one minus the reached reward",
    "kid": "kernel distance of image features (KID)",
    "clip": "CLIP score of images and captions",
    "held_out_loss": "flow-matching loss on held-out data",
    "path_length": "length of the paths",
    "straightness": "deviation of the paths from straight lines",
    "nfe_dopri5": "evaluations of the adaptive solver `dopri5`",
    "nearest_train": "distance of a sample to the nearest training sample",
    "diversity": "distance between two samples (diversity)",
    "energy_score": "energy score of two samples under each held-out condition",
    "reconstruction": "squared error of one sample under each held-out condition",
    "action_diversity": "spread of the chunks under one observation (action diversity)",
}
ABOUT = {
    "target": "The data it was trained for",
    "selected": "The data it was trained for, at the numbers of solver steps it was selected at",
    "other_steps": "The data it was trained for, at other numbers of solver steps",
    "base_domain": "The base's own data (forgetting)",
    "flow": "The flow itself",
    "samples": "Diversity and memorisation, which have no better or worse of their own",
}
VERDICTS = {
    "better": "Better than the base",
    "worse": "Worse than the base",
    "unclear": "No clear difference",
}


def changes_section(results: dict[str, Any]) -> str:
    """The section of a fine-tune; nothing for a model without a base."""
    metrics = results["metrics"]
    if "base" not in metrics:
        return ""
    found, collapse = results["changes"], results["selection"].get("collapse", "")
    if not results["selection"]["improved"]:
        told = "Nothing: no attempt beat the base, and the base is what is returned."
        return "\n\n".join(filter(None, ["## What got better and what got worse", told, collapse]))
    lines = ["## What got better and what got worse", "", _how(results)]
    for verdict, title in VERDICTS.items():
        lines += ["", f"**{title}**", "", *_bullets(results, found, verdict)]
    lines += ["", f"**{ABOUT['samples']}**", "", *_samples(results, found)]
    return "\n".join(lines)


def has_episodes(results: dict[str, Any]) -> bool:
    """Whether some numbers were measured episode by episode, rather than draw by draw."""
    repeats = [entry.get("repeats", 1) for entry in results["metrics"]["result"].values()]
    return max(repeats) > results["evaluation"]["num_repeats"]


def _how(results: dict[str, Any]) -> str:
    draws, single = results["evaluation"]["num_repeats"], "counts from a fiftieth of the base's value on"
    episodes = has_episodes(results)
    if draws == 1 and not episodes:
        return f"Result minus base, from one noise draw: nothing is known of the errors, so a difference {single}."
    both = f"both over the same {draws} noise draws"
    if episodes:
        both = f"rewards episode by episode from the same starts, the others over the same noise ({draws} draw{'' if draws == 1 else 's'})"
    return (
        f"Result minus base, {both}. A difference counts when chance would exceed it in fewer than one of twenty cases, by Student's t over the "
        f"paired differences (the fewer the draws, the more it takes); one of a number that was drawn once {single}. How much other held-out samples "
        f"would have changed the numbers is not part of the errors{', but for rewards' if episodes else ''}."
    )


def about(name: str, results: dict[str, Any]) -> str:
    """Which of ABOUT a metric belongs to."""
    if name.startswith("base_domain/"):
        return "base_domain"
    if name.startswith("target/"):
        steps = _steps(name)
        if steps is None:
            return "target"
        return "selected" if steps in results["selection"]["num_steps"] else "other_steps"
    return "samples" if results["metrics"]["result"][name]["direction"] == "neither" else "flow"


def in_words(name: str) -> str:
    """A metric as a reader names it: `target/energy@16` is the energy distance at 16 steps."""
    kind, steps = re.split("[/@]", name.removeprefix("target/").removeprefix("base_domain/"))[0], _steps(name)
    words = NAMES.get(kind, kind)
    return words if steps is None else f"{words} at {steps} step{'' if steps == 1 else 's'}"


def _steps(name: str) -> int | None:
    found = re.search(r"@(\d+)$", name)
    return int(found[1]) if found else None


def _bullets(results: dict[str, Any], found: dict[str, dict[str, Any]], verdict: str) -> list[str]:
    lines = []
    for group, title in ABOUT.items():
        told = [
            _told(name, change, results)
            for name, change in found.items()
            if change["verdict"] == verdict and about(name, results) == group != "samples"
        ]
        if told:
            lines.append(f"- {title}: {'; '.join(told)}.")
    collapse = results["selection"].get("collapse")
    if verdict == "worse" and collapse:
        lines.append(f"- {collapse}")
    if verdict == "worse" and not any(about(name, results) == "base_domain" for name in found):
        lines.append("- Forgetting was not measured: the run was given no data of the base's domain.")
    return lines or ["- Nothing that was measured."]


def _told(name: str, change: dict[str, Any], results: dict[str, Any]) -> str:
    before, after = (results["metrics"][column][name]["value"] for column in ("base", "result"))
    error = "" if change["stderr"] is None else f" ± {change['stderr']:.2g}"
    return f"{in_words(name)} {before:.4g} → {after:.4g} ({change['difference']:+.3g}{error})"


def _samples(results: dict[str, Any], found: dict[str, dict[str, Any]]) -> list[str]:
    """Diversity and memorisation in words: what moved, and how near the samples lie to the training data."""
    words = {"higher": "higher", "lower": "lower", "unclear": "no clear difference"}
    lines = [
        f"- {_capital(_told(name, found[name], results))}: {words[found[name]['verdict']]}."
        for name in ("diversity", "action_diversity", "nearest_train")
        if name in found
    ]
    metrics = results["metrics"]["result"]
    if {"nearest_train", "nearest_train_of_test"} <= set(metrics):
        lines.append(f"- {memorisation(metrics)}")
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def memorisation(metrics: dict[str, Any]) -> str:
    """One sentence on how near the samples lie to the training data, next to held-out data."""
    samples, held_out = metrics["nearest_train"]["value"], metrics["nearest_train_of_test"]["value"]
    numbers = f"the nearest training sample is {samples:.4g} away on average, from held-out data {held_out:.4g}"
    if samples < held_out:
        return f"Samples lie nearer to the training data than held-out data do, which may be memorisation: {numbers}."
    return f"Samples do not lie nearer to the training data than held-out data do: {numbers}."
