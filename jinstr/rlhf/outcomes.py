"""What comes of asking for the score of one answer. Imports no JAX: the processes of `rewards_pool` use it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

FAULTS = ("timeout", "error", "infinite")
_LARGEST = 3.4028234663852886e38  # of float32


class Outcome(NamedTuple):
    """A score, or NaN and why there is none. NaN without a fault: whoever was asked gave no score."""

    score: float
    fault: str = ""  # one of FAULTS
    text: str = ""  # what is told of the fault


def of(value: Any) -> Outcome:
    """The outcome of a value that was given as a score: None and NaN are none, what float32 cannot hold is infinite.

    True counts as 1. Errors: TypeError or ValueError for what is no number: text, arrays, complex numbers.
    """
    if value is None:
        return Outcome(math.nan)
    if isinstance(value, str | bytes | bytearray):  # float() would read them
        raise TypeError(f"{value[:40]!r} is no number")
    if getattr(value, "ndim", 0):
        raise TypeError(f"an array of {value.ndim} dimensions is no number")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if math.isnan(score):
        return Outcome(math.nan)
    return Outcome(score) if abs(score) <= _LARGEST else Outcome(math.nan, "infinite")
