"""Tables out of the files that raters send back: workbooks of Excel or LibreOffice, and CSV of either."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
from typing import NamedTuple
from xml.etree import ElementTree

from openpyxl.cell.text import Text
from openpyxl.reader import excel
from openpyxl.utils import get_column_letter
from openpyxl.xml import constants

from jinstr.human import cells

SUFFIXES = (".xlsx", ".xlsm", ".csv")


class Odd(NamedTuple):
    """A cell that holds no text and no number."""

    what: str  # formula | date | error
    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """One sheet; values are str (line ends \\n, never ""), int, float, bool, Odd or None."""

    file: str
    sheet: str  # "" for CSV
    rows: list[list[object]]
    cp932: bool = False

    def cell(self, row: int, column: int) -> str:
        """Address of a cell, indices from 0."""
        return f"{get_column_letter(column + 1)}{row + 1}"

    def where(self, row: int, column: int) -> str:
        sheet = f"{self.sheet}!" if self.sheet else ""
        return f"{self.file} {sheet}{self.cell(row, column)}"


class UnreadableError(Exception):
    """A file that is no table: (English, Japanese)."""


def files_of(folders: str) -> tuple[list[pathlib.Path], list[str]]:
    """(files to read, names left alone) of files and folders, comma separated; lock files of open workbooks are not
    mentioned. Errors: FileNotFoundError."""
    found, others = [], []
    for name in filter(None, (part.strip() for part in folders.split(","))):
        path = pathlib.Path(name).expanduser()
        if not path.exists():
            raise FileNotFoundError(name)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_dir() or file.name.startswith(("~$", ".")):
                continue
            (found if file.suffix.lower() in SUFFIXES else others).append(file)
    return list(dict.fromkeys(found)), [str(file) for file in others]


def tables(path: pathlib.Path, name: str) -> list[Table]:
    """The sheets of a file, called `name` in messages. Errors: UnreadableError."""
    if path.suffix.lower() == ".csv":
        return [_csv(path, name)]
    try:
        reader = _Reader(path, read_only=True)
        with reader.archive:
            reader.read()
            found = []
            for sheet in reader.wb.worksheets:
                # Some programs say a sheet is one cell large.
                sheet.reset_dimensions()
                rows = [[_value(cell) for cell in row] for row in sheet.iter_rows()]
                found.append(Table(name, sheet.title, rows))
            return found
    # openpyxl raises whatever it stumbles over in a damaged file, and the other files are to be read.
    except Exception as error:
        raise UnreadableError(
            f"not a workbook ({type(error).__name__}: {error}); save it as .xlsx without a password",
            "Excelのファイルとして読めません。パスワードをかけずに .xlsx の形式で保存してください。",
        ) from error


class _Reader(excel.ExcelReader):
    """openpyxl's reader, but shared strings keep their escapes: it deletes "x005F_" wherever that stands."""

    def read_strings(self) -> None:
        part = self.package.find(constants.SHARED_STRINGS)
        if part is None:
            return
        with self.archive.open(part.PartName[1:]) as source:
            for _, node in ElementTree.iterparse(source):
                if node.tag == f"{{{constants.SHEET_MAIN_NS}}}si":
                    self.shared_strings.append(Text.from_tree(node).content)
                    node.clear()


def _value(cell) -> object:
    value, kind = cell.value, cell.data_type
    if value is None:
        return None
    if kind == "f":
        return Odd("formula", str(getattr(value, "text", value)))
    if kind == "e":
        return Odd("error", str(value))
    if kind == "d":
        return Odd("date", str(value))
    if isinstance(value, str):
        return cells.unescaped(value) or None
    return value


def _csv(path: pathlib.Path, name: str) -> Table:
    """A CSV file in UTF-8, or else in CP932, as Excel writes it; bytes that are neither become U+FFFD."""
    data = path.read_bytes()
    try:
        text, is_old = data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        text, is_old = data.decode("cp932", "replace"), True
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UnreadableError(
            f"not a CSV file: {error}", f"CSVのファイルとして読めません（{error}）。"
        ) from None
    return Table(name, "", [[cells.lines(cell) or None for cell in row] for row in rows], is_old)
