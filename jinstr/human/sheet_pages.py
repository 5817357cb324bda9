"""The pages of a workbook that are there to be read: how to use it, the criteria, long texts in full."""

from __future__ import annotations

from collections.abc import Sequence

from openpyxl.utils import get_column_letter

from jinstr.human import criteria
from jinstr.human import sheet_columns as columns_lib
from jinstr.human import sheet_layout as layout_lib
from jinstr.human import sheet_looks as looks
from jinstr.human import study as study_lib

LONG = "長文"
_LONG_WIDTH = 76


def usage(book, layout: layout_lib.Layout, rater: str, count: int, has_long: bool) -> None:
    sheet = book.create_sheet("使い方")
    widths = (5, 96)
    looks.prepare(sheet, widths, landscape=False)
    letter = get_column_letter(_progress_column(layout.columns))
    last = layout_lib.FIRST - 1 + count
    done = f"COUNTA('{columns_lib.SHEET}'!{letter}{layout_lib.FIRST}:{letter}{last})"
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


def write_criteria(book, mode: str) -> None:
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


class Long:
    """Texts that do not fit into the tallest row, cut into pieces that do, one below the other."""

    def __init__(self, layout: layout_lib.Layout, rows: Sequence[study_lib.Row]):
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
            place = f"'{columns_lib.SHEET}'!A{layout_lib.FIRST - 1 + row.number}"
            for n in range(max(map(len, parts))):
                here = [part[n] if n < len(part) else None for part in parts]
                high = looks.height([(text, _LONG_WIDTH) for text in here])
                sheet.row_dimensions[self.begins[row.id] + n].height = high
                first = looks.link(sheet, row.number, "link", place) if n == 0 else None
                line = [first or looks.cell(sheet, None, "number")]
                sheet.append(line + [looks.cell(sheet, text, "text") for text in here])
