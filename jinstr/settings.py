"""Settings as values: reading them from the command line, checking their types.

Knows nothing of gin; `jinstr/run.py` uses it at the door.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Instance:
    """Stands for an object that is going to be built: all that is known of it is its class."""

    cls: type


def literal(text: str) -> Any:
    """The value of `NAME=text`: int, float, True, False, None, tuple, list or quoted string; else the text itself.

    Quotes force a string: RUN_DIR="'2024'".
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if _is_plain(value) else text


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def types_of(function_or_class: Any) -> dict[str, Any]:
    """Name → type of everything that can be set, with string annotations resolved."""
    return typing.get_type_hints(function_or_class)


def matches(value: Any, annotation: Any) -> bool:
    """May `value` be given where `annotation` is asked for? An int serves as a float, True never as an int."""
    if annotation in (Any, inspect.Parameter.empty):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(a) and value == a for a in arguments)
    if isinstance(value, Instance):
        return issubclass(value.cls, origin or annotation)
    if annotation in (None, type(None)):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, tuple) and _tuple_matches(value, arguments)
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        is_text = isinstance(value, str)
        fits = isinstance(value, list | tuple) and all(matches(v, arguments[0]) for v in value)
        return fits and not is_text
    if origin is collections.abc.Callable:
        return callable(value)
    return isinstance(value, origin or annotation)


def _tuple_matches(value: tuple, arguments: tuple) -> bool:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return all(matches(item, arguments[0]) for item in value)
    return len(value) == len(arguments) and all(map(matches, value, arguments))


def type_name(annotation: Any) -> str:
    """`int`, `str | None`, `tuple[int, ...]`: a type as it stands in source."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def way_out(name: str, value: Any, annotation: Any) -> str:
    """How to write the value so that it has the right type; "" where there is no short answer."""
    if matches("", annotation) and not isinstance(value, Instance):
        # a,b on a command line is read as a tuple.
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        return f"; for a string write {name}=\"'{text}'\""
    if matches(1, annotation) and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if matches(True, annotation):
        return "; write True or False"
    if matches((), annotation):
        return "; write a tuple such as (1, 2) or ('a',)"
    return ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean NUM_STEPS?", or "" when nothing is near. Ignores case; STEPZ is near a word of NUM_STEPS."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    for lower in sorted(by_lower, key=len) if not near else ():
        if difflib.get_close_matches(name.lower(), re.split(r"[._/]", lower), n=1, cutoff=0.75):
            near = [lower]
            break
    return f"; did you mean {by_lower[near[0]]}?" if near else ""
