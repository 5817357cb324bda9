"""Texts as the JP LM evaluation harness compares them in JSQuAD: without emoji, and as neologdn writes them.

neologdn's rules are those that mecab-ipadic-neologd documents for texts before analysis: full-width letters, digits and
signs become half-width, half-width katakana full-width, hyphens and long-vowel marks one of each, tildes fall away, and
so do spaces unless they stand between half-width words. That is not NFKC: ① and ㈱ stay, kanji numerals too.
"""

from __future__ import annotations

import re
import string
import unicodedata

_SIGNS = "!#$%&()*+,./:;<=>?@[]^_{|}"  # of those, － and ～ are no signs here, and ￥ stays
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HYPHENS = frozenset("˗֊‐‑‒–⁃⁻₋−")
_LONG_VOWELS = frozenset("—―─━﹣－ｰー")
_TILDES = frozenset("~∼∾〜〰～")
_ONE = {chr(ord(sign) + 0xFEE0): sign for sign in _SIGNS + _LETTERS}
_ONE |= {"“": '"', "”": '"', "‘": "`", "’": "'", "\xa5": "\\", "゛": "ﾞ", "゜": "ﾟ"}
_ONE |= {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF61, 0xFF9E)}
_VOICED = {
    kana + mark: unicodedata.normalize("NFC", kana + combining)
    for mark, combining in (("ﾞ", "\u3099"), ("ﾟ", "\u309a"))
    for kana in map(chr, range(0x30A1, 0x30F7))
    if len(unicodedata.normalize("NFC", kana + combining)) == 1
}
_WIDE = re.compile("[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]")  # scripts without spaces
# Single characters that are emoji (Unicode's data as emoji 2.16 has it), and the harness's own ranges.
_EMOJI = re.compile(
    "[\U0001f600-\U0001f64f\U0001f300-\U0001f5ff\U0001f680-\U0001f6ff\U0001f1e0-\U0001f1ff\u2702-\u27b0"
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9-\u21aa\u231a-\u231b\u2328\u23cf"
    "\u23e9-\u23f3\u23f8-\u23fa\u24c2\u25aa-\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2604"
    "\u260e\u2611\u2614-\u2615\u2618\u261d\u2620\u2622-\u2623\u2626\u262a\u262e-\u262f"
    "\u2638-\u263a\u2640\u2642\u2648-\u2653\u265f-\u2660\u2663\u2665-\u2666\u2668\u267b"
    "\u267e-\u267f\u2692-\u2697\u2699\u269b-\u269c\u26a0-\u26a1\u26a7\u26aa-\u26ab"
    "\u26b0-\u26b1\u26bd-\u26be\u26c4-\u26c5\u26c8\u26ce-\u26cf\u26d1\u26d3-\u26d4"
    "\u26e9-\u26ea\u26f0-\u26f5\u26f7-\u26fa\u26fd\u27bf\u2934-\u2935\u2b05-\u2b07"
    "\u2b1b-\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299\U0001f004\U0001f0cf"
    "\U0001f170-\U0001f171\U0001f17e-\U0001f17f\U0001f18e\U0001f191-\U0001f19a"
    "\U0001f201-\U0001f202\U0001f21a\U0001f22f\U0001f232-\U0001f23a\U0001f250-\U0001f251"
    "\U0001f7e0-\U0001f7eb\U0001f7f0\U0001f90c-\U0001f93a\U0001f93c-\U0001f945"
    "\U0001f947-\U0001f9ff\U0001fa70-\U0001fa7c\U0001fa80-\U0001fac6\U0001fac8"
    "\U0001facc-\U0001fadd\U0001fadf-\U0001faeb\U0001faef-\U0001fafa"
    "]"
)


# What the harness takes for punctuation.
_PUNCTUATION = frozenset(
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏"
) | frozenset(string.punctuation)


def without_emoji(text: str) -> str:
    """Characters that are emoji by themselves fall away."""
    return _EMOJI.sub("", text)


def neologd(text: str) -> str:
    """A text as neologdn.normalize writes it."""
    out: list[str] = []
    last = " "  # what was read last, apart from what was passed over
    spaced = False  # is the last space one that a wide character takes away?
    for sign in text:
        if sign in " \u3000":
            if last == " " or _WIDE.match(last):
                continue
            spaced = last.isascii() and last != "*"
            last = " "
            if spaced:
                out.append(last)
            continue
        if sign in _TILDES:
            continue
        if sign in _HYPHENS or sign in _LONG_VOWELS:
            sign = "-" if sign in _HYPHENS else "ー"
            if sign == last:
                continue
        else:
            sign = _ONE.get(sign, sign)
            if last + sign in _VOICED:
                sign = _VOICED[out.pop() + sign]
            elif spaced and _WIDE.match(sign):
                out.pop()
        spaced = False
        out.append(sign)
        last = sign
    return "".join(out).strip(" ")


def normalised(text: str) -> str:
    """What the harness compares: without emoji, as neologdn writes it, every run of white space one space."""
    return " ".join(neologd(without_emoji(text)).split())


def without_signs(text: str) -> str:
    """What the harness compares, without punctuation and white space."""
    return "".join(s for s in normalised(text) if s not in _PUNCTUATION and not s.isspace())
