"""Settings that are one of a few names: checked where they are made, and the nearest name told for one that is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Choices:
    """A base of settings dataclasses, itself one without fields.

    Raises: ValueError when a field annotated with a `Literal` holds none of its values, naming the field, the values and the nearest one.
    """

    def __post_init__(self) -> None:
        for name, choices in choices_of(type(self)).items():
            value = getattr(self, name)
            if value not in choices:
                known = ", ".join(str(choice) if choice != "" else "''" for choice in choices)
                raise ValueError(
                    f"{type(self).__name__}.{name} must be one of {known}, got {value!r}.{nearest(value, map(str, choices))}"
                )


def choices_of(kind: type) -> dict[str, tuple[Any, ...]]:
    """The values of each field that is one of a few, by its name."""
    hints = get_type_hints(kind).items()
    return {name: get_args(hint) for name, hint in hints if get_origin(hint) is Literal}


def nearest(word: Any, known: Iterable[str]) -> str:
    """A question after the nearest known word, to be put behind a sentence; empty where none is near."""
    close = difflib.get_close_matches(str(word)[:80], list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
