"""What runs in a process of `rewards_pool`: it loads functions by name and calls them. Imports no JAX.

A function is called as function(prompt, answer, row), with the messages of the prompt, the text of the answer and the
fields of the prompt's line, and returns a number, or None where it has no score to give.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from typing import Any

from jinstr import errors, redact
from jinstr.data import marks
from jinstr.human import answers as answers_lib
from jinstr.human import constraints as constraints_lib
from jinstr.rlhf import outcomes

REFERENCES = (
    "answer",
    "reference",
    "output",
)  # fields of a line that may hold the number, in order
MOST_TEXT = 1000  # characters of an error that are told


def number(prompt: Sequence[Mapping], answer: str, row: Mapping[str, Any]) -> float:
    """1.0 when the answer gives the number of the line (its first of REFERENCES), else 0.0. Errors: DataError."""
    reference = next((row[name] for name in REFERENCES if row.get(name) is not None), None)
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise errors.DataError(
            "JI-REWARDS-001",
            f"no number to compare with; a line needs one of {', '.join(REFERENCES)} (it has {', '.join(row)})",
        )
    return float(answers_lib.same_number(answer, reference))


def constraints(prompt: Sequence[Mapping], answer: str, row: Mapping[str, Any]) -> float:
    """Share of the line's `constraints` that the answer satisfies, 0 to 1. Errors: DataError."""
    found = row.get("constraints")
    if not isinstance(found, list | tuple) or not found:
        raise errors.DataError(
            "JI-REWARDS-002",
            f'no constraints; a line needs constraints: [{{"id": …}}, …] (it has {", ".join(row)})',
        )
    return constraints_lib.share(answer, [constraints_lib.parse(data) for data in found])


BUILT_IN: dict[str, Callable] = {"number": number, "constraints": constraints}


def load(name: str) -> Callable:
    """The function that "module:function" or a name of BUILT_IN stands for. Errors: those of the import."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, no function")
    return function


def told(error: BaseException) -> str:
    """The last line of an error's traceback and where it arose, without secrets, in one line."""
    if isinstance(error, errors.JinstrError):
        words = error.message
    else:
        words = " ".join(traceback.format_exception_only(error)[-1].split())
        if frames := traceback.extract_tb(error.__traceback__):
            words += f" ({pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return redact.text(words)[:MOST_TEXT]


def call(function: Callable, prompt: list[dict], answer: str, row: dict) -> outcomes.Outcome:
    """The outcome of one call; whatever it raises is an outcome too."""
    try:
        return outcomes.of(function(prompt, answer, row))
    except BaseException as error:  # sys.exit() in a function does not end the others' answers
        return outcomes.Outcome(float("nan"), "error", told(error))


def main(descriptor: int, parent: int) -> None:
    """Serve the process `parent` over the socket `descriptor` until its other end closes.

    Read: the names of the functions; then (name, prompt, answer, row) each. Written: "" or what is wrong with the
    names; then one tuple (score, fault, text) each.
    """
    marks.end_with_parent(parent)
    # The user's own module is found where they stand; last, so it shadows nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    # OSError: the other end was closed before it had read all that was written.
    with redact.output(), contextlib.suppress(EOFError, OSError):
        _serve(connection.Connection(descriptor))


def _serve(link: connection.Connection) -> None:
    functions, problem = {}, ""
    for name in link.recv():
        try:
            functions[name] = load(name)
        except BaseException as error:
            problem = problem or f"{name}: {told(error)}"
    link.send(problem)
    while True:
        name, *arguments = link.recv()
        link.send(tuple(call(functions[name], *arguments)))
