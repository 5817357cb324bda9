"""Columns of a rating sheet: what each holds, how it is headed, and under which other headings it is known.

A heading has two lines, the upper one merged over the columns of an axis, as raters in Japan are used to:

    番号 | 質問 | A | Aのコメント | B | Bのコメント | 流暢性 (A, B) | 正確性 (A, B) | … | 優劣 | コメント
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from jinstr.human import judgements, study

SHEET = "評価"
ROW_ID, CHECK = "row_id", "check"  # the hidden columns


class Column(NamedTuple):
    """A column; `key` is its meaning: prompt, answer_a, comment_a, fluency_a, rank_a, verdict, comment, …"""

    key: str
    upper: str
    lower: str = ""

    @property
    def kind(self) -> str:
        """number | text | score | rank | verdict | comment | hidden"""
        if self.key in (ROW_ID, CHECK):
            return "hidden"
        name = self.key.partition("_")[0]
        if name in judgements.AXES:
            return "score"
        return {"prompt": "text", "aid": "text", "answer": "text"}.get(name, name)

    @property
    def is_filled_in(self) -> bool:
        return self.kind in ("score", "rank", "verdict", "comment")


def columns(mode: str, answers: int, with_aid: bool) -> list[Column]:
    """The columns of a sheet with so many answers in a row."""
    letters = study.LETTERS[:answers]
    found = [Column("number", "番号"), Column("prompt", "質問")]
    if with_aid:
        found.append(Column("aid", "参考"))
    for letter in letters:
        found.append(Column(f"answer_{letter.lower()}", letter))
        if mode == "ab":
            found.append(Column(f"comment_{letter.lower()}", f"{letter}のコメント"))
    marks = judgements.AXES if mode == "ab" else {"rank": "順位"}
    for key, name in marks.items():
        found += [Column(f"{key}_{letter.lower()}", name, letter) for letter in letters]
    if mode == "ab":
        found.append(Column("verdict", "優劣"))
    return [*found, Column("comment", "コメント"), Column(ROW_ID, ROW_ID), Column(CHECK, CHECK)]


_MARKS = {
    "fluency": "流暢性 流暢さ 流ちょう性 流ちょうさ fluency fluent",
    "accuracy": "正確性 正確さ accuracy accurate",
    "detail": "詳細性 詳細さ 詳しさ detailed detail details",
    "relevance": "関連性 関連度 適合性 relevance relevant relevancy",
    "rank": "順位 ランク rank",
}
_PLAIN = {
    "number": "番号 通し番号 no no. # 行番号",
    "prompt": "prompt プロンプト 質問 質問文 指示 指示文 設問 問題 question",
    "aid": "参考 観点 採点の観点 正解例 模範解答 参考回答",
    "verdict": "優劣 優劣判定 判定 勝敗 総合判定 総合評価 verdict winner preference",
    "comment": "コメント 備考 全体コメント 全体のコメント 総評 comment comments",
    ROW_ID: ROW_ID,
    CHECK: CHECK,
}


def _known() -> dict[str, str]:
    """Heading, as `_plain` makes it, → key."""
    found = {_plain(word): key for key, words in _PLAIN.items() for word in words.split()}
    for letter in study.LETTERS.lower():
        for pattern in ("{}", "回答{}", "{}の回答", "{}回答", "応答{}", "モデル{}", "answer{}"):
            found[pattern.format(letter)] = f"answer_{letter}"
        for pattern in ("{}コメント", "{}のコメント", "コメント{}", "{}へのコメント", "comment{}"):
            found[pattern.format(letter)] = f"comment_{letter}"
        for key, words in _MARKS.items():
            for word in words.split():
                found |= {
                    f"{word}{letter}": f"{key}_{letter}",
                    f"{letter}{word}": f"{key}_{letter}",
                }
                found[f"{letter}の{word}"] = f"{key}_{letter}"
    return found


def _plain(text: object) -> str:
    """A heading without differences of width, case, spaces and brackets."""
    return re.sub(r"[\s()\[\]「」【】:_]+", "", unicodedata.normalize("NFKC", str(text)).casefold())


KNOWN = _known()


class Heading(NamedTuple):
    """Where a sheet's columns are."""

    keys: dict[str, int]  # key → index of the column
    rows: tuple[int, ...]  # indices of the lines of the heading
    unknown: list[tuple[int, str]]  # columns whose heading is not known
    twice: list[tuple[int, str]]  # columns whose heading was there before


def heading(rows: Sequence[Sequence[object]]) -> Heading | None:
    """The heading of a table, found in its first ten rows; None for a table that is no rating sheet."""
    for number in range(min(10, len(rows))):
        upper = rows[number]
        lower = rows[number + 1] if number + 1 < len(rows) else ()
        for last in (lower, ()):  # two lines, or one
            found = _headed(number, upper, last)
            is_rated = any(key == "verdict" or key.startswith("rank_") for key in found.keys)
            if is_rated and {"prompt", "answer_a", "answer_b"} <= found.keys.keys():
                return found
    return None


def _headed(number: int, upper: Sequence[object], lower: Sequence[object]) -> Heading:
    keys: dict[str, int] = {}
    unknown, twice = [], []
    above = ""
    for index in range(max(len(upper), len(lower))):
        top = upper[index] if index < len(upper) else None
        below = lower[index] if index < len(lower) else None
        top, below = ("" if cell is None else str(cell).strip() for cell in (top, below))
        # Of merged cells only the first has the text.
        above = top or above
        name = (top or above) + below if below else top
        if not name:
            continue
        key = KNOWN.get(_plain(name))
        if key is None:
            unknown.append((index, name))
        elif key in keys:
            twice.append((index, name))
        else:
            keys[key] = index
    return Heading(keys, (number, number + 1) if lower else (number,), unknown, twice)
