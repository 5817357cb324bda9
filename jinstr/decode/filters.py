"""From logits to a drawn token: pure functions over rows, applied in the order of this file.

No function sorts the vocabulary: a cut is found by bisection over the bit patterns of the values, which is exact.
B rows, V vocabulary. A removed token has the logit `MASKED`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30
# Vocabulary entries that one step of `draw` sums before it looks inside.
DRAW_BLOCK = 128


def repetition_penalty(logits_BV, seen_BV, penalty):
    """Divide positive and multiply negative logits of seen tokens by `penalty` (CTRL, arXiv 1909.05858)."""
    scaled_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, scaled_BV, logits_BV)


def temperature(logits_BV, value):
    """Logits over `value` > 0: below 1 sharper, above 1 flatter."""
    return logits_BV / value


def _ordered(values):
    """f32 → i32 in the same order."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _cut(values_BV, weights_BV, target):
    """Row by row the largest value c with sum(weights where value >= c) >= target, as `_ordered` i32 [B, 1]."""
    ordered_BV = _ordered(values_BV)

    def halve(_, bounds):
        low, high = bounds  # the sum from `low` on reaches the target, from `high` on it does not
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        reached = (
            jnp.sum(jnp.where(ordered_BV >= middle, weights_BV, 0.0), -1, keepdims=True) >= target
        )
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    bounds = (ordered_BV.min(-1, keepdims=True), ordered_BV.max(-1, keepdims=True) + 1)
    return jax.lax.fori_loop(0, 32, halve, bounds)[0]


def keep_top_k(logits_BV, k: int):
    """The k largest logits of each row, and whatever equals the k-th."""
    cut_B1 = _cut(logits_BV, jnp.ones_like(logits_BV), min(k, logits_BV.shape[-1]))
    return jnp.where(_ordered(logits_BV) >= cut_B1, logits_BV, MASKED)


def keep_top_p(logits_BV, p):
    """The smallest set of likeliest tokens whose probability reaches p, with ties at its border (arXiv 1904.09751)."""
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)
    # Rounding may leave the sum below p = 1 - tiny: then the cut stays at the smallest value and all are kept.
    cut_B1 = _cut(probs_BV, probs_BV, p)
    return jnp.where(_ordered(probs_BV) >= cut_B1, logits_BV, MASKED)


def keep_min_p(logits_BV, p):
    """Tokens at least p times as likely as the likeliest one (arXiv 2407.01082)."""
    return jnp.where(logits_BV >= logits_BV.max(-1, keepdims=True) + jnp.log(p), logits_BV, MASKED)


def likeliest(logits_BV):
    """Token ids i32 [B] of the largest logit, the first of equals: `argmax` as two plain reductions.

    XLA's argmax is one reduction over pairs, which does not vectorise on CPU: 20 times slower at V = 8,000.
    """
    V = logits_BV.shape[-1]
    top_BV = logits_BV == logits_BV.max(-1, keepdims=True)
    return jnp.where(top_BV, jnp.arange(V, dtype=jnp.int32)[None, :], V - 1).min(-1)


def _first_above(weights_BW, target_B):
    """Index of the first entry at which the running sum exceeds the target (< total), and the sum before it."""
    sums_BW = jnp.cumsum(weights_BW, axis=-1)
    above_BW = sums_BW > target_B[:, None]
    # Rounding can put the target at the total itself: then the last entry with weight is the one.
    width = weights_BW.shape[-1]
    last_B = width - 1 - jnp.argmax(weights_BW[:, ::-1] > 0, axis=-1)
    index_B = jnp.where(above_BW.any(-1), jnp.argmax(above_BW, axis=-1), last_B)
    chosen_B = jnp.take_along_axis(weights_BW, index_B[:, None], -1)[:, 0]
    return index_B, jnp.take_along_axis(sums_BW, index_B[:, None], -1)[:, 0] - chosen_B


def draw(logits_BV, uniform_B):
    """Token ids i32 [B] by inverse CDF: the first id whose cumulated probability exceeds uniform_B in [0, 1)."""
    B, V = logits_BV.shape
    weights_BV = jnp.exp(logits_BV - logits_BV.max(-1, keepdims=True))
    blocks = -(-V // DRAW_BLOCK)
    padded = jnp.pad(weights_BV, ((0, 0), (0, blocks * DRAW_BLOCK - V)))
    weights_BCW = padded.reshape(B, blocks, DRAW_BLOCK)
    sums_BC = weights_BCW.sum(-1)
    target_B = uniform_B * jnp.cumsum(sums_BC, axis=-1)[:, -1]
    block_B, before_B = _first_above(sums_BC, target_B)
    inside_BW = jnp.take_along_axis(weights_BCW, block_B[:, None, None], 1)[:, 0]
    place_B, _ = _first_above(inside_BW, jnp.maximum(target_B - before_B, 0.0))
    return (block_B * DRAW_BLOCK + place_B).astype(jnp.int32)
