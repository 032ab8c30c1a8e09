"""Model cards: rendered from results.json and config.yaml alone, and merged with what a person has written."""

from .card import pipeline_card, render_card, write_card
from .merge import merge_card

__all__ = ["merge_card", "pipeline_card", "render_card", "write_card"]
