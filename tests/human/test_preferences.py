"""Judgements as rankings, pairs and labels: weights, ties, repeats, what is left out, and the bound on length."""

import itertools
import json
import random

import pytest

from jinstr import errors
from jinstr.data import formats
from jinstr.human import judgements, margins, preferences
from jinstr.human import study as study_lib

TEXTS = {"x": "短い答え", "y": "とても長い答えです。" * 3, "z": "中くらいの答え。"}


def item(name="p", answers=TEXTS, **more):
    answers = {model: (text,) for model, text in answers.items()}
    return study_lib.Item(
        **{"id": name, "roles": ("user",), "contents": ("質問",), "answers": answers} | more
    )


def study_of(*items, models=("x", "y", "z")):
    return study_lib.Study(mode="ab", seed=0, models=models, raters=("r",), items=items, rows=())


def said(left, right, verdict, *, prompt="p", rater="r", left_scores=(), right_scores=(), repeat=0):
    names = tuple(judgements.AXES)
    return judgements.Judgement(
        prompt=prompt, rater=rater, left=left, right=right, verdict=verdict, repeat=repeat,
        scores_left=dict(zip(names, left_scores)), scores_right=dict(zip(names, right_scores)),
    )  # fmt: skip


def exported(study, given, **more):
    return preferences.export(study, given, preferences.ExportConfig(**more))


def test_margin():
    one = said("x", "y", "left", left_scores=(5, 1, 3, 3), right_scores=(4, 5, 3, 3))
    assert margins.margin(one, {"verdict": 1.0}) == 1
    assert margins.margin(one, {"fluency": 1.0}) == 0.25
    assert margins.margin(one, {"accuracy": 2.0}) == -1
    assert margins.margin(one, {"verdict": 1.0, "accuracy": 0.5}) == pytest.approx(0.5 / 1.5)
    # What was not scored has no part.
    assert margins.margin(said("x", "y", "right"), {"verdict": 1.0, "accuracy": 9.0}) == -1
    assert margins.margin(said("x", "y", "right"), {"accuracy": 9.0}) is None


def test_margins_of_raters():
    given = [
        said("x", "y", "left", rater="a"),
        said("y", "x", "left", rater="b"),
        said("x", "y", "tie", rater="c"),
    ]
    verdict = {"verdict": 1.0}
    assert margins.margins(given, verdict, {}) == {("x", "y"): (0.0, 3.0)}
    ((value, weight),) = margins.margins(given, verdict, {"a": 2.0}).values()
    assert (value, weight) == (0.25, 4.0)
    assert margins.margins(given, verdict, {"a": 0.0, "c": 0.0}) == {("x", "y"): (-1.0, 1.0)}
    # A repeat and its first showing are one judgement: this rater does not count twice.
    given += [said("y", "x", "right", rater="a", repeat=1)]
    assert margins.margins(given, verdict, {}) == {("x", "y"): (0.0, 3.0)}


def test_scores_are_mean_margins_where_all_are_compared():
    draw = random.Random(0)
    names = "abcde"
    compared = {pair: (draw.uniform(-1, 1), 2.0) for pair in itertools.combinations(names, 2)}
    (found,) = margins.scores(compared)
    for name in names:
        over = [
            value if name == pair[0] else -value
            for pair, (value, _) in compared.items()
            if name in pair
        ]
        assert found[name] == pytest.approx(sum(over) / len(names))
    assert sum(found.values()) == pytest.approx(0)


def test_scores_fit_margins_of_a_chain_and_keep_parts_apart():
    compared = {("a", "b"): (0.5, 1.0), ("b", "c"): (0.25, 3.0), ("d", "e"): (1.0, 1.0)}
    one, other = sorted(margins.scores(compared), key=len, reverse=True)
    assert one["a"] - one["b"] == pytest.approx(0.5) and one["b"] - one["c"] == pytest.approx(0.25)
    assert other == pytest.approx({"d": 0.5, "e": -0.5})
    # A circle says nothing.
    circle = {("a", "b"): (1.0, 1.0), ("b", "c"): (1.0, 1.0), ("a", "c"): (-1.0, 1.0)}
    assert margins.scores(circle)[0] == pytest.approx({"a": 0, "b": 0, "c": 0})


def test_ranks():
    table = {"a": 0.0, "b": 1.0, "c": 1.0, "d": 0.9, "e": -5.0}
    assert margins.ranks(table, 0.0) == {"b": 1, "c": 1, "d": 3, "a": 4, "e": 5}
    assert margins.ranks(table, 0.1) == {"b": 1, "c": 1, "d": 1, "a": 4, "e": 5}


THREE = [said("x", "y", "left"), said("z", "x", "left"), said("y", "z", "tie")]


def test_groups():
    found = exported(study_of(item(), item("q")), THREE)
    (row,) = found.rows
    assert dict(zip(row["responses"], row["ranks"])) == {
        TEXTS["z"]: 1,
        TEXTS["x"]: 2,
        TEXTS["y"]: 3,
    }
    assert row["models"] == [
        [next(m for m in TEXTS if TEXTS[m] == text)] for text in row["responses"]
    ]
    assert row["id"] == "p" and row["prompt"] == "質問" and found.counts["judged"] == 1
    (example,) = formats.FORMATS["ranking"].examples(row)
    assert formats.fits(row) == ["ranking"] and example["ranks"] == row["ranks"]
    # A tie prefers nothing.
    found = exported(study_of(item(), item("q")), [*THREE, said("x", "y", "tie", prompt="q")])
    assert len(found.rows) == 1 and found.counts["tied"] == 1


def test_pairs():
    found = exported(study_of(item()), THREE, form="pairs", margin=0.2)
    assert [(row["models"], row["margin"]) for row in found.rows] == [
        (["x", "y"], 1),
        (["z", "x"], 1),
    ]
    for row in found.rows:
        assert formats.fits(row) == ["preference"]
        assert (row["chosen"], row["rejected"]) == tuple(TEXTS[m] for m in row["models"])
    assert found.counts["tied"] == 1 and len({row["id"] for row in found.rows}) == 2
    weak = [said("x", "y", "left", rater="a"), said("x", "y", "tie", rater="b")]
    assert exported(study_of(item()), weak, form="pairs", margin=0.4).rows
    with pytest.raises(errors.DataError, match="JI-PREFER-005.*tied 1"):
        exported(study_of(item()), weak, form="pairs", margin=0.5)


def test_labels_by_scores():
    given = [
        said("x", "y", "left", left_scores=(5, 4, 5, 4), right_scores=(2, 1, 2, 1)),
        said("z", "x", "tie", left_scores=(3, 3, 3, 3), right_scores=(4, 4, 5, 5)),
    ]
    found = exported(study_of(item()), given, form="labels")
    assert {row["models"][0]: row["label"] for row in found.rows} == {
        "x": "desired",
        "y": "undesired",
    }
    assert found.counts["between"] == 1 and formats.fits(found.rows[0]) == ["labelled"]
    # The second axis alone: x has 4 and 4, y 1, z 3.
    found = exported(study_of(item()), given, form="labels", axis_weights="accuracy=1", desired=3)
    assert {row["models"][0]: row["label"] for row in found.rows} == {
        "x": "desired",
        "y": "undesired",
        "z": "desired",
    }
    by_verdict = exported(study_of(item()), given, form="labels", labels_from="verdict")
    assert {row["models"][0]: row["label"] for row in by_verdict.rows} == {
        "x": "desired", "z": "desired", "y": "undesired"
    }  # fmt: skip


def test_what_has_no_common_prompt_or_text_is_counted():
    two = item("two", roles=("user", "user"), contents=("一", "二"), answers={})
    two = study_lib.Item(**vars(two) | {"answers": {"x": ("1", "2"), "y": ("3", "4")}})
    blank = item("blank", {"x": " \n", "y": "答え"})
    given = [*THREE, said("x", "y", "left", prompt="two"), said("x", "y", "right", prompt="blank")]
    found = exported(study_of(item(), two, blank), given)
    assert len(found.rows) == 1 and found.counts["turns"] == found.counts["blank"] == 1
    with pytest.raises(errors.DataError, match="JI-PREFER-006"):
        exported(study_of(item()), [said("x", "w", "left")])


def test_prompts_keep_their_shape():
    more = {"roles": ("user", "input"), "contents": ("要約して", "資料")}
    (row,) = exported(study_of(item(**more)), THREE).rows
    (example,) = formats.FORMATS["ranking"].examples(row)
    assert example["roles"] == ["user", "input"] and example["contents"] == ["要約して", "資料"]
    more = {"roles": ("system", "user", "input"), "contents": ("丁寧に", "要約して", "資料")}
    (row,) = exported(study_of(item(**more)), THREE).rows
    (example,) = formats.FORMATS["ranking"].examples(row)
    assert example["contents"] == ["丁寧に", "要約して\n\n資料"]


def lengths(count, share):
    """Items with a short and a long answer, and judgements of which such a share prefers the long one."""
    answers = {n: {"x": "短" * 10, "y": "長" * (20 + n)} for n in range(count)}
    items = [item(str(n), answers[n]) for n in range(count)]
    given = [
        said("x", "y", "right" if n < share * count else "left", prompt=str(n))
        for n in range(count)
    ]
    return study_of(*items), given


@pytest.mark.parametrize("form", ["groups", "pairs", "labels"])
@pytest.mark.parametrize("bound, kept", [(1.0, 20), (0.75, 20), (0.5, 10), (0.2, 6)])
def test_the_share_of_longer_answers_is_bounded(form, bound, kept):
    study, given = lengths(20, 0.75)
    found = exported(study, given, form=form, length_share=bound, labels_from="verdict")
    assert len(found.rows) == kept * (2 if form == "labels" else 1)
    assert found.counts["longer_before"] == 0.75
    assert found.counts["longer_after"] == pytest.approx(min(bound, 0.75), abs=0.04)
    assert found.counts["longer_after"] <= bound + 1e-9
    # Those whose answers are longer by most have gone first.
    ids = {row["id"].partition(":")[0] for row in found.rows}
    assert ids >= {str(n) for n in range(15, 20)} and ids >= {str(n) for n in range(kept - 5)}


def test_the_order_of_answers_tells_no_model():
    study, given = lengths(60, 0.5)
    first = [row["models"][0] for row in exported(study, given).rows]
    assert 15 < first.count(["x"]) < 45
    once = json.dumps(exported(study, given).rows)
    assert once == json.dumps(exported(study, given).rows)


@pytest.mark.parametrize(
    "settings, code",
    [
        ({"form": "triples"}, "001"),
        ({"labels_from": "axis"}, "001"),
        ({"margin": 1.0}, "002"),
        ({"length_share": 0.0}, "002"),
        ({"desired": 2.0}, "002"),
        ({"axis_weights": "verdict"}, "003"),
        ({"axis_weights": "verdict=much"}, "003"),
        ({"rater_weights": "佐藤=-1"}, "003"),
        ({"rater_weights": "佐藤=nan"}, "003"),
        ({"axis_weights": "beauty=1"}, "004"),
        ({"axis_weights": "verdict=0"}, "004"),
        ({"axis_weights": ""}, "004"),
    ],
)
def test_settings_that_cannot_be(settings, code):
    with pytest.raises(errors.ConfigError, match=f"JI-PREFER-{code}"):
        preferences.ExportConfig(**settings)
