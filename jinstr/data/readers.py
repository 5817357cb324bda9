"""Files to rows: JSON Lines, JSON, xlsx, CSV, parquet, plain and Aozora text. No TensorFlow.

What a file holds is told by its first bytes, not by its name (JSON Lines are often called .json); only CSV and TSV,
which nothing distinguishes from text, go by their names.
"""

from __future__ import annotations

import codecs
import collections
import csv
import datetime
import io
import itertools
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jinstr import errors
from jinstr.data import aozora, bad_rows

MAX_CELL = 32_767  # characters of a cell, the limit of spreadsheets themselves
MAX_GROWN_BYTES = 10 * 10**6  # archives that unpack to less are not looked at
MAX_GROWTH = 100  # unpacked bytes for each of an archive; a sheet of one repeated value has 24


def _found(part: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """(folder that names are relative to, sorted files) of one file, folder or glob."""
    place = pathlib.Path(part).expanduser()
    if place.is_dir():
        return place, sorted(p for p in place.rglob("*") if p.is_file() and p.name[0] not in "._")
    if place.is_file():
        return place.parent, [place]
    fixed = itertools.takewhile(lambda word: not set(word) & set("*?["), place.parts)
    root = pathlib.Path(place.anchor) if place.anchor else pathlib.Path()
    pattern = str(place.relative_to(place.anchor)) if place.anchor else str(place)
    return pathlib.Path(*fixed), sorted(p for p in root.glob(pattern) if p.is_file())


def named_files(path: str) -> list[tuple[str, pathlib.Path]]:
    """(name, file) of the files behind "file", "folder", "glob*" or several of them joined by "+", sorted within each.

    A name is the path below the folder or the fixed part of the glob, so it does not change when all moves elsewhere;
    where joined parts have files of one name, the folders above that tell them apart are added.
    Errors: DataError when there is none.
    """
    found: dict[pathlib.Path, tuple[int, pathlib.Path]] = {}  # whole path → length of name, file
    for part in path.split("+"):
        base, inside = _found(part)
        if not inside:
            raise errors.DataError(
                "JI-READ-001", f"{part}: no such file or folder (from {pathlib.Path.cwd()})"
            )
        for file in inside:
            whole = pathlib.Path(os.path.abspath(file))
            found.setdefault(whole, (len(file.relative_to(base).parts), file))
    for above in itertools.count():
        names = ["/".join(whole.parts[-above - n :]) for whole, (n, _) in found.items()]
        if len(set(names)) == len(names):
            return [(name, file) for name, (_, file) in zip(names, found.values())]
    raise AssertionError("whole paths differ")


def files_of(path: str) -> list[pathlib.Path]:
    """The files of `named_files`."""
    return [file for _, file in named_files(path)]


def decode(data: bytes, path: pathlib.Path) -> str:
    """Bytes as text: UTF-8 (with or without a mark), else Shift_JIS. Errors: DataError with the place."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        for encoding in ("cp932", "shift_jis_2004"):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                continue
        raise errors.DataError(
            "JI-READ-002", f"{path}: neither UTF-8 nor Shift_JIS (byte {error.start})"
        ) from None


def kind_of(path: pathlib.Path) -> str:
    """xlsx | parquet | csv | jsonl | json | text, by content."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head.startswith(b"PK\x03\x04"):
        return "xlsx"
    if head.startswith(b"PAR1"):
        return "parquet"
    if path.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith((b"[{", b"[ ", b"[\n", b"[\r")) or start.rstrip() == b"[]":
        return "json"
    if not start.startswith(b"{"):
        return "text"
    return "jsonl" if _has_lines(start) else "json"


def _has_lines(start: bytes) -> bool:
    """Are the lines of this beginning values of their own, rather than one value over many lines?"""
    first, newline, rest = start.partition(b"\n")
    if not newline or _is_json(first):  # a first line longer than what was read, too
        return True
    # The first line may be broken. Inside one value, few lines are values: not most of them.
    *others, last = rest.split(b"\n")
    others = [line for line in others[:200] if line.strip()] + [last] * _is_json(last)
    return first.strip() != b"{" and sum(map(_is_json, others)) > len(others) / 2


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _no_fields(value) -> bad_rows.BadRow:
    raw = json.dumps(value, ensure_ascii=False)
    return bad_rows.BadRow(bad_rows.NOT_FIELDS, f"a {type(value).__name__}, not fields", raw)


def _items(path: pathlib.Path, value) -> Iterator[tuple[str, dict | bad_rows.BadRow]]:
    """The rows of one JSON value: its items, those under `data` (SQuAD keeps its articles there), or itself."""
    rows = value
    if isinstance(value, dict):
        rows = value["data"] if isinstance(value.get("data"), list) else [value]
    for number, row in enumerate(rows, 1):
        yield (
            f"{path}, item {number}",
            row if isinstance(row, dict) else _no_fields(row),
        )


def _is_whole(row) -> bool:
    """Does the row hold a whole file, written on one line?"""
    items = row.get("data") if isinstance(row, dict) else None
    return isinstance(items, list) and bool(items) and all(isinstance(i, dict) for i in items)


def _has_more(file: io.BufferedReader) -> bool:
    """Does anything but white space follow? The place in the file stays."""
    place = file.tell()
    more = any(line.strip() for line in file)
    file.seek(place)
    return more


def _broken(line: bytes, error: Exception) -> bad_rows.BadRow:
    """What is wrong with a line that is no JSON."""
    rule = bad_rows.NOT_JSON
    if b"\0" in line:
        rule = bad_rows.NUL
    elif not line.endswith(b"\n"):
        rule = bad_rows.TRUNCATED
    elif isinstance(error, UnicodeDecodeError):
        rule = bad_rows.NOT_UTF8
    raw = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
    return bad_rows.BadRow(rule, f"{rule} ({error})", raw)


def _json_lines(
    path: pathlib.Path, start: int = 0, stop: int | None = None
) -> Iterator[tuple[str, dict | bad_rows.BadRow]]:
    """The lines that begin at the bytes from start to stop."""
    with path.open("rb") as file:
        lines = _lines_between(file, start, stop)
        for place, (number, line) in enumerate(pair for pair in lines if pair[1].strip()):
            where = f"{path}:{number}"
            try:
                # Files that were joined have marks of their byte order in the middle.
                row = json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
            except (ValueError, RecursionError) as error:
                yield where, _broken(line, error)
                continue
            if start == place == 0 and _is_whole(row) and not _has_more(file):
                yield from _items(path, row)
                return
            yield where, row if isinstance(row, dict) else _no_fields(row)


def _lines_between(
    file: io.BufferedReader, start: int, stop: int | None
) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the lines that begin at the bytes from start to stop."""
    number, at = 0, 0
    if start:
        while left := min(1 << 22, start - 1 - at):
            block = file.read(left)
            number, at = number + block.count(b"\n"), at + len(block)
            if not block:
                return
        at += len(file.readline())  # the end of a line that begins before
        number += 1
    while stop is None or at < stop:
        line = file.readline()
        if not line:
            return
        number, at = number + 1, at + len(line)
        yield number, line


def _json(path: pathlib.Path) -> Iterator[tuple[str, dict | bad_rows.BadRow]]:
    try:
        value = json.loads(decode(path.read_bytes(), path))
    except (ValueError, RecursionError) as error:
        raise errors.DataError("JI-READ-003", f"{path}: not JSON ({error})") from None
    yield from _items(path, value)


def _cell(value) -> str:
    """A cell of a sheet as people see it: whole numbers without a point, dates as ISO."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    return str(value)


def _table(path: str, rows: Iterator, first: int) -> Iterator[tuple[str, dict | bad_rows.BadRow]]:
    """Rows of cells under a line of names; empty lines are passed over. path: with the sheet, of several."""
    names: list[str] = []
    for number, cells in enumerate(rows, first):
        cells = [_cell(cell) for cell in cells]
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = [cell.strip() for cell in cells]
            twice = [
                n for n, count in collections.Counter(filter(None, names)).items() if count > 1
            ]
            if twice:
                raise errors.DataError(
                    "JI-READ-004",
                    f"{path}, row {number}: the column {twice[0]!r} stands there twice",
                )
            continue
        if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
            why = f"{len(cells)} cells under {len(names)} names"
            raw = json.dumps(cells, ensure_ascii=False)
            yield f"{path}, row {number}", bad_rows.BadRow(bad_rows.SHAPE, why, raw)
            continue
        yield f"{path}, row {number}", {n: cell for n, cell in zip(names, cells) if n}


def _xlsx(path: pathlib.Path) -> Iterator[tuple[str, dict | bad_rows.BadRow]]:
    import openpyxl

    _check_archive(path)
    with path.open("rb") as file:  # openpyxl refuses names that do not end in .xlsx
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
        for sheet in sheets:
            place = f"{path}, sheet {sheet.title}" if len(sheets) > 1 else str(path)
            yield from _table(place, _short_cells(place, sheet.iter_rows(values_only=True)), 1)


def _check_archive(path: pathlib.Path) -> None:
    """Errors: DataError for an archive that grows as no sheet does; what it says of its sizes is what is read."""
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > MAX_GROWN_BYTES and size > MAX_GROWTH * path.stat().st_size:
        raise errors.DataError(
            "JI-READ-007",
            f"{path}: {path.stat().st_size:,} bytes that unpack to {size:,}: not a sheet that people wrote",
        )


def _short_cells(place: str, rows: Iterator) -> Iterator:
    """The rows. Errors: DataError for a cell longer than a spreadsheet can hold."""
    for number, cells in enumerate(rows, 1):
        if any(isinstance(cell, str) and len(cell) > MAX_CELL for cell in cells):
            raise errors.DataError(
                "JI-READ-008", f"{place}, row {number}: a cell of more than {MAX_CELL:,} characters"
            )
        yield cells


def _csv(path: pathlib.Path) -> Iterator[tuple[str, dict | bad_rows.BadRow]]:
    text = decode(path.read_bytes(), path)
    csv.field_size_limit(1 << 30)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        yield from _table(str(path), lines, 1)
    except csv.Error as error:
        raise errors.DataError("JI-READ-005", f"{path}: {error}") from None


def _parquet(path: pathlib.Path) -> Iterator[tuple[str, dict | bad_rows.BadRow]]:
    import pyarrow.parquet

    number = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", row


def _text(path: pathlib.Path) -> Iterator[tuple[str, dict | bad_rows.BadRow]]:
    text = decode(path.read_bytes(), path)
    row = {"text": text}
    if aozora.is_aozora(text):
        facts, body = aozora.clean(text)
        row |= facts | {"text": body}
    yield str(path), row


_READ = {
    "json": _json,
    "xlsx": _xlsx,
    "csv": _csv,
    "parquet": _parquet,
    "text": _text,
}


def rows(
    path: pathlib.Path, start: int = 0, stop: int | None = None
) -> Iterator[tuple[str, dict | bad_rows.BadRow]]:
    """(where, row) of everything in a file; in place of a row that cannot be read, a BadRow that says why.

    start, stop: of JSON Lines, only the lines that begin at these bytes. Errors: DataError when the file as a whole
    cannot be read.
    """
    kind = kind_of(path)
    try:
        yield from _json_lines(path, start, stop) if kind == "jsonl" else _READ[kind](path)
    except errors.JinstrError:
        raise
    except Exception as error:  # of a library, about a file that is damaged or made to harm
        reason = f"{type(error).__name__}: {error}"
        message = f"{path}: not readable as {kind} ({reason})"
        raise errors.DataError("JI-READ-006", message) from None


class Piece(NamedTuple):
    """A file, or a stretch of its lines."""

    file: int  # number in `files_of`
    start: int = 0
    stop: int | None = None


def pieces(paths: Sequence[pathlib.Path], part: int, parts: int) -> list[Piece]:
    """What part `part` (from 0) of all bytes is, in order: JSON Lines are cut, other files belong to one part whole."""
    sizes = [path.stat().st_size for path in paths]
    total = sum(sizes)
    first, last = total * part // parts, total * (part + 1) // parts
    found, begin = [], 0
    for number, (path, size) in enumerate(zip(paths, sizes)):
        end, middle = begin + size, begin + size // 2
        is_mine = first <= middle < last or (middle == total and part == parts - 1)
        cuts = max(first, begin) < min(last, end) and not first <= begin < end <= last
        if cuts and kind_of(path) == "jsonl":
            found.append(Piece(number, max(first, begin) - begin, min(last, end) - begin))
        elif is_mine:
            found.append(Piece(number))
        begin = end
    return found
