"""Choices that share their prompt, against every candidate computed alone."""

import dataclasses

import jax
import numpy as np
import pytest

from jinstr import errors
from jinstr.evaluate import choices
from jinstr.models import config as config_lib
from jinstr.models import decoder
from tests.models import test_decoder

FORWARD = jax.jit(decoder.forward, static_argnums=0)
LLAMA = test_decoder.SMALL


def some_questions(seed=0, count=9):
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(0, 61, rng.integers(low, high)).tolist()

    return [
        choices.Question(ids(3, 30), [ids(1, 6) for _ in range(rng.integers(2, 5))])
        for _ in range(count)
    ]


def alone(config, params, question, candidate):
    """log p(candidate | prompt) of one row that holds nothing else."""
    used = len(question.prompt) + len(candidate)
    ids = np.zeros((1, 40), np.int32)  # one compiled shape
    ids[0, :used] = [*question.prompt, *candidate]
    places = np.arange(40, dtype=np.int32)[None]
    hidden = FORWARD(config, params, ids, places, (places < used).astype(np.int32))
    logits = np.asarray(decoder.logits(config, params, hidden)[0], np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    first = len(question.prompt)
    return sum(float(logp[first + n - 1, token]) for n, token in enumerate(candidate))


def far_off(config, params, questions, scores):
    return max(
        abs(alone(config, params, question, candidate) - logp)
        for question, found in zip(questions, scores.logp)
        for candidate, logp in zip(question.candidates, found)
    )


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_candidates_score_as_if_each_were_alone(family, monkeypatch):
    config = LLAMA
    if family != "llama":  # local layers and soft caps too
        config = config_lib.DecoderConfig(
            vocab_size=61, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
            mlp_size=40, **test_decoder.FAMILIES[family],
        )  # fmt: skip
    params = test_decoder.params_of(config)
    questions = some_questions()
    got = choices.score(config, params, questions, 512)
    assert far_off(config, params, questions, got) < 1e-4
    # Negative control: without branches a candidate sees those before it.
    laid_out = choices.lay_out

    def joined(*arguments):
        rows = laid_out(*arguments)
        rows.arrays["branches"][:] = 0
        return rows

    monkeypatch.setattr(choices, "lay_out", joined)
    wrong = choices.score(config, params, questions, 512)
    assert far_off(config, params, questions, wrong) > 1e-2


def test_blocks_of_queries_see_branches_too():
    """Rows of more than one block of attention, and batches of one row."""
    params = test_decoder.params_of(LLAMA)
    questions = some_questions(seed=1, count=20)
    together = choices.score(LLAMA, params, questions, 4096)
    one_by_one = choices.score(LLAMA, params, questions, 1)
    plain = dataclasses.replace(LLAMA, attention="xla")
    reference = choices.score(plain, params, questions, 4096)
    for other in (one_by_one, reference):
        for a, b in zip(together.logp, other.logp):
            np.testing.assert_allclose(a, b, atol=1e-4)
    assert one_by_one.useful == together.useful == sum(q.places for q in questions)


def test_rows_are_full_where_there_are_many_questions():
    rng = np.random.default_rng(0)
    short = rng.integers(40, 120, 1000)
    assert choices.row_width(short) <= 512
    middling = rng.integers(250, 400, 1000)  # with worked examples before them
    for lengths in (short, middling, rng.integers(900, 1500, 500)):
        width = choices.row_width(lengths)
        rows = len(choices.packing.fill_rows(lengths, width))
        assert lengths.sum() / (rows * width) >= 0.9 and width >= lengths.max()
    assert choices.row_width(np.array([5000])) == 5056


def test_a_candidate_without_tokens_is_refused():
    with pytest.raises(errors.DataError, match="JI-CHOICE-001"):
        choices.score(LLAMA, {}, [choices.Question([1], [[2], []])], 64)


def test_a_cache_has_no_branches():
    params = test_decoder.params_of(LLAMA)
    ids = np.zeros((1, 4), np.int32)
    cache = decoder.init_cache(LLAMA, 1, 8)
    with pytest.raises(ValueError, match="branches"):
        decoder.forward(LLAMA, params, ids, ids, ids + 1, cache, branches_BT=ids)
