"""The environments by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from .base import Environment
from .kitchen import Kitchen
from .metaworld import TASKS, MetaWorld
from .pusht import PushT

ENVIRONMENTS: dict[str, Callable[[], Environment]] = {
    "pusht": PushT,
    "pusht-pixels": partial(PushT, pixels=True),
    "kitchen": Kitchen,
    **{f"metaworld/{task}": partial(MetaWorld, task) for task in TASKS},
}


def make_environment(name: str) -> Environment:
    """The environment of this name, one of ENVIRONMENTS; its simulator is loaded now.

    Raises: ValueError naming the nearest known name; ImportError saying what to install.
    """
    if name not in ENVIRONMENTS:
        shorter = {known.removesuffix("-v3").removeprefix("metaworld/"): known for known in ENVIRONMENTS}
        close = difflib.get_close_matches(name, [*ENVIRONMENTS, *shorter], n=1, cutoff=0.4)
        nearest = f" (did you mean {shorter.get(close[0], close[0])!r}?)" if close else ""
        raise ValueError(
            f"there is no environment {name!r}{nearest}: known are pusht, pusht-pixels, kitchen and metaworld/<task>."
        )
    return ENVIRONMENTS[name]()
