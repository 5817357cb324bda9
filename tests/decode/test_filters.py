"""Filters against slow twins: a sort, a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr.decode import filters


@pytest.fixture
def logits_BV():
    rows = np.random.default_rng(0).normal(size=(5, 301)).astype(np.float32) * 3
    rows[3] = np.round(rows[3])  # many ties
    rows[4, 7:250] = filters.MASKED
    return rows


def kept(filtered):
    return np.asarray(filtered) > filters.MASKED / 2


@pytest.mark.parametrize("k", [1, 2, 40, 300, 301, 1000])
def test_top_k_equals_a_sort(logits_BV, k):
    want = np.stack([row >= np.sort(row)[::-1][min(k, 301) - 1] for row in logits_BV])
    got = np.asarray(filters.keep_top_k(logits_BV, k))
    assert (got[want] == logits_BV[want]).all() and (got[~want] == np.float32(filters.MASKED)).all()
    other = np.stack([row >= np.sort(row)[::-1][min(k, 301) // 2] for row in logits_BV])
    assert (kept(got) != other).any() or k < 3


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_equals_a_sorted_sum(logits_BV, p):
    got = kept(filters.keep_top_p(logits_BV, p))
    for row, chosen in zip(logits_BV.astype(np.float64), got):
        probs = np.exp(row - row.max())
        probs /= probs.sum()
        ordered = np.sort(probs)[::-1]
        cut = ordered[np.searchsorted(np.cumsum(ordered), p)]
        assert (chosen == (probs >= cut * (1 - 1e-5))).all()
        assert probs[chosen].sum() >= p - 1e-5
        # Minimal: without its least likely value the set falls short.
        assert probs[chosen & (probs > cut * (1 + 1e-5))].sum() < p


def test_min_p_equals_its_definition(logits_BV):
    got = kept(filters.keep_min_p(logits_BV, 0.1))
    probs = np.exp(logits_BV - logits_BV.max(-1, keepdims=True))
    assert (got == (probs >= 0.1)).all()
    assert got.sum() < kept(filters.keep_min_p(logits_BV, 0.01)).sum()


def test_repetition_penalty_and_temperature():
    logits = np.array([[2.0, -2.0, 1.0]], np.float32)
    seen = np.array([[True, True, False]])
    np.testing.assert_allclose(filters.repetition_penalty(logits, seen, 1.6), [[1.25, -3.2, 1.0]])
    np.testing.assert_allclose(filters.temperature(logits, 0.5), [[4.0, -4.0, 2.0]])


def test_likeliest_is_argmax_first_of_equals(logits_BV):
    assert (np.asarray(filters.likeliest(logits_BV)) == logits_BV.argmax(-1)).all()
    assert np.asarray(filters.likeliest(logits_BV))[0] != logits_BV[0].argmin()


def test_draw_is_the_inverse_cdf(logits_BV):
    for seed in range(20):
        uniform = np.random.default_rng(seed).random(5).astype(np.float32)
        got = np.asarray(filters.draw(logits_BV, uniform))
        for row, u, token in zip(logits_BV.astype(np.float64), uniform, got):
            probs = np.exp(row - row.max())
            upper = np.cumsum(probs / probs.sum())
            assert upper[token] >= u - 1e-5 and (token == 0 or upper[token - 1] <= u + 1e-5)


def test_draw_at_the_borders_never_leaves_the_support():
    logits = np.full((2, 300), filters.MASKED, np.float32)
    logits[:, [3, 130, 131, 290]] = [[0.0, 1.0, -2.0, 0.5]]
    for u, want in ((0.0, 3), (np.float32(1 - 2**-24), 290)):
        assert (np.asarray(filters.draw(logits, jnp.full(2, u))) == want).all()


def test_draw_has_the_right_frequencies():
    probs = np.array([0.5, 0.0, 0.3, 0.2])
    logits = jnp.log(jnp.maximum(probs, 1e-30)).at[1].set(filters.MASKED)
    uniform = jax.random.uniform(jax.random.key(0), (20_000,))
    tokens = filters.draw(jnp.broadcast_to(logits, (20_000, 4)), uniform)
    share = np.bincount(np.asarray(tokens), minlength=4) / 20_000
    np.testing.assert_allclose(share, probs, atol=0.012)
    assert share[1] == 0 and np.abs(share - 0.25).max() > 0.04
