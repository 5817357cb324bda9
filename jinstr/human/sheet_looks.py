"""How sheets look, and how a workbook is put into bytes: styles, heights of rows, texts as strings, no dates."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence

from openpyxl import styles
from openpyxl.cell import WriteOnlyCell
from openpyxl.utils import get_column_letter
from openpyxl.worksheet import hyperlink

from jinstr.human import cells

LINE_POINTS = 18.75  # height of a line of 11 points in the font below
TALLEST = 21  # lines in the tallest row that Excel has, 409 points
_FONT = "游ゴシック"
_LINE = styles.Side(style="thin", color="BFBFBF")
_BORDER = styles.Border(left=_LINE, right=_LINE, top=_LINE, bottom=_LINE)
_YELLOW, _GREY, _BLUE = "FFF9DB", "F5F5F2", "DCE6F0"
_UNWRAPPED = ("title", "section", "note", "count", "formula")
_DATE = (1980, 1, 1, 0, 0, 0)
_CORE = (
    '<?xml version="1.0" encoding="UTF-8"?><cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/'
    '2006/metadata/core-properties" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:creator>jinstr</dc:creator>'
    "</cp:coreProperties>"
)


def all_styles() -> Iterator[styles.NamedStyle]:
    """The looks of cells; `number_format` @ keeps what is typed there as text."""

    def style(
        name, *, colour=None, size=11, bold=False, across=None, locked=True, ink="222222", **more
    ):
        return styles.NamedStyle(
            name=name,
            font=styles.Font(name=_FONT, size=size, bold=bold, color=ink),
            fill=styles.PatternFill("solid", fgColor=colour) if colour else styles.PatternFill(),
            alignment=styles.Alignment(
                wrap_text=name not in _UNWRAPPED,
                vertical="center" if name in ("title", "section", "heading") else "top",
                horizontal=across,
            ),
            protection=styles.Protection(locked=locked),
            **more,
        )

    def box(name, **more):
        return style(name, border=_BORDER, **more)

    yield style("title", size=16, bold=True)
    yield style("section", size=13, bold=True, ink="1F4E79")
    yield style("formula", size=13, bold=True, ink="1F4E79")
    yield style("body")
    yield style("note", ink="555555")
    yield style("count", across="center", ink="1F4E79", bold=True)
    yield box("heading", colour=_BLUE, bold=True, across="center")
    yield box("number", colour=_GREY, across="center", ink="666666")
    yield box("link", colour=_GREY, across="center", ink="0563C1", bold=True)
    yield box("text", number_format="@")
    yield box("cell")
    yield box("point", across="center", bold=True)
    yield box("score", colour=_YELLOW, across="center", locked=False, size=12)
    yield box(
        "verdict",
        colour=_YELLOW,
        across="center",
        locked=False,
        size=12,
        bold=True,
        number_format="@",
    )
    yield box("comment", colour=_YELLOW, locked=False, number_format="@")
    yield style("hidden", number_format="@", ink="999999")


def cell(sheet, value, style: str) -> WriteOnlyCell:
    """A cell; text is a string, never a formula or an error code, but for the style "formula"."""
    is_text = isinstance(value, str) and style != "formula"
    made = WriteOnlyCell(sheet, value=cells.escaped(value) if is_text else value)
    if is_text:
        made.data_type = "s"
    made.style = style
    return made


def link(sheet, value, style: str, place: str) -> WriteOnlyCell:
    """A cell that leads to a place of the same workbook, such as '評価'!A3."""
    made = cell(sheet, value, style)
    made.hyperlink = hyperlink.Hyperlink(ref="", location=place)
    return made


def prepare(sheet, widths: Sequence[int], *, landscape: bool) -> None:
    """Widths, protection without a password, and a page that prints."""
    for number, width in enumerate(widths, 1):
        sheet.column_dimensions[get_column_letter(number)].width = width
    sheet.protection.sheet = True
    # False = not locked: raters may make rows and columns larger.
    sheet.protection.formatColumns = sheet.protection.formatRows = False
    sheet.sheet_view.showGridLines = False
    sheet.sheet_view.zoomScale = 85 if landscape else 100
    sheet.page_setup.orientation = "landscape" if landscape else "portrait"
    sheet.page_setup.paperSize = 8 if landscape else 9  # A3, A4
    sheet.page_setup.fitToHeight = 0
    sheet.sheet_properties.pageSetUpPr.fitToPage = True


def fill(sheet, rows: Sequence[Sequence[tuple | None]], widths: Sequence[int]) -> None:
    """Rows of (value, style), as high as what they hold; the style "formula" is for formulas of our own."""
    for number, row in enumerate(rows, 1):
        held = [(c[0], width) for c, width in zip(row, widths) if c and c[1] not in _UNWRAPPED]
        is_large = any(c and c[1] in ("title", "section", "formula") for c in row)
        sheet.row_dimensions[number].height = 30 if is_large else height(held)
        sheet.append([c and cell(sheet, *c) for c in row])


def height(held: Sequence[tuple[object, int]]) -> float:
    """Points that a row needs for (value, width of its column); no more than Excel has."""
    high = max([lines_of(str(value), width) for value, width in held if value is not None] or [1])
    return min(409.0, high * LINE_POINTS + 6)


def _columns_of(text: str) -> float:
    """Width of one line of text in digits of the font: at 11 points a kanji takes 15 pixels and a digit 8.

    What is not ASCII counts as wide, which makes a row too high at worst.
    """
    narrow = len(text.encode("ascii", "ignore"))
    return narrow + 1.9 * (len(text) - narrow)


def lines_of(text: str, width: int) -> int:
    """Lines that a text takes in a column of so many digits."""
    return sum(max(1, math.ceil(_columns_of(line) / (width - 1))) for line in text.split("\n"))


def pieces(text: str, width: int) -> list[str]:
    """The text cut at line ends, and within lines that are too long, into pieces that fit into the height of a cell."""
    found, held, high = [], [], 0
    most = TALLEST * (width - 1) // 2  # characters, if all are wide
    for line in cells.lines(text).split("\n"):
        for start in range(0, max(1, len(line)), most):
            part = line[start : start + most]
            lines = lines_of(part, width)
            if held and high + lines > TALLEST:
                found.append("\n".join(held))
                held, high = [], 0
            held.append(part)
            high += lines
    return [*found, "\n".join(held)]


def timeless(data: io.BytesIO) -> bytes:
    """The same archive without dates and the name of whoever made it."""
    out = io.BytesIO()
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            content = _CORE.encode() if name == "docProps/core.xml" else source.read(name)
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(info, content)
    return out.getvalue()
