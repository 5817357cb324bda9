"""What raters filled in: entries of rows, with every cell that cannot be understood named by its address.

A row is done when its verdict (or all ranks) can be read; scores may be missing. It is held back when it has no
verdict but a comment, begun when it has anything else. A row with a cell that means nothing is refused, alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from tqdm import tqdm

from jinstr.human import cells, judgements, sheet_tables
from jinstr.human import sheet_columns as columns_lib
from jinstr.human import study as study_lib

STATES = ("done", "held", "begun", "empty", "refused", "missing")


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
    comments: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # comment_a, comment_b, comment
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
    value = _at(table.rows[row], column) if row < len(table.rows) else None
    shown = (
        value.text if isinstance(value, sheet_tables.Odd) else "" if value is None else str(value)
    )
    shown = shown if len(shown) <= 40 else shown[:40] + "…"
    return Problem(code, table.file, table.sheet, table.cell(row, column), shown, english, japanese)


def _at(row: Sequence[object], column: int | None) -> object:
    return row[column] if column is not None and column < len(row) else None


def rating_tables(
    paths, reading: Reading
) -> Iterator[tuple[sheet_tables.Table, columns_lib.Heading]]:
    """(table, its heading) of every rating sheet among the files; what is none is a problem of the file."""
    for path in tqdm(paths, desc="sheets", unit="file", disable=None):
        found = 0
        try:
            for table in sheet_tables.tables(path, str(path)):
                heading = columns_lib.heading(table.rows)
                if heading is None:
                    continue
                found += 1
                _check_heading(table, heading, reading)
                yield table, heading
            if not found:
                raise sheet_tables.UnreadableError(
                    "no sheet with 質問, A, B and 優劣 (or 順位) in its heading",
                    "「質問」「A」「B」「優劣」（または「順位」）の見出しのある表が見つかりません。",
                )
        except sheet_tables.UnreadableError as error:
            reading.problems.append(Problem("JI-SHEET-002", str(path), "", "", "", *error.args))


def _check_heading(table, heading: columns_lib.Heading, reading: Reading) -> None:
    row = heading.rows[0]
    for column, name in heading.unknown:
        reading.problems.append(problem(
            table, row, column, "JI-SHEET-003", f"the heading {name!r} is not known; the column is not read",
            f"見出し「{name}」がわからないため、この列は読みませんでした。",
        ))  # fmt: skip
    for column, name in heading.twice:
        reading.problems.append(problem(
            table, row, column, "JI-SHEET-003", f"the heading {name!r} comes twice; this column is not read",
            f"見出し「{name}」が二つあるため、この列は読みませんでした。",
        ))  # fmt: skip
    if table.cp932:
        reading.notes.append(
            f"{table.file}: read as CP932, which lacks characters that texts may have had"
        )
        for number, cells_of_row in enumerate(table.rows):
            for column, value in enumerate(cells_of_row):
                if isinstance(value, str) and "\ufffd" in value:
                    where = table.where(number, column)
                    reading.notes.append(f"{where}: bytes that are not CP932, shown as \ufffd")


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
        value = _at(row, keys.get(key))
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


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _verdict(table, column: int | None, number: int, reading: Reading) -> str | None:
    value = _at(table.rows[number], column)
    if column is None or _is_blank(value):
        return None
    found = None if isinstance(value, sheet_tables.Odd) else cells.verdict(value)
    if found is None:
        reading.problems.append(problem(
            table, number, column, "JI-SHEET-004", f"no verdict; write A, B or {cells.TIE}{_kind(value)}",
            f"優劣を読み取れません。A・B・{cells.TIE} のどれかを記入してください。",
        ))  # fmt: skip
    return found


def _number(table, column: int | None, number: int, highest: int, reading: Reading) -> int | None:
    value = _at(table.rows[number], column)
    if column is None or _is_blank(value):
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


def read_study(study: study_lib.Study, paths) -> Reading:
    """The entries of a study's sheets, told by the hidden id of each row."""
    reading = Reading()
    rows = {row.id: row for row in study.rows}
    items = study.item_of
    for table, heading in rating_tables(paths, reading):
        if columns_lib.ROW_ID not in heading.keys or columns_lib.CHECK not in heading.keys:
            reading.problems.append(Problem(
                "JI-SHEET-006", table.file, table.sheet, "", "",
                "the hidden columns row_id and check are gone; copy the entries into the sheet as it was sent",
                "隠れている列（row_id と check）がありません。お送りしたファイルに記入し直してください。",
            ))  # fmt: skip
            continue
        for number in range(heading.rows[-1] + 1, len(table.rows)):
            if not all(map(_is_blank, table.rows[number])):
                _read_row(table, heading, number, rows, items, reading)
    return reading


def _read_row(table, heading, number: int, rows, items, reading: Reading) -> None:
    keys = heading.keys
    name = text(_at(table.rows[number], keys[columns_lib.ROW_ID]) or "")
    row = rows.get(name)
    if row is None:
        reading.problems.append(problem(
            table, number, keys[columns_lib.ROW_ID], "JI-SHEET-007", "no row of this study has this id; it was changed",
            "この行の番号（隠れた列）が書き換わっています。お送りしたファイルの行に戻してください。",
        ))  # fmt: skip
        return
    column = changed(table, keys, number, row, items)
    if column is not None:
        reading.refused.add(name)
        reading.problems.append(problem(
            table, number, column, "JI-SHEET-008", "not the text that was sent; the row is not read",
            "質問・回答・隠れた列のどれかが、お送りしたものから変わっています。元に戻してください。",
        ))  # fmt: skip
        return
    found = entry(table, heading, number, len(row.shown), reading)
    if found is None:
        reading.refused.add(name)
        return
    other = reading.entries.get(name)
    if other is None or other.state == "empty":
        reading.entries[name] = found
    elif found.state != "empty" and found != other:
        reading.refused.add(name)
        reading.problems.append(problem(
            table, number, keys.get("verdict", keys.get("rank_a", 0)), "JI-SHEET-009",
            f"the same row is filled in otherwise at {other.where}; keep one of the two files",
            f"同じ行が {other.where} では別のように記入されています。どちらか一方のファイルを残してください。",
        ))  # fmt: skip


def changed(table, keys: Mapping[str, int], number: int, row: study_lib.Row, items) -> int | None:
    """The column of the first text that is not as it was sent; None when all are."""
    cells_of_row = table.rows[number]
    wanted = dict(
        zip(
            ("prompt", *(f"answer_{c}" for c in study_lib.LETTERS.lower())),
            study_lib.row_texts(items, row),
        )
    )
    same = cells.through_cp932 if table.cp932 else lambda text: cells.digest([text])
    for key, sent in wanted.items():
        if key not in keys or same(text(_at(cells_of_row, keys[key]) or "")) != same(sent):
            return keys.get(key, 0)
    check = text(_at(cells_of_row, keys[columns_lib.CHECK]) or "")
    return None if check == study_lib.row_digest(items, row) else keys[columns_lib.CHECK]
