"""Who judges what, and on which side: loads, sides and repeats balance out, and a seed says all."""

import collections
import itertools
import random

import pytest

from jinstr import errors
from jinstr.human import design
from jinstr.human import study as study_lib


def items(count, models, same=()):
    """Prompts to which every model has an answer of its own, but for the prompts in `same`."""
    return [
        study_lib.Item(
            id=str(n),
            roles=("user",),
            contents=(f"質問{n}",),
            answers={m: ("同じ答え" if n in same else f"{m}の答え{n}",) for m in models},
        )
        for n in range(count)
    ]


def laid_out(count, models, same=(), **more):
    return design.lay_out(items(count, models, same), models, design.DesignConfig(**more))


def imbalance(rows, key):
    """The largest difference of left and right of any two models within rows of one key."""
    difference = collections.Counter()
    for row in rows:
        first, second = sorted(row.shown)
        difference[key(row), first, second] += 1 if row.shown[0] == first else -1
    return max(map(abs, difference.values()))


CASES = [
    (2, 40, 3, 2, 0.1),
    (3, 100, 10, 2, 0.1),
    (3, 17, 5, 3, 0.3),
    (4, 7, 3, 1, 0.2),
    (2, 1, 1, 1, 0.5),
    (5, 30, 4, 4, 0.0),
]


@pytest.mark.parametrize("models, prompts, raters, overlap, repeats", CASES)
def test_balance(models, prompts, raters, overlap, repeats):
    names = [f"m{n}" for n in range(models)]
    study = laid_out(prompts, names, raters=raters, overlap=overlap, repeats=repeats)
    first = [row for row in study.rows if not row.repeat]
    for key in (lambda row: row.rater, lambda row: row.item, lambda row: 0):
        assert imbalance(first, key) <= 1
    assert imbalance(study.rows, lambda row: row.rater) <= 1
    loads = collections.Counter(row.rater for row in first)
    assert max(loads.values()) - min(loads.values()) <= 1
    seen = collections.Counter((row.item, frozenset(row.shown)) for row in first)
    assert set(seen.values()) == {overlap}
    assert len(seen) == prompts * models * (models - 1) // 2
    for rater in study.raters:
        own = [row for row in study.rows if row.rater == rater]
        assert [row.number for row in own] == list(range(1, len(own) + 1))
        # Nobody sees a pair more than once, but for repeats.
        pairs = collections.Counter((row.item, frozenset(row.shown), row.repeat) for row in own)
        assert set(pairs.values()) <= {1}
    assert len({row.id for row in study.rows}) == len(study.rows)


def test_what_the_test_of_balance_sees():
    """Negative control: sides drawn by lot are not balanced."""
    study = laid_out(100, ["a", "b"], raters=3, overlap=2)
    draw = random.Random(0)
    rows = [r.shown[:: draw.choice((1, -1))] for r in study.rows]
    lots = [
        study_lib.Row(id="", rater=r.rater, number=0, item=r.item, shown=s)
        for r, s in zip(study.rows, rows)
    ]
    assert imbalance(lots, lambda row: row.rater) > 1


def test_repeats_come_later_and_turned():
    study = laid_out(40, ["a", "b"], raters=2, overlap=2, repeats=0.2)
    for rater in study.raters:
        own = [row for row in study.rows if row.rater == rater]
        repeats = [row for row in own if row.repeat]
        assert len(repeats) == 8
        for row in repeats:
            (before,) = [r for r in own if r.item == row.item and not r.repeat]
            assert before.number <= 20 < row.number and before.shown == row.shown[::-1]


def test_a_seed_says_all():
    def shown(**more):
        return laid_out(20, ["a", "b", "c"], raters=4, overlap=2, repeats=0.1, **more)

    assert shown() == shown()
    assert shown().rows != shown(seed=1).rows


def test_rank_shows_every_model_at_every_place():
    study = laid_out(25, ["a", "b", "c", "d"], mode="rank", raters=3, overlap=2)
    for rater in study.raters:
        places = collections.Counter(
            (model, place)
            for row in study.rows
            if row.rater == rater
            for place, model in enumerate(row.shown)
        )
        assert len(places) == 16 and max(places.values()) - min(places.values()) <= 1
    neighbours = {pair for row in study.rows for pair in itertools.pairwise(row.shown)}
    assert len(neighbours) == 12


def test_equal_answers_are_not_compared():
    study = laid_out(6, ["a", "b"], same=(1, 4), raters=1)
    assert study.identical == 2 and {row.item for row in study.rows} == {"0", "2", "3", "5"}
    ranked = laid_out(6, ["a", "b", "c"], same=(1,), mode="rank", raters=1)
    assert ranked.identical == 2 and len(ranked.rows) == 5
    with pytest.raises(errors.DataError, match="JI-STUDY-008"):
        laid_out(2, ["a", "b"], same=(0, 1))


def test_baseline():
    study = laid_out(5, ["a", "b", "c"], baseline="b")
    assert {frozenset(row.shown) for row in study.rows} == {frozenset("ab"), frozenset("bc")}
    with pytest.raises(errors.ConfigError, match="JI-STUDY-007"):
        laid_out(5, ["a", "b"], baseline="d")


@pytest.mark.parametrize(
    "settings, code",
    [
        ({"mode": "abc"}, "JI-STUDY-003"),
        ({"raters": 2, "overlap": 3}, "JI-STUDY-004"),
        ({"overlap": 0}, "JI-STUDY-004"),
        ({"repeats": 0.6}, "JI-STUDY-005"),
        ({"raters": "佐藤,佐藤"}, "JI-STUDY-006"),
        ({"raters": "a/b"}, "JI-STUDY-006"),
        ({"raters": "../b"}, "JI-STUDY-006"),
        ({"raters": ""}, "JI-STUDY-006"),
    ],
)
def test_settings_that_cannot_be(settings, code):
    with pytest.raises(errors.ConfigError, match=code):
        design.DesignConfig(**settings)


def test_names_of_raters():
    assert design.rater_names("佐藤, 鈴木") == ("佐藤", "鈴木")
    assert design.rater_names(3) == ("rater01", "rater02", "rater03")
    assert design.rater_names((1, 2)) == ("1", "2")
