"""The metadata of a card: what the Hub indexes, with measured numbers only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

KINDS = {
    "velocity": ("flow-matching", "A flow-matching model"),
    "noise": ("diffusion", "A diffusion model, which predicts noise"),
    "mean": ("regression", "A regression model, which predicts a mean"),
}
"""What a network predicts, as a tag of the Hub and as the beginning of a sentence."""


def front_matter(results: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The keys of the Hub: licence, library, task, base, data, metrics and the model-index.

    Only what is on the Hub is linked: a base or a data set from a folder is named in the text.
    """
    tag = KINDS[results.get("predicts", "velocity")][0]
    metadata = common(config["hub"]["licence"], results["data"], tag)
    if results.get("widget"):  # results of earlier versions have none
        metadata["widget"] = [{"text": shown["text"], "output": {"url": shown["image"]}} for shown in results["widget"]]
    base = results["base_model"]
    if base is not None and base["source"] == "hub":
        metadata |= {"base_model": base["id"], "base_model_relation": base["relation"]}
    if hub_data(results["data"]):
        metadata["datasets"] = [results["data"]["source"]]
    measured = _measured(results)
    metadata["metrics"] = list(dict.fromkeys(m["type"] for part in measured for m in part["metrics"]))
    metadata["tags"] = [*metadata.pop("tags"), results["method"], *(["gav"] if _has_viscosity(config["model"]) else [])]
    return metadata | {"model-index": [{"name": results["name"], "results": measured}]}


def _has_viscosity(model: dict[str, Any]) -> bool:
    """Whether GAV is what was trained, and not its ablation."""
    return model["name"] == "viscosity" and model["structure"] != "mlp"


def common(licence: str | None, facts: Mapping[str, Any], tag: str = "flow-matching") -> dict[str, Any]:
    """What every pipeline of ours says, with the `tag` of its kind; vectors have no task of the Hub.

    Args: `facts`: those of the data, or the description of the pipeline.
    """
    metadata: dict[str, Any] = {"license": licence} if licence else {}
    metadata["library_name"] = "diffusers"
    tags = [tag, "diffusers", "hf_flowft"]
    drawn = facts.get("text_to_image")
    if drawn:
        trigger = {"instance_prompt": drawn["trigger"]} if drawn["trigger"] else {}
        metadata |= {"pipeline_tag": "text-to-image", **trigger, "widget": [{"text": drawn["prompt"]}]}
        tags += ["text-to-image", *(["lora"] if drawn["adapter"] in (True, "lora") else [])]
    elif "policy" in facts:
        metadata["pipeline_tag"] = "robotics"
    elif len(facts.get("event_shape") or ()) == 3:
        metadata["pipeline_tag"] = "unconditional-image-generation"
    return metadata | {"tags": tags}


def hub_data(data: dict[str, Any]) -> bool:
    """Whether the data set is on the Hub: only those have a revision."""
    return bool(data.get("revision")) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(data.get("source"))) is not None


def _measured(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The result's own numbers, by the split they were measured on; baselines are not this model's."""
    data = results["data"]
    task = {"type": "other", "name": "Generation"}
    if data.get("text_to_image"):
        task = {"type": "text-to-image", "name": "Text to Image"}
    elif "policy" in data:
        task = {"type": "robotics", "name": "Robotics"}
    elif len(data["event_shape"]) == 3:
        task = {"type": "unconditional-image-generation", "name": "Unconditional Image Generation"}
    parts: dict[str, list[dict[str, Any]]] = {}
    for metric, entry in results["metrics"]["result"].items():
        if entry["value"] is not None and entry["direction"] != "neither":
            split = "base_test" if metric.startswith("base_domain/") else results["test_split"]
            kind = metric.split("@")[0].split("/")[-1]
            parts.setdefault(split, []).append({"type": kind, "name": metric, "value": entry["value"]})
    identity = {"type": data["source"], "revision": data["revision"]} if hub_data(data) else {"type": data["name"]}
    return [
        {"task": dict(task), "dataset": {"name": data["name"], **identity, "split": split}, "metrics": metrics}
        for split, metrics in parts.items()
    ]
