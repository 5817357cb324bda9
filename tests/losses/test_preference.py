"""Preference losses against golden vectors, loops in NumPy and their slopes, and what must hold at the start."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.losses import lm, preference
from tests.losses import twins

# chosen -12 over 6 tokens, rejected -15 over 9; the reference model has -13 and -14.5
ONE = [np.float32([x]) for x in (-12, -15, -13, -14.5)]
TOKENS = (np.float32([6]), np.float32([9]))
LN2 = math.log(2)


def dpo(*values, kind="sigmoid", beta=0.1, label_smoothing=0.0, tokens=None):
    settings = dict(kind=kind, beta=beta, label_smoothing=label_smoothing, tokens=tokens)
    return preference.dpo(*values, **settings)


@pytest.mark.parametrize(
    "settings, want",
    [
        (dict(), 0.62095705),
        (dict(label_smoothing=0.1), 0.63595705),
        (dict(kind="robust", label_smoothing=0.1), 0.60220705),
        (dict(kind="hinge"), 0.85),
        (dict(kind="ipo"), 12.25),
        (dict(kind="ipo", tokens=TOKENS), 22.82716049),
        (dict(tokens=TOKENS), 0.68209780),
    ],
)
def test_golden_dpo(settings, want):
    np.testing.assert_allclose(dpo(*ONE, **settings), [want], rtol=1e-5)
    swapped = dpo(ONE[1], ONE[0], ONE[3], ONE[2], **settings)
    assert abs(float(swapped[0]) - want) > 1e-3


def test_golden_simpo_orpo_kto_and_pairs():
    def close(got, want):
        np.testing.assert_allclose(got, [want], rtol=1e-5)

    close(preference.simpo(ONE[0], ONE[1], TOKENS, beta=2, target_margin=0.5), 1.43776439)
    close(preference.log_odds_ratio(ONE[0], ONE[1], TOKENS), -0.39725372)
    odds = preference.orpo(ONE[0], ONE[1], TOKENS, beta=0.1, nll_weight=0.0)
    close(odds, 0.09113720)
    close(preference.orpo(ONE[0], ONE[1], TOKENS, beta=0.1, nll_weight=1.0), 2 + 0.09113720)
    weights = dict(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
    close(preference.kto(ONE[0], ONE[2], np.array([True]), 0.4, **weights), 0.48500450)
    close(preference.kto(ONE[1], ONE[3], np.array([False]), 0.4, **weights), 0.47751518)
    scores = np.float32([1.2]), np.float32([0.3])
    close(preference.pair(*scores), 0.34115387)
    close(preference.pair(*scores, centering=0.01), 0.36365387)
    close(preference.pair(*scores, margin_B=np.float32([0.5])), 0.51301525)
    ranks = np.array([[1, 3, 4, 2]])
    rewards = np.float32([[1.2, 0.3, -0.5, 0.9]])
    loss, pairs = preference.ranking(rewards, ranks, np.ones((1, 4), bool))
    close(loss, 0.34871686)
    assert pairs[0] == 6


def test_what_holds_before_the_first_update():
    """Policy and reference are equal: the loss is a known number whatever the data."""
    rng = np.random.default_rng(0)
    logp = [np.float32(-50 * rng.random(5)) for _ in range(2)]
    for smoothing in (0.0, 0.1, 0.4):
        np.testing.assert_allclose(dpo(*logp, *logp, label_smoothing=smoothing), LN2, rtol=1e-6)
        robust = dpo(*logp, *logp, kind="robust", label_smoothing=smoothing)
        np.testing.assert_allclose(robust, LN2, rtol=1e-5)
    np.testing.assert_allclose(dpo(*logp, *logp, kind="hinge"), 1.0)
    np.testing.assert_allclose(dpo(*logp, *logp, kind="ipo"), 25.0, rtol=1e-6)
    assert not preference.implicit_reward(logp[0], logp[0], 0.1).any()
    for desirable in (np.ones(5, bool), np.zeros(5, bool)):
        weights = dict(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
        baseline = preference.kto_baseline(logp[1], logp[1], np.ones(5, bool))
        loss = preference.kto(logp[0], logp[0], desirable, baseline, **weights)
        np.testing.assert_allclose(loss, 0.5)
    np.testing.assert_allclose(preference.pair(np.zeros(5), np.zeros(5)), LN2, rtol=1e-6)
    zeros, ranks = np.zeros((1, 4)), np.array([[1, 2, 2, 3]])
    loss, pairs = preference.ranking(zeros, ranks, np.ones((1, 4), bool))
    np.testing.assert_allclose(loss, LN2, rtol=1e-6)
    assert pairs[0] == 5
    assert np.abs(dpo(*logp, logp[1], logp[0]) - LN2).max() > 1e-2


def slow_dpo(values, kind, beta, smoothing, tokens):
    total = 0.0
    for b in range(values.shape[1]):
        chosen, rejected, reference_chosen, reference_rejected = values[:, b]
        chosen, rejected = chosen - reference_chosen, rejected - reference_rejected
        if tokens is not None:
            chosen, rejected = chosen / tokens[0][b], rejected / tokens[1][b]
        z = beta * (chosen - rejected)
        right, swapped = -twins.log_sigmoid(z), -twins.log_sigmoid(-z)
        total += {
            "sigmoid": (1 - smoothing) * right + smoothing * swapped,
            "robust": ((1 - smoothing) * right - smoothing * swapped) / (1 - 2 * smoothing),
            "hinge": max(0.0, 1 - z),
            "ipo": (z / beta - 1 / (2 * beta)) ** 2,
        }[kind]
    return total


@pytest.mark.parametrize("kind", preference.DPO_KINDS)
@pytest.mark.parametrize("by_token", [False, True])
def test_dpo_and_its_gradient_equal_a_loop(kind, by_token):
    rng = np.random.default_rng(1)
    values = np.float32(-20 * rng.random((4, 6)))
    tokens = tuple(np.float32(rng.integers(1, 9, 6)) for _ in range(2)) if by_token else None
    smoothing = 0.2 if kind in ("sigmoid", "robust") else 0.0
    beta = 0.3

    def ours(policy):
        loss = dpo(
            *policy, *values[2:], kind=kind, beta=beta, label_smoothing=smoothing, tokens=tokens
        )
        return loss.sum()

    def slow(policy):
        both = np.concatenate([policy, values[2:]]).astype(np.float64)
        return slow_dpo(both, kind, beta, smoothing, tokens)

    value, gradient = jax.jit(jax.value_and_grad(ours))(values[:2])
    np.testing.assert_allclose(value, slow(values[:2]), rtol=1e-5)
    want = twins.slope(slow, values[:2])
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    assert np.abs(want).max() > 1e-3


def slow_ranking(rewards, ranks, valid, margin, centering):
    """(sum over questions of the mean over pairs, right answers, pairs)"""
    total, right, kept = 0.0, [], []
    for r, k, v in zip(np.float64(rewards), ranks, valid):
        losses, hits = [], 0
        for i, j in itertools.permutations(range(len(r)), 2):
            if v[i] and v[j] and k[i] < k[j]:
                losses.append(-twins.log_sigmoid(r[i] - r[j] - margin))
                losses[-1] += centering * (r[i] + r[j]) ** 2
                hits += r[i] > r[j]
        total += np.mean(losses) if losses else 0.0
        right.append(hits)
        kept.append(len(losses))
    return total, right, kept


@pytest.mark.parametrize("margin, centering", [(0.0, 0.0), (0.4, 0.05)])
def test_ranking_and_its_gradient_equal_a_loop(margin, centering):
    rng = np.random.default_rng(2)
    rewards = np.float32(rng.normal(size=(6, 5)))
    ranks = rng.integers(1, 5, (6, 5))  # ties are frequent
    valid = rng.random((6, 5)) < 0.8
    valid[0] = False
    valid[1] = np.arange(5) == 2
    ranks[2] = 1
    clean = rewards.copy()
    rewards[~valid] = np.nan

    def ours(rewards):
        return preference.ranking(rewards, ranks, valid, margin, centering)[0].sum()

    total, right, kept = slow_ranking(rewards, ranks, valid, margin, centering)
    value, gradient = jax.value_and_grad(ours)(rewards)
    np.testing.assert_allclose(value, total, rtol=1e-5)
    np.testing.assert_array_equal(preference.ranking(rewards, ranks, valid)[1], kept)
    got_right, got_pairs = preference.ranking_accuracy(rewards, ranks, valid)
    np.testing.assert_array_equal(got_right, right)
    np.testing.assert_array_equal(got_pairs, kept)
    equal_rewards = preference.ranking_accuracy(0 * clean, ranks, valid)
    np.testing.assert_array_equal(
        equal_rewards, [np.zeros(6), kept]
    )  # a head of zeros is never right
    assert kept[:3] == [0, 0, 0] and 0 < sum(right) < sum(kept)
    want = twins.slope(lambda r: slow_ranking(r, ranks, valid, margin, centering)[0], clean)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-6)


def test_two_answers_ranked_are_a_pair():
    rewards, valid = np.float32([[0.3, 1.2]]), np.ones((1, 2), bool)
    loss, _ = preference.ranking(rewards, np.array([[2, 1]]), valid, 0.5, 0.01)
    np.testing.assert_allclose(loss, preference.pair(rewards[:, 1], rewards[:, 0], 0.5, 0.01))
    other, _ = preference.ranking(rewards, np.array([[1, 2]]), valid, 0.5, 0.01)
    assert float(other[0]) > float(loss[0]) + 0.5


def test_kto_equals_a_loop():
    rng = np.random.default_rng(3)
    policy, reference, other, other_reference = np.float32(-9 * rng.random((4, 7)))
    desirable, valid = rng.random(7) < 0.5, np.arange(7) < 5
    other += 2
    other[~valid] = np.nan
    z0 = max(0.0, np.mean((np.float64(other) - other_reference)[valid]))
    assert z0 > 0.1
    baseline = preference.kto_baseline(other, other_reference, valid)
    np.testing.assert_allclose(baseline, z0, rtol=1e-5)
    assert preference.kto_baseline(other_reference, other, valid) == 0
    weights = dict(beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)

    def ours(policy):
        return preference.kto(policy, reference, desirable, baseline, **weights).sum()

    def slow(policy):
        total = 0.0
        for p, r, good in zip(policy, np.float64(reference), desirable):
            gain = 0.3 * (p - r - z0)
            total += 1.5 * (1 - twins.sigmoid(gain)) if good else 0.7 * twins.sigmoid(gain)
        return total

    value, gradient = jax.value_and_grad(ours)(policy)
    np.testing.assert_allclose(value, slow(policy), rtol=1e-5)
    want = twins.slope(slow, policy)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-6)
    moved = jax.grad(lambda p: preference.kto_baseline(p, other_reference, valid))(policy)
    assert not moved.any()


def test_log1mexp_on_both_sides_of_its_branch():
    x = np.float32([-1e-5, -1e-3, -0.5, -0.6931, -0.6932, -1.0, -20.0, -80.0])
    want = [math.log(-math.expm1(float(v))) if v > -30 else -math.exp(float(v)) for v in x]
    np.testing.assert_allclose(preference.log1mexp(x), want, rtol=1e-5)
    slopes = [-math.exp(float(v)) / -math.expm1(float(v)) for v in x]
    got = jax.grad(lambda x: preference.log1mexp(x).sum())(x)
    np.testing.assert_allclose(got, slopes, rtol=1e-5)
    # Above the cap: the value of the cap, and no slope.
    cap = preference.LARGEST_LOGP
    value, slope = jax.value_and_grad(preference.log1mexp)(np.float32(cap / 100))
    assert slope == 0
    np.testing.assert_allclose(value, math.log(-math.expm1(cap)), rtol=1e-5)
    # The form without branches fails at one end or the other.
    assert np.asarray(jnp.log(1 - jnp.exp(x)))[-1] == 0
    assert abs(np.asarray(jnp.log1p(-jnp.exp(x)))[0] / want[0] - 1) > 1e-5


def test_answers_without_tokens_stay_finite():
    """Rows that fill a batch up have no tokens at all: value and gradient are finite under every loss."""
    mask = np.array([[0, 0, 0], [1, 1, 0]])
    garbage = np.float32([[np.nan, np.inf, -1], [-0.5, -1, -np.inf]])

    def all_of_them(logp):
        chosen, n = preference.sequence_logp(logp, mask)
        rejected, m = preference.sequence_logp(2 * logp, mask)
        zero = jnp.zeros(2)
        losses = [dpo(chosen, rejected, zero, zero, kind=k) for k in preference.DPO_KINDS]
        losses += [dpo(chosen, rejected, zero, zero, kind="ipo", tokens=(n, m))]
        losses += [preference.orpo(chosen, rejected, (n, m), beta=0.1, nll_weight=1.0)]
        losses += [preference.simpo(chosen, rejected, (n, m), beta=2, target_margin=0.5)]
        losses += [preference.chosen_nll(chosen, n)]
        return sum(loss.sum() for loss in losses)

    value, gradient = jax.jit(jax.value_and_grad(all_of_them))(garbage)
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient == 0, mask == 0)
    chosen, n = preference.sequence_logp(garbage, mask)
    np.testing.assert_allclose(chosen, [0, -1.5])
    np.testing.assert_array_equal(n, [0, 2])


@pytest.mark.parametrize("kind", [*preference.DPO_KINDS, "kto"])
def test_reference_models_get_no_gradient(kind):
    weights = dict(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)

    def loss(policy, reference):
        if kind == "kto":
            return preference.kto(policy[0], reference[0], np.array([True]), 0.4, **weights)[0]
        return dpo(*policy, *reference, kind=kind)[0]

    slopes = jax.grad(loss, (0, 1))(jnp.stack(ONE[:2]), jnp.stack(ONE[2:]))
    assert slopes[0].any() and not slopes[1].any()


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_far_margins_neither_overflow_nor_lose_their_gradient(size):
    far = np.float32([-size]), np.float32([0.0]), np.float32([0.0]), np.float32([0.0])
    value, slope = jax.value_and_grad(lambda c: dpo(c, *far[1:], beta=1.0)[0])(far[0])
    np.testing.assert_allclose(value, size)
    np.testing.assert_allclose(slope, [-1.0])
    assert dpo(-far[0], *far[1:], beta=1.0)[0] == 0


def test_bfloat16_inputs_are_summed_in_float32():
    half = [jnp.asarray(x * 1.013, jnp.bfloat16) for x in ONE]
    got = dpo(*half)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, dpo(*[np.asarray(x, np.float32) for x in half]))


def test_trap_1_label_smoothing_is_used_or_refused():
    """A newer DPO trainer takes label_smoothing for its sigmoid loss and ignores it."""
    plain = float(dpo(*ONE)[0])
    for e in (0.1, 0.3):
        np.testing.assert_allclose(dpo(*ONE, label_smoothing=e), [plain + e * 0.15], rtol=1e-5)
        for kind in ("hinge", "ipo"):
            with pytest.raises(errors.ConfigError, match=f"JI-LOSS-002: label_smoothing = {e}"):
                dpo(*ONE, kind=kind, label_smoothing=e)
    with pytest.raises(errors.ConfigError, match="JI-LOSS-002.*robust needs"):
        dpo(*ONE, kind="robust", label_smoothing=0.5)
    with pytest.raises(errors.ConfigError, match="JI-LOSS-001: kind of DPO = 'apo'; allowed"):
        dpo(*ONE, kind="apo")


def test_trap_2_ipo_on_sums_and_on_means_are_two_losses_and_one_is_chosen():
    by_sum, by_mean = dpo(*ONE, kind="ipo"), dpo(*ONE, kind="ipo", tokens=TOKENS)
    assert abs(float(by_sum[0]) - float(by_mean[0])) > 10
    ones = np.ones(1, np.float32), np.ones(1, np.float32)
    np.testing.assert_array_equal(by_sum, dpo(*ONE, kind="ipo", tokens=ones))
    with pytest.raises(TypeError, match="tokens"):
        preference.dpo(*ONE, kind="ipo", beta=0.1, label_smoothing=0.0)


def test_trap_8_token_0_counts_and_the_prompt_does_not():
    """Others took token id 0 for padding in the NLL of RPO, or counted the prompt in that of ORPO."""
    rng = np.random.default_rng(5)
    hidden, head = np.float32(rng.normal(size=(1, 6, 4))), np.float32(rng.normal(size=(4, 9)))
    targets = np.array([[3, 5, 0, 2, 0, 1]], np.int32)
    answer = np.array([[0, 0, 1, 1, 1, 0]])
    logp, _, _ = lm.token_logprobs(hidden, head, targets)
    log_probs = np.asarray(jax.nn.log_softmax(hidden @ head, -1))
    each = [-log_probs[0, t, targets[0, t]] for t in range(6)]
    total, tokens = preference.sequence_logp(logp, answer)
    nll = preference.chosen_nll(total, tokens)
    np.testing.assert_allclose(nll, [np.mean(each[2:5])], rtol=1e-5)
    for wrong in (each[3], np.mean(each[:5]), np.sum(each[2:5])):
        assert abs(float(nll[0]) - wrong) > 1e-2
