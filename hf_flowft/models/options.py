"""The config of a stranger, checked against the constructor it is meant for before anything is built from it."""

from __future__ import annotations

import inspect
import itertools
import threading
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch.nn.modules.module import register_module_parameter_registration_hook

from ..repository import shown

COUNTS = ("num_layers", "layers_per_block", "num_terms")
"""Options that say how many modules are built."""
MAX_COUNT = 10_000
MAX_NUMBER = 2**53
"""Larger whole numbers are none to a float."""


def check_options(cls: Any, config: Mapping[str, Any]) -> None:
    """Raises: ValueError when a config is another class's (diffusers would import that by its name), asks for quantised weights (diffusers
    would import the library it names), has a key that can be no option, or gives an option another type than the constructor declares.
    """
    name = config.get("_class_name", cls.__name__)
    if name != cls.__name__:
        raise ValueError(f"its config is that of a {shown(name)}, not of a {cls.__name__}.")
    if config.get("quantization_config") is not None:
        raise ValueError("its config asks for quantised weights, which are not loaded here.")
    hints, parameters = get_type_hints(cls.__init__), inspect.signature(cls).parameters
    for key, value in config.items():
        if hasattr(OrderedDict, key) or "__" in key or not key.isidentifier():  # a config's keys become its attributes
            raise ValueError(f"its config has a key {shown(key)}, which can be no option.")
        if key not in parameters or (value is None and parameters[key].default is None):
            continue
        if not _accepts(hints[key], value):
            expected = inspect.formatannotation(hints[key])
            raise ValueError(f"its config gives {key} as {shown(value)}, where {expected} is expected.")
    _check_counts(config)


def check_known(cls: type, config: Mapping[str, Any]) -> None:
    """Raises: ValueError for an option the constructor does not have: what a newer version meant by it would be missing without a word."""
    unknown = sorted(set(config) - set(inspect.signature(cls).parameters))
    options = [key for key in unknown if not key.startswith("_")]
    if options:
        raise ValueError(f"this {cls.__name__} has no option {shown(options[0])}, which its config gives.")


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a value from JSON has a declared type. Whole numbers count something, so they are not negative; a truth value may be a number, as
    diffusers declares some numbers as bool.
    """
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_accepts(argument, value) for argument in arguments)
    if kind is Literal:
        return any(_accepts(type(argument), value) for argument in arguments)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER
    if kind is float:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) <= MAX_NUMBER)
    if kind is bool:
        return isinstance(value, (bool, int, float))
    if kind in (list, tuple, Sequence):
        members = [argument for argument in arguments if argument is not ...]
        return isinstance(value, (list, tuple)) and all(any(_accepts(m, entry) for m in members) for entry in value)
    if kind is dict:
        return isinstance(value, dict) and all(_accepts(arguments[1], entry) for entry in value.values())
    return isinstance(value, kind) if kind in (str, types.NoneType) else hint is Any


def _check_counts(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        number = len(value) if isinstance(value, list) else value if key in COUNTS else 0
        if isinstance(number, (int, float)) and number > MAX_COUNT:
            raise ValueError(f"its config asks for {key} = {shown(number)}; at most {MAX_COUNT} is accepted.")
        if isinstance(value, dict):
            _check_counts(value)


class TooManyTensorsError(ValueError):
    """A network that has more parameters than it may."""


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Inside, this thread builds networks of so many parameters, and no more however many its config asks for.

    Raises: TooManyTensorsError from within the constructor that goes on.
    """
    count, thread = itertools.count(1), threading.get_ident()

    def register(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None and threading.get_ident() == thread and next(count) > limit:
            raise TooManyTensorsError(f"it asks for far more tensors than are saved (more than {limit}).")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()
