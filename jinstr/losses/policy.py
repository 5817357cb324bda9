"""Losses of PPO, GRPO and their relatives: pure functions of arrays with explicit masks.

B rows, T places. Every per-token array at index j speaks about targets[j]; `mask_BT` (bool or 0/1) is set where the
policy chose that token. Losses come back unreduced [B, T], f32, 0 where the mask is not set. `reduce_tokens` divides
them by a denominator that the caller has summed over the WHOLE batch of the update: means of micro-batches with
different numbers of tokens do not add up to the mean.
Old, rollout and reference log-probabilities, advantages and returns get no gradient. All log-probabilities must be
taken at the temperature that the tokens were drawn at.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jinstr.losses import checks, masked

LEVELS = ("token", "sequence")
REDUCTIONS = ("grpo", "bnpo", "dr_grpo", "dapo")
# Logarithms of ratios are cut here before they are exponentiated, so that no loss is inf.
LARGEST_LOG_RATIO = 20.0


def _fixed(x):
    return jax.lax.stop_gradient(masked.floats(x))


def _log_ratio(logp_BT, old_logp_BT, mask_BT, level):
    """log(policy / old) where the mask is set; at the level of sequences their mean over a row's tokens, [B, T]."""
    checks.one_of("level of the ratio", level, LEVELS)
    # Padding is put at 0 on both sides before the difference: inf - inf there would be NaN, and so its gradient.
    log_ratio_BT = masked.keep(logp_BT, mask_BT) - _fixed(masked.keep(old_logp_BT, mask_BT))
    if level == "sequence":
        tokens_B1 = jnp.sum(masked.keep(1.0, mask_BT), axis=-1, keepdims=True)
        mean_B1 = jnp.sum(log_ratio_BT, axis=-1, keepdims=True) / jnp.maximum(tokens_B1, 1.0)
        log_ratio_BT = masked.keep(mean_B1, mask_BT)
    return jnp.clip(log_ratio_BT, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def clipped(
    logp_BT,
    old_logp_BT,
    advantages_BT,
    mask_BT,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    level: str = "token",
):
    """(loss [B, T], ratio [B, T]): -min(ratio · A, clip(ratio, 1 - clip_low, 1 + clip_high) · A).

    PPO (arXiv 1707.06347), equation 7, with bounds apart (DAPO, arXiv 2503.14476). `dual_clip` c > 1 bounds the loss by
    -c · A where A < 0 (arXiv 1912.09729). level="sequence": GSPO's ratio (arXiv 2507.18071), exp of the mean over the
    row. advantages are [B, T] or [B, 1]. `old_logp_BT` is that of the policy BEFORE the first update on these rows;
    logp itself may be given for a single update. The ratio is 1 where the mask is not set.
    """
    ratio_BT = jnp.exp(_log_ratio(logp_BT, old_logp_BT, mask_BT, level))
    advantages_BT = _fixed(masked.keep(advantages_BT, mask_BT))
    bounded_BT = jnp.clip(ratio_BT, 1 - clip_low, 1 + clip_high)
    loss_BT = jnp.maximum(-advantages_BT * ratio_BT, -advantages_BT * bounded_BT)
    if dual_clip is not None:
        least_BT = jnp.minimum(loss_BT, -dual_clip * advantages_BT)
        loss_BT = jnp.where(advantages_BT < 0, least_BT, loss_BT)
    return loss_BT, ratio_BT


def cispo(logp_BT, old_logp_BT, advantages_BT, mask_BT, *, cap: float):
    """(loss [B, T], ratio [B, T]): -min(ratio, cap) · A · logp, without gradient through the ratio.

    arXiv 2506.13585. `cap` is the largest ratio itself (not 1 + cap); no token loses its gradient.
    """
    ratio_BT = jnp.exp(_fixed(_log_ratio(logp_BT, old_logp_BT, mask_BT, "token")))
    weight_BT = jnp.minimum(ratio_BT, cap) * _fixed(masked.keep(advantages_BT, mask_BT))
    return -weight_BT * masked.keep(logp_BT, mask_BT), ratio_BT


def importance_weights(
    old_logp_BT, rollout_logp_BT, mask_BT, *, cap: float, level: str, beyond: str
):
    """Weights [B, T] for losses on tokens that another program drew: exp(old - rollout), bounded by `cap`.

    `rollout_logp_BT` is what the sampler said, `old_logp_BT` what the trainer says of the same parameters. beyond:
    "truncate" sets larger weights to the cap, "mask" to 0. level: "sequence" takes the product over the row's tokens.
    0 where the mask is not set. Without gradient.
    """
    checks.one_of("level of the ratio", level, LEVELS)
    checks.one_of("beyond", beyond, ("truncate", "mask"))
    log_BT = _fixed(masked.keep(old_logp_BT, mask_BT) - masked.keep(rollout_logp_BT, mask_BT))
    if level == "sequence":
        log_BT = jnp.sum(log_BT, axis=-1, keepdims=True)
    weights_BT = jnp.exp(jnp.clip(log_BT, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    beyond_cap = cap if beyond == "truncate" else 0.0
    return masked.keep(jnp.where(weights_BT > cap, beyond_cap, weights_BT), mask_BT)


def ratio_stats(ratio_BT, advantages_BT, mask_BT, *, clip_low: float, clip_high: float):
    """(sums, extremes) of the ratios that a loss returned, two dicts of f32 scalars.

    Sums, to be added over micro-batches and divided by the number of tokens: ratio_mean, and clipfrac_low and
    clipfrac_high, the tokens whose gradient the clip removes (ratio below with A < 0, above with A > 0).
    Extremes: ratio_min and ratio_max, inf and -inf for an empty mask. The approximate KL of an update is the mean of
    `kl_estimate(logp, old_logp, mask, "k2")`.
    """
    ratio_BT, mask_BT = masked.floats(ratio_BT), jnp.asarray(mask_BT).astype(bool)
    advantages_BT = masked.floats(advantages_BT)
    sums = {
        "ratio_mean": ratio_BT,
        "clipfrac_low": (ratio_BT < 1 - clip_low) & (advantages_BT < 0),
        "clipfrac_high": (ratio_BT > 1 + clip_high) & (advantages_BT > 0),
    }
    extremes = {
        "ratio_min": jnp.min(jnp.where(mask_BT, ratio_BT, jnp.inf)),
        "ratio_max": jnp.max(jnp.where(mask_BT, ratio_BT, -jnp.inf)),
    }
    return {name: jnp.sum(masked.keep(x, mask_BT)) for name, x in sums.items()}, extremes


def value_loss(values_BT, old_values_BT, returns_BT, mask_BT, *, clip: float):
    """(loss [B, T], clipped [B, T] f32): half the larger of (V - R)² and (clip(V, old ± clip) - R)².

    `clipped` is 1 where the second is larger, which then has no gradient. clip = inf for the plain squared error.
    """
    values_BT = masked.keep(values_BT, mask_BT)
    old_BT, returns_BT = (_fixed(masked.keep(x, mask_BT)) for x in (old_values_BT, returns_BT))
    near_BT = jnp.clip(values_BT, old_BT - clip, old_BT + clip)
    plain_BT, bounded_BT = (values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2
    clipped_BT = masked.floats(bounded_BT > plain_BT)
    return 0.5 * jnp.maximum(plain_BT, bounded_BT), clipped_BT


def explained_variance(values_BT, returns_BT, mask_BT):
    """1 - Var(R - V) / Var(R) over the mask; 0 where the returns do not vary."""
    rest_BT = masked.floats(returns_BT) - masked.floats(values_BT)
    spread = masked.variance(returns_BT, mask_BT)
    share = masked.variance(rest_BT, mask_BT) / jnp.where(spread > 0, spread, 1.0)
    return jnp.where(spread > 0, 1 - share, 0.0)


def kl_estimate(logp_BT, reference_logp_BT, mask_BT, kind: str):
    """Estimates [B, T] of KL(policy || reference) from the drawn tokens, with d = logp - reference.

    k1 = d: unbiased; the one for rewards. Its gradient is 0 on average, so it is no loss.
    k2 = d² / 2: biased, but as a loss its gradient is that of KL(policy || reference).
    k3 = exp(-d) - 1 + d: unbiased, never negative; as a loss its gradient is that of KL(reference || policy).
    The first two properties hold for tokens drawn from the policy itself; otherwise multiply by the ratio.
    Schulman, "Approximating KL divergence" (2020); gradients: arXiv 2506.09477.
    """
    checks.one_of("kind of KL estimate", kind, ("k1", "k2", "k3"))
    reference_logp_BT = _fixed(masked.keep(reference_logp_BT, mask_BT))
    difference_BT = masked.keep(logp_BT, mask_BT) - reference_logp_BT
    if kind == "k1":
        return difference_BT
    if kind == "k2":
        return 0.5 * difference_BT**2
    # expm1: for nearby models the terms cancel down to d² / 2.
    return jnp.expm1(jnp.minimum(-difference_BT, LARGEST_LOG_RATIO)) + difference_BT


def adaptive_kl(coefficient, kl_per_sequence, target: float, horizon: float, count: int):
    """The KL coefficient for the next update (arXiv 1909.08593).

    `kl_per_sequence` and `target` are in nats a SEQUENCE: the mean over answers of their sum over tokens. `count` is
    the number of answers seen since the last call, `horizon` that after which the coefficient has moved by e^±0.2.
    """
    error = jnp.clip(masked.floats(kl_per_sequence) / target - 1, -0.2, 0.2)
    return coefficient * (1 + error * count / horizon)


def token_denominator(mask_BT, kind: str, *, max_length: int):
    """What the losses of these rows are to be divided by, f32 scalar; sum it over the micro-batches of an update.

    grpo: rows with at least one token. dr_grpo: these times `max_length`, the longest answer allowed. dapo: tokens.
    bnpo: 1, as each micro-batch is divided by its own tokens.
    """
    checks.one_of("reduction", kind, REDUCTIONS)
    if kind == "bnpo":
        return jnp.float32(1)
    if kind == "dapo":
        return masked.count(mask_BT)
    rows = masked.count(jnp.any(jnp.asarray(mask_BT).astype(bool), axis=-1))
    return rows * max_length if kind == "dr_grpo" else rows


def reduce_tokens(loss_BT, mask_BT, kind: str, denominator):
    """These rows' share of the loss of an update, a scalar; shares of micro-batches are added.

    grpo: mean over rows of their mean over tokens (arXiv 2402.03300). dr_grpo: sum / (rows · longest answer), which
    does not favour long wrong answers (arXiv 2503.20783). dapo: mean over all tokens (arXiv 2503.14476), as in PPO.
    bnpo: mean over the tokens of the micro-batch. `denominator`: `token_denominator` summed over the update.
    """
    checks.one_of("reduction", kind, REDUCTIONS)
    loss_BT = masked.keep(loss_BT, mask_BT)
    if kind == "grpo":
        tokens_B = jnp.sum(masked.keep(1.0, mask_BT), axis=-1)
        total = jnp.sum(jnp.sum(loss_BT, axis=-1) / jnp.maximum(tokens_B, 1.0))
    elif kind == "bnpo":
        total = masked.mean(loss_BT, mask_BT)
    else:
        total = jnp.sum(loss_BT)
    return total / jnp.maximum(denominator, 1.0)
