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
from openpyxl.formatting import rule
from openpyxl.utils import get_column_letter
from openpyxl.worksheet import datavalidation
from tqdm import tqdm

from jinstr import errors
from jinstr.human import cells, criteria
from jinstr.human import sheet_columns as columns_lib
from jinstr.human import sheet_looks as looks
from jinstr.human import study as study_lib

LONG = "長文"
FIRST = 3  # row of the first prompt: the heading has two lines
_WIDTHS = {
    "number": 6,
    "prompt": 36,
    "aid": 34,
    "comment": 22,
    "score": 6,
    "rank": 6,
    "verdict": 11,
    "hidden": 14,
}
_ANSWER_WIDTHS = (44, 52, 60, 68)
_LONG_WIDTH = 76


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
    for rater in tqdm(study.raters, desc="workbooks", unit="file", disable=None):
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
        self.answer_width = _answer_width(texts, _ANSWER_WIDTHS[: 4 if self.most == 2 else 2])

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
    """The least width at which nine of ten texts are seen in full, or the greatest."""
    for width in widths:
        high = sorted(looks.lines_of(text, width) for text in texts)
        if high[int(0.9 * (len(high) - 1))] <= looks.TALLEST:
            return width
    return widths[-1]


def workbook(layout: _Layout, rater: str) -> bytes:
    """The bytes of one rater's workbook."""
    book = openpyxl.Workbook(write_only=True)
    for style in looks.all_styles():
        book.add_named_style(style)
    rows = layout.rows[rater]
    long = _Long(layout, rows)
    _usage(book, layout, rater, len(rows), bool(long.begins))
    _criteria(book, layout.study.mode)
    _rating(book, layout, rows, long.begins)
    if long.begins:
        long.write(book)
    data = io.BytesIO()
    book.save(data)
    return looks.timeless(data)


def _usage(book, layout: _Layout, rater: str, count: int, has_long: bool) -> None:
    sheet = book.create_sheet("使い方")
    widths = (5, 96)
    looks.prepare(sheet, widths, landscape=False)
    letter = get_column_letter(_progress_column(layout.columns))
    done = f"COUNTA({columns_lib.SHEET}!{letter}{FIRST}:{letter}{FIRST - 1 + count})"
    is_ab = layout.study.mode == "ab"
    uses = [*(criteria.USE_AB if is_ab else criteria.USE_RANK)]
    uses += [*([criteria.USE_LONG] if has_long else []), *criteria.USE_ALWAYS]
    rows = [
        [("回答の評価のお願い", "title")],
        [None, (f"評価者：{rater}", "body")],
        [None, (f'="記入の済んだ行：" & {done} & " ／ {count}行"', "formula")],
        [],
        *([(f"{number}", "count"), (text, "body")] for number, text in enumerate(uses, 1)),
        [],
        [None, (f"評価基準 第{criteria.VERSION}版", "note")],
    ]
    looks.fill(sheet, rows, widths)


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
    else:
        rows += [[], [("読むときに見るところ", "section")]]
        rows += [[(axis.name, "point"), (axis.asks, "cell")] for axis in criteria.AXES]
    rows += [[], [("優劣" if mode == "ab" else "順位", "section")]]
    for name, text in criteria.VERDICT if mode == "ab" else criteria.RANK:
        rows.append([(name, "point"), (text, "cell")])
    rows += [[], [("決めるときの心得", "section")]]
    for number, text in enumerate(criteria.HOW_TO_DECIDE[mode], 1):
        rows.append([(number, "point"), (text, "cell")])
    looks.fill(sheet, rows, widths)


def _rating(book, layout: _Layout, rows: Sequence[study_lib.Row], long: Mapping[str, int]) -> None:
    """The sheet to fill in. long: id of a row → row of the sheet that has its texts in full."""
    sheet = book.create_sheet(columns_lib.SHEET)
    columns = layout.columns
    looks.prepare(sheet, [layout.width(column) for column in columns], landscape=True)
    sheet.freeze_panes = f"C{FIRST}"
    sheet.print_title_rows = f"1:{FIRST - 1}"
    for number, column in enumerate(columns, 1):
        if column.kind == "hidden":
            sheet.column_dimensions[get_column_letter(number)].hidden = True
    _heading(sheet, columns)
    _entries(sheet, columns, FIRST - 1 + len(rows), layout.most)
    for number, row in enumerate(rows, FIRST):
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
            made[0] = looks.link(sheet, row.number, "link", f"{LONG}!A{long[row.id]}")
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


class _Long:
    """Texts that do not fit into the tallest row, cut into pieces that do, one below the other."""

    def __init__(self, layout: _Layout, rows: Sequence[study_lib.Row]):
        self._columns = [c for c in layout.columns if c.kind == "text"]
        self._rows: list[tuple[study_lib.Row, list[list[str]]]] = []
        self.begins: dict[str, int] = {}  # id of a row → its first row here
        following = 2
        for row in rows:
            texts = layout.texts(row)
            here = [(texts.get(column.key, ""), layout.width(column)) for column in self._columns]
            if all(looks.lines_of(text, width) <= looks.TALLEST for text, width in here):
                continue
            parts = [looks.pieces(text, _LONG_WIDTH) for text, _ in here]
            self.begins[row.id] = following
            following += max(map(len, parts))
            self._rows.append((row, parts))

    def write(self, book) -> None:
        sheet = book.create_sheet(LONG)
        looks.prepare(sheet, [6, *[_LONG_WIDTH] * len(self._columns)], landscape=True)
        sheet.freeze_panes = "B2"
        names = ["番号", *(column.upper for column in self._columns)]
        sheet.append([looks.cell(sheet, name, "heading") for name in names])
        for row, parts in self._rows:
            place = f"{columns_lib.SHEET}!A{FIRST - 1 + row.number}"
            for n in range(max(map(len, parts))):
                here = [part[n] if n < len(part) else None for part in parts]
                high = looks.height([(text, _LONG_WIDTH) for text in here])
                sheet.row_dimensions[self.begins[row.id] + n].height = high
                first = looks.link(sheet, row.number, "link", place) if n == 0 else None
                line = [first or looks.cell(sheet, None, "number")]
                sheet.append(line + [looks.cell(sheet, text, "text") for text in here])
