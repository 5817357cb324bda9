"""Texts in cells of a workbook: what fits, what is written for it, what comes back, and what a rater may have meant.

A cell of Excel holds 32,767 UTF-16 units. `_x000D_` in a file means a carriage return, so that a text which holds
these seven characters is written `_x005F_x000D_` (ECMA-376 part 1, 22.9.2.19, ST_Xstring); XML has no way to write
other control characters, which are escaped likewise.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

LONGEST = 32_767  # UTF-16 units of one cell; openpyxl cuts what is longer and says nothing
TIE = "引き分け"

_ESCAPE = re.compile("_x([0-9A-Fa-f]{4})_")
_LOOKS_ESCAPED = re.compile("_(?=x[0-9A-Fa-f]{4}_)")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_NO_CHARACTER = re.compile("[\ud800-\udfff\ufffe\uffff]")

# After NFKC, without white space, brackets and punctuation, in small letters.
_VERDICTS = {
    "left": "a aの勝ち aの勝 aが勝ち a勝ち a勝 aが良い aがよい aがいい aの方が良い aのほうがよい 左 a>b b<a",
    "right": "b bの勝ち bの勝 bが勝ち b勝ち b勝 bが良い bがよい bがいい bの方が良い bのほうがよい 右 b>a a<b",
    "tie": (
        "引き分け 引分け 引分 引きわけ ひきわけ 引き分 ヒキワケ 同点 同等 同じ 同程度 互角 同じくらい 差なし "
        "差がない ドロー tie draw a=b b=a = どちらも どちらも同じ どちらも良い どちらもよい どちらもいい "
        "どちらも悪い どちらもわるい どちらも良くない どちらもよくない どちらとも "
        "どちらともいえない どちらとも言えない 両方 両方とも"
    ),
}
VERDICTS = {word: verdict for verdict, words in _VERDICTS.items() for word in words.split()}
_AROUND = re.compile(r"[\s「」『』()\[\]【】<>〈〉。、.,!?:;・]+")


def length(text: str) -> int:
    """UTF-16 units, which is how Excel counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def lines(text: str) -> str:
    """The text with every line end as \\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fault(text: str) -> str:
    """Why the text cannot stand in a cell; "" when it can."""
    if found := _NO_CHARACTER.search(text):
        return f"{found[0]!r} at character {found.start() + 1} is no character"
    written = length(escaped(text))
    if written > LONGEST:
        return f"{written:,} characters; a cell holds {LONGEST:,}"
    return ""


def escaped(text: str) -> str:
    """The text as a cell's XML holds it, line ends as \\n."""
    text = _LOOKS_ESCAPED.sub("_x005F_", lines(text))
    return _CONTROL.sub(lambda found: f"_x{ord(found[0]):04X}_", text)


def unescaped(text: str) -> str:
    """The text that a cell's XML stands for, line ends as \\n."""
    return lines(_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text))


def digest(texts: Iterable[str]) -> str:
    """A letter and 16 hex digits of texts; line ends, and control characters that programs may drop, do not count."""
    plain = [_CONTROL.sub("", lines(text)) for text in texts]
    joined = "".join(f"{len(text)}:{text}" for text in plain)
    return "t" + hashlib.sha256(joined.encode()).hexdigest()[:16]


def through_cp932(text: str) -> str:
    """What surely survives a CSV file that Excel wrote as CP932: it puts ? for characters that CP932 lacks."""
    kept = lines(text).encode("cp932", "ignore").decode("cp932")
    return kept.replace("?", "")


def plain(value: object) -> str:
    """An entry of an enumeration without differences of width, case and white space: ５ → 5, Ａ → a."""
    return "".join(unicodedata.normalize("NFKC", str(value)).split()).casefold()


def score(value: object, highest: int = 5) -> int | None:
    """A whole number from 1 to `highest`, also as 5.0, ５ or 5点; None for anything else."""
    if isinstance(value, bool):
        return None
    text = plain(value).removesuffix("点").removesuffix("位")
    text = re.sub(r"\.0+$", "", text)
    # isdecimal() is true of digits in other scripts as well; NFKC has made the full-width ones ASCII.
    if not (text.isascii() and text.isdecimal()):
        return None
    number = int(text) if len(text) < 4 else 0
    return number if 1 <= number <= highest else None


def verdict(value: object) -> str | None:
    """left, right or tie; None for what is none of the known ways to write them."""
    if isinstance(value, bool | int | float):
        return None
    text = plain(value)
    return VERDICTS.get(text) or VERDICTS.get(_AROUND.sub("", text))
