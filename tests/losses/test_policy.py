"""Losses of PPO, GRPO and relatives against golden vectors, loops in NumPy and their slopes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.losses import advantages, masked, policy
from tests.losses import twins

MASK = np.array([[1, 1, 1, 1, 0, 0], [1] * 6])
CLIP = dict(clip_low=0.2, clip_high=0.2)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def batch(seed=0, B=8, T=6):
    """(logp, old logp, advantages, mask), garbage outside the mask; ratios reach both bounds."""
    mask = twins.masks(B, T, seed)
    logp = -np.abs(random(seed + 1, B, T))
    old, signs = logp + 0.4 * random(seed + 2, B, T), random(seed + 3, B, T)
    for x, garbage in ((logp, np.nan), (old, np.inf), (signs, np.nan)):
        x[~mask] = garbage
    return logp, old, signs, mask


def clean(*arrays):
    return [np.nan_to_num(np.float64(x), posinf=0.0) for x in arrays]


def test_golden_ppo():
    rewards = np.float32([[0.1, -0.2, 0.3, 1, 0, 0], [0, 0.05, -0.1, 0.2, -0.3, 0.5]])
    old_values = np.float32([[0.5, 0.4, 0.3, 0.2, 9, 9], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    moved = np.float32([[0.3, -0.3, 0.1, -0.05, 0, 0], [-0.25, 0.05, 0.4, 0, -0.6, 0.02]])
    value_moved = np.float32([[0.3, -0.1, 0.05, -0.4, 0, 0], [0.1, 0.1, -0.25, 0.3, 0, -0.1]])
    old = -1 - random(0, 2, 6) ** 2

    @jax.jit
    def update(clip):
        raw, returns = advantages.gae(rewards, old_values, MASK, discount=1.0, trace=0.95)
        white = masked.whiten(raw, MASK)
        settings = dict(clip_low=clip, clip_high=clip)
        loss, ratio = policy.clipped(old + moved, old, white, MASK, **settings)
        tokens = policy.token_denominator(MASK, "dapo", max_length=6)
        sums, extremes = policy.ratio_stats(ratio, white, MASK, **settings)
        value, _ = policy.value_loss(old_values + value_moved, old_values, returns, MASK, clip=clip)
        approximate_kl = policy.kl_estimate(old + moved, old, MASK, "k2")
        return {
            "loss": policy.reduce_tokens(loss, MASK, "dapo", tokens),
            "clipfrac": (sums["clipfrac_low"] + sums["clipfrac_high"]) / tokens,
            "approxkl": masked.mean(approximate_kl, MASK),
            "value": masked.mean(value, MASK),
        } | extremes

    want = {
        "loss": 0.00144656,
        "clipfrac": 0.3,
        "approxkl": 0.038895,
        "value": 0.15941637,
        "ratio_min": math.exp(-0.6),
        "ratio_max": math.exp(0.4),
    }
    got, unclipped = update(0.2), update(np.inf)
    for name, value in want.items():
        # the loss is a sum that nearly cancels, of terms around 1
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6 * (name == "loss"))
    for name in ("loss", "clipfrac", "value"):
        assert abs(float(unclipped[name]) - want[name]) > 1e-3


def test_what_holds_at_the_first_update():
    """The policy is still the old one and the reference: ratio 1, nothing clipped, losses 0."""
    logp, _, raw, mask = batch(1)
    white = masked.whiten(raw, mask)
    group, _ = advantages.group_advantages(random(9, 3, 4), "grpo")
    even, ones = np.nan_to_num(logp[:3]).repeat(4, axis=0), np.ones((12, 6), bool)

    @jax.jit
    def update():
        loss, ratio = policy.clipped(logp, logp, white, mask, **CLIP)
        sums, extremes = policy.ratio_stats(ratio, white, mask, **CLIP)
        kl = [policy.kl_estimate(logp, logp, mask, kind) for kind in ("k1", "k2", "k3")]
        of_groups, _ = policy.clipped(even, even, group.reshape(12, 1), ones, **CLIP)
        reduced = []
        for kind in policy.REDUCTIONS:
            total = policy.token_denominator(ones, kind, max_length=6)
            reduced.append(policy.reduce_tokens(of_groups, ones, kind, total))
        return masked.mean(loss, mask), ratio, sums, extremes, kl, of_groups, reduced

    loss, ratio, sums, extremes, kl, of_groups, reduced = update()
    np.testing.assert_array_equal(ratio, 1.0)
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    assert sums["clipfrac_low"] == sums["clipfrac_high"] == 0
    assert extremes["ratio_min"] == extremes["ratio_max"] == 1
    assert not any(estimate.any() for estimate in kl)
    # Groups of answers of one length: the mean of the loss is that of the advantages, 0, though no loss is.
    np.testing.assert_allclose(reduced, 0.0, atol=1e-6)
    assert np.abs(of_groups).max() > 0.5 and np.abs(of_groups).min() > 1e-3


def slow_clipped(logp, old, signs, mask, low, high, dual, level):
    """(sum of the loss over the mask, ratios)"""
    total, ratios = 0.0, np.ones(mask.shape)
    for b in range(len(mask)):
        places = np.flatnonzero(mask[b])
        for t in places:
            difference = logp[b, t] - old[b, t]
            if level == "sequence":
                difference = np.mean([logp[b, s] - old[b, s] for s in places])
            rho, a = math.exp(difference), signs[b, t]
            ratios[b, t] = rho
            gain = min(rho * a, min(max(rho, 1 - low), 1 + high) * a)
            total -= max(gain, dual * a) if dual is not None and a < 0 else gain
    return total, ratios


@pytest.mark.parametrize(
    "low, high, dual, level",
    [
        (0.2, 0.2, None, "token"),
        (0.2, 0.28, 1.3, "token"),
        (0.05, 0.05, None, "sequence"),
    ],
)
def test_clipped_loss_and_its_gradient_equal_a_loop(low, high, dual, level):
    logp, old, signs, mask = batch(2)

    def ours(logp):
        settings = dict(clip_low=low, clip_high=high, dual_clip=dual, level=level)
        loss, ratio = policy.clipped(logp, old, signs, mask, **settings)
        return loss.sum(), ratio

    (value, ratio), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(logp)
    pure = clean(logp, old, signs)
    slow_value, slow_ratio = slow_clipped(*pure, mask, low, high, dual, level)
    np.testing.assert_allclose(value, slow_value, rtol=1e-4)
    np.testing.assert_allclose(ratio, slow_ratio, rtol=1e-5)
    want = twins.slope(
        lambda x: slow_clipped(x, *pure[1:], mask, low, high, dual, level)[0], pure[0]
    )
    np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=1e-5)
    assert not np.asarray(gradient)[~mask].any()
    # some tokens are held by the clip, others are not
    assert 0 < (want[mask] == 0).sum() < mask.sum()
    sums, extremes = policy.ratio_stats(ratio, signs, mask, clip_low=low, clip_high=high)
    where = mask & np.isfinite(signs)
    assert sums["clipfrac_low"] == ((slow_ratio < 1 - low) & (signs < 0) & where).sum()
    assert sums["clipfrac_high"] == ((slow_ratio > 1 + high) & (signs > 0) & where).sum() > 0
    np.testing.assert_allclose(extremes["ratio_max"], slow_ratio[mask].max(), rtol=1e-5)
    np.testing.assert_allclose(sums["ratio_mean"], slow_ratio[mask].sum(), rtol=1e-5)


def test_float64_stays_float64():
    """Under x64 the same functions are exact enough to serve as a reference themselves."""
    logp, old, signs, mask = batch(2)
    pure = clean(logp, old, signs)
    with jax.enable_x64(True):
        doubles = [jnp.asarray(x, jnp.float64) for x in pure]
        loss, _ = policy.clipped(*doubles, mask, **CLIP)
        assert loss.dtype == jnp.float64
        value = float(loss.sum())
    single = float(policy.clipped(logp, old, signs, mask, **CLIP)[0].sum())
    want, _ = slow_clipped(*pure, mask, 0.2, 0.2, None, "token")
    assert abs(value - want) < 1e-12 < abs(single - want)


def test_cispo_bounds_weights_and_keeps_gradients():
    logp, old, signs, mask = batch(3)
    x, o, a = clean(logp, old, signs)

    def ours(logp):
        return policy.cispo(logp, old, signs, mask, cap=1.2)[0].sum()

    weights = np.where(mask, np.minimum(np.exp(x - o), 1.2) * a, 0.0)
    value, gradient = jax.value_and_grad(ours)(logp)
    np.testing.assert_allclose(value, -(weights * x).sum(), rtol=1e-4)
    np.testing.assert_allclose(gradient, -weights, rtol=1e-4, atol=1e-7)
    held = jax.grad(lambda v: policy.clipped(v, old, signs, mask, **CLIP)[0].sum())(logp)
    assert (np.asarray(held)[mask] == 0).any() and (weights[mask] != 0).all()


@pytest.mark.parametrize("level", policy.LEVELS)
@pytest.mark.parametrize("beyond", ["truncate", "mask"])
def test_importance_weights_equal_a_loop(level, beyond):
    old, rollout, _, mask = batch(4)
    x, o = clean(old, rollout)
    want = np.zeros(mask.shape)
    for b, t in zip(*np.nonzero(mask)):
        difference = (x - o)[b, mask[b]].sum() if level == "sequence" else (x - o)[b, t]
        weight = math.exp(difference)
        want[b, t] = weight if weight <= 1.1 else {"truncate": 1.1, "mask": 0.0}[beyond]
    settings = dict(cap=1.1, level=level, beyond=beyond)
    got = policy.importance_weights(old, rollout, mask, **settings)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert 0 < (want == (1.1 if beyond == "truncate" else 0.0))[mask].sum() < mask.sum()
    slope = jax.grad(lambda v: policy.importance_weights(v, rollout, mask, **settings).sum())(old)
    assert not slope.any()


def slow_value(values, old, returns, mask, clip):
    total, held = 0.0, np.zeros(mask.shape)
    for b, t in zip(*np.nonzero(mask)):
        near = min(max(values[b, t], old[b, t] - clip), old[b, t] + clip)
        plain, bounded = (values[b, t] - returns[b, t]) ** 2, (near - returns[b, t]) ** 2
        total += 0.5 * max(plain, bounded)
        held[b, t] = bounded > plain
    return total, held


def test_value_loss_and_its_gradient_equal_a_loop():
    values, old, returns, mask = batch(5)
    pure = clean(values, old, returns)
    loss, held = policy.value_loss(values, old, returns, mask, clip=0.2)
    want, want_held = slow_value(*pure, mask, 0.2)
    np.testing.assert_allclose(loss.sum(), want, rtol=1e-5)
    np.testing.assert_array_equal(held, want_held)
    gradient = jax.grad(lambda v: policy.value_loss(v, old, returns, mask, clip=0.2)[0].sum())(
        values
    )
    slope = twins.slope(lambda v: slow_value(v, *pure[1:], mask, 0.2)[0], pure[0])
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-5)
    assert 0 < want_held.sum() < mask.sum() and not np.asarray(gradient)[want_held > 0].any()


def test_explained_variance():
    values, _, returns, mask = batch(6)
    v, r = values[mask], returns[mask]
    want = 1 - np.var(r - v, ddof=1) / np.var(r, ddof=1)
    np.testing.assert_allclose(policy.explained_variance(values, returns, mask), want, rtol=1e-4)
    np.testing.assert_allclose(policy.explained_variance(returns + 3, returns, mask), 1, rtol=1e-5)
    assert policy.explained_variance(values, np.full(mask.shape, 2.0), mask) == 0
    assert policy.explained_variance(values, returns, np.zeros_like(mask)) == 0


def test_data_gets_no_gradient():
    """Old, rollout and reference values, advantages and returns are data; only what is trained has a slope."""
    *_, mask = batch(9)
    trained, first, second = (random(seed, *mask.shape) for seed in (1, 2, 3))
    losses = {
        "clipped": lambda x, a, b: policy.clipped(x, a, b, mask, **CLIP)[0],
        "cispo": lambda x, a, b: policy.cispo(x, a, b, mask, cap=1.3)[0],
        "value": lambda x, a, b: policy.value_loss(x, a, b, mask, clip=0.2)[0],
        "k2": lambda x, a, b: policy.kl_estimate(x, a, mask, "k2") + 0 * b,
        "k3": lambda x, a, b: policy.kl_estimate(x, a, mask, "k3") + 0 * b,
    }
    for name, loss in losses.items():
        slopes = jax.grad(lambda *x: loss(*x).sum(), (0, 1, 2))(trained, first, second)  # noqa: B023
        assert [bool(slope.any()) for slope in slopes] == [True, False, False], name

    def rewards_and_advantages(logp, reference, values):
        rewards, kept, _ = advantages.token_rewards(np.ones(8), logp, reference, mask, 0.1)
        got, returns = advantages.gae(rewards + values, values, kept, discount=1.0, trace=0.9)
        return rewards.sum() + got.sum() + returns.sum()

    value, slopes = jax.value_and_grad(rewards_and_advantages, (0, 1, 2))(trained, first, second)
    assert value != 0 and not any(slope.any() for slope in slopes)


def test_nothing_set_gives_finite_zeros():
    """A micro-batch can be all padding: every value and gradient is 0."""
    logp, old, signs = np.full((2, 3), np.nan), np.full((2, 3), np.inf), np.full((2, 3), np.nan)
    none = np.zeros((2, 3), bool)

    def total(logp):
        losses = [policy.clipped(logp, old, signs, none, level=x, **CLIP)[0] for x in policy.LEVELS]
        losses += [policy.cispo(logp, old, signs, none, cap=1.2)[0]]
        losses += [policy.value_loss(logp, old, signs, none, clip=0.2)[0]]
        losses += [policy.kl_estimate(logp, old, none, k) for k in ("k1", "k2", "k3")]
        losses += [masked.whiten(logp, none)]
        denominators = [policy.token_denominator(none, k, max_length=3) for k in policy.REDUCTIONS]
        return sum(
            policy.reduce_tokens(x, none, k, d)
            for x in losses
            for k, d in zip(policy.REDUCTIONS, denominators)
        )

    value, gradient = jax.jit(jax.value_and_grad(total))(logp)
    assert value == 0 and not gradient.any()
    weights = policy.importance_weights(
        logp, old, none, cap=2.0, level="sequence", beyond="truncate"
    )
    assert not weights.any()


@pytest.mark.parametrize("level", policy.LEVELS)
def test_far_policies_do_not_overflow(level):
    logp, old = np.zeros((1, 2), np.float32), np.full((1, 2), -300, np.float32)
    for sign in (-1.0, 1.0):
        value, slope = jax.value_and_grad(
            lambda x: policy.clipped(
                x, old, np.float32([[sign]]), np.ones((1, 2)), level=level, **CLIP  # noqa: B023
            )[0].sum()
        )(logp)  # fmt: skip
        assert np.isfinite(value) and np.isfinite(slope).all()


def test_trap_3_old_logp_stays_that_of_the_rollout():
    """Computing it again inside every step keeps the ratio at 1 for ever, and the clip never acts."""
    signs, every = np.float32([[1, -1, 1]]), np.ones((1, 3), bool)

    @jax.jit
    def step(logits, old):
        def loss(logits):
            logp = jax.nn.log_sigmoid(logits)
            values, ratio = policy.clipped(logp, logp if old is None else old, signs, every, **CLIP)
            return values.sum(), ratio

        gradient, ratio = jax.grad(loss, has_aux=True)(logits)
        return logits - 0.5 * gradient, ratio

    start = np.float32([[0.3, -0.2, 0.1]])
    kept = np.asarray(jax.nn.log_sigmoid(start))
    right, wrong = start, start
    for update in range(6):
        right, ratio = step(right, kept)
        wrong, same = step(wrong, None)
        assert np.abs(ratio - 1).max() < 1e-4 if update == 0 else np.abs(ratio - 1).mean() > 1e-2
        np.testing.assert_array_equal(same, 1.0)
    assert np.abs(ratio - 1).max() < 0.45  # the clip holds it, up to one step beyond
    assert np.abs(np.asarray(wrong) - start).min() > 1.5 * np.abs(np.asarray(right) - start).max()


def test_unknown_settings_are_refused():
    logp, old, signs, mask = batch(8)
    with pytest.raises(errors.ConfigError, match="JI-LOSS-001: level of the ratio = 'row'"):
        policy.clipped(logp, old, signs, mask, level="row", **CLIP)
    with pytest.raises(errors.ConfigError, match="JI-LOSS-001: reduction = 'mean'; allowed"):
        policy.reduce_tokens(logp, mask, "mean", 1.0)
    with pytest.raises(errors.ConfigError, match="JI-LOSS-001: beyond = 'drop'"):
        policy.importance_weights(logp, old, mask, cap=2.0, level="token", beyond="drop")
