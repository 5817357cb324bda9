"""Workbooks for raters: how to use it, the criteria, the rows to rate, and long texts in full.

Every text of a model or a prompt is written as a string, whatever it looks like; nothing in a file tells a model.
The same study gives the same bytes.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence

import openpyxl
from openpyxl import styles
from openpyxl.formatting import rule
from openpyxl.utils import get_column_letter
from openpyxl.worksheet import datavalidation
from tqdm import tqdm

from jinstr import errors
from jinstr.human import cells, criteria
from jinstr.human import sheet_columns as columns_lib
from jinstr.human import sheet_layout as layout_lib
from jinstr.human import sheet_looks as looks
from jinstr.human import sheet_pages as pages
from jinstr.human import study as study_lib


def write_all(folder, study: study_lib.Study) -> list[pathlib.Path]:
    """One workbook for each rater, in FOLDER/sheets. Errors: DataError naming every cell that cannot be written."""
    layout = layout_lib.Layout(study)
    found = list(layout.faults())
    if found:
        raise errors.DataError(
            "JI-SHEET-001",
            f"{len(found)} cells cannot be written; leave these prompts out or shorten the texts: "
            + "; ".join(found[:20])
            + ("; …" if len(found) > 20 else ""),
        )
    sheets = pathlib.Path(folder) / "sheets"
    sheets.mkdir(parents=True, exist_ok=True)
    paths = []
    for rater in tqdm(study.raters, desc="workbooks", unit="file", disable=None):
        data = workbook(layout, rater)
        paths.append(sheets / f"{rater}.xlsx")
        part = paths[-1].with_suffix(".part")
        part.write_bytes(data)
        part.replace(paths[-1])
    return paths


def workbook(layout: layout_lib.Layout, rater: str) -> bytes:
    """The bytes of one rater's workbook."""
    book = openpyxl.Workbook(write_only=True)
    for style in looks.all_styles():
        book.add_named_style(style)
    rows = layout.rows[rater]
    long = pages.Long(layout, rows)
    pages.usage(book, layout, rater, len(rows), bool(long.begins))
    pages.write_criteria(book, layout.study.mode)
    _rating(book, layout, rows, long.begins)
    if long.begins:
        long.write(book)
    data = io.BytesIO()
    book.save(data)
    return looks.timeless(data)


def _rating(
    book, layout: layout_lib.Layout, rows: Sequence[study_lib.Row], long: Mapping[str, int]
) -> None:
    """The sheet to fill in. long: id of a row → row of the sheet that has its texts in full."""
    sheet = book.create_sheet(columns_lib.SHEET)
    columns = layout.columns
    looks.prepare(sheet, [layout.width(column) for column in columns], landscape=True)
    sheet.freeze_panes = f"C{layout_lib.FIRST}"
    sheet.print_title_rows = f"1:{layout_lib.FIRST - 1}"
    for number, column in enumerate(columns, 1):
        if column.kind == "hidden":
            sheet.column_dimensions[get_column_letter(number)].hidden = True
    _heading(sheet, columns)
    _entries(sheet, columns, layout_lib.FIRST - 1 + len(rows), layout.most)
    for number, row in enumerate(rows, layout_lib.FIRST):
        texts = layout.texts(row)
        sheet.row_dimensions[number].height = looks.height(
            [(texts[c.key], layout.width(c)) for c in columns if c.key in texts]
        )
        fixed: dict[str, object] = texts | {
            "number": row.number,
            columns_lib.ROW_ID: row.id,
            columns_lib.CHECK: study_lib.row_digest(layout.items, row),
        }
        made = [looks.cell(sheet, fixed.get(c.key), _style_of(c)) for c in columns]
        if row.id in long:
            made[0] = looks.link(sheet, row.number, "link", f"'{pages.LONG}'!A{long[row.id]}")
        sheet.append(made)


def _style_of(column: columns_lib.Column) -> str:
    return "score" if column.kind == "rank" else column.kind


def _heading(sheet, columns: Sequence[columns_lib.Column]) -> None:
    """Two lines; columns of one axis share the upper cell, others are as high as both."""
    for index, column in enumerate(columns):
        if not column.lower:
            sheet.merged_cells.add(
                f"{get_column_letter(index + 1)}1:{get_column_letter(index + 1)}2"
            )
        elif index + 1 == len(columns) or columns[index + 1].upper != column.upper:
            start = next(n for n, c in enumerate(columns) if c.upper == column.upper)
            sheet.merged_cells.add(
                f"{get_column_letter(start + 1)}1:{get_column_letter(index + 1)}1"
            )
    firsts = [
        n == 0 or not c.lower or columns[n - 1].upper != c.upper for n, c in enumerate(columns)
    ]
    upper = [c.upper if first else None for c, first in zip(columns, firsts)]
    sheet.row_dimensions[1].height = sheet.row_dimensions[2].height = 22
    sheet.append([looks.cell(sheet, text, "heading") for text in upper])
    sheet.append([looks.cell(sheet, column.lower or None, "heading") for column in columns])


def _entries(sheet, columns: Sequence[columns_lib.Column], last: int, most: int) -> None:
    """Drop-down lists, input in the right kind of letters, and colours that go when a cell is filled in."""
    asks = {axis.key: axis for axis in criteria.AXES}
    white = styles.PatternFill("solid", bgColor="FFFFFF", fgColor="FFFFFF")
    for number, column in enumerate(columns, 1):
        if not column.is_filled_in:
            continue
        letter = get_column_letter(number)
        area = f"{letter}{layout_lib.FIRST}:{letter}{last}"
        filled = rule.FormulaRule(formula=[f"LEN({letter}{layout_lib.FIRST})>0"], fill=white)
        sheet.conditional_formatting.add(area, filled)
        if column.kind == "comment":
            check = datavalidation.DataValidation(allow_blank=True, imeMode="hiragana")
        else:
            words = {"score": "1,2,3,4,5", "verdict": f"A,B,{cells.TIE}"}
            words["rank"] = ",".join(map(str, range(1, most + 1)))
            check = datavalidation.DataValidation(
                type="list",
                formula1=f'"{words[column.kind]}"',
                allow_blank=True,
                imeMode="off",
                errorTitle="記入をお確かめください",
                error=f"{words[column.kind].replace(',', '・')} から選んでください。",
            )
            check.showErrorMessage = True
            axis = asks.get(column.key.partition("_")[0])
            if axis:
                check.promptTitle = f"{axis.name}（{column.lower}）"
                check.prompt = f"{axis.asks}\n5＝とてもよい　3＝ふつう　1＝とても悪い"
                check.showInputMessage = True
        check.add(area)
        sheet.data_validations.append(check)
