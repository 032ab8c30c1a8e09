"""Prompts by number: what travels with a sample is one whole number, and the embeddings stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

NOTHING = 0
"""The number of "no prompt"."""


class PromptTable:
    """The embeddings of prompts, read from disk when they are asked for; number 0 is "no prompt".

    Args: `rows`: a row for each prompt, with the text in `prompt` and a column for each tensor the transformer takes.
    """

    def __init__(self, rows: Dataset):
        self.prompts: list[str] = list(rows["prompt"])
        self._numbers = {prompt: number for number, prompt in enumerate(self.prompts) if number != NOTHING}
        self._tensors = rows.remove_columns("prompt").with_format("torch")

    def __len__(self) -> int:
        return len(self.prompts)

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptTable:
        return self  # nothing in it ever changes

    def numbers(self, prompts: Sequence[str]) -> Tensor:
        """The numbers of prompts: (n,) int64.  Raises: KeyError for one that was not encoded."""
        return torch.tensor([self._numbers[prompt] for prompt in prompts], dtype=torch.int64)

    def rows(self, numbers: Tensor) -> dict[str, Tensor]:
        """The embeddings of prompts, (n, ...) on the device of `numbers`; each is read once.

        Raises: ValueError for a number there is not.
        """
        different, where = numbers.cpu().unique(return_inverse=True)
        if len(different) and not 0 <= int(different[0]) <= int(different[-1]) < len(self):
            raise ValueError(f"prompts are numbered 0 to {len(self) - 1}, got {different.tolist()}.")
        found = self._tensors[different.tolist()]
        return {key: value[where].to(numbers.device) for key, value in found.items()}
