"""What models wrote, read as predictions. The names say whose rule it is."""

from __future__ import annotations

import re
import unicodedata

NO_NUMBER = "[invalid]"
NO_SIMILARITY = "-2.0"  # outside the scale, so a text without a number costs correlation
_NUMBER = re.compile(r"(\-?[0-9\.\,]+)")


def first_paragraph(text: str) -> str:
    """llm-jp-eval 1.x: what stands before the first empty line, without spaces at the ends, after NFKC."""
    return unicodedata.normalize("NFKC", text.split("\n\n")[0].strip())


def first_line(text: str) -> str:
    """JP LM evaluation harness: generation ends at the first newline. No NFKC."""
    return text.split("\n")[0]


def last_number_harness(text: str) -> str:
    """MGSM of the JP LM evaluation harness: the last run of digits, points and commas, as an integer.

    Points at the ends and all commas fall away; a number with decimals, or none, is "[invalid]". No NFKC: full-width
    digits and kanji numerals are no digits there. What the harness fails on (1.2.3, a comma alone) is "[invalid]" here.
    """
    found = _NUMBER.findall(text)
    if not found:
        return NO_NUMBER
    try:
        number = float(found[-1].strip(".").replace(",", ""))
    except ValueError:
        return NO_NUMBER
    return str(int(number)) if number.is_integer() else NO_NUMBER


def similarity_llm_jp_eval(text: str) -> str:
    """JSTS of llm-jp-eval: the first paragraph without all that is no digit or point, as a number; else -2.0.

    After NFKC, so full-width digits count; kanji numerals do not, and a minus sign falls away.
    """
    digits = re.sub(r"[^0-9.]", "", first_paragraph(text))
    try:
        return str(float(digits))
    except ValueError:
        return NO_SIMILARITY
