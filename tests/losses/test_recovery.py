"""Do the losses recover a reward that is known? Reward models under known noise, and DPO's implicit reward.

Labels are drawn by Bradley and Terry's model, so the best possible accuracy (Bayes) is known in closed form. Each claim
stands beside what it must not be: above the ceiling, or as good when the labels are noise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

from jinstr.losses import preference

FEATURES, SPREAD, HELD_OUT = 16, 2.0, 20_000


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normal(d, spread):
    return np.exp(-0.5 * (d / spread) ** 2) / (spread * np.sqrt(2 * np.pi))


@functools.cache
def bayes(spread):
    """(accuracy, negative log-likelihood) of who knows the reward, for differences from N(0, spread²)."""

    def mean(f):
        return integrate.quad(lambda d: f(d) * normal(d, spread), -12 * spread, 12 * spread)[0]

    def entropy(d):
        p = sigmoid(d)
        return -(p * np.log(p) + (1 - p) * np.log(1 - p)) if 0 < p < 1 else 0.0

    return mean(lambda d: max(sigmoid(d), 1 - sigmoid(d))), mean(entropy)


def test_the_ceilings_are_those_of_the_literature():
    assert bayes(2.0) == (pytest.approx(0.778, abs=5e-4), pytest.approx(0.462, abs=5e-4))
    assert bayes(1.0)[0] == pytest.approx(0.675, abs=5e-4)
    assert bayes(4.0)[0] == pytest.approx(0.871, abs=5e-4)


def pairs(count, chance, weights):
    """(features of the better and of the worse answer) [count, FEATURES] each, by noisy labels."""
    a, b = chance.normal(size=(2, count, FEATURES)) / np.sqrt(2)
    difference = (a - b) @ weights  # N(0, |weights|²)
    swapped = chance.random(count) > sigmoid(difference)
    return np.where(swapped[:, None], b, a), np.where(swapped[:, None], a, b)


@functools.partial(jax.jit, static_argnums=2)
def fitted(better, worse, steps=400):
    """A linear reward, fitted by `preference.pair` with a little weight decay."""

    def loss(w):
        return preference.pair(better @ w, worse @ w).mean() + 1e-3 * (w @ w)

    optimizer = optax.adam(0.05)

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.grad(loss)(w), state)
        return (optax.apply_updates(w, updates), state), None

    start = jnp.zeros(FEATURES)
    return jax.lax.scan(step, (start, optimizer.init(start)), None, steps)[0][0]


def trained(count, flips, seed):
    """(accuracy, nll on labels that are not flipped, mean |margin|) after `count` pairs of which a share is swapped."""
    chance = np.random.default_rng(seed)
    weights = chance.normal(size=FEATURES)
    weights *= SPREAD / np.linalg.norm(weights)
    better, worse = pairs(count, chance, weights)
    flip = (chance.random(count) < flips)[:, None]
    better, worse = np.where(flip, worse, better), np.where(flip, better, worse)
    w = fitted(jnp.asarray(better, jnp.float32), jnp.asarray(worse, jnp.float32), 400)
    better, worse = pairs(HELD_OUT, np.random.default_rng(1000 + seed), weights)
    margin = np.asarray((better - worse) @ np.asarray(w))
    nll = float(preference.pair(jnp.asarray(margin), jnp.zeros(HELD_OUT)).mean())
    return float((margin > 0).mean()), nll, float(np.abs(margin).mean())


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_model_comes_to_the_ceiling_and_not_above(seed):
    ceiling, least_nll = bayes(SPREAD)
    above = 3 * np.sqrt(ceiling * (1 - ceiling) / HELD_OUT)
    for count, at_least in ((300, 0.72), (3000, ceiling - 0.02), (10_000, ceiling - 0.02)):
        accuracy, nll, _ = trained(count, 0.0, seed)
        assert at_least <= accuracy <= ceiling + above, (count, accuracy)
        assert nll >= least_nll - 0.01, (count, nll)  # 0.01: three standard errors of 20,000 labels


def test_swapped_labels_cost_what_they_must():
    """Accuracy on labels that are not swapped; the margins shrink, and noise alone teaches nothing."""
    for count, expected in ((1000, 0.759), (3000, 0.774), (10_000, 0.774)):
        found = np.mean([trained(count, 0.2, seed)[0] for seed in range(3)])
        assert found == pytest.approx(expected, abs=0.01), (count, found)
    clean, noisy = trained(10_000, 0.0, 0)[2], trained(10_000, 0.2, 0)[2]
    assert noisy < 0.65 * clean
    assert abs(np.mean([trained(3000, 0.5, seed)[0] for seed in range(3)]) - 0.5) < 0.1


def tuned(count, seed, beta=0.1, mask_lost=False):
    """(reward, beta · log(policy / reference)) of eight answers to one prompt, tuned on `count` pairs by `dpo`."""
    chance = np.random.default_rng(seed)
    reward = chance.normal(size=8)
    i = chance.integers(0, 8, count)
    j = (i + chance.integers(1, 8, count)) % 8
    swapped = chance.random(count) > sigmoid(reward[i] - reward[j])
    better, worse = np.where(swapped, j, i), np.where(swapped, i, j)

    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        uniform = jnp.full(8, -np.log(8))
        lost = (
            0.5 if mask_lost else 1.0
        )  # as when half of the tokens of every answer are not counted
        return preference.dpo(
            lost * logp[better], lost * logp[worse], lost * uniform[better], lost * uniform[worse],
            kind="sigmoid", beta=beta, label_smoothing=0.0, tokens=None,
        ).mean()  # fmt: skip

    optimizer = optax.adam(0.5)

    def step(carry, _):
        logits, state = carry
        updates, state = optimizer.update(jax.grad(loss)(logits), state)
        return (optax.apply_updates(logits, updates), state), None

    start = jnp.zeros(8)
    logits = jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), None, 600)[0][0])()
    return reward, beta * np.asarray(jax.nn.log_softmax(logits) + np.log(8))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [5000, 50_000])
def test_dpo_recovers_the_reward(count, seed):
    reward, implicit = tuned(count, seed)
    assert np.corrcoef(reward, implicit)[0, 1] >= 0.99
    slope = np.polyfit(reward, implicit, 1)[0]
    assert 0.95 <= slope <= 1.05


def test_a_wrong_mask_shows_in_the_slope():
    reward, implicit = tuned(50_000, 0, mask_lost=True)
    assert np.polyfit(reward, implicit, 1)[0] > 1.5
