"""Workbooks for raters: how to use it, the criteria, the rows to rate, and long texts in full.

Every text of a model or a prompt is written as a string, whatever it looks like; nothing in a file tells a model.
The same study gives the same bytes.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import openpyxl
from openpyxl import styles
from openpyxl.cell import WriteOnlyCell
from openpyxl.formatting import rule
from openpyxl.utils import get_column_letter
from openpyxl.worksheet import datavalidation

from jinstr import errors
from jinstr.human import cells, criteria
from jinstr.human import sheet_columns as columns_lib
from jinstr.human import sheet_looks as looks
from jinstr.human import study as study_lib

FIRST = 3  # row of the first prompt: the heading has two lines
_WIDTHS = {
    "number": 6,
    "prompt": 36,
    "aid": 34,
    "comment": 26,
    "score": 6,
    "rank": 6,
    "verdict": 11,
    "hidden": 14,
}
_ANSWER_WIDTHS = (44, 52, 60, 68, 76, 84)


def write_all(folder, study: study_lib.Study) -> list[pathlib.Path]:
    """One workbook for each rater, in FOLDER/sheets. Errors: DataError naming every cell that cannot be written."""
    layout = _Layout(study)
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
    for rater in study.raters:
        data = workbook(layout, rater)
        paths.append(sheets / f"{rater}.xlsx")
        part = paths[-1].with_suffix(".part")
        part.write_bytes(data)
        part.replace(paths[-1])
    return paths


class _Layout:
    """What the sheets of a study have in common."""

    def __init__(self, study: study_lib.Study):
        self.study = study
        self.items: Mapping[str, study_lib.Item] = study.item_of
        self.most = max(len(row.shown) for row in study.rows)
        self.aids = {item.id: study_lib.aid_text(item) for item in study.items}
        self.columns = columns_lib.columns(study.mode, self.most, any(self.aids.values()))
        self.rows = {rater: [] for rater in study.raters}
        for row in study.rows:
            self.rows[row.rater].append(row)
        texts = [study_lib.answer_text(i, model) for i in study.items for model in i.answers]
        self.answer_width = _answer_width(texts, _ANSWER_WIDTHS[: 6 if self.most == 2 else 3])

    def width(self, column: columns_lib.Column) -> int:
        if column.key.startswith("answer_"):
            return self.answer_width
        return _WIDTHS.get(column.key) or _WIDTHS[column.kind]

    def texts(self, row: study_lib.Row) -> dict[str, str]:
        """key → text of the cells of a row that are there to be read."""
        item = self.items[row.item]
        found = {"prompt": study_lib.prompt_text(item), "aid": self.aids[item.id]}
        for letter, model in zip(study_lib.LETTERS.lower(), row.shown):
            found[f"answer_{letter}"] = study_lib.answer_text(item, model)
        return found

    def faults(self) -> Iterator[str]:
        """Where a text cannot be written."""
        place = {column.key: get_column_letter(n) for n, column in enumerate(self.columns, 1)}
        known: dict[str, str] = {}
        for row in self.study.rows:
            models = dict(zip((f"answer_{c}" for c in study_lib.LETTERS.lower()), row.shown))
            for key, text in self.texts(row).items():
                if text not in known:
                    known[text] = cells.fault(text)
                if known[text]:
                    of = f"answer of {models[key]}" if key in models else key
                    yield (
                        f"sheets/{row.rater}.xlsx {columns_lib.SHEET}!{place[key]}{FIRST - 1 + row.number}: "
                        f"{known[text]} (prompt {row.item}, {of})"
                    )


def _answer_width(texts: Sequence[str], widths: Sequence[int]) -> int:
    """The least width at which 19 of 20 texts are seen in full, or the greatest."""
    for width in widths:
        high = sorted(looks.lines_of(text, width) for text in texts)
        if high[int(0.95 * (len(high) - 1))] <= looks.TALLEST:
            return width
    return widths[-1]


def workbook(layout: _Layout, rater: str) -> bytes:
    """The bytes of one rater's workbook."""
    book = openpyxl.Workbook(write_only=True)
    for style in looks.all_styles():
        book.add_named_style(style)
    rows = layout.rows[rater]
    _usage(book, layout, rater, len(rows))
    _criteria(book, layout.study.mode)
    long = list(_rating(book, layout, rows))
    if long:
        _long_texts(book, layout, long)
    data = io.BytesIO()
    book.save(data)
    return looks.timeless(data)


def _usage(book, layout: _Layout, rater: str, count: int) -> None:
    sheet = book.create_sheet("使い方")
    widths = (5, 96)
    looks.prepare(sheet, widths, landscape=False)
    letter = get_column_letter(_progress_column(layout.columns))
    done = f"COUNTA({columns_lib.SHEET}!{letter}{FIRST}:{letter}{FIRST - 1 + count})"
    is_ab = layout.study.mode == "ab"
    uses = (*(criteria.USE_AB if is_ab else criteria.USE_RANK), *criteria.USE_ALWAYS)
    rows = [
        [("回答の評価のお願い", "title")],
        [None, (f"評価者：{rater}", "body")],
        [],
        *([(f"{number}", "count"), (text, "body")] for number, text in enumerate(uses, 1)),
        [],
        [None, (f"評価基準 第{criteria.VERSION}版", "note")],
    ]
    looks.fill(sheet, rows, widths)
    progress = WriteOnlyCell(sheet, value=f'="記入の済んだ行：" & {done} & " ／ {count}行"')
    progress.style = "section"
    sheet.append([None, progress])


def _progress_column(columns: Sequence[columns_lib.Column]) -> int:
    """Number of the column whose filled cells are counted."""
    return next(n for n, c in enumerate(columns, 1) if c.kind in ("verdict", "rank"))


def _criteria(book, mode: str) -> None:
    sheet = book.create_sheet("評価基準")
    widths = (14, 74, 38)
    looks.prepare(sheet, widths, landscape=False)
    rows: list[list] = [[(f"評価基準（第{criteria.VERSION}版）", "title")]]
    if mode == "ab":
        rows += [[(text, "note")] for text in criteria.ON_SCORES]
        for axis in criteria.AXES:
            rows += [[], [(f"{axis.name}　{axis.asks}", "section")], [(axis.note, "note")]]
            rows.append([("点", "heading"), ("めやす", "heading")])
            for point, text in zip((5, 4, 3, 2, 1), axis.points):
                rows.append([(point, "point"), (text, "cell")])
            rows += [[], [(f"例　質問「{axis.question}」", "note")]]
            for example in axis.examples:
                shown = (example.answer, "cell"), (f"→ {example.why}", "cell")
                rows.append([(f"{example.point}点の例", "point"), *shown])
    rows += [[], [("優劣" if mode == "ab" else "順位", "section")]]
    for name, text in criteria.VERDICT if mode == "ab" else criteria.RANK:
        rows.append([(name, "point"), (text, "cell")])
    rows += [[], [("決めるときの心得", "section")]]
    for number, text in enumerate(criteria.HOW_TO_DECIDE, 1):
        rows.append([(number, "point"), (text, "cell")])
    looks.fill(sheet, rows, widths)


def _rating(book, layout: _Layout, rows: Sequence[study_lib.Row]) -> Iterator[study_lib.Row]:
    """Write the sheet to fill in; yields the rows with a text that cannot be seen in full."""
    sheet = book.create_sheet(columns_lib.SHEET)
    columns = layout.columns
    looks.prepare(sheet, [layout.width(column) for column in columns], landscape=True)
    sheet.freeze_panes = f"C{FIRST}"
    sheet.print_title_rows = f"1:{FIRST - 1}"
    for number, column in enumerate(columns, 1):
        if column.kind == "hidden":
            sheet.column_dimensions[get_column_letter(number)].hidden = True
    last = FIRST - 1 + len(rows)
    _heading(sheet, columns)
    _entries(sheet, columns, last, layout.most)
    for number, row in enumerate(rows, FIRST):
        texts = layout.texts(row)
        held = [(texts[c.key], layout.width(c)) for c in columns if c.key in texts]
        sheet.row_dimensions[number].height = looks.height(held)
        fixed: dict[str, object] = texts | {
            "number": row.number,
            columns_lib.ROW_ID: row.id,
            columns_lib.CHECK: study_lib.row_digest(layout.items, row),
        }
        sheet.append([looks.cell(sheet, fixed.get(c.key), _style_of(c)) for c in columns])
        if any(looks.lines_of(text, width) > looks.TALLEST for text, width in held):
            yield row


def _style_of(column: columns_lib.Column) -> str:
    return "score" if column.kind == "rank" else column.kind


def _heading(sheet, columns: Sequence[columns_lib.Column]) -> None:
    """Two lines; columns of one axis share the upper cell, others are as high as both."""
    start = 0
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
        area = f"{letter}{FIRST}:{letter}{last}"
        filled = rule.FormulaRule(formula=[f"LEN({letter}{FIRST})>0"], fill=white)
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


def _long_texts(book, layout: _Layout, rows: Sequence[study_lib.Row]) -> None:
    """Texts that do not fit into the tallest row, cut into pieces that do, one below the other."""
    sheet = book.create_sheet("長文")
    shown = [c for c in layout.columns if c.kind == "text" and c.key != "aid"]
    width = _ANSWER_WIDTHS[-1] if layout.most == 2 else _ANSWER_WIDTHS[2]
    looks.prepare(sheet, [6, *[width] * len(shown)], landscape=True)
    sheet.freeze_panes = "B2"
    sheet.append([looks.cell(sheet, c, "heading") for c in ("番号", *(c.upper for c in shown))])
    count = 1
    for row in rows:
        texts = layout.texts(row)
        parts = [looks.pieces(texts.get(column.key, ""), width) for column in shown]
        for number in range(max(map(len, parts))):
            texts_here = [part[number] if number < len(part) else None for part in parts]
            count += 1
            sheet.row_dimensions[count].height = looks.height(
                [(text, width) for text in texts_here]
            )
            line = [looks.cell(sheet, row.number if number == 0 else None, "number")]
            sheet.append(line + [looks.cell(sheet, text, "text") for text in texts_here])
