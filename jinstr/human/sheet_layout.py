"""What the workbooks of a study have in common: columns, widths, the texts of every row, and what fits no cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from openpyxl.utils import get_column_letter

from jinstr.human import cells
from jinstr.human import sheet_columns as columns_lib
from jinstr.human import sheet_looks as looks
from jinstr.human import study as study_lib

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


class Layout:
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
