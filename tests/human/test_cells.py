"""Texts in cells, and what raters write in place of A, B, 引き分け and 1 to 5."""

import pytest

from jinstr.human import cells

TEXTS = (
    "_x000D_",
    "_x005F_x000D_",
    "x005F_",
    "__x0041__",
    "_x000d_",
    "a\x0bb",
    "_xZZZZ_",
    "普通",
    "",
)


@pytest.mark.parametrize("text", TEXTS)
def test_escapes_go_both_ways(text):
    assert cells.unescaped(cells.escaped(text)) == text
    assert not any(ord(c) < 32 for c in cells.escaped(text))


def test_what_escapes_are_for():
    """Negative control: without them the text becomes another one."""
    assert cells.unescaped("_x000D_") == "\n" != "_x000D_"


def test_faults():
    assert cells.fault("長" * 32_767) == ""
    assert "32,768" in cells.fault("長" * 32_768)
    # Excel counts UTF-16 units, of which an emoji has two.
    assert cells.fault("😀" * 16_383) == "" and "32,768" in cells.fault("😀" * 16_384)
    # An escape is longer than what it stands for.
    assert "32,773" in cells.fault("長" * 32_760 + "_x000D_") and not cells.fault("長" * 32_760)
    assert "no character" in cells.fault("a\ud800") and "character 2" in cells.fault("a\uffff")


def test_digests():
    assert cells.digest(["a\r\nb"]) == cells.digest(["a\nb"]) == cells.digest(["a\rb"])
    assert cells.digest(["a", "b"]) != cells.digest(["ab", ""]) != cells.digest(["", "ab"])
    assert cells.digest(["５"]) != cells.digest(["5"])


@pytest.mark.parametrize("value", [5, 5.0, "5", "５", " 5　", "5点", "５．０", "⑤"])
def test_scores(value):
    assert cells.score(value) == 5


@pytest.mark.parametrize(
    "value", [0, 6, 4.5, "4.5", "五", "A", True, "5以上", "-1", "１２", "٥", "5/5", 1e300]
)
def test_what_is_no_score(value):
    assert cells.score(value) is None


WRITTEN = {
    "left": ("A", "Ａ", "a", " Ａ ", "「A」", "Aの勝ち", "A>B", "Ａ＞Ｂ"),
    "right": ("B", "Ｂ", "ｂ", "Bが良い", "B。"),
    "tie": (
        "引き分け",
        "引分け",
        "引分",
        "ひきわけ",
        "引き分け。",
        "（引き分け）",
        "どちらも良い",
        "＝",
        "Draw",
    ),
}


@pytest.mark.parametrize("verdict", WRITTEN)
def test_verdicts(verdict):
    assert {cells.verdict(word) for word in WRITTEN[verdict]} == {verdict}


@pytest.mark.parametrize("value", ["C", "AB", "AかB", "？", "4", 1, True, "○", "引き", "どちら"])
def test_what_is_no_verdict(value):
    assert cells.verdict(value) is None


def test_no_word_is_two_verdicts():
    words = [word for text in cells._VERDICTS.values() for word in text.split()]
    assert len(words) == len(set(words)) and all(word == cells.plain(word) for word in words)
