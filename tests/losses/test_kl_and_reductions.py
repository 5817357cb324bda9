"""KL estimates, the controller of their weight, and what sums over tokens are divided by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.losses import policy
from tests.losses import twins


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_adaptive_kl_moves_by_a_fifth_at_most():
    for kl, want in ((9.0, 0.151536), (0.0, 0.148464), (6.3, 0.150384)):
        got = policy.adaptive_kl(0.15, kl, target=6.0, horizon=1e4, count=512)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def exact_kl(log_p, log_q):
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


@pytest.mark.parametrize("seed", range(3))
def test_what_each_kl_estimate_is_as_a_value_and_as_a_loss(seed):
    """Exact expectations over 7 tokens: k1 has no gradient, k2 that of KL(policy || ref), k3 of KL(ref || policy)."""
    logits, log_reference = random(seed, 7), jax.nn.log_softmax(random(seed + 10, 7))
    log_policy = jax.nn.log_softmax(logits)
    every, one = np.ones((1, 7), bool), log_reference[None]

    def expected(logits, kind):
        estimate = policy.kl_estimate(jax.nn.log_softmax(logits)[None], one, every, kind)
        return jnp.sum(jnp.exp(log_policy) * estimate[0])  # the tokens were drawn before

    ahead, back = exact_kl(log_policy, log_reference), exact_kl(log_reference, log_policy)
    slope = jax.jit(jax.grad(expected), static_argnums=1)
    slopes = {k: slope(logits, k) for k in ("k1", "k2", "k3")}
    ahead_slope = jax.grad(lambda x: exact_kl(jax.nn.log_softmax(x), log_reference))(logits)
    back_slope = jax.grad(lambda x: exact_kl(log_reference, jax.nn.log_softmax(x)))(logits)
    np.testing.assert_allclose(slopes["k1"], 0.0, atol=1e-6)
    np.testing.assert_allclose(slopes["k2"], ahead_slope, atol=1e-6)
    np.testing.assert_allclose(slopes["k3"], back_slope, atol=1e-6)
    np.testing.assert_allclose(expected(logits, "k1"), ahead, rtol=1e-5)
    np.testing.assert_allclose(expected(logits, "k3"), ahead, rtol=1e-5)
    assert abs(float(ahead) - float(back)) > 1e-3
    assert np.abs(ahead_slope - back_slope).max() > 1e-2 and np.abs(ahead_slope).max() > 1e-2
    assert abs(float(expected(logits, "k2")) - float(ahead)) > 1e-3


def test_kl_estimates_of_near_and_far_models():
    d = np.float64([[1e-3, -1e-3, 0.5, -2.0, 300.0, -300.0]])
    got = [
        policy.kl_estimate(np.float32(d), 0 * d, np.ones(d.shape), k) for k in ("k1", "k2", "k3")
    ]
    np.testing.assert_allclose(got[0], d, rtol=1e-6)
    np.testing.assert_allclose(got[1], d**2 / 2, rtol=1e-6)
    # d = 1e-3 has a rounding error of 6e-11 in f32, 1e-4 of the value 5e-7, and is rounded three times
    np.testing.assert_allclose(got[2][0, :4], (np.expm1(-d) + d)[0, :4], rtol=1e-3)
    near = np.float32(d[:, :1])
    direct = np.exp(-near) - 1 + near
    assert np.abs(direct / (np.expm1(-d) + d)[:, :1] - 1) > 1e-2
    assert np.isfinite(got[2]).all() and (np.asarray(got[2]) >= 0).all()
    with pytest.raises(errors.ConfigError, match="JI-LOSS-001: kind of KL estimate = 'kl'"):
        policy.kl_estimate(d, d, d > 0, "kl")


def slow_reduce(loss, mask, kind, max_length):
    rows = [[loss[b, t] for t in range(mask.shape[1]) if mask[b, t]] for b in range(len(mask))]
    rows = [row for row in rows if row]
    if kind == "grpo":
        return np.mean([np.mean(row) for row in rows])
    total = sum(sum(row) for row in rows)
    return total / (len(rows) * max_length if kind == "dr_grpo" else sum(map(len, rows)))


@pytest.mark.parametrize("kind", policy.REDUCTIONS)
def test_reductions_equal_a_loop_and_micro_batches_add_up(kind):
    loss, mask = random(7, 8, 6), twins.masks(8, 6, 7)
    loss[~mask] = np.nan
    want = slow_reduce(loss, mask, kind, 10)
    got = policy.reduce_tokens(
        loss, mask, kind, policy.token_denominator(mask, kind, max_length=10)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    parts = [slice(0, 3), slice(3, 8)]
    total = sum(policy.token_denominator(mask[p], kind, max_length=10) for p in parts)
    shares = sum(policy.reduce_tokens(loss[p], mask[p], kind, total) for p in parts)
    alone = np.mean([slow_reduce(loss[p], mask[p], kind, 10) for p in parts])
    # bnpo is by definition the mean of micro-batches' own means; for the others that is the bug of accumulation.
    np.testing.assert_allclose(shares, alone if kind == "bnpo" else want, rtol=1e-5)
    assert abs(alone - want) > 1e-3
    others = [slow_reduce(loss, mask, k, 10) for k in policy.REDUCTIONS if k != kind]
    assert sum(abs(other - want) > 1e-3 for other in others) >= 2
    gradient = jax.grad(lambda x: policy.reduce_tokens(x, mask, kind, total))(loss)
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[~mask].any()
