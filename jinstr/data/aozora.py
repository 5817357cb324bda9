"""Aozora Bunko text files: Shift_JIS, ruby, editors' notes, a head between dashed lines and a foot from 底本."""

from __future__ import annotations

import re

_DASHES = re.compile(r"^-{20,}$", re.MULTILINE)
_FOOT = re.compile(r"^底本[：:]", re.MULTILINE)
_RUBY = re.compile(r"《[^》\n]*》")
_ACCENT = re.compile(r"〔([^〕\n]*)〕")
# ※［＃「てへん＋劣」、第3水準1-84-77］ names a character by description or code point.
_GAIJI = re.compile(r"※［＃([^］\n]*)］")
_CODE = re.compile(r"U\+([0-9A-Fa-f]{4,6})")
_PLANE = re.compile(r"第[34]水準([12])-(\d{1,2})-(\d{1,2})")
_NOTE = re.compile(r"［＃[^］\n]*］")
_BLANKS = re.compile(r"\n{3,}")
MISSING = "〓"  # the printers' mark for a character that is not at hand


def _character(note: re.Match) -> str:
    """The character that a gaiji note names, by Unicode or JIS X 0213 place; 〓 when it cannot be told."""
    if code := _CODE.search(note[1]):
        return chr(int(code[1], 16))
    if place := _PLANE.search(note[1]):
        plane, row, cell = map(int, place.groups())
        lead = b"\x8f" if plane == 2 else b""
        try:
            return (lead + bytes([row + 0xA0, cell + 0xA0])).decode("euc_jisx0213")
        except (UnicodeDecodeError, ValueError):
            return MISSING
    return MISSING


def is_aozora(text: str) -> bool:
    """Whether a text carries the head or foot of an Aozora file."""
    return "青空文庫" in text[-4000:] and bool(_FOOT.search(text))


def split_head(text: str) -> tuple[dict[str, str], str]:
    """(title and author, body) of a file whose head is cut off."""
    lines = text.split("\n")
    names = []
    while lines and lines[0].strip():
        names.append(lines.pop(0).strip())
    facts = {"title": names[0], "author": names[-1]} if len(names) >= 2 else {}
    rest = "\n".join(lines)
    borders = list(_DASHES.finditer(rest))
    if len(borders) >= 2 and borders[0].start() < 2000:
        rest = rest[borders[1].end() :]
    return facts, rest


def clean(text: str) -> tuple[dict[str, str], str]:
    """({"title", "author"}, the work as it is read): no ruby, notes, head or foot; gaiji as characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    foot = list(_FOOT.finditer(text))
    if foot:
        text = text[: foot[-1].start()]
    facts, body = split_head(text)
    body = _GAIJI.sub(_character, body)
    body = _NOTE.sub("", body)
    body = _RUBY.sub("", body).replace("｜", "")
    body = _ACCENT.sub(r"\1", body)
    return facts, _BLANKS.sub("\n\n", body).strip("\n") + "\n"
