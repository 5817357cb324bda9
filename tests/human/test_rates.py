"""Counts, intervals, tests and power against closed forms, published figures and a real comparison."""

import functools
import json
import math

import numpy as np
import pytest
from scipy import stats

from jinstr.evaluate import verdicts
from jinstr.human import bootstrap, lengths, power, rates
from tests.human.judging import judged, of_outcomes

TALK = [1.0] * 11 + [0.0] * 22 + [0.5] * 7


def test_the_table_of_the_talk():
    found = rates.tally(TALK)
    assert found == (11, 22, 7) and found.adjusted == 0.3625
    table = [(n, *rates.wilson(n, 40)) for n in found]
    said = [f"{100 * n / 40:.1f} ({100 * low:.1f}-{100 * high:.1f})" for n, low, high in table]
    assert said == ["27.5 (16.1-42.8)", "55.0 (39.8-69.3)", "17.5 (8.7-32.0)"]
    assert round(rates.sign_test(11, 22), 3) == 0.080
    assert round(rates.sign_test(10, 23), 3) != 0.080
    by_prompt = rates.by_prompt(of_outcomes(TALK), "a")
    assert rates.tally(by_prompt.values()) == found
    assert rates.tally(rates.by_prompt(of_outcomes(TALK), "b").values()) == (22, 11, 7)


def test_the_difference_of_the_talk_by_bootstrap():
    drawn = bootstrap.means(TALK, range(40), samples=20_000, seed=0)
    low, high = bootstrap.interval(2 * drawn - 1)
    assert (low, high) == pytest.approx((-0.55, 0.0), abs=0.026)  # steps of one prompt in 40
    # The same by the normal approximation, from outside.
    error = np.std(TALK) * 2 / math.sqrt(40)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)


def test_power_of_the_talk_and_prompts_to_come():
    win, loss = 11 / 40, 22 / 40
    # 0.44 is said for 33 decisive prompts and about 97 for 80 %; that the number of ties varies makes both a bit less.
    assert power.of_decisive(33, 1 / 3) == pytest.approx(0.44, abs=0.006)
    assert power.of_prompts(40, win, loss) == pytest.approx(0.41, abs=0.005)
    assert 88 <= power.prompts_needed(win, loss) <= 97
    assert power.prompts_needed(0.55, 0.45) == pytest.approx(800, abs=20)
    assert power.prompts_needed(0.4, 0.4, most=500) == 500
    rng = np.random.default_rng(0)
    decisive = rng.binomial(97, win + loss, 4000)
    wins = rng.binomial(decisive, win / (win + loss))
    p = functools.cache(lambda w, n: stats.binomtest(w, n, 0.5).pvalue)
    hits = [p(int(w), int(n)) <= 0.05 for w, n in zip(wins, decisive)]
    assert np.mean(hits) == pytest.approx(power.of_prompts(97, win, loss), abs=0.02)
    for decisive in range(60):
        fewer = [w for w in range(decisive // 2 + 1) if rates.sign_test(w, decisive - w) <= 0.05]
        assert power.rejects(decisive) == (fewer[-1] if fewer else -1)
    with pytest.raises(ValueError, match="no shares"):
        power.of_prompts(10, 0.8, 0.4)


def test_wilson_covers():
    """Exact coverage over all outcomes is near 95 % for a share that is not at an end; 1.0 and 0.9 are not."""
    covered = sum(
        stats.binom.pmf(hits, 50, 0.3)
        for hits in range(51)
        if rates.wilson(hits, 50)[0] <= 0.3 <= rates.wilson(hits, 50)[1]
    )
    assert 0.93 < covered < 0.97
    assert (
        rates.wilson(0, 10)[0] == 0
        and rates.wilson(10, 10)[1] == 1
        and rates.wilson(0, 0) == (0.0, 1.0)
    )


def test_clusters_widen_the_interval():
    """Three equal judgements of a prompt say as much as one: an interval that takes them for three is too narrow."""
    rng = np.random.default_rng(1)
    outcomes = np.repeat(rng.integers(0, 2, 60), 3).astype(float)
    prompts = np.repeat(np.arange(60), 3)
    clustered = bootstrap.means(outcomes, prompts, samples=4000, seed=0)
    alone = bootstrap.means(outcomes, range(180), samples=4000, seed=0)
    width, narrow = np.ptp(bootstrap.interval(clustered)), np.ptp(bootstrap.interval(alone))
    assert width / narrow == pytest.approx(math.sqrt(3), rel=0.1)
    one = bootstrap.means(outcomes[::3], range(60), samples=4000, seed=0)
    assert np.ptp(bootstrap.interval(one)) == pytest.approx(width, rel=0.05)


def test_raters_can_be_drawn_too():
    """Two raters who differ in everything: over raters nothing is known, over prompts all is."""
    outcomes = [1.0, 0.0] * 50
    prompts, raters = np.repeat(np.arange(50), 2), ["x", "y"] * 50
    assert np.ptp(bootstrap.means(outcomes, prompts, samples=500, seed=0)) == 0
    both = bootstrap.means(outcomes, prompts, raters, samples=500, seed=0)
    assert bootstrap.interval(both) == (0.0, 1.0)


def test_position_effect():
    assert rates.position_effect([judged("p", "left")] * 3 + [judged("p", "right")]) == 0.5
    assert rates.position_effect(of_outcomes([1.0, 1.0] * 20)) == 0
    assert rates.position_effect([judged("p", "left", repeat=1), judged("p", "tie")]) == 0


@pytest.fixture(scope="module")
def real(shared_data):
    """(judgements of every game, texts, rows) of GPT-4 on calm2 and davinci."""
    path = shared_data / "judge" / "ja_vicuna_pairwise_calm2_vs_davinci003.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    texts, games = {}, []
    for row in rows:
        prompt = str(row["question_id"])
        texts |= {(prompt, "calm2"): row["answer_1"], (prompt, "davinci"): row["answer_2"]}
        for name, left, right in (("g1", "calm2", "davinci"), ("g2", "davinci", "calm2")):
            verdict = verdicts.vicuna(row[f"{name}_judgment"]).value
            games.append(judged(prompt, verdict, rater="judge:gpt-4", left=left, right=right))
    return games, texts


def test_longer_answers_in_the_real_comparison(real):
    """The longer answer, by characters, won 114 of 158 decided games; of prompts where both orders agree, 52 of 68."""
    games, texts = real
    won, decided = lengths.longer_wins(games, texts)
    assert (won, decided) == (114, 158)
    agreed = []
    for first, second in zip(games[::2], games[1::2]):
        verdict = first.verdict if first.winner == second.winner else "tie"
        agreed.append(judged(first.prompt, verdict, left="calm2", right="davinci"))
    assert lengths.longer_wins(agreed, texts) == (52, 68)
    found = rates.tally(rates.by_prompt(agreed, "calm2").values())
    assert (found.wins / found.count, found.adjusted) == (0.7, 0.775)
    control = lengths.controlled(games, texts, "calm2")
    # The longer model is the better one here: at equal length a little less of its rate is left.
    assert 0.6 < control.low < control.rate < found.adjusted


@pytest.mark.parametrize("strength, slope", [(0.0, 1.5), (0.8, 0.0), (-0.5, -1.0)])
def test_a_planted_effect_of_length_is_found(strength, slope):
    rng = np.random.default_rng(3)
    count = 3000
    long = rng.integers(20, 400, (count, 2))
    difference = (long[:, 0] - long[:, 1]).astype(float)
    chance = 1 / (
        1 + np.exp(-(strength + slope * np.tanh(difference / np.sqrt((difference**2).mean()))))
    )
    outcomes = (rng.random(count) < chance).astype(float)
    texts = {}
    for number, (a, b) in enumerate(long):
        texts |= {(f"p{number}", "a"): "あ" * a, (f"p{number}", "b"): "い" * b}
    found = lengths.controlled(of_outcomes(outcomes), texts, "a")
    assert found.low < 1 / (1 + math.exp(-strength)) < found.high
    assert abs(found.slope - slope) < 3 * found.slope_error
    other = lengths.controlled(of_outcomes(outcomes), texts, "b")
    assert other.rate == pytest.approx(1 - found.rate) and other.slope == pytest.approx(found.slope)
    same = {key: "同じ" for key in texts}
    assert lengths.controlled(of_outcomes(outcomes), same, "a") is None


def test_lengths_of_models_and_their_correlation():
    texts = {("p", "a"): "あああ", ("q", "a"): "あ", ("p", "b"): "いろは" * 3, ("q", "b"): "いろ"}
    found = lengths.of_models(texts, list)
    assert found["a"] == {"characters": 2.0, "tokens": 2.0, "unique_tokens": 1.0}
    assert found["b"] == {"characters": 5.5, "tokens": 5.5, "unique_tokens": 2.5}
    assert lengths.of_models(texts)["a"] == {"characters": 2.0}
    assert lengths.correlation([10, 20, 40], [0.1, 0.2, 0.4]) == pytest.approx(1)
    assert lengths.correlation([1, 2, 3], [1, 0, 1]) == pytest.approx(0)
    assert math.isnan(lengths.correlation([1, 2], [1, 2]))
