"""The sections of a run's card, each a function of results.json and config.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..tables import metrics_table
from .changes import has_episodes, memorisation
from .front_matter import KINDS, hub_data
from .text_to_image import image_usage

SETTINGS = ("data", "model", "objective", "pairs", "train", "eval")
NOT_SETTINGS = {"train": ("resume_from_checkpoint", "report_to")}
HINT = "<!-- Sections between hf_flowft markers are written by the program and renewed with every push; what you write outside of them stays. -->"


def title_section(name: str) -> str:
    """The heading, and how a person may edit the card."""
    return f"# {name}\n\n{HINT}"


def summary_section(results: dict[str, Any]) -> str:
    """What it is, what it was made from and with, and whether it is better than its base."""
    data = results["data"]
    counts = ", ".join(f"{count} {split}" for split, count in data["counts"].items())
    start, seconds = _start(results), results["train"]["seconds"]
    lines = [
        f"{KINDS[results.get('predicts', 'velocity')][1]} (`{results['model']}`, {results['parameters']} parameters), {start} **{data['name']}**.",
        f"**{results['selection']['verdict']}**",
        f"Data: {_source(data)}; samples: {counts}.",
        f"Seed {results['seed']}; {results['train']['steps']} optimiser steps in {seconds:.0f} s.",
    ]
    return "\n\n".join(lines)


def _start(results: dict[str, Any]) -> str:
    base, title = results["base_model"], results["method_title"]
    if base is None:
        return f"trained from scratch with {title} on"
    if base["source"] == "local":
        return f"fine-tuned from `{base['id']}` (a local folder) with {title} on"
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    link = f"[{base['id']}](https://huggingface.co/{base['id']}){revision}"
    drawn = results["data"].get("text_to_image") or {}
    if base["relation"] == "adapter" and drawn.get("adapter") in (True, "lora"):
        return f"an adapter (LoRA) for {link}, trained with {title} on"
    if base["relation"] == "adapter":
        return f"a residual on the frozen {link}{'' if drawn else ', which is loaded with it'}, trained with {title} on"
    return f"fine-tuned from {link} with {title} on"


def _source(data: dict[str, Any]) -> str:
    if hub_data(data):
        link = f"[{data['source']}](https://huggingface.co/datasets/{data['source']})"
        subset = f", subset `{data['subset']}`" if data.get("subset") else ""
        text = f"{link}{subset}, split `{data['split']}`, revision `{data['revision']}`"
    else:
        text = str(data.get("source", data["name"])) + (f", `{data['digest']}`" if data.get("digest") else "")
    text += f", licence {data['licence']}" if data.get("licence") else ""
    return text + (", read as a stream" if data.get("stream") else "")


def results_section(results: dict[str, Any]) -> str:
    """The table of base, result and baselines, and how it was measured."""
    split, evaluation = results["test_split"], results["evaluation"]
    told = (
        "which selected nothing"
        if split != results["selection"]["split"]
        else "which also SELECTED the model: the numbers flatter it"
    )
    drawn = "noise draws (of rewards over the episodes)" if has_episodes(results) else "noise draws"
    notes = [
        f"Measured on the {split} split, {told}, with the `{evaluation['solver']}` solver and noise of seed {evaluation['seed']}; ± is the standard error "
        f"over the {drawn}. `@N`: N solver steps. `target/`: the data trained for; `base_domain/`: the base's own data."
    ]
    notes += [
        f"`{name}` is another run on the same data, judged in the same way: {run['method_title']}, seed {run['seed']}, {run['steps']} steps "
        f"(its best: {run['best_step']})."
        for name, run in results["baselines"].items()
    ]
    return "\n\n".join(["## Results", metrics_table(results["metrics"]), *notes])


def certificate_section(results: dict[str, Any]) -> str:
    """The sentences of a GAV model's certificate; nothing for a model without a viscosity."""
    told = "\n".join(f"- {sentence}" for sentence in results["certificate"])
    return f"## Certificate of contraction\n\n{told}" if told else ""


def pictures_section(results: dict[str, Any]) -> str:
    """The figures of the run."""
    pictures = [f"![{Path(path).stem.replace('_', ' ')}]({path})" for path in results["figures"]]
    return "\n\n".join(["## Pictures", *pictures])


def use_section(results: dict[str, Any], source: str) -> str:
    """Code that loads the pipeline and draws samples, or decides."""
    steps = max(results["selection"]["num_steps"])
    if "policy" in results["data"]:
        return policy_usage(source, results["data"], steps)
    if "text_to_image" in results["data"]:
        return image_usage(source, results["data"]["text_to_image"], results["base"], steps)
    given = ", batch_size=4"
    if results["conditions"] == ["class_labels"]:
        given = f", class_labels={results['labels'][:4]}"
    elif results["conditions"]:  # vectors: some of those it was trained under
        given = ", **pipeline.known_conditions(4)"
    return usage(source, [f"samples = pipeline(num_inference_steps={steps}{given}).samples"])


def policy_usage(source: str, description: dict[str, Any], steps: int) -> str:
    """Code that loads a policy and decides.  Args: `description`: with `policy` and `observation_normalisation`."""
    policy, known = description["policy"], description["observation_normalisation"]
    horizon = policy["observation_horizon"]
    size = policy["image_size"] or ["HEIGHT", "WIDTH"]
    shapes = {key: (horizon, len(known[key]["mean"])) for key in policy["state_keys"]}
    seen = [f'    "{key}": np.zeros({shape}),' for key, shape in shapes.items()]
    seen += [
        f'    "{key}": np.zeros(({horizon}, {size[0]}, {size[1]}, 3), dtype=np.uint8),'
        for key in policy["cameras"].values()
    ]
    task = "0, " if policy["num_tasks"] else ""
    return usage(
        source,
        [
            f"observation = {{  # raw values of the last {horizon} steps, the oldest first",
            *seen,
            "}",
            f"actions = pipeline(observation, {task}num_inference_steps={steps}).actions  # (1, {policy['action_horizon']}, action_dim)",
        ],
        "FlowPolicyPipeline",
        ["import numpy as np", ""],
    )


def usage(source: str, lines: list[str], kind: str = "FlowPipeline", imports: Sequence[str] = ()) -> str:
    """A section of code."""
    code = [*imports, f"from hf_flowft import {kind}", "", f'pipeline = {kind}.from_pretrained("{source}")', *lines]
    return "## Use\n\n```python\n" + "\n".join(code) + "\n```"


def method_section(results: dict[str, Any], config: dict[str, Any]) -> str:
    """The method and its settings in words, all settings as they were, and the papers."""
    sections = [name for name in SETTINGS if name != "pairs" or results["method"] == "mle"]
    shown = {
        section: {k: v for k, v in config[section].items() if k not in NOT_SETTINGS.get(section, ())}
        for section in sections
    }
    settings = yaml.safe_dump({"seed": config["seed"], **shown}, sort_keys=False, allow_unicode=True).strip()
    parts = [
        "## Method",
        f"{results['method_in_words']} What is trained: {_lower(results['trained_in_words'])}",
        _training(config["train"]),
        f"<details><summary>Settings</summary>\n\n```yaml\n{settings}\n```\n\n</details>",
    ]
    for paper in results["papers"]:
        parts.append(f"{paper['title']}, [arXiv:{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']}).")
        parts.append(f"```bibtex\n{paper['bibtex']}\n```")
    return "\n\n".join(parts)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _training(train: dict[str, Any]) -> str:
    """The loop in a sentence."""
    warmup = f", after {train['lr_warmup_steps']} steps of warm-up" if train["lr_warmup_steps"] else ""
    shape = "following alpha of the temperature" if train["lr_schedule"] == "alpha" else train["lr_schedule"]
    average = (
        f"the weights that are judged and returned are a moving average (decay {train['ema_decay']:g})"
        if train["ema_decay"]
        else "the weights are not averaged"
    )
    dropped = f"; the condition is dropped with probability {train['condition_dropout']:g}" * bool(
        train["condition_dropout"]
    )
    worse = train.get("augment", "")  # older runs had no such setting
    augmented = f"; the observations of every batch are corrupted by `{worse}`" * bool(worse)
    optimizer = "AdamW with 8-bit moments" if train.get("optimizer") == "adamw_8bit" else "AdamW"
    return (
        f"At most {train['num_steps']} steps of {optimizer} with batches of {train['batch_size']} at learning rate {train['learning_rate']:g} "
        f"({shape}{warmup}); {average}{dropped}{augmented}."
    )


def limits_section(results: dict[str, Any], config: dict[str, Any]) -> str:
    """What it is meant for, and how little the numbers say."""
    use = config["hub"]["intended_use"] or "Research on fine-tuning of flow-matching models."
    metrics = results["metrics"]["result"]
    limits = [
        f"The model has been judged only by the numbers above, {_judged_on(metrics, config['eval'].get('environment', ''))}.",
        _measured_steps(results),
        memorisation(metrics),
    ]
    if results["base_model"] is not None and not any(name.startswith("base_domain/") for name in metrics):
        limits.append("What it has forgotten of the base's domain was not measured.")
    if results["labels"]:
        limits.append(f"The data it was trained on have the labels {_listed(results['labels'])} only.")
    return "\n".join(["## Intended use and limits", "", use, "", *(f"- {limit}" for limit in limits)])


def _judged_on(metrics: dict[str, Any], environment: str) -> str:
    """Held-out samples, and episodes of a simulator where there were some."""
    episodes = max((entry["count"] for name, entry in metrics.items() if "reward_shortfall" in name), default=0)
    count = max(entry["count"] for name, entry in metrics.items() if "reward_shortfall" not in name)
    rolled_out = f"in {episodes} episodes of the simulator `{environment}` and " if episodes else ""
    return f"{rolled_out}on at most {count} held-out samples of the same source as the training data"


def _measured_steps(results: dict[str, Any]) -> str:
    if results["evaluation"]["metric"] == "held_out_loss":
        return "It was judged by its loss on held-out data: how good its samples are was not measured."
    measured, selected = results["evaluation"]["report_num_steps"], results["selection"]["num_steps"]
    return f"It was sampled with {_listed(measured)} solver steps and selected at {_listed(selected)}; other numbers of steps were not measured."


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def environment_section(results: dict[str, Any]) -> str:
    """Versions and machine."""
    return "## Environment\n\n" + ", ".join(f"{key} {value}" for key, value in results["environment"].items()) + "."
