"""Model cards, rendered from results.json and config.yaml alone: what got better, what got worse, how to load."""

from __future__ import annotations

from typing import Any

import yaml

from .objectives import FlowMatchingObjective, GradualObjective, Paper, ReconstructionObjective, ReplayObjective
from .results import compare, public_name
from .tables import metrics_table

PAPERS: dict[str, Paper] = {
    o.name: o.paper for o in (FlowMatchingObjective, GradualObjective, ReplayObjective, ReconstructionObjective)
}
METHODS = {
    "fm": "flow matching",
    "gft": "gradual fine-tuning (GFT) on the target measure",
    "gft_replay": "gradual fine-tuning (GFT) on the replay measure",
    "mle": "maximum likelihood of reconstructions (MLE)",
}


def render_card(results: dict[str, Any], config: dict[str, Any]) -> str:
    """The README.md of a run or a repository.

    Args: `results`: as `training.run` writes them; `config`: the resolved settings.  Every number comes from `results`.
    """
    sections = [
        _front_matter(results, config),
        f"# {results['name']}",
        _what(results, config),
        f"**{results['selection']['verdict']}**",
        _table(results),
        _changes(results),
        _certificate(results),
        _figures(results),
        _usage(results),
        _method(results, config),
        _limits(results, config),
        _environment(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(results: dict[str, Any], config: dict[str, Any]) -> str:
    data = results["data"]
    metadata: dict[str, Any] = {
        "license": config["hub"]["licence"],
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation" if len(data["event_shape"]) == 3 else "other",
        "tags": ["flow-matching", "diffusers", "hf_flowft", results["method"]],
        "model-index": [{"name": results["name"], "results": _measured(results)}],
    }
    return "---\n" + yaml.safe_dump(metadata, sort_keys=False).strip() + "\n---"


def _measured(results: dict[str, Any]) -> list[dict[str, Any]]:
    metrics = [
        {"type": name.split("@")[0].split("/")[-1], "name": name, "value": entry["value"]}
        for name, entry in results["metrics"]["result"].items()
        if entry["value"] is not None and entry["direction"] != "neither"
    ]
    data = results["data"]
    return [
        {
            "task": {"type": "other", "name": "generation"},
            "dataset": {"type": data["name"], "name": data["name"]},
            "metrics": metrics,
        }
    ]


def _what(results: dict[str, Any], config: dict[str, Any]) -> str:
    data, method = results["data"], METHODS.get(results["method"], results["method"])
    start = f"fine-tuned from `{results['base']}`" if results["base"] else "trained from scratch"
    counts = ", ".join(f"{count} {split}" for split, count in data["counts"].items())
    return (
        f"A flow-matching model, {start} with {method} on **{data['name']}** ({data.get('source', 'see the configuration')}; {counts}). "
        f"Seed {results['seed']}; {results['train']['steps']} optimiser steps in {results['train']['seconds']:.0f} s."
    )


def _table(results: dict[str, Any]) -> str:
    split = results["test_split"]
    told = (
        "which selected nothing"
        if split != results["selection"]["split"]
        else "which also SELECTED the model: the numbers flatter it"
    )
    note = f"Measured on the {split} split, {told}; ± is the standard error over repeated noise draws. `@N`: N solver steps."
    return f"## Results\n\n{metrics_table(results['metrics'])}\n\n{note}"


def _changes(results: dict[str, Any]) -> str:
    if "base" not in results["metrics"]:
        return ""
    better, worse = compare(results["metrics"]["base"], results["metrics"]["result"])
    lines = ["## What got better and what got worse", "", f"Better than the base: {', '.join(better) or 'nothing'}."]
    return "\n".join([*lines, "", f"Worse than the base: {', '.join(worse) or 'nothing measured here'}."])


def _certificate(results: dict[str, Any]) -> str:
    sentences = results.get("certificate")
    return "## Certificate\n\n" + "\n".join(f"- {sentence}" for sentence in sentences) if sentences else ""


def _figures(results: dict[str, Any]) -> str:
    return (
        "## Pictures\n\n" + "\n\n".join(f"![{path}]({path})" for path in results["figures"])
        if results["figures"]
        else ""
    )


def _usage(results: dict[str, Any]) -> str:
    given = ", batch_size=4"
    if results["conditions"] == ["class_labels"]:
        given = f", class_labels={results['labels'][:4]}"
    elif results["conditions"]:  # vectors: some of those it was trained under
        given = "".join(f', {key}=pipeline.conditions["{key}"][:4]' for key in results["conditions"])
    lines = [
        "from hf_flowft import FlowPipeline",
        "",
        "pipeline = FlowPipeline.from_pretrained(\"pipeline\")  # this run's folder, or the repository's id",
    ]
    lines.append(f"samples = pipeline(num_inference_steps=16{given}).samples")
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _method(results: dict[str, Any], config: dict[str, Any]) -> str:
    sections = ("model", "objective", *(["pairs"] if results["method"] == "mle" else []), "train")
    shown = {section: {key: _public(value) for key, value in config[section].items()} for section in sections}
    settings = yaml.safe_dump(shown, sort_keys=False).strip()
    text = f"## Method\n\n<details><summary>Settings</summary>\n\n```yaml\n{settings}\n```\n\n</details>"
    paper = PAPERS.get(results["method"])
    if paper is None:
        return text
    return (
        text
        + f"\n\n{paper.title}, [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}).\n\n```bibtex\n{paper.bibtex}\n```"
    )


def _public(value: Any) -> Any:
    return public_name(value) if isinstance(value, str) else value


def _limits(results: dict[str, Any], config: dict[str, Any]) -> str:
    use = config["hub"]["intended_use"] or "Research on fine-tuning of flow-matching models."
    return (
        f"## Intended use and limits\n\n{use} The model has been judged only by the numbers above, on held-out data of the same source; "
        "it may have memorised training samples where `nearest_train` is far below `nearest_train_of_test`."
    )


def _environment(results: dict[str, Any]) -> str:
    return "## Environment\n\n" + ", ".join(f"{key} {value}" for key, value in results["environment"].items()) + "."
