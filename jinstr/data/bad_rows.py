"""Rows that cannot be examples: told by rule, kept in a quarantine file, and never more than a few.

ON_BAD=stop ends with the first such row; ON_BAD=skip leaves them out, counts them by rule, and stops after all when
they are more than MOST_BAD of the rows: a file of which much cannot be read is another file than people think.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping

from jinstr import errors

NOT_JSON = "not JSON"
TRUNCATED = "truncated last line"
NOT_UTF8 = "not UTF-8"
NUL = "NUL character"
SURROGATE = "half of a surrogate pair"
NOT_FIELDS = "not an object with fields"
MISSING = "missing field"
WRONG_TYPE = "wrong type"
SHAPE = "other shape than its format"

SHOWN = 20  # bad rows that the manifest names with their place
# So many may always be left out, however few rows there are: one damaged block of 4 kB holds about as many rows, and
# people can look at them one by one. 0.1 % alone would let nothing pass in a file of less than a thousand rows.
FLOOR = 5
# Reading stops early where more than this share of at least FIRST_ROWS rows is bad; MOST_BAD is looked at in the end,
# when the number of rows is known, because bad rows come in clusters.
EARLY = 0.05
FIRST_ROWS = 200
RAW_CHARACTERS = 65_536  # of one bad row in the quarantine file
OTHER_FIELDS = frozenset(["…"])  # stands for all sets of fields after the first MOST_SETS
MOST_SETS = 50


class BadRow(Exception):
    """A row that cannot be an example: the rule that it breaks, why, and its text where it was no row of fields."""

    def __init__(self, rule: str, why: str, raw: str = ""):
        super().__init__(why)
        self.rule, self.raw = rule, raw


# What reading a row of another shape than its format may raise.
WRONG_SHAPES = (BadRow, KeyError, TypeError, AttributeError, IndexError, ValueError)


def of(error: Exception) -> BadRow:
    """The bad row behind one of WRONG_SHAPES."""
    if isinstance(error, BadRow):
        return error
    if isinstance(error, KeyError):
        return BadRow(MISSING, f"no {error.args[0]}")
    return BadRow(WRONG_TYPE, str(error))


@dataclasses.dataclass(kw_only=True)
class Report:
    """What happened while a source was read."""

    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    notes: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )  # of what was kept and may be a mistake
    bad: list[str] = dataclasses.field(default_factory=list)  # the first few, with place and reason
    rows: int = 0
    bad_rows: int = 0
    fields: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )  # rows by their set of fields
    quarantine: pathlib.Path | None = None  # file for bad rows; None = they are only counted
    kept_as: str = ""  # where that file will be
    # Of a part of a source (prepare_parts.py), whose shares of bad rows are looked at when all parts are there:
    in_parts: bool = False
    bad_at: list[int] = dataclasses.field(default_factory=list)  # rows read up to each bad one
    ids: array.array = dataclasses.field(
        default_factory=lambda: array.array("Q")
    )  # of all examples
    left_out: list[tuple[int, str]] = dataclasses.field(
        default_factory=list
    )  # number in `ids` and reason of an example that was read and left out

    def row(self, row) -> None:
        """Count a row that was read, and its fields."""
        self.rows += 1
        if isinstance(row, dict):
            names = frozenset(row)
            known = names in self.fields or len(self.fields) < MOST_SETS or self.in_parts
            self.fields[names if known else OTHER_FIELDS] += 1

    def leave_out(self, reason: str) -> None:
        """Count the example that was read last as left out."""
        self.dropped[reason] += 1
        if self.in_parts:
            self.left_out.append((len(self.ids) - 1, reason))

    def skip(self, file: str, place: str, problem: BadRow, row) -> None:
        """Count a bad row and write it to the quarantine file. place: ":12" or ", row 12" in the file."""
        self.bad_rows += 1
        if self.in_parts:
            self.bad_at.append(self.rows)
        self.dropped[f"bad row: {problem.rule}"] += 1
        if len(self.bad) < SHOWN:
            self.bad.append(_shown(file + place, problem, row))
        if self.quarantine is None:
            return
        raw = problem.raw or json.dumps(row, ensure_ascii=False, default=str)
        line = int(place[1:]) if place[:1] == ":" else place.removeprefix(", ")
        facts = {"file": file, "line": line, "rule": problem.rule, "reason": str(problem)}
        if len(raw) > RAW_CHARACTERS:
            facts["characters"] = len(raw)  # more than are kept here
        facts["raw"] = raw[:RAW_CHARACTERS]
        # Half of a surrogate pair has no bytes in UTF-8; as an escape it is JSON too.
        with self.quarantine.open("a", encoding="utf-8", errors="backslashreplace") as out:
            out.write(json.dumps(facts, ensure_ascii=False) + "\n")

    def drift(self) -> dict[str, int]:
        """Rows whose fields are not those of most rows, as {"fields +added -missing": rows}, the most frequent five."""
        (usual, _), *others = self.fields.most_common() or [(None, 0)]
        found = {}
        for names, count in others[:5]:
            words = [f"+{name}" for name in sorted(names - usual)]
            words += [f"-{name}" for name in sorted(usual - names)]
            found[f"fields {' '.join(words)}"] = count
        if others[5:]:
            found["fields: other sets"] = sum(count for _, count in others[5:])
        return found


def _shown(where: str, problem: BadRow, row) -> str:
    fields = f" (fields: {', '.join(row)})" if isinstance(row, Mapping) else ""
    return f"{where}: {problem}{fields}"


def handle(source, kind: str, report: Report, file: str, place: str, problem: BadRow, row) -> None:
    """Stop at a bad row or leave it out, as the source's `on_bad` says. kind: of the source's examples.

    Errors: DataError with file, line, what was found and the way out.
    """
    on_bad = source.on_bad or ("skip" if kind == "lm" else "stop")
    if on_bad == "stop":
        raise errors.DataError(
            "JI-SOURCE-008",
            f"{_shown(file + place, problem, row)}; correct the row, or leave such rows out with ON_BAD=skip",
        )
    report.skip(file, place, problem, row)
    if not report.in_parts:
        _check_early(source, report)


def _check_early(source, report: Report) -> None:
    early = max(EARLY, source.most_bad)
    if report.rows >= FIRST_ROWS and report.bad_rows > early * report.rows:
        raise _too_many(source, report)


def joined(source, parts: Iterable[Report], report: Report) -> None:
    """Add the reports of consecutive parts to an empty one, as if all had been read in one go.

    Errors: DataError where that would have ended with too many bad rows.
    """
    for part in parts:
        before = report.rows
        report.bad += part.bad[: SHOWN - len(report.bad)]
        for at in part.bad_at:
            report.rows, report.bad_rows = before + at, report.bad_rows + 1
            _check_early(source, report)
        report.rows = before + part.rows
        report.dropped.update(part.dropped)
        report.notes.update(part.notes)
        for names, count in part.fields.items():
            known = names in report.fields or len(report.fields) < MOST_SETS
            report.fields[names if known else OTHER_FIELDS] += count
    check_share(source, report)


def check_share(source, report: Report) -> None:
    """After all rows were read. Errors: DataError when more than source.most_bad of them (and FLOOR) were bad."""
    if report.bad_rows > max(FLOOR, source.most_bad * report.rows):
        raise _too_many(source, report)


def _too_many(source, report: Report) -> errors.DataError:
    kept = f"; those found: {report.kept_as}" if report.kept_as else ""
    return errors.DataError(
        "JI-SOURCE-009",
        f"{source.name}: {report.bad_rows:,} of {report.rows:,} rows are bad, more than MOST_BAD={source.most_bad:g} "
        f"lets pass; the first: {report.bad[0]}{kept}; correct them, or raise MOST_BAD",
    )
