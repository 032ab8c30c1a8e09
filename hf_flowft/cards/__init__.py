"""Model cards: rendered from results.json and config.yaml alone, and merged with what a person has written."""

from ..objectives import FlowMatchingObjective, GradualObjective, ReconstructionObjective, ReplayObjective
from .card import pipeline_card, render_card, write_card
from .merge import merge_card

METHODS = {o.name: o.title for o in (FlowMatchingObjective, GradualObjective, ReplayObjective, ReconstructionObjective)}

__all__ = ["METHODS", "merge_card", "pipeline_card", "render_card", "write_card"]
