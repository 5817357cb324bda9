"""What a rater put into one row of a sheet; a cell that cannot be understood is a problem with an address.

A row is done when its verdict (or all ranks) can be read; scores may be missing. It is held back when it has no
verdict but a comment, begun when it has anything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jinstr.human import cells, judgements, sheet_tables
from jinstr.human import sheet_columns as columns_lib
from jinstr.human import study as study_lib


@dataclasses.dataclass(frozen=True)
class Problem:
    """A place that a person has to look at."""

    code: str
    file: str
    sheet: str
    cell: str
    value: str
    english: str
    japanese: str

    def __str__(self) -> str:
        sheet = f"{self.sheet}!" if self.sheet else ""
        value = f" {self.value!r}" if self.value else ""
        return f"{self.code}: {self.file} {sheet}{self.cell}{value}: {self.english}".replace(
            " :", ":"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What a rater put into a row."""

    state: str  # done | held | begun | empty
    verdict: str = ""  # left | right | tie
    scores: Mapping[str, int] = dataclasses.field(default_factory=dict)  # fluency_a, … → 1 … 5
    ranks: tuple[int, ...] = ()  # of the answers as shown
    comments: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by key of the column
    where: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass
class Reading:
    """What a set of files holds."""

    entries: dict[str, Entry] = dataclasses.field(default_factory=dict)  # by id of the row
    refused: set[str] = dataclasses.field(default_factory=set)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def problem(
    table: sheet_tables.Table, row: int, column: int, code: str, english: str, japanese: str
) -> Problem:
    """A problem with a cell of a table."""
    value = at(table.rows[row], column) if row < len(table.rows) else None
    shown = (
        value.text if isinstance(value, sheet_tables.Odd) else "" if value is None else str(value)
    )
    shown = shown if len(shown) <= 40 else shown[:40] + "…"
    return Problem(code, table.file, table.sheet, table.cell(row, column), shown, english, japanese)


def at(row: Sequence[object], column: int | None) -> object:
    return row[column] if column is not None and column < len(row) else None


def entry(
    table: sheet_tables.Table,
    heading: columns_lib.Heading,
    number: int,
    answers: int,
    reading: Reading,
) -> Entry | None:
    """What stands in a row; None where a cell means nothing, which is added to the problems."""
    row, keys = table.rows[number], heading.keys
    before = len(reading.problems)
    letters = study_lib.LETTERS[:answers].lower()
    last = sum(key.startswith("rank_") for key in keys)  # rank that a sheet offers
    scores, ranks, comments = {}, [], {}
    verdict = _verdict(table, keys.get("verdict"), number, reading)
    for letter in letters:
        for axis in judgements.AXES:
            key = f"{axis}_{letter}"
            found = _number(table, keys.get(key), number, 5, reading)
            if found is not None:
                scores[key] = found
        ranks.append(_number(table, keys.get(f"rank_{letter}"), number, last, reading))
    for key in (*(f"comment_{letter}" for letter in letters), "comment"):
        value = at(row, keys.get(key))
        if value is not None and text(value).strip():
            comments[key] = text(value)
    if len(reading.problems) > before:
        return None
    is_rank = "verdict" not in keys
    is_done = None not in ranks if is_rank else bool(verdict)
    any_mark = bool(scores) or any(ranks)
    state = "done" if is_done else "begun" if any_mark else "held" if comments else "empty"
    decided = keys.get("verdict", keys.get("rank_a"))
    return Entry(
        state=state,
        verdict=verdict or "",
        scores=scores,
        ranks=tuple(ranks) if is_rank and is_done else (),
        comments=comments,
        where=table.where(number, decided if decided is not None else 0),
    )


def text(value: object) -> str:
    """What a person sees in a cell, as far as it can be told."""
    if isinstance(value, sheet_tables.Odd):
        return value.text
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _verdict(table, column: int | None, number: int, reading: Reading) -> str | None:
    value = at(table.rows[number], column)
    if column is None or is_blank(value):
        return None
    found = None if isinstance(value, sheet_tables.Odd) else cells.verdict(value)
    if found is None:
        reading.problems.append(problem(
            table, number, column, "JI-SHEET-004", f"no verdict; write A, B or {cells.TIE}{_kind(value)}",
            f"優劣を読み取れません。A・B・{cells.TIE} のどれかを記入してください。",
        ))  # fmt: skip
    return found


def _number(table, column: int | None, number: int, highest: int, reading: Reading) -> int | None:
    value = at(table.rows[number], column)
    if column is None or is_blank(value):
        return None
    found = None if isinstance(value, sheet_tables.Odd) else cells.score(value, highest)
    if found is None:
        reading.problems.append(problem(
            table, number, column, "JI-SHEET-005", f"no whole number from 1 to {highest}{_kind(value)}",
            f"1から{highest}までの整数を記入してください。",
        ))  # fmt: skip
    return found


def _kind(value: object) -> str:
    return f" (a {value.what})" if isinstance(value, sheet_tables.Odd) else ""
