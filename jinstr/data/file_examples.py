"""Rows of files to examples, with ids and groups; rows that cannot be examples are told by rule (bad_rows.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from jinstr import errors
from jinstr.data import bad_rows, formats, oasst, readers
from jinstr.testing import faults

if TYPE_CHECKING:  # it imports this module
    from jinstr.data.sources import SourceConfig


def fields_of(source: SourceConfig) -> dict[str, str]:
    """Column → name in the format, from `fields`. Errors: ConfigError."""
    pairs = {}
    for word in filter(None, source.fields.split(",")):
        name, equals, column = word.partition("=")
        if not equals:
            raise errors.ConfigError(
                "JI-SOURCE-006", f"FIELDS: {word!r} is not name=column, as in instruction=質問"
            )
        pairs[column.strip()] = name.strip()
    return pairs


def renamed(source: SourceConfig, row: dict) -> dict:
    """The row with its columns under the names that formats know."""
    pairs = fields_of(source)
    return {pairs.get(name, name): value for name, value in row.items()} if pairs else row


def format_of(source: SourceConfig, where: str, row: dict) -> str:
    """The format of a row that names none. Errors: DataError when no format fits, or several."""
    if source.format:
        return source.format
    fitting = formats.fits(row)
    if len(fitting) == 1:
        return fitting[0]
    problem = f"fits {' and '.join(fitting)}" if fitting else "fits no format"
    raise errors.DataError(
        "JI-SOURCE-007",
        f"{where}: a row with the fields {', '.join(row)} {problem}; say FORMAT={'|'.join(fitting or formats.FORMATS)} "
        "or name the columns: FIELDS=instruction=質問,output=回答",
    )


def _rows(
    source: SourceConfig, pieces: Sequence[readers.Piece] | None
) -> Iterator[tuple[str, str, str, dict | bad_rows.BadRow]]:
    """(path of the file, its name, place in it, row with its columns renamed). Errors: StorageError."""
    count = 0
    files = readers.named_files(source.path)
    for piece in map(readers.Piece, range(len(files))) if pieces is None else pieces:
        name, path = files[piece.file]
        where = str(path)
        try:
            for where, row in readers.rows(path, piece.start, piece.stop):
                count += 1
                faults.point("read_row", count)
                row = row if isinstance(row, bad_rows.BadRow) else renamed(source, row)
                yield str(path), name, where.removeprefix(str(path)), row
        except OSError as error:
            raise errors.StorageError(
                "JI-READ-006", f"reading stopped at {where}: {error}"
            ) from None


def _examples_of(shape: str, row: dict) -> list[dict]:
    """The examples of a row, with sound text. Errors: WRONG_SHAPES of bad_rows."""
    return [formats.checked(example) for example in formats.FORMATS[shape].examples(row)]


def examples(
    source: SourceConfig, report: bad_rows.Report, pieces: Sequence[readers.Piece] | None = None
) -> Iterator[dict]:
    """Examples of (pieces of) the files in order, each with an id; bad rows stop the reading or are counted."""
    shape, last_file = "", ""
    if pieces and report.in_parts:  # of text; what tells shapes is the first row of a file
        shape = "text"
        last_file = str(readers.files_of(source.path)[pieces[0].file]) if pieces[0].start else ""
    trees: list[dict] = []
    ids: set[str] = set()
    for file, name, place, row in _rows(source, pieces):
        report.row(row)
        if not isinstance(row, bad_rows.BadRow) and file != last_file:
            found = format_of(source, file + place, row)
            if shape and formats.FORMATS[found].kind != formats.FORMATS[shape].kind:
                raise errors.DataError(
                    "JI-SOURCE-010",
                    f"{file}{place}: {found} rows in a source that began with {shape}; make two sources",
                )
            shape, last_file = found, file
        try:
            if isinstance(row, bad_rows.BadRow):
                raise row
            if shape == "oasst":
                trees.append(oasst.checked(row))
                continue
            found = _examples_of(shape, row)
        except bad_rows.WRONG_SHAPES as error:
            kind = formats.FORMATS[shape or "text"].kind
            bad_rows.handle(source, kind, report, file, place, bad_rows.of(error), row)
            continue
        _note_repeats(found, ids, report)
        yield from (finish(source, example, row, name + place) for example in found)
    yield from _conversations(source, trees, report)


def _note_repeats(found: Iterable[dict], ids: set[str], report: bad_rows.Report) -> None:
    """Count a row whose id came before, except for texts, of which selection.distinct keeps the first."""
    new = {example["id"] for example in found if example["id"] and "text" not in example}
    if new & ids:
        report.notes["same id as an earlier row"] += 1
    ids |= new


def _conversations(
    source: SourceConfig, trees: list[dict], report: bad_rows.Report
) -> Iterator[dict]:
    """Examples of the rows of all trees, which are joined first."""
    for row in oasst.conversations(trees, report.dropped):
        try:
            found = _examples_of("messages", row)
        except bad_rows.WRONG_SHAPES as error:
            place = f", conversation to {row['id']}"
            bad_rows.handle(source, "chat", report, source.path, place, bad_rows.of(error), row)
            continue
        yield from (finish(source, example, row, row["id"]) for example in found)


def finish(source: SourceConfig, example: dict, row: dict, place: str) -> dict:
    """The example with its id, and with its group from `group_by`."""
    example["id"] = example["id"] or place
    if source.group_by:
        if source.group_by not in row:
            raise errors.DataError(
                "JI-SOURCE-011",
                f"{source.name}, {example['id']}: no field {source.group_by!r} to group by; found {', '.join(row)}",
            )
        example["group"] = str(row[source.group_by])
    return example | {"group": example["group"] or example["id"]}
