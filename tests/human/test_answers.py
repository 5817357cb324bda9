"""Numbers in Japanese answers: labelled answers, and numerals written by a twin that knows their value."""

import random
from fractions import Fraction

import pytest

from jinstr import errors
from jinstr.human import answers

ANSWERS = [
    ("答えは１２円です。", 12),
    ("約3.5", "7/2"),
    ("マイナス五", -5),
    ("三分の一", "1/3"),
    ("時給1200円で8時間働くと、1200×8＝9600なので、9600円になります。", 9600),
    ("ジャネットは毎日18ドルを手に入れます。", 18),
    # width, commas, decimals
    ("９，８７６，５４３円", 9876543),
    ("約１，２３４．５ｋｍ", "2469/2"),
    ("1,234,567人", 1234567),
    ("3.14159", "314159/100000"),
    ("答えは5.", 5),
    ("1、2、3", 3),
    ("1,2,3", 3),  # no thousands
    ("0.25リットル", "1/4"),
    ("00123", 123),
    # numerals
    ("九百八十七万六千五百四十三", 9876543),
    ("二千二十四年", 2024),
    ("二〇二四年", 2024),
    ("十五人です。", 15),
    ("百", 100),
    ("千円札", 1000),
    ("五人\ufffd", 5),
    ("零", 0),
    ("答えはゼロです", 0),
    ("三・一四", "157/50"),
    ("三点一四", "157/50"),
    ("参拾萬円", 300000),
    ("壱万弐千円", 12000),
    # numerals and digits together
    ("1億2,000万人", 120000000),
    ("12万3千4百円", 123400),
    ("3.5万円", 35000),
    ("３千５百", 3500),
    ("2兆5億", 2000500000000),
    # signs
    ("-5", -5),
    ("答えは-5です", -5),
    ("気温は−3度です。", -3),
    ("▲５００円", -500),
    ("負の5", -5),
    ("答えはー5です", -5),
    ("10-5=5", 5),
    ("8-5", 5),  # a subtraction, not a sign
    ("10円-5円", 5),
    ("メーカー5社", 5),
    ("3＋（−8）＝−5", -5),
    # fractions
    ("3分の1です", "1/3"),
    ("マイナス三分の二", "-2/3"),
    ("-3/4", "-3/4"),
    ("2と1/3", "7/3"),
    ("二と三分の一", "7/3"),
    ("2½", "5/2"),
    ("¾", "3/4"),
    ("十分の三", "3/10"),
    ("百分の一", "1/100"),
    ("6／8", "3/4"),
    ("10分の休憩", 10),
    ("2024/5/3", 3),
    ("1/0", None),
    # where the answer stands
    ("答えは12円（税込み10%）です。", 12),
    ("答え：3×4＝12個", 12),
    ("答えは12円です。なぜなら、3×4=12だからです。検算は12÷4=3。", 12),
    ("答えは、\n12円", 12),
    ("まず答えは8だと思いましたが、違いました。答えは9です。", 9),
    ("12が答えです。3人で分けました。", 12),
    ("1. まず3を足す。\n2. 次に2を引く。\n答え：7", 7),
    ("【答え】\n15個\n\n1個80円で考えました。", 15),
    ("**答え：18ドル**", 18),
    ("3を2倍して6。6に1を足して7。\n#### 7", 7),
    ("よって \\boxed{18} である。", 18),
    ("答えは \\(\\frac{3}{4}\\) です", "3/4"),
    ("$1{,}234$", 1234),
    ("The answer is 42.", 42),
    ("正解は③", 3),
    ("合計は12個（3×4）です。", 12),
    ("(12)", 12),
    ("5つの三角形", 5),
    ("x=3", 3),
    ("50%", 50),
    # numerals that give no number
    ("12個です。一緒に確認しましょう。", 12),
    ("12個です。もう一度、四捨五入の条件を見てください。", 12),
    ("三角形が5つ", 5),
    ("二次関数の頂点は7です", 7),
    ("7です。これは二次関数の最大値にあたります。", 7),
    ("20人です。これで十分です、一般に。", 10),  # 十分です is read as ten minutes; 十分に is not
    ("20人です。これで十分に足ります。", 20),
    ("五角形", None),
    ("7本の対角線があるのは十角形です", 7),
    ("合計は七五三", 753),
    ("15日は七五三のお参り", 15),
    ("万が一", None),
    ("九州", None),
    ("面積は12cm²です", 12),
    ("面積は12cm2です", 12),
    ("CO2", None),
    ("A4の紙", None),
    ("なし", None),
    ("", None),
    ("\ufffd", None),
    ("わかりません。", None),
]


@pytest.mark.parametrize("text, wanted", ANSWERS)
def test_labelled_answers(text, wanted):
    assert answers.number(text) == (None if wanted is None else Fraction(wanted))


def test_same_number_is_true_for_the_own_reference_only():
    """Each answer against the references of all others is the negative control."""
    known = [(text, Fraction(wanted)) for text, wanted in ANSWERS if wanted is not None]
    for text, wanted in known:
        assert answers.same_number(text, wanted) and answers.same_number(text, str(wanted))
        assert not answers.same_number(text, wanted + 1)
        assert not answers.same_number(text, -wanted) or wanted == 0
    assert not answers.same_number("わかりません。", 0)
    assert answers.same_number("１２", "答えは十二です") and answers.same_number("12", 12)
    assert not answers.same_number("0.333", "1/3")


def test_a_reference_without_a_number_is_refused():
    with pytest.raises(errors.DataError, match="JI-ANSWER-001"):
        answers.same_number("12", "不明")


def kanji(n):
    """The usual way to write n < 10**16 in kanji."""
    if n == 0:
        return "零"
    digits, groups = "〇一二三四五六七八九", []
    for unit in ("", "万", "億", "兆"):
        n, group = divmod(n, 10**4)
        words = ""
        for place, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
            digit = group // place % 10
            if digit:
                words += (
                    "" if digit == 1 and name and not (name == "千" and unit) else digits[digit]
                ) + name
        groups.append(words + unit if words else "")
    return "".join(reversed(groups))


def test_the_twin_writes_as_people_do():
    assert [kanji(n) for n in (10, 111, 1000, 20305, 10**7, 9_999_999)] == [
        "十",
        "百十一",
        "千",
        "二万三百五",
        "一千万",
        "九百九十九万九千九百九十九",
    ]


def numbers():
    rng = random.Random(3)
    return [*range(2000), *(rng.randrange(10 ** rng.randint(4, 16)) for _ in range(3000))]


def test_kanji_numerals_are_read_back():
    for n in numbers():
        text = f"答えは{kanji(n)}円です。"
        assert answers.number(text) == n, text
        assert answers.number(f"合計{kanji(n)}個") == n
        assert answers.number(f"合計{kanji(n)}個") != n + 1


def test_digits_are_read_back_in_every_dress():
    full_width = str.maketrans("0123456789,.-", "０１２３４５６７８９，．−")
    positional = str.maketrans("0123456789", "〇一二三四五六七八九")
    for n in numbers():
        for written in (
            str(n),
            f"{n:,}",
            f"{n:,}".translate(full_width),
            str(n).translate(positional),
        ):
            assert answers.number(f"よって、{written}円。") == n, written
        assert answers.number(f"よって、-{n}です。") == -n
        high, low = divmod(n, 10**4)
        if high and low:
            assert answers.number(f"{high}万{low}円") == n
            assert answers.number(f"{kanji(low)}分の{kanji(high)}") == Fraction(high, low)
            assert answers.number(f"{high}.{low:04d}") == Fraction(n, 10**4)


@pytest.mark.parametrize(
    "piece", ["1", "一", "千", "1,", "1/", "分の", "(", "マイナス", "万", "1.", "-"]
)
def test_long_nonsense_comes_back(piece):
    found = answers.number(piece * 4000)
    assert found is None or abs(found) < 10**1000
