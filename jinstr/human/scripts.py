"""Which script a character belongs to: hiragana, katakana, kanji, Latin letters, digits, emoji."""

from __future__ import annotations

import re
import unicodedata

JAPANESE_SHARE = 0.7
_HIRAGANA = re.compile("[\u3041-\u309fー]")
_KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff]")
_KANJI = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_CODE = re.compile(
    r"```.*?```|`[^`\n]*`|https?://[\w/:%#$&?()~.,;=+\-]*[\w/]", re.DOTALL | re.ASCII
)
# Words that have no Japanese character: runs of letters and marks of any other script.
_WORD = re.compile(r"[^\W\d_]+(?:['’.\-][^\W\d_]+)*")
_LIST_NUMBER = re.compile(r"^\s*[0-9０-９]{1,3}[.．](?![0-9０-９])", re.MULTILINE)
# Unicode 16, Emoji_Presentation=Yes; other characters are emoji when VARIATION SELECTOR-16 or a keycap follows.
_EMOJI = re.compile(
    "[\u231a\u231b\u23e9-\u23ec\u23f0\u23f3\u25fd\u25fe\u2614\u2615\u2648-\u2653\u267f\u2693\u26a1\u26aa\u26ab\u26bd\u26be"
    "\u26c4\u26c5\u26ce\u26d4\u26ea\u26f2\u26f3\u26f5\u26fa\u26fd\u2705\u270a\u270b\u2728\u274c\u274e\u2753-\u2755\u2757"
    "\u2795-\u2797\u27b0\u27bf\u2b1b\u2b1c\u2b50\u2b55\U0001f004\U0001f0cf\U0001f18e\U0001f191-\U0001f19a"
    "\U0001f1e6-\U0001f1ff\U0001f201\U0001f21a\U0001f22f\U0001f232-\U0001f236\U0001f238-\U0001f23a\U0001f250\U0001f251"
    "\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7eb\U0001f7f0\U0001f90c-\U0001f9ff\U0001fa70-\U0001faff]"
    "|.(?:\ufe0f\u20e3?|\u20e3)"
)


def letters(text: str) -> str:
    """The letters and digits of a text; punctuation, symbols, emoji and spaces left out."""
    return "".join(c for c in text if unicodedata.category(c)[0] in "LN")


def not_hiragana(text: str) -> str:
    """Letters and digits that are no hiragana; ー may be used, punctuation and symbols too."""
    return "".join(c for c in letters(text) if not _HIRAGANA.match(c))


def not_katakana(text: str) -> str:
    """Letters and digits that are no katakana; ー, ・ and half-width kana may be used, punctuation and symbols too."""
    return "".join(c for c in letters(text) if not _KATAKANA.match(c))


def kanji(text: str) -> list[str]:
    """Kanji, 々 〆 〇 among them, and those inside signs such as ㈱ ㍻ 🈲 ㊗."""
    return _KANJI.findall(unicodedata.normalize("NFKC", text))


def latin(text: str) -> list[str]:
    """Latin letters of either width, with accents too; signs such as ℃ ㎏ ™ Ⅳ are none."""
    return [c for c in text if unicodedata.category(c)[0] == "L" and "LATIN" in _name(c)]


def _name(character: str) -> str:
    return unicodedata.name(character, "")


def digits(text: str) -> list[str]:
    """算用数字 of either width, and ① ² ½ Ⅳ; 一二三〇 are kanji and do not count, nor do they inside ㊀."""
    return [
        c
        for c in text
        if unicodedata.category(c)[0] == "N" and not _KANJI.search(unicodedata.normalize("NFKC", c))
    ]


def wide_digits(text: str) -> list[str]:
    """全角数字 ０ to ９."""
    return re.findall("[０-９]", text)


def punctuation(text: str) -> list[str]:
    """句読点: 、。 ，． ､｡ and , . of either width.

    ！？… are none, nor are , . inside numbers, names (Node.js), URLs and code, after the number of a list item, or in a
    row (...).
    """
    text = _LIST_NUMBER.sub("", _CODE.sub("", text))
    return re.findall(
        r"[、。､｡]|(?<![.．])(?:(?<![0-9０-９A-Za-z])[,.，．]|[,.，．](?![0-9０-９A-Za-z]))(?![.．])",
        text,
    )


def emoji(text: str) -> list[str]:
    """Characters that are shown as emoji. ★ ♪ ♡ → ※ ◯ and (^_^) are none; ☀ is one only with its variation selector."""
    return _EMOJI.findall(text)


def japanese_share(text: str) -> float:
    """Share of Japanese among all characters: a kana or kanji counts one, a word of any other script one.

    Code and URLs do not count. Kanji outside JIS X 0208 (你, 们) count as another language. Chinese has no kana:
    without any and with such a kanji, or with more than 12 kanji and fewer than one kana to 20, the share is 0. A text
    without letters has the share 0.
    """
    text = unicodedata.normalize("NFKC", _CODE.sub("", text))
    kana = len(_KANA.findall(text))
    found = _KANJI.findall(text)
    own = [c for c in found if _in_jis(c)]
    foreign = len(found) - len(own)
    if (foreign and not kana) or (len(found) > 12 and kana < 0.05 * len(found)):
        return 0.0
    others = len(_WORD.findall(_KANA.sub(" ", _KANJI.sub(" ", text)))) + foreign
    return (kana + len(own)) / max(1, kana + len(own) + others)


def _in_jis(character: str) -> bool:
    if ord(character) > 0xFFFF:  # 𠮷 and other names
        return True
    try:
        character.encode("cp932")
    except UnicodeEncodeError:
        return False
    return True
