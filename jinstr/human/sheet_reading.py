"""What raters filled in: entries of rows, with every cell that cannot be understood named by its address.

A row with a cell that means nothing, or with a text that was changed, is refused, alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tqdm import tqdm

from jinstr.human import cells, sheet_tables
from jinstr.human import sheet_columns as columns_lib
from jinstr.human import sheet_entries as entries
from jinstr.human import study as study_lib


def rating_tables(
    paths, reading: entries.Reading
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
            reading.problems.append(
                entries.Problem("JI-SHEET-002", str(path), "", "", "", *error.args)
            )


def _check_heading(table, heading: columns_lib.Heading, reading: entries.Reading) -> None:
    row = heading.rows[0]
    for column, name in heading.unknown:
        reading.problems.append(entries.problem(
            table, row, column, "JI-SHEET-003", f"the heading {name!r} is not known; the column is not read",
            f"見出し「{name}」がわからないため、この列は読みませんでした。",
        ))  # fmt: skip
    for column, name in heading.twice:
        reading.problems.append(entries.problem(
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


def read_study(study: study_lib.Study, paths) -> entries.Reading:
    """The entries of a study's sheets, told by the hidden id of each row."""
    reading = entries.Reading()
    rows = {row.id: row for row in study.rows}
    items = study.item_of
    for table, heading in rating_tables(paths, reading):
        if columns_lib.ROW_ID not in heading.keys or columns_lib.CHECK not in heading.keys:
            reading.problems.append(entries.Problem(
                "JI-SHEET-006", table.file, table.sheet, "", "",
                "the hidden columns row_id and check are gone; copy the entries into the sheet as it was sent",
                "隠れている列（row_id と check）がありません。お送りしたファイルに記入し直してください。",
            ))  # fmt: skip
            continue
        for number in range(heading.rows[-1] + 1, len(table.rows)):
            if not all(map(entries.is_blank, table.rows[number])):
                _read_row(table, heading, number, rows, items, reading)
    return reading


def _read_row(table, heading, number: int, rows, items, reading: entries.Reading) -> None:
    keys = heading.keys
    name = entries.text(entries.at(table.rows[number], keys[columns_lib.ROW_ID]) or "")
    row = rows.get(name)
    if row is None:
        reading.problems.append(entries.problem(
            table, number, keys[columns_lib.ROW_ID], "JI-SHEET-007", "no row of this study has this id; it was changed",
            "この行の番号（隠れた列）が書き換わっています。お送りしたファイルの行に戻してください。",
        ))  # fmt: skip
        return
    column = changed(table, keys, number, row, items)
    if column is not None:
        reading.refused.add(name)
        reading.problems.append(entries.problem(
            table, number, column, "JI-SHEET-008", "not the text that was sent; the row is not read",
            "質問・回答・隠れた列のどれかが、お送りしたものから変わっています。元に戻してください。",
        ))  # fmt: skip
        return
    found = entries.entry(table, heading, number, len(row.shown), reading)
    if found is None:
        reading.refused.add(name)
        return
    other = reading.entries.get(name)
    if other is None or other.state == "empty":
        reading.entries[name] = found
    elif found.state != "empty" and found != other:
        reading.refused.add(name)
        reading.problems.append(entries.problem(
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
    same = cells.through_cp932 if table.cp932 else lambda held: cells.digest([held])
    for key, sent in wanted.items():
        if key not in keys or same(entries.text(entries.at(cells_of_row, keys[key]) or "")) != same(
            sent
        ):
            return keys.get(key, 0)
    check = entries.text(entries.at(cells_of_row, keys[columns_lib.CHECK]) or "")
    return None if check == study_lib.row_digest(items, row) else keys[columns_lib.CHECK]
