"""Planted strengths are found again, in intervals that cover; the anytime test keeps its promise."""

import json
import math

import numpy as np
import pytest

from jinstr.human import power, rates, sequential, strengths, summary
from tests.human import judging

PLANTED = {"a": 0.9, "b": 0.2, "c": -0.3, "d": -0.8}
SIDE, TIE = 0.3, 0.7


def games(rng, count, side=SIDE, tie=TIE):
    found = []
    for number in range(count):
        left, right = rng.permutation(list(PLANTED))[:2]
        u = np.array([PLANTED[left] + side, PLANTED[right], 0.0])
        u[2] = (u[0] + u[1]) / 2 + math.log(tie)
        chance = np.exp(u) / np.exp(u).sum()
        verdict = ("left", "right", "tie")[rng.choice(3, p=chance)]
        found.append(judging.judged(f"p{number}", verdict, left=str(left), right=str(right)))
    return found


def covered(simulations, count, seed=0):
    """Share of the intervals of four strengths that hold the planted value."""
    rng, hits = np.random.default_rng(seed), []
    for _ in range(simulations):
        found = strengths.wald(strengths.fit(games(rng, count)))
        hits += [low <= PLANTED[m] <= high for m, (low, high) in found.items()]
    return np.mean(hits)


def test_planted_strengths():
    found = strengths.fit(games(np.random.default_rng(0), 20_000))
    assert dict(zip(found.models, found.log_odds)) == pytest.approx(PLANTED, abs=0.06)
    assert found.side == pytest.approx(SIDE, abs=0.06) and found.tie == pytest.approx(TIE, abs=0.05)
    without = strengths.fit(games(np.random.default_rng(0), 20_000, side=0.0))
    assert abs(without.side) < 0.06


def test_coverage():
    """200 simulations of 400 games, 800 intervals: 95 % ± 1.6 (2 standard errors of dependent ones)."""
    assert 0.90 <= covered(200, 400) <= 0.98


def test_two_models_have_a_closed_form():
    """Without ties, sides in balance: the log of the ratio of wins, half of it on each side of 0."""
    outcomes = [1.0] * 60 + [0.0] * 20
    found = strengths.fit(judging.of_outcomes(outcomes))
    a, b = found.log_odds
    assert a - b == pytest.approx(math.log(3), abs=0.01) and a + b == pytest.approx(0)
    drawn = strengths.intervals(judging.of_outcomes(outcomes), samples=300, seed=0)
    assert drawn["a"][0] < a < drawn["a"][1] and drawn["a"][0] > 0


def test_sides_that_always_hold_one_model_take_nothing_from_it():
    """Sheets from elsewhere: the same verdicts with sides in balance give the same strengths, and the side."""
    outcomes = [1.0] * 60 + [0.5] * 10 + [0.0] * 20
    balanced = judging.of_outcomes(outcomes)
    sides = {1.0: "left", 0.5: "tie", 0.0: "right"}
    fixed = [judging.judged(f"p{n}", sides[x]) for n, x in enumerate(outcomes)]
    found, wanted = strengths.fit(fixed), strengths.fit(balanced)
    assert math.isnan(found.side) and abs(wanted.side) < 0.1
    assert found.log_odds == pytest.approx(wanted.log_odds, abs=0.02)
    texts = {(j.prompt, m): "答" for j in fixed for m in "ab"}
    assert summary.summary(fixed, texts, seed=0, samples=100)["position"] is None
    assert summary.summary(balanced, texts, seed=0, samples=100)["position"] is not None


def test_groups_that_were_never_compared_and_models_that_never_lose():
    rows = judging.of_outcomes([1.0] * 10) + judging.of_outcomes([1.0] * 10, "c", "d")
    found = strengths.fit(rows)
    assert sorted(found.groups) == [("a", "b"), ("c", "d")]
    assert np.isfinite(found.log_odds).all() and found.log_odds[0] > found.log_odds[1]
    assert len(strengths.fit(games(np.random.default_rng(0), 100)).groups) == 1


# The test that may be looked at after every sheet.


def exceeded(outcomes):
    return (sequential.log_e(outcomes) >= math.log(1 / sequential.ALPHA)).any(-1)


def false_decisions(simulations, prompts=300, tie=0.2):
    rng, found = np.random.default_rng(0), 0
    for _ in range(simulations // 250):
        draw = rng.random((250, prompts))
        x = np.where(draw < tie, 0.5, np.where(draw < tie + (1 - tie) / 2, 1.0, 0.0))
        found += exceeded(x).sum()
    return found / (simulations // 250 * 250)


def looked_at_by_sign_test(simulations, prompts=300):
    """What looking at the ordinary test after every sheet does."""
    rng, found = np.random.default_rng(0), 0
    edge = [power.rejects(n) for n in range(1, prompts + 1)]
    for _ in range(simulations):
        wins = (rng.random(prompts) < 0.5).cumsum()
        fewer = np.minimum(wins, np.arange(1, prompts + 1) - wins)
        found += (fewer <= edge).any()
    return found / simulations


def test_looks_after_every_sheet_decide_falsely_in_5_of_100_at_most():
    assert false_decisions(2000) <= 0.05
    assert looked_at_by_sign_test(1000) > 0.2


@pytest.mark.slow
def test_looks_after_every_sheet_10_000_times():
    assert false_decisions(10_000) <= 0.05


def test_the_stake_is_that_of_a_mixture_of_coins():
    """Against the sum over players of p^wins (1-p)^losses 2^n, and 1 in the mean over all sequences of 8."""
    bet, weight = sequential.players()
    p = (1 + bet) / 2
    wins, losses = 7, 3
    x = np.array([1.0] * wins + [0.0] * losses)
    by_hand = (weight * p**wins * (1 - p) ** losses).sum() * 2 ** (wins + losses)
    assert np.exp(sequential.log_e(x)[-1]) == pytest.approx(by_hand)
    assert np.exp(sequential.log_e(np.array([*x, 0.5, 0.5]))[-1]) == pytest.approx(by_hand)
    everything = np.array([[n >> i & 1 for i in range(8)] for n in range(256)], float)
    assert np.exp(sequential.log_e(everything)[:, -1]).mean() == pytest.approx(1)


def test_judgements_of_one_prompt_are_no_prompts_of_their_own():
    """Three raters who always agree: counted one by one they would decide in a third of the prompts."""
    verdicts = [1.0] * 8 + [0.0] * 1
    once = judging.of_outcomes(verdicts)
    thrice = [j for j in once for _ in range(3)]
    assert sequential.complete(thrice, "a", 3) == sequential.complete(once, "a", 1) == verdicts
    half = thrice[:-1]
    assert len(sequential.complete(half, "a", 3)) == 8
    alone = sequential.decide(thrice, "a", overlap=1, planned=20, seed=0)
    assert (
        alone.prompts == 9
        and alone.e == sequential.decide(once, "a", overlap=1, planned=20, seed=0).e
    )


def test_what_is_left_to_go():
    rng = np.random.default_rng(0)
    clear = judging.of_outcomes((rng.random(200) < 0.8).astype(float))
    found = sequential.decide(clear, "a", overlap=1, planned=200, seed=0)
    assert 0 < found.decided_at < 60 and found.better and found.forecast is None
    assert sequential.decide(clear, "b", overlap=1, planned=200, seed=0).better is False
    begun = sequential.decide(clear[:10], "a", overlap=1, planned=200, seed=0)
    assert begun.decided_at == 0 and begun.better is None
    assert 0 < begun.forecast.low <= begun.forecast.median < 100
    even = sequential.decide(
        judging.of_outcomes([1.0, 0.0] * 30), "a", overlap=1, planned=60, seed=0
    )
    assert even.forecast.decided < 0.5 and even.forecast.median > begun.forecast.median


def test_summary_is_json_and_repeats_itself():
    rng = np.random.default_rng(0)
    rows = games(rng, 60)
    rows = [j for j in rows for _ in range(2)]
    texts = {
        (j.prompt, m): "答" * int(rng.integers(5, 50)) for j in rows for m in (j.left, j.right)
    }
    found = summary.summary(rows, texts, seed=0, samples=200, tokenize=list)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found == summary.summary(rows, texts, seed=0, samples=200, tokenize=list)
    assert found != summary.summary(rows[2:], texts, seed=0, samples=200, tokenize=list)
    one = next(p for p in found["pairs"] if (p["model"], p["other"]) == ("a", "b"))
    shown = rates.between(rows, "a", "b")
    assert (
        one["judgements"]
        == rates.tally(
            1.0 if j.winner == "a" else 0.5 if j.winner is None else 0.0 for j in shown
        )._asdict()
    )
    assert one["overlap"] == 2 and one["sequential"]["prompts"] == len(shown) // 2
    assert set(found["lengths"]["models"]) == set(PLANTED)
    with pytest.raises(ValueError, match="no judgements"):
        summary.summary([], {}, seed=0)
