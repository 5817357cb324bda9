"""Intervals of benchmark scores: they hold the truth as often as they say."""

import numpy as np
import pytest

from jinstr.data.eval_tasks import metrics
from jinstr.evaluate import intervals


def test_the_interval_of_a_mean_holds_the_truth_in_nineteen_of_twenty_draws():
    rng = np.random.default_rng(1)
    held = narrow = 0
    for _ in range(200):
        low, high = intervals.of_mean(rng.random(200) < 0.3)
        held += low <= 0.3 <= high
        middle, half = (low + high) / 2, (high - low) / 4
        narrow += middle - half <= 0.3 <= middle + half
    assert 0.9 <= held / 200 <= 0.985
    assert narrow / 200 < 0.85  # negative control: half as wide is not enough


def test_it_is_as_wide_as_the_normal_approximation_where_that_holds():
    scores = np.arange(2000) % 4 == 0
    low, high = intervals.of_mean(scores)
    error = 1.96 * np.sqrt(0.25 * 0.75 / 2000)
    assert low == pytest.approx(0.25 - error, abs=0.002)
    assert high == pytest.approx(0.25 + error, abs=0.002)
    assert intervals.of_mean(scores) == [low, high]  # and the same every time


@pytest.mark.parametrize("metric", [metrics.macro_f1, metrics.balanced_accuracy, metrics.mcc])
def test_counts_of_classes_give_the_intervals_that_examples_give(metric):
    rng = np.random.default_rng(2)
    golds = rng.choice(["含意", "矛盾", "中立"], 400, p=[0.2, 0.2, 0.6])
    texts = [g if rng.random() < 0.6 else rng.choice(["含意", "中立", "？"]) for g in golds]
    targets = [(str(gold),) for gold in golds]
    by_counts = intervals.of_figure(metric, targets, texts)[metric.name]
    # A plain function: every draw goes through the whole metric.
    by_examples = intervals.of_figure(lambda t, p: metric(t, p), targets, texts)[metric.name]
    np.testing.assert_allclose(by_counts, by_examples, atol=0.012)
    assert by_counts[0] < metric(targets, texts)[metric.name] < by_counts[1]
    shuffled = intervals.of_figure(metric, targets, list(rng.permutation(texts)))[metric.name]
    assert shuffled[1] < by_counts[0]  # negative control
