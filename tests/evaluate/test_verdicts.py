"""Verdicts of judges: every format, real texts of one, and texts that say nothing."""

import collections
import itertools
import json

import pytest

from jinstr import errors
from jinstr.evaluate import verdicts

AXES = '{"総合評価": 4, "関連性": 5, "正確性": 3, "流暢性": 4, "情報量": 2, "理由": "短い"}'
ICHIKARA = AXES.replace("情報量", "詳細性")


@pytest.mark.parametrize(
    "form, text, value",
    [
        ("rakuda", "比べました。\n\n1", "left"),
        ("rakuda", "比べました。\n２\n\n", "right"),
        ("rakuda", "アシスタント1の方が詳しい。\n**3**", "tie"),
        ("vicuna", "AはBより良い。[[A]]です。", "left"),
        ("vicuna", "したがって［［Ｂ］］", "right"),
        ("vicuna", "[[C]] つまり同点、[[C]]", "tie"),
        ("mt-bench", "良い回答です。評価：[[7]]", 7.0),
        ("mt-bench", "[[ 8.5 ]]", 8.5),
        ("mt-bench", "[[１０]]", 10.0),
        ("elyza", '{"reason": "正しい", "grade": 5}', 5),
        ("elyza", '```json\n{"reason": "一行目\n二行目", "grade": "３"}\n```', 3),
        ("elyza", '採点します {"grade": 4.0}', 4),
        ("axes", f"結果:\n{AXES}", 4),
        ("axes", ICHIKARA, 4),
    ],
)
def test_what_is_said(form, text, value):
    found = verdicts.read(text, form)
    assert found.value == value and found.fault == ""


@pytest.mark.parametrize(
    "form, text, fault",
    [
        ("rakuda", " \n", "empty"),
        ("rakuda", "1\nアシスタント1の勝ちです。", "none"),
        ("rakuda", "どちらか\n1か2", "none"),
        ("rakuda", "回答\n4", "range"),
        ("vicuna", "Aの方が良い。", "none"),
        ("vicuna", "[[A]]か[[B]]かといえば[[A]]", "several"),
        ("vicuna", "[[D]]", "none"),
        ("mt-bench", "[[rating]]", "none"),
        ("mt-bench", "[[11]]", "range"),
        ("mt-bench", "[[0]]", "range"),
        ("mt-bench", "一問目は[[3]]、二問目は[[5]]", "several"),
        ("mt-bench", "7点です。", "none"),
        ("elyza", "5", "none"),
        ("elyza", '{"reason": "良い", "grade": 6}', "range"),
        ("elyza", '{"reason": "良い", "grade": 4.5}', "fields"),
        ("elyza", '{"reason": "良い", "grade": true}', "fields"),
        ("elyza", '{"reason": "良い", "grade": null}', "fields"),
        ("elyza", '{"grade": 1} {"grade": 2}', "several"),
        ("elyza", '{"reason": "途中で', "none"),
        ("elyza", "[" * 2000 + "{" * 2000, "none"),
        ("axes", '{"総合評価": 4, "関連性": 5}', "fields"),
        ("axes", AXES.replace("3", '"良"'), "fields"),
        ("axes", AXES.replace("3", "0"), "range"),
        ("axes", AXES + ICHIKARA.replace("4", "1"), "several"),
    ],
)
def test_what_says_nothing_has_no_verdict(form, text, fault):
    found = verdicts.read(text, form)
    assert found.value is None and found.fault == fault and fault in verdicts.FAULTS


def test_axes_and_reasons():
    found = verdicts.read(AXES, "axes")
    wanted = {"overall": 4, "relevance": 5, "accuracy": 3, "fluency": 4, "detail": 2}
    assert found.axes == wanted and found.reason == "短い"
    assert verdicts.read("理由。\n1", "rakuda").reason == "理由。"
    assert verdicts.read('{"reason": "正しい", "grade": 5}', "elyza").reason == "正しい"
    with pytest.raises(errors.ConfigError, match="JI-JUDGE-001"):
        verdicts.read("1", "elyse")


def test_both_orders():
    """Of the nine combinations one is a win and one is a loss: where the orders name the same model."""
    sides = ("left", "right", "tie")
    found = {pair: verdicts.of_both_orders(*pair) for pair in itertools.product(sides, sides)}
    assert [p for p, v in found.items() if v == "left"] == [("left", "right")]
    assert [p for p, v in found.items() if v == "right"] == [("right", "left")]
    assert sum(v == "tie" for v in found.values()) == 7
    assert verdicts.of_both_orders(None, "left") is verdicts.of_both_orders("tie", None) is None


def test_real_judgements(shared_data):
    """80 pairs, both orders, judged by GPT-4: the published win rate of calm2-7b-chat."""
    path = shared_data / "judge" / "ja_vicuna_pairwise_calm2_vs_davinci003.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    read = [
        [verdicts.read(row[f"{game}_judgment"], "vicuna").value for game in ("g1", "g2")]
        for row in rows
    ]
    named = {"model_1": ("left", "right"), "model_2": ("right", "left"), "tie": ("tie", "tie")}
    for row, (straight, swapped) in zip(rows, read):
        assert straight == named[row["g1_winner"]][0] and swapped == named[row["g2_winner"]][1]
    counts = collections.Counter(verdicts.of_both_orders(*pair) for pair in read)
    assert len(rows) == counts.total() == 80
    assert counts["left"] / 80 == 0.7000
    assert (counts["left"] + counts["tie"] / 2) / 80 == 0.7750
    # Negative control: one order alone says something else.
    assert sum(straight == "left" for straight, _ in read) / 80 != 0.7000
