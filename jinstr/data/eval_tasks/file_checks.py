"""What readers of benchmarks' files share: rows, fields of one type, ids that differ. A wrong row is named and refused.

A path is a file, a folder, a glob, or several joined by "+" (data/readers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from jinstr import errors
from jinstr.data import bad_rows, readers
from jinstr.data.eval_tasks import benchmark


def bad(where: str, why: str) -> errors.DataError:
    return errors.DataError("JI-EVAL-012", f"{where}: {why}; correct the row or take it out")


def text_of(row: Mapping, name: str, where: str) -> str:
    """A field that must hold text."""
    if name not in row:
        raise bad(where, f"no field {name} (fields: {', '.join(map(str, row)) or 'none'})")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise bad(where, f"{name} is {value!r}, not text")
    return value


def id_of(row: Mapping, name: str, where: str) -> str:
    """A field that must hold a name or a number of the row."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise bad(where, f"{name} is {value!r}, not a name or whole number")
    return str(value)


def number_of(row: Mapping, name: str, where: str, count: int) -> int:
    """A field that must hold a whole number from 0 to count - 1; true and 1.0 are none."""
    if name not in row:
        raise bad(where, f"no field {name}: test sets without answers cannot be scored")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise bad(where, f"{name} is {value!r}, not a whole number from 0 to {count - 1}")
    return value


def rows(path: str) -> Iterator[tuple[str, dict]]:
    """(where, row) of all files behind a path. Errors: DataError for what is no row."""
    for file in readers.files_of(path):
        for where, row in readers.rows(file):
            if isinstance(row, bad_rows.BadRow):
                raise bad(where, str(row))
            yield where, row


def collect(path: str, found: Iterable[tuple[str, benchmark.Example]]) -> tuple:
    """The examples. Errors: DataError where there are none, or two of one id."""
    places: dict[str, str] = {}
    examples = []
    for where, example in found:
        if example.id in places:
            raise bad(where, f"the id {example.id} stands at {places[example.id]} too")
        places[example.id] = where
        examples.append(example)
    if not examples:
        raise errors.DataError("JI-EVAL-013", f"{path}: no examples in it")
    return tuple(examples)


def by_rows(one: Callable[[str, dict], benchmark.Example]) -> Callable[[str], tuple]:
    """A reader of files of which every row is an example."""

    def read(path: str) -> tuple[benchmark.Example, ...]:
        return collect(path, ((where, one(where, row)) for where, row in rows(path)))

    return read
