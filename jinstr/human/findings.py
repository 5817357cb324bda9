"""Measures of the constraints: whether a text satisfies one, and what was found, in Japanese for annotators.

A measure takes prepared text (`measures.prepared`) and the parameters by name, and returns (satisfied, found).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from jinstr.human import endings, measures, scripts

Finding = tuple[bool, str]


def _listed(found: Sequence[str], most: int = 3) -> str:
    """（「…」「…」ほか） with the first few of what was found, each cut to 20 characters; "" for nothing."""
    if not found:
        return ""
    cut = [word if len(word) <= 20 else word[:19] + "…" for word in found[:most]]
    return f"（{'、'.join(cut)}{'、ほか' if len(found) > most else ''}）"


def number(count: Callable[[str], int | Sequence[str]], unit: str, holds: Callable[..., bool]):
    """Measure: `holds(number found, **parameters)`."""

    def measure(text: str, **parameters: int) -> Finding:
        found = count(text)
        found = found if isinstance(found, int) else len(found)
        return holds(found, **parameters), f"{found}{unit}"

    return measure


def equals(found: int, n: int) -> bool:
    return found == n


def at_most(found: int, n: int) -> bool:
    return found <= n


def at_least(found: int, n: int) -> bool:
    return found >= n


def between(found: int, low: int, high: int) -> bool:
    return low <= found <= high


def none_of(find: Callable[[str], Sequence[str]], name: str):
    """Measure: nothing is found."""

    def measure(text: str) -> Finding:
        found = find(text)
        shown = _listed(list(dict.fromkeys(found)), most=5)
        return not found, f"{name}{len(found)}字{shown}" if found else f"{name}なし"

    return measure


def only(find: Callable[[str], Sequence[str]], name: str):
    """Measure: there are letters, and `find` sees no other than `name`."""

    def measure(text: str) -> Finding:
        others = find(text)
        shown = _listed(list(dict.fromkeys(others)), most=5)
        return not others, f"{name}以外{len(others)}字{shown}" if others else f"{name}のみ"

    return measure


def style(wanted: str, other: str):
    """Measure: at least one sentence in the wanted style and none in the other."""
    names = {"polite": "敬体", "plain": "常体"}

    def measure(text: str) -> Finding:
        by_style = {"polite": [], "plain": [], "": []}
        for style, sentence in endings.styles(text):
            by_style[style].append("…" + sentence[-12:] if len(sentence) > 13 else sentence)
        found = "、".join(f"{names[s]}の文{len(by_style[s])}" for s in (wanted, other))
        return bool(by_style[wanted]) and not by_style[other], found + _listed(by_style[other])

    return measure


def asks(text: str) -> Finding:
    sentences = measures.sentences(text)
    last = sentences[-1] if sentences else ""
    return endings.asks(last), f"最後の文は「{last[-20:]}」"


def in_japanese(text: str) -> Finding:
    share = scripts.japanese_share(text)
    return share >= scripts.JAPANESE_SHARE, f"日本語の割合{share:.0%}"


def contains(text: str, word: str) -> Finding:
    count = measures.occurrences(text, word)
    return count > 0, f"{count}回"


def excludes(text: str, word: str) -> Finding:
    count = measures.occurrences(text, word)
    return count == 0, f"{count}回"


def word_times(text: str, word: str, n: int) -> Finding:
    count = measures.occurrences(text, word)
    return count == n, f"{count}回"


def starts_with(text: str, start: str) -> Finding:
    """Width and case do not matter, nor do spaces before the text."""
    body = text.strip()
    return measures.same_width(body).startswith(measures.same_width(start)), f"「{body[:15]}」"


def ends_with(text: str, end: str) -> Finding:
    """As `starts_with`; 。 or ！ after the text do not matter unless the parameter ends with a mark itself."""
    body, wanted = measures.same_width(text.strip()), measures.same_width(end)
    return wanted in (
        body[-len(wanted) :],
        body.rstrip("。!.")[-len(wanted) :],
    ), f"「{body[-15:]}」"


def enclosed(text: str) -> Finding:
    """The first character is 「 and the last is the 」 that closes it; spaces around them do not matter."""
    body = text.strip()
    if measures.unwrapped(body) != body:
        return True, "全体が「」の中"
    return False, f"「{body[:8]}」で始まり「{body[-8:]}」で終わる"


def json_only(text: str) -> Finding:
    """The whole text is one JSON object or array; one code fence around it is taken away. NaN is none, nor is 3."""
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and "\n" in body:
        body = body.partition("\n")[2].removesuffix("```")

    def refuse(name: str):
        raise ValueError(f"{name}は使えない")

    try:
        value = json.loads(body, parse_constant=refuse)
    except json.JSONDecodeError as error:
        rest = body[error.pos : error.pos + 10]
        return False, f"「{rest}」の前でJSONとして読めない" if rest else "JSONの途中で終わる"
    except RecursionError:
        return False, "JSONの入れ子が深すぎる"
    except ValueError as error:  # NaN, and numbers of thousands of digits
        return False, f"JSONとして読めない（{error}）"
    return isinstance(value, dict | list), f"JSONの{type(value).__name__}"


def no_repeats(text: str) -> Finding:
    """Sentences of five letters or more are compared, without marks, spaces and width (はい。はい。 may be)."""
    seen: dict[str, int] = {}
    for sentence in measures.sentences(text):
        letters = scripts.letters(measures.same_width(sentence))
        if len(letters) >= 5:
            seen[letters] = seen.get(letters, 0) + 1
    repeated = [letters for letters, count in seen.items() if count > 1]
    return not repeated, f"繰り返し{len(repeated)}文{_listed(repeated)}"
