"""Cards: rendered from what a run has written, or for a pipeline of which nothing was measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..results import published
from . import sections as s
from .changes import changes_section
from .front_matter import KINDS, common, front_matter
from .merge import assemble, merge_card
from .text_to_image import image_usage


def render_card(results: dict[str, Any], config: dict[str, Any], source: str = "pipeline") -> str:
    """The README.md of a run folder or of its repository.

    Args: `results`: as `training.run` writes them; `config`: the resolved settings, as config.yaml holds them; `source`: what the usage code loads,
    the folder "pipeline" or the repository "user/name".  Every number comes from the first two; paths of a machine and secrets are left out.
    """
    results, config = published(results), published(config)
    parts = {
        "title": s.title_section(results["name"]),
        "summary": s.summary_section(results),
        "results": s.results_section(results),
        "changes": changes_section(results),
        "certificate": s.certificate_section(results),
        "pictures": s.pictures_section(results) if results["figures"] else "",
        "use": s.use_section(results, source),
        "method": s.method_section(results, config),
        "limits": s.limits_section(results, config),
        "environment": s.environment_section(results),
    }
    return assemble(front_matter(results, config), parts)


def pipeline_card(name: str, model: str, description: dict[str, Any], source: str, licence: str | None = None) -> str:
    """The card of a pipeline that is shared without its run: what it is and how it is loaded.

    Args: `name`: the heading; `model`: the class of the network; `description`: the pipeline's; `source`: what `from_pretrained` takes;
    `licence`: of the weights, None when it is not known.
    """
    description = published(description)
    shape = description.get("event_shape")
    what = f"makes samples of shape {tuple(shape)}" if shape else "makes samples"
    trained = f" It was trained with the coupling: {description['coupling']}." if description.get("coupling") else ""
    tag, words = KINDS[description.get("predicts", "velocity")]
    conditions = "conditions = pipeline.known_conditions(4)  # none: unconditional"
    parts = {
        "title": s.title_section(name),
        "summary": f"{words} (`{model}`) that {what}.{trained}\n\nNothing was measured for this card.",
        "use": s.usage(source, [conditions, "samples = pipeline(batch_size=4, **conditions).samples"]),
    }
    if "policy" in description:
        parts["use"] = s.policy_usage(source, description, 16)
    if "text_to_image" in description:
        drawn = description["text_to_image"]
        parts["use"] = image_usage(source, drawn, drawn["base"], 28)
    return assemble(common(licence, description, tag), parts)


def write_card(results: dict[str, Any], config: dict[str, Any], folder: Path, source: str = "pipeline") -> Path:
    """Render the card into `folder`/README.md, atomically, merged with the README that is there (see `merge_card`); returns its path."""
    path, card = folder / "README.md", render_card(results, config, source)
    theirs, temporary = (
        path.read_bytes().decode(errors="surrogateescape") if path.is_file() else "",
        folder / ".README.md.tmp",
    )
    temporary.write_bytes(merge_card(card, theirs).encode(errors="surrogateescape"))  # bytes: the ends of lines stay
    os.replace(temporary, path)
    return path
