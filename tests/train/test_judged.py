"""Accuracy over people's comparisons: by prompt, by length, by annotator; on cases counted by hand."""

import math

import numpy as np
import pytest

from jinstr.train import judged


def of(scores, ranks, tokens, annotator=""):
    return judged.Judged(np.array(scores, np.float32), np.array(ranks), np.array(tokens), annotator)


CASES = [
    of([2.0, 1.0], [1, 2], [10, 5], "a"),  # right, better is longer
    of([0.0, 1.0, 2.0], [1, 2, 2], [4, 8, 4], "b"),  # both wrong; better shorter, similar
    of([1.0, 1.0], [2, 1], [9, 9], "a"),  # equal scores: a half
    of([1.0, 0.0], [1, 1], [3, 3], "b"),  # a tie of people: no pair
]


def test_every_prompt_counts_once():
    found = judged.accuracy(CASES)
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["prompts"] == 3 and found["pairs"] == 4
    assert found["standard_error"] == pytest.approx(np.std([1, 0, 0.5], ddof=1) / math.sqrt(3))
    # Longer: right, (wrong and equal), equal.
    assert found["always_longer"] == pytest.approx((1 + 0.25 + 0.5) / 3)
    assert found["always_shorter"] == pytest.approx(1 - found["always_longer"])
    assert (found["better_is_longer"], found["better_is_longer_pairs"]) == (1, 1)
    assert (found["better_is_shorter"], found["better_is_shorter_pairs"]) == (0, 1)
    assert (found["similar_length"], found["similar_length_pairs"]) == (0.25, 2)
    assert found["annotator/a"] == 0.75 and found["annotator/b"] == 0


def test_nothing_to_compare_is_not_zero():
    found = judged.accuracy([CASES[3]])
    assert math.isnan(found["accuracy"]) and found["prompts"] == 0
    assert not any(
        name.startswith("annotator") for name in judged.accuracy([of([1, 0], [1, 2], [1, 1])])
    )


def test_answers_by_label():
    def one(score, rank):
        return judged.Judged(np.array([score]), np.array([rank]), np.array([3]), "")

    answers = [one(3.0, 1), one(1.0, 1), one(1.0, 2), one(0.0, 2), one(2.0, 2)]
    found = judged.by_label(answers)
    # 3 is above all of 1, 0 and 2; 1 equals 1, is above 0 and below 2.
    assert found["auc"] == pytest.approx((3 + 1.5) / 6)
    assert found["desired_score"] == 2.0 and found["undesired_score"] == 1.0
    assert (found["desired"], found["undesired"]) == (2.0, 3.0)
    assert math.isnan(judged.by_label(answers[:2])["auc"])
