"""Rewards per token, GAE, whitening and group advantages against golden vectors and loops in NumPy."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.losses import advantages, masked, policy, preference
from tests.losses import twins

REWARDS = np.float32([[0.1, -0.2, 0.3, 1, 0, 0], [0, 0.05, -0.1, 0.2, -0.3, 0.5]])
VALUES = np.float32([[0.5, 0.4, 0.3, 0.2, 9, 9], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
MASK = np.array([[1, 1, 1, 1, 0, 0], [1] * 6])


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_golden_gae_and_whitening():
    got, returns = advantages.gae(REWARDS, VALUES, MASK, discount=1.0, trace=0.95)
    want = [[0.5814, 0.612, 0.96, 0.8, 0, 0], [0.259433, 0.167824, 0.018762, 0.01975, -0.295, -0.1]]
    np.testing.assert_allclose(got, want, atol=1.1e-6)  # the vector has six decimals
    want = [[1.0814, 1.012, 1.26, 1, 0, 0], [0.359433, 0.367824, 0.318763, 0.41975, 0.205, 0.5]]
    np.testing.assert_allclose(returns, want, atol=1.1e-6)
    white = masked.whiten(got, MASK)
    want = [
        [0.671637, 0.745305, 1.583097, 1.197905, 0, 0],
        [-0.103481, -0.324025, -0.682883, -0.680506, -1.43825, -0.968798],
    ]
    np.testing.assert_allclose(white, want, atol=2e-6)
    by_row = np.concatenate([masked.whiten(got[b : b + 1], MASK[b : b + 1]) for b in range(2)])
    assert np.abs(by_row - want).max() > 0.1


@pytest.mark.parametrize(
    "score_at, want", [("eos", [0.43675, 0.565, 0.7, 0, 0]), ("eos_plus_1", [0.40065, 0.527, 0.66, 0.8, 0])]
)  # fmt: skip
def test_golden_places_of_the_score(score_at, want):
    mask = np.array([[1, 1, 1, 0, 0]])
    values = np.float32([[0.5, 0.4, 0.3, 0.2, 0]])
    logp = random(0, 1, 5)
    rewards, mask, value_mask = advantages.token_rewards([1.0], logp, logp, mask, 0.1, score_at)
    got, _ = advantages.gae(rewards, values, value_mask, discount=1.0, trace=0.95)
    np.testing.assert_allclose(got, [want], atol=1e-6)
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0]])


def slow_rewards(score, logp, reference, mask, coefficient, score_at):
    rewards, policy_mask, value_mask = np.zeros(mask.shape), mask.copy(), mask.copy()
    for b in range(len(mask)):
        if math.isnan(score[b]):
            policy_mask[b] = value_mask[b] = False
            continue
        places = [t for t in range(mask.shape[1]) if mask[b, t]]
        for t in places:
            rewards[b, t] = -coefficient * (float(logp[b, t]) - float(reference[b, t]))
        if places:
            after = score_at == "eos_plus_1" and places[-1] + 1 < mask.shape[1]
            rewards[b, places[-1] + after] += score[b]
            value_mask[b, places[-1] + after] = True
    return rewards, policy_mask, value_mask


@pytest.mark.parametrize("score_at", ["eos", "eos_plus_1"])
def test_token_rewards_equal_a_loop(score_at):
    mask = twins.masks(8, 6, 0)
    score = random(1, 8)
    score[[3, 6]] = np.nan
    logp, reference = random(2, 8, 6), random(3, 8, 6)
    logp[~mask], reference[~mask] = np.nan, np.inf
    got = jax.jit(advantages.token_rewards, static_argnums=5)(
        score, logp, reference, mask, 0.3, score_at
    )
    want = slow_rewards(score, logp, reference, mask, 0.3, score_at)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[2], want[2])
    assert got[0].dtype == jnp.float32
    other = {"eos": "eos_plus_1", "eos_plus_1": "eos"}[score_at]
    moved = advantages.token_rewards(score, logp, reference, mask, 0.3, other)[0]
    assert np.abs(moved - want[0]).max() > 0.1


def test_a_score_after_the_end_is_a_td_error_of_0_where_the_value_is_the_score():
    """The value model starts from the reward model: at the place after the end it already says the score."""
    mask, score = np.array([[1, 1, 0, 0]]), 0.7
    values = np.float32([[0.1, 0.2, score, 5.0]])
    zero = np.zeros((1, 4))
    rewards, _, value_mask = advantages.token_rewards([score], zero, zero, mask, 0.1, "eos_plus_1")
    got, _ = advantages.gae(rewards, values, value_mask, discount=1.0, trace=0.95)
    assert float(got[0, 2]) == 0 and abs(float(got[0, 1]) - 0.5) < 1e-6


def test_rows_without_a_score_are_left_out_and_not_given_0():
    mask, logp = np.ones((2, 3), bool), random(4, 2, 3)
    rewards, kept, _ = advantages.token_rewards([np.nan, 1.0], logp, 0 * logp, mask, 0.1)
    assert not kept[0].any() and kept[1].all() and not rewards[0].any()
    zero, all_kept, _ = advantages.token_rewards([0.0, 1.0], logp, 0 * logp, mask, 0.1)
    assert all_kept.all() and zero[0].any()
    np.testing.assert_allclose(masked.mean(rewards, kept), np.mean(zero[1]), rtol=1e-6)


def slow_gae(rewards, values, mask, discount, trace):
    """As defined: the sum of (discount · trace)^k times later errors, over the chosen tokens of each row."""
    out = np.zeros(mask.shape)
    for b in range(len(mask)):
        places = np.flatnonzero(mask[b])
        r, v = np.float64(rewards[b, places]), np.append(np.float64(values[b, places]), 0.0)
        errors_here = [r[i] + discount * v[i + 1] - v[i] for i in range(len(r))]
        for i, place in enumerate(places):
            out[b, place] = sum((discount * trace) ** k * e for k, e in enumerate(errors_here[i:]))
    return out, np.where(mask, out + values, 0.0)


@pytest.mark.parametrize("discount, trace", [(1.0, 1.0), (1.0, 0.95), (0.9, 0.8), (1.0, 0.0)])
def test_gae_equals_its_definition_on_every_mask(discount, trace):
    mask = twins.masks(8, 6, 1)
    rewards, values = random(5, 8, 6), random(6, 8, 6)
    want = slow_gae(rewards, values, mask, discount, trace)
    rewards[~mask], values[~mask] = np.nan, np.inf
    run = jax.jit(advantages.gae, static_argnames=("discount", "trace"))
    for got, twin in zip(run(rewards, values, mask, discount=discount, trace=trace), want):
        np.testing.assert_allclose(got, twin, rtol=1e-5, atol=1e-5)


def test_trace_1_gives_what_is_still_to_come_and_holes_are_passed_over():
    mask = np.array([[1, 0, 0, 1, 1]])
    rewards, values = np.float32([[1, 9, 9, 2, 4]]), np.float32([[3, 9, 9, 5, 6]])
    got, returns = advantages.gae(rewards, values, mask, discount=1.0, trace=1.0)
    np.testing.assert_array_equal(returns, [[7, 0, 0, 6, 4]])
    np.testing.assert_array_equal(got, [[4, 0, 0, 1, -2]])
    dense, _ = advantages.gae(
        rewards[:, [0, 3, 4]], values[:, [0, 3, 4]], np.ones((1, 3)), discount=0.9, trace=0.5
    )
    holes, _ = advantages.gae(rewards, values, mask, discount=0.9, trace=0.5)
    np.testing.assert_array_equal(np.asarray(holes)[:, [0, 3, 4]], dense)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_numpy_and_survives_small_masks(shift_mean):
    x, mask = 3 * random(7, 5, 6) + 2, twins.masks(5, 6, 2)
    dirty = np.where(mask, x, np.nan)
    chosen = np.float64(x[mask])
    want = np.zeros(x.shape)
    want[mask] = (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)
    want[mask] += 0 if shift_mean else chosen.mean()
    np.testing.assert_allclose(masked.whiten(dirty, mask, shift_mean), want, rtol=1e-4, atol=1e-6)
    biased = (chosen - chosen.mean()) / chosen.std()
    assert np.abs(biased - (chosen - chosen.mean()) / chosen.std(ddof=1)).max() > 1e-2
    for places in (0, 1):
        few = np.zeros((5, 6), bool)
        few.flat[:places] = True
        white = masked.whiten(dirty, few, shift_mean)
        want = 0 if shift_mean or not places else x[0, 0]
        np.testing.assert_allclose(np.asarray(white)[few], np.full(places, want), rtol=1e-6)
        assert not np.asarray(white)[~few].any()
        slope = jax.grad(lambda v: masked.whiten(v, few, shift_mean).sum())(dirty)  # noqa: B023
        assert np.isfinite(slope).all()


def test_penalties_for_answers_without_end():
    score, ended = np.float32([1.5, 1.5, np.nan, np.nan]), np.array([True, False, True, False])
    got = advantages.missing_eos(score, ended, kind="subtract", value=1.0)
    np.testing.assert_array_equal(got, [1.5, 0.5, np.nan, np.nan])
    got = advantages.missing_eos(score, ended, kind="override", value=-1.0)
    np.testing.assert_array_equal(got, [1.5, -1.0, np.nan, np.nan])
    with pytest.raises(errors.ConfigError, match="JI-LOSS-001.*'scale'; allowed: .'subtract'"):
        advantages.missing_eos(score, ended, kind="scale", value=1.0)
    got = advantages.clip_scores(np.float32([-30, 3, np.nan, 30]), 10.0)
    np.testing.assert_array_equal(got, [-10, 3, np.nan, 10])
    lengths = np.array([70, 80, 85, 90, 100, 101])
    got = advantages.overlong_penalty(lengths, max_length=100, buffer=20)
    np.testing.assert_allclose(got, [0, 0, -0.25, -0.5, -1, -1])


def test_golden_group_advantages():
    scores = np.float32([[1, 0, 0, 1, 1, 0, 0, 0]])
    for kind, one, zero in (
        ("grpo", 1.207381, -0.724429),
        ("dr_grpo", 0.625, -0.375),
        ("rloo", 0.714286, -0.428571),
    ):
        got, flat = advantages.group_advantages(scores, kind)
        np.testing.assert_allclose(got, np.where(scores == 1, one, zero), atol=1e-6)
        assert not flat[0]


def slow_group(scores, kind):
    out = np.zeros(scores.shape)
    for p, row in enumerate(np.float64(scores)):
        for g, score in enumerate(row):
            others = [s for h, s in enumerate(row) if h != g and not math.isnan(s)]
            if math.isnan(score) or not others:
                continue
            everyone = [*others, score]
            if kind == "rloo":
                out[p, g] = score - np.mean(others)
            else:
                out[p, g] = score - np.mean(everyone)
                out[p, g] /= np.std(everyone, ddof=1) + 1e-4 if kind == "grpo" else 1
    return out


@pytest.mark.parametrize("kind", advantages.GROUP_KINDS)
def test_group_advantages_equal_a_loop(kind):
    scores = random(8, 7, 5)
    scores[0] = 0.1
    scores[1] = np.nan
    scores[2, 1:] = np.nan
    scores[3, 2:] = np.nan
    scores[4, 0] = np.nan
    scores[4, 1:] = 0.7
    got, flat = jax.jit(advantages.group_advantages, static_argnums=1)(scores, kind)
    np.testing.assert_allclose(got, slow_group(scores, kind), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(flat, [1, 1, 1, 0, 1, 0, 0])
    # Equal scores give exactly 0, though their mean often rounds to another number.
    equal = np.repeat(random(9, 50, 1), 7, axis=1)
    assert (equal.mean(1, keepdims=True) != equal).any()
    got_equal, flat = advantages.group_advantages(equal, kind)
    assert np.asarray(flat).all() and not np.asarray(got_equal).any()
    as_zero, _ = advantages.group_advantages(np.nan_to_num(scores), kind)
    assert np.abs(as_zero - got).max() > 0.1
    with pytest.raises(errors.ConfigError, match="JI-LOSS-001: kind of group advantage = 'ppo'"):
        advantages.group_advantages(scores, "ppo")


def test_trap_5_fractions_survive_scores_of_integer_type():
    """Rewards made like the ids of the answer were int32 in another trainer, which cut fractions of scores off."""
    ids = np.array([[5, 7, 2]], np.int32)
    for score in (jnp.array([0.75]), jnp.array([3], jnp.int32), jnp.array([0.75], jnp.bfloat16)):
        rewards, _, _ = advantages.token_rewards(score, ids, ids, ids > 0, 0.1)
        assert rewards.dtype == jnp.float32
        np.testing.assert_array_equal(rewards, [[0, 0, float(score[0])]])
    assert int(jnp.zeros_like(ids).at[0, 2].add(jnp.array(0.75).astype(ids.dtype))[0, 2]) == 0
    got, returns = advantages.gae(ids, ids, ids > 0, discount=1, trace=0.95)
    assert got.dtype == returns.dtype == jnp.float32
    assert advantages.group_advantages(ids, "dr_grpo")[0].dtype == jnp.float32


def test_trap_7_the_end_is_scored_where_padding_is_the_end_token():
    """Masks made by `!= pad` lose the end where pad and end are one token; no function here sees an id."""
    end = pad = 2
    ids = np.array([[5, 7, end, pad, pad]])
    sampled = np.array([[1, 1, 1, 0, 0]])  # from the state of the sampler
    logp = random(9, 1, 5)
    rewards, mask, _ = advantages.token_rewards([1.0], logp, logp, sampled, 0.1)
    np.testing.assert_array_equal(rewards, [[0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(mask, sampled)
    from_ids, _, _ = advantages.token_rewards([1.0], logp, logp, ids != pad, 0.1)
    np.testing.assert_array_equal(from_ids, [[0, 1, 0, 0, 0]])  # the end would never be rewarded
    for module in (advantages, masked, policy, preference):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            words = " ".join(inspect.signature(function).parameters)
            assert "ids" not in words and "pad" not in words, name
