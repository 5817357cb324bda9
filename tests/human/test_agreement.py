"""Alpha against Krippendorff's own example and a slow twin; what raters do, on planted judgements."""

import itertools
import math

import numpy as np
import pytest

from jinstr.human import agreement
from tests.human import judging

NONE = math.nan
# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: 4 coders, 12 units.
EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
)


@pytest.mark.parametrize(
    "level, value", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_the_published_example(level, value):
    assert round(agreement.alpha(EXAMPLE, level), 3) == value
    changed = EXAMPLE.copy()
    changed[0, 0] = 4
    assert round(agreement.alpha(changed, level), 3) != value
    low, high = agreement.alpha_interval(EXAMPLE, level, samples=500, seed=0)
    assert low < value < high <= 1


def slow_nominal(values):
    """1 - observed / expected disagreement, pair by pair."""
    pairs, pool = [], []
    for unit in values.T:
        there = [v for v in unit if not math.isnan(v)]
        if len(there) < 2:
            continue
        pool += there
        pairs += [((a != b), 1 / (len(there) - 1)) for a, b in itertools.permutations(there, 2)]
    observed = sum(d * w for d, w in pairs) / sum(w for _, w in pairs)
    expected = np.mean([a != b for a, b in itertools.permutations(pool, 2)])
    return 1 - observed / expected


def test_a_slow_twin():
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = rng.integers(0, 3, (4, 15)).astype(float)
        values[rng.random(values.shape) < 0.3] = NONE
        assert agreement.alpha(values, "nominal") == pytest.approx(slow_nominal(values))


def test_chance_and_certainty():
    rng = np.random.default_rng(0)
    assert abs(agreement.alpha(rng.integers(1, 6, (3, 3000)), "ordinal")) < 0.03
    same = np.tile(rng.integers(1, 6, 50), (3, 1))
    assert agreement.alpha(same, "nominal") == 1 and agreement.raw(same) == 1
    assert math.isnan(agreement.alpha(np.ones((3, 5)), "nominal"))
    assert math.isnan(agreement.alpha(np.full((3, 5), NONE), "nominal"))


def test_what_raters_do():
    judged = judging.judged
    rows = [judged(f"p{n}", "left" if n % 2 else "right", rater=r) for n in range(20) for r in "xy"]
    rows += [judged(f"p{n}", "left", rater="z") for n in range(20)]
    # x is shown five pairs again, with the sides turned; four verdicts stay.
    for n in range(5):
        again = ("right" if n % 2 else "left") if n else "right"
        rows.append(judged(f"p{n}", again, rater="x", left="b", right="a", repeat=1))
    assert agreement.with_oneself(rows) == (4, 5)
    found = agreement.raters(rows)
    assert found["z"]["most_used_share"] == 1 and found["x"]["most_used_share"] == 0.5
    assert found["x"]["agreement"] == pytest.approx(0.75) and found["z"][
        "agreement"
    ] == pytest.approx(0.5)
    assert found["z"]["alpha_without"] == 1 and found["x"]["alpha_without"] < 0.5
    assert found["x"]["with_oneself"] == 0.8 and math.isnan(found["y"]["with_oneself"])


def test_scores_and_unused_points():
    rows = [
        judging.judged("p", "left", scores_left={"fluency": 4}, scores_right={"fluency": 2}),
        judging.judged(
            "p", "left", rater="s", scores_left={"fluency": 4}, scores_right={"fluency": 3}
        ),
    ]
    _, units, values = agreement.table(agreement.score_rows(rows, "fluency"))
    assert units == [("p", "a"), ("p", "b")] and values.tolist() == [[4, 2], [4, 3]]
    assert agreement.raters(rows)["r"]["unused_scores"] == [1, 3, 5]
