"""Preferences whose longer answers win no more often than asked: who learns from them learns less to be long."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jinstr.human import margins


class Unit(NamedTuple):
    """Lines that stay together: what they say of long and short answers decides whether they are kept."""

    rows: list[dict]
    longer: int  # preferences for the longer of two answers
    shorter: int
    difference: int  # characters by which preferred answers are longer, in sum


def unit(rows: list[dict], preferred: Sequence[tuple[str, str]]) -> Unit:
    by = [len(better) - len(worse) for better, worse in preferred]
    return Unit(rows, sum(b > 0 for b in by), sum(b < 0 for b in by), sum(by))


def longer_share(units: Iterable[Unit]) -> float:
    """Share of the preferences that are for the longer answer, equal lengths left aside; nan without any."""
    units = list(units)
    longer, shorter = sum(u.longer for u in units), sum(u.shorter for u in units)
    return longer / (longer + shorter) if longer + shorter else float("nan")


def length_matched(units: Sequence[Unit], bound: float) -> list[Unit]:
    """Units without those that prefer longer answers most, until the share of such preferences is within the bound.

    Left out first are those whose preferred answers are longer by most characters.
    """
    longer, shorter = sum(u.longer for u in units), sum(u.shorter for u in units)
    against = [u for u in units if u.longer > bound * (u.longer + u.shorter)]
    against.sort(key=lambda u: (-u.difference / (u.longer + u.shorter), _drawn(u.rows[0]["id"])))
    out = set()
    for unit in against:
        if longer <= bound * (longer + shorter) + margins.TINY:
            break
        out.add(id(unit))
        longer, shorter = longer - unit.longer, shorter - unit.shorter
    return [unit for unit in units if id(unit) not in out]


def _drawn(name: str) -> str:
    """An order that tells nothing."""
    return hashlib.sha256(name.encode()).hexdigest()
