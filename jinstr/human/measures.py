"""What is counted in Japanese text, and how: characters, lines, paragraphs, sentences, list items, quotations.

Every function takes text that went through `prepared`. Nothing here knows of constraints.
"""

from __future__ import annotations

import re
import unicodedata

# ZERO WIDTH JOINER stays: it holds an emoji together.
_INVISIBLE = re.compile("[\ufffd\ufeff\u200b\u200c\u200e\u200f\u2060\u00ad]")
_NEWLINES = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_PAIRS = dict(zip("「『（(【〈《〔［[“｢", "」』）)】〉》〕］]”｣"))
_CLOSING = "".join(_PAIRS.values())
_TERMINATORS = "。｡！？!?‼⁇⁈⁉"
_MARK = re.compile(f"[{_TERMINATORS}．.]")
_RUN = re.compile(f"[{_TERMINATORS}.．…‥]*([{re.escape(_CLOSING)}\"']*)[{_TERMINATORS}]*")
_URL = re.compile(r"https?://[\w/:%#$&?()~.,;=+\-]*[\w/]", re.ASCII)
_ASIDE = re.compile(r"[（(](?:笑|泣|汗|涙|爆|苦笑)[）)]")
# What a sentence goes on with after 「…。」: a particle, 、 or です.
_AFTER_BRACKET = re.compile(
    "[、，をとにはがへ]|っ[てた]|の(?!ち|ん)|な[どんのら]|も(?!う|ち|し)|で(?:[すしは、]|あ[るっ])|や[、，]|だ(?!か|け)"
    "|か(?:ら|、|と)|まで|より|くらい|ぐらい|ばかり|だけ"
)
# What a sentence goes on with after a mark without brackets: it is quoted.
_SAID = re.compile(
    "(?:と|って)、?(?:[言叫思聞驚呼答尋問声喜笑泣怒考感願書話語告]|い[うっわい]|つぶやい|さけん)"
)
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|No|vs|Vol|e\.g|i\.e|etc)|^[A-Z]|\W[A-Z])$")

_BULLET = re.compile(
    r"(?:[・･](?![・･])|[•‣●○◯◎▪▫◦∙✓✔☑☐□]|[-－*＊+＋–—](?=\s)|[-－](?=[ぁ-んァ-ヶ一-龯「A-Za-z]))\s*(?=\S)"
)
_NUMBER = re.compile(
    r"(?:[0-9０-９]{1,3}(?:[.．:：、](?![0-9０-９])|[)）](?![0-9０-９]))|[(（](?:[0-9０-９]{1,3}|[一二三四五六七八九十]{1,3})[)）]"
    r"|[①-⑳㉑-㉟⑴-⒇⒈-⒛]|[一二三四五六七八九十]{1,3}(?:[.．)）]|、(?![一二三四五六七八九十])))\s*(?=\S)"
)
_EMPHASIS = re.compile(r"(\*\*|__)(.+)\1[:：]?")
_HEADING = re.compile(
    r"#{1,6}\s+\S.*|[■◆▼▶◼]\s*[^\s■◆▼].*|【[^【】]+】|《[^《》]+》|第[0-9０-９一二三四五六七八九十]+[章節](?:\s.*)?"
)


def prepared(text: str) -> str:
    """NFC, one kind of line break; without U+FFFD (a character cut by the length limit), BOM and zero-width spaces."""
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", _NEWLINES.sub("\n", text)))


def _extends(character: str) -> bool:
    """Joins the character before it: a combining mark, a variation selector, half-width ﾞ ﾟ, a skin tone, a tag."""
    return (
        unicodedata.category(character) in ("Mn", "Me", "Mc")
        or character in "\uff9e\uff9f\u200d"
        or 0x1F3FB <= ord(character) <= 0x1F3FF
        or 0xE0020 <= ord(character) <= 0xE007F
    )


def characters(text: str) -> int:
    """字数: what a reader sees as one character, spaces and line breaks left out, everything else included.

    Punctuation, symbols and Markdown signs count one each. が counts one however it is encoded, ｶﾞ too; so does an emoji
    with its modifiers, a flag, a family joined by ZERO WIDTH JOINER. (Rules of Unicode's UAX 29 that occur in text.)
    """
    count, joined, flags = 0, False, 0
    for character in text:
        if character.isspace() or (_extends(character) and count):
            joined = character == "\u200d"
            flags = 0
            continue
        is_flag = 0x1F1E6 <= ord(character) <= 0x1F1FF
        flags = flags + 1 if is_flag else 0
        if not joined and not (is_flag and flags % 2 == 0):
            count += 1
        joined = False
    return count


def lines(text: str) -> list[str]:
    """Lines with something on them, trailing spaces cut, indentation kept."""
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def paragraphs(text: str) -> list[str]:
    """Stretches between blank lines; inside one, a line that is indented by one full-width space begins another.

    A stretch of headings and rules (---) alone is no paragraph; a list or a table is one.
    """
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        starts = re.match("\u3000(?!\\s)", line) and not list_marker(line)
        if not line.strip():
            found.append([])
        elif starts and found[-1]:
            found.append([line])
        else:
            found[-1].append(line)
    return [
        "\n".join(block)
        for block in found
        if any(has_letters(line) and not is_heading(line) for line in block)
    ]


def has_letters(text: str) -> bool:
    """Whether there is a letter or a digit, of any script."""
    return any(unicodedata.category(character)[0] in "LN" for character in text)


def is_heading(line: str) -> bool:
    """A line that is "# …", "■…", "◆…", "▼…", 【…】, 《…》, 第n章 … or bold as a whole, and does not end with 。"""
    line = line.strip()
    if not has_letters(line) or line[-1] in "。｡":
        return False
    return bool(_HEADING.fullmatch(line) or _EMPHASIS.fullmatch(line) and not list_marker(line))


def headings(text: str) -> list[str]:
    """見出し: lines that `is_heading` accepts."""
    return [line.strip() for line in lines(text) if is_heading(line)]


def list_marker(line: str) -> str:
    """ "bullet", "number" or "" (no list item), by what the line begins with after spaces and a bold mark."""
    body = line.strip()
    if body.startswith("#") or not has_letters(body):
        return ""
    bold = re.match(r"(?:\*\*|__)(?=\S)", body)
    if _NUMBER.match(body, bold.end() if bold else 0):
        return "number"
    return "bullet" if not bold and _BULLET.match(body) else ""


def _items(text: str, kind: str) -> list[str]:
    """Items of the outermost level: those that are indented less than two columns more than the least indented one."""
    found = [line for line in lines(text) if list_marker(line) == kind]
    depths = [len(re.match(r"\s*", line)[0].replace("\t", "    ")) for line in found]
    outermost = min(depths, default=0)
    return [line.strip() for line, depth in zip(found, depths) if depth < outermost + 2]


def bullets(text: str) -> list[str]:
    """箇条書き: lines that begin with ・ • ● ○ ◎ □ and the like, or with - * + and a space; nested ones do not count.

    "-5度" and "*注" are none; "-りんご" is one. ■ and ◆ begin headings.
    """
    return _items(text, "bullet")


def numbered(text: str) -> list[str]:
    """番号付きリスト: lines that begin with 1. 1） 1、 1: (1) ① 一、 (一), in any width; nested ones do not count.

    "3.5倍", "1、2年" and "10:30" are none. Numbers need not count up. Several ① ② on one line are one item.
    """
    return _items(text, "number")


def _bracketed(line: str) -> list[tuple[int, int]]:
    """(opening place, closing place) of the outermost pairs; a bracket without its partner is none."""
    open_places: list[tuple[int, str]] = []
    pairs = []
    for place, character in enumerate(line):
        if character in _PAIRS:
            open_places.append((place, _PAIRS[character]))
        elif open_places and character == open_places[-1][1]:
            pairs.append((open_places.pop()[0], place))
    outermost: list[tuple[int, int]] = []
    for start, end in sorted(pairs):
        if not outermost or start > outermost[-1][1]:
            outermost.append((start, end))
    return outermost


def _outline(line: str) -> str:
    """`line` with what stands inside brackets and in URLs blanked (same length); marks that end a bracket stay."""
    line = _URL.sub(lambda found: "u" * len(found[0]), line)
    parts, done = [], 0
    for start, end in _bracketed(line):
        last = end
        while line[last - 1] in _TERMINATORS or line[last - 1] in _CLOSING:
            last -= 1
        parts += [
            line[done : start + 1],
            "x" * (last - start - 1),
            line[max(last, start + 1) : end],
        ]
        done = end
    return "".join([*parts, line[done:]])


def _is_end(outline: str, place: int) -> bool:
    """Whether the mark at `place` can end a sentence."""
    mark, after = outline[place], outline[place + 1 : place + 2]
    before = outline[max(0, place - 6) : place]
    if mark in "!?":
        return not re.match(r"[\w=&/]", after, re.ASCII) and not (
            mark == "!" and re.search("[A-Za-z]$", before) and re.match("[ァ-ヶ]", after)
        )
    if mark == "．":
        return after != "．" and before[-1:] != "．" and not re.match(r"\d", after)
    if mark == ".":
        return (
            (not after or after in " \u3000」』）)”\"'")
            and bool(re.search(r"[^\W_]$|[」』）)”\"']$", before))
            and not _ABBREVIATION.search(before)
        )
    return True


def _cuts(line: str) -> list[int]:
    """Places in `line` at which a sentence has ended."""
    outline, cuts, place = _outline(line), [], 0
    while mark := _MARK.search(outline, place):
        place = mark.end()
        if _is_end(outline, mark.start()):
            run = _RUN.match(outline, mark.start())
            place = max(place, run.end())
            if not (_AFTER_BRACKET if run[1] else _SAID).match(line, place):
                cuts.append(place)
    return cuts


def sentences_of_line(line: str) -> list[str]:
    """Sentences of one line. See `sentences`."""
    found: list[str] = []
    start = 0
    for cut in [*_cuts(line), len(line)]:
        piece, start = line[start:cut].strip(), cut
        if has_letters(_ASIDE.sub("", piece)):
            found.append(piece)
        elif found and piece:
            found[-1] += piece
    return found


def sentences(text: str) -> list[str]:
    """文: a sentence ends with a run of 。！？!?．, with . before a space, or with the line.

    - What stands inside brackets does not end the sentence around it: 「行くよ。」と言った。 is one. A bracket closed
      right after such a mark ends one unless a particle, 、 or です follows: 「行くよ。」彼は立った。 are two.
    - え？と思った。 is one. …… ends nothing by itself. 3.5, No.1, Yahoo!ニュース and URLs hold no end.
    - A line that is a heading is none; the marker of a list item is left out, its text is one sentence or several.
    - Emoji, ♪, （笑） after the mark belong to the sentence before.
    - Of a text that is wholly inside 「」 the sentences inside are counted.
    """
    found = []
    for line in lines(unwrapped(text)):
        if not is_heading(line):
            found += sentences_of_line(without_marker(line))
    return found


def without_marker(line: str) -> str:
    """A line without indentation and without the marker of a list item."""
    kind, body = list_marker(line), line.strip()
    if kind == "bullet":
        return body[_BULLET.match(body).end() :]
    if kind == "number":
        body = re.sub(r"\*\*|__", "", body)
        return body[_NUMBER.match(body).end() :]
    return body


def quotations(text: str) -> list[tuple[int, int]]:
    """(start, end) of what stands between 「 and the 」 that closes it, ｢｣ too, in order of the start.

    Nested ones are counted each by themselves; 『』 is none, nor is a bracket without its partner.
    """
    found, starts = [], []
    for place, character in enumerate(text):
        if character in "「｢":
            starts.append(place + 1)
        elif character in "」｣" and starts:
            found.append((starts.pop(), place))
    return sorted(found)


def unwrapped(text: str) -> str:
    """The text inside when the first character is 「 and the last is the 」 that closes it; else the text itself."""
    body = text.strip()
    return body[1:-1] if (1, len(body) - 1) in quotations(body) else text


def same_width(text: str) -> str:
    """NFKC and case folded: ＡＩ, AI and ai are one word, ｶﾒﾗ is カメラ."""
    return unicodedata.normalize("NFKC", text).casefold()


def occurrences(text: str, word: str) -> int:
    """How often `word` stands in `text`, without overlap, whatever its width and case.

    A word that begins or ends with a Latin letter or a digit is not found inside a longer one (AI in MAIL, 10 in 100);
    Japanese words are found anywhere, so 京都 is in 東京都.
    """
    word = same_width(word)
    before = "(?<![0-9a-z])" if re.match("[0-9a-z]", word) else ""
    after = "(?![0-9a-z])" if re.search("[0-9a-z]$", word) else ""
    return len(re.findall(before + re.escape(word) + after, same_width(text)))
