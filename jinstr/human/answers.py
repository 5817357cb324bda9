"""The number that a Japanese answer gives, for rewards and evaluation that compare it with a known one.

    number("１個80円なので、答えは２４０円です。")     Fraction(240)
    same_number("三分の一です。", "1/3")               True

Pure functions of text, which is read after NFKC and without U+FFFD.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from jinstr import errors

_DIGITS = {digit: n for n, digit in enumerate("〇一二三四五六七八九")} | {"零": 0}
_SMALL = {"十": 10, "百": 100, "千": 1000}
_LARGE = {"万": 10**4, "億": 10**8, "兆": 10**12}
_FORMAL = str.maketrans("壱弐拾萬", "一二十万")  # as on cheques
_MAX_LENGTH = 1000  # a longer number is none: int() refuses it in the end

_KANJI = "".join(_DIGITS)
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_PLAIN = rf"(?:{_DECIMAL}|[{_KANJI}]+(?:[・点][{_KANJI}]+)?)"
_UP_TO_1000 = rf"(?:(?:{_PLAIN}?[十百千])+{_PLAIN}?|{_PLAIN})"
# Atomic (?>…), so that a long run of numerals is read once.
_NUMBER = rf"(?>(?:{_UP_TO_1000}[万億兆])+{_UP_TO_1000}?|{_UP_TO_1000})"
_TOKEN = re.compile(
    rf"(?P<sign>マイナス|負の|(?<![ァ-ヶa-zA-Z\d])ー(?=\d)|-)?\s*(?<![A-Za-z\d])(?<!\d\.)(?<![{_KANJI}])"
    rf"(?:(?:(?P<whole>{_NUMBER})と)?(?P<bottom>{_NUMBER})分の(?P<top>{_NUMBER})"
    rf"|(?:(?P<whole2>\d+)(?:と|\s+))?(?<!/)(?P<top2>\d+)\s*/\s*(?P<bottom2>\d+)(?![\d/])"
    rf"|(?P<number>{_NUMBER}))"
)
_PIECE = re.compile(rf"{_DECIMAL}|[{_KANJI}]+(?:[・点][{_KANJI}]+)?|[十百千万億兆]")
# Words that are written with numerals and give no number.
_WORDS = re.compile(
    rf"第[{_KANJI}]に|[二三]次(?!\d)|一(?:緒|般|番(?!目)|部|応|致|覧|旦|切|体|瞬|種|見|定|気|例|同|律|斉|言|面|流|方|層)"
    "|一(?:概|連|度|目|つずつ|人ひとり)|[統唯均同単画随]一|万が?一|もう一[回つ]|十分(?:に|な|だ|では|条件)|十字|八百屋|百貨店|百科|百姓|百合"
    "|千葉|千歳|千代|万年筆|四季|四国|四捨五入|四則|四方|三角|四角|三日月|三味線|三重県|三平方|五輪|五感|七夕|七五三(?=[のを参])"
    "|九州|八幡|六本木|二酸化|二等辺|二重|二度と"
)
# A numeral before these is part of a word.
_OF_WORD = re.compile("角形|角柱|角錐|辺形|次関数|次方程式|次式|次元|乗|進数|進法")
_ASIDE = re.compile(r"\([^()]*\)|「[^「」]*」|\[[^\[\]]*\]")
_MARKER = re.compile(
    r"####|\\boxed(?=\{)|(?:答え?|解答|回答|正解|正答)[\s*】\])」]*(?:は|:|=|→)|【(?:答え?|解答|回答|正解)】"
    r"|answer(?:\s+is)?\s*:?",
    re.IGNORECASE,
)
_NAMED = re.compile("が(?:答え?|正解|解)(?:です|だ|である|とな|にな)")
_SUBTRACTED = re.compile(r"(?:[\dA-Za-z)]|\d[^\s\d、。=はがも:]{1,2})\s*$")


def _normalised(text: str) -> str:
    text = re.sub("[²³¹⁰⁴-⁹\ufffd]", "", text)  # 12m² is no 2
    text = re.sub(r"(?<=\d)(?=[½⅓⅔¼¾⅕-⅞])", "と", text)
    text = unicodedata.normalize("NFKC", text).translate(_FORMAL)
    text = re.sub("[\u2044\u2215]", "/", re.sub("[\u2010-\u2015\u2212]", "-", text))
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\[()\[\],!]|\$|\*\*|\{(?=,\})|(?<=\{,)\}", "", text).replace("{,", ",")
    text = re.sub("参(?=[十百千万])", "三", re.sub("[▲△](?=\\d)", "-", text))
    return re.sub("(?<![ァ-ヶー])ゼロ(?!から|[ァ-ヶー])", "0", text)


def _plain(piece: str) -> Fraction:
    """A run of digits of either kind, with a decimal point: 1,234.5 or 三・一四 or 二〇二四."""
    if piece[0] in _DIGITS:
        piece = "".join("." if c in "・点" else str(_DIGITS[c]) for c in piece)
    return Fraction(piece.replace(",", ""))


def _value(numeral: str) -> Fraction:
    """The value of a numeral: 12万3千, 千二百三十四, 1億2,000万, 3.5千."""
    total = group = Fraction(0)  # what 万 and larger have closed; what has come since
    pending: Fraction | None = None  # a number that waits for its unit
    for piece in _PIECE.findall(numeral):
        if piece in _SMALL:
            group += (1 if pending is None else pending) * _SMALL[piece]
            pending = None
        elif piece in _LARGE:
            total += (group + (pending or 0)) * _LARGE[piece]
            group, pending = Fraction(0), None
        else:
            pending = _plain(piece)
    return total + group + (pending or 0)


def _numbers(text: str) -> list[Fraction]:
    """All numbers of normalised text, in order."""
    text = _WORDS.sub("、", text)
    found = []
    for token in _TOKEN.finditer(text):
        part = token.groupdict()
        bottom, top = part["bottom"] or part["bottom2"], part["top"] or part["top2"]
        if len(token[0]) > _MAX_LENGTH or _OF_WORD.match(text, token.end()):
            continue
        if bottom is None:
            value = _value(part["number"])
        elif _value(bottom) == 0:
            continue
        else:
            value = _value(part["whole"] or part["whole2"] or "0") + _value(top) / _value(bottom)
        sign = part["sign"] or ""
        is_minus = sign != "-" or not _SUBTRACTED.search(
            text[max(0, token.start() - 8) : token.start()]
        )
        found.append(-value if sign and is_minus else value)
    return found


def _last(text: str) -> Fraction | None:
    """The last number outside brackets; the last inside them where there is no other."""
    found = _numbers(_ASIDE.sub(" ", text)) or _numbers(text)
    return found[-1] if found else None


def number(text: str) -> Fraction | None:
    """The number that `text` gives as its answer; None where there is none.

    - After the last 答えは, 答え：, 正解は, 【答え】, #### or \\boxed the first sentence with a number counts, or the
      words before …が答えです; without either the whole text. Of that the last number counts, brackets aside.
    - Read are 1,234, 3.5, マイナス五, -5, ▲5, 三分の一, 3分の1, 3/4, 二と三分の一, ½, 12万3千, 二〇二四, 千二百三十四,
      三・一四, 壱萬, ゼロ.
    - Units are ignored: 50% is 50, 2時間30分 is 30, 3割 is 3. Digits after a Latin letter (CO2, cm2), superscripts and
      numerals in words (一緒, 三角形, 二次関数, 四捨五入) give none. Powers are not worked out, ひとつ is not read.
    """
    text = _normalised(text)
    markers = list(_MARKER.finditer(text))
    if markers:
        for sentence in re.split("[。\n]", text[markers[-1].end() :]):
            if (found := _last(sentence)) is not None:
                return found
    for named in reversed(list(_NAMED.finditer(text))):
        if (found := _last(re.split("[。\n]", text[: named.start()])[-1])) is not None:
            return found
    return _last(text)


def same_number(text: str, reference: str | int | Fraction) -> bool:
    """Whether the answer of `text` equals the reference. Errors: DataError for a reference without a number."""
    wanted = number(reference) if isinstance(reference, str) else Fraction(reference)
    if wanted is None:
        raise errors.DataError("JI-ANSWER-001", f"the reference {reference[:60]!r} holds no number")
    return number(text) == wanted
