"""Losses on preferences: reward models (pairs, rankings), DPO and its relatives, KTO, ORPO, SimPO.

B examples, K answers to one question, T places. Every loss comes back unreduced, one value an example, in nats and f32:
the caller adds them up and divides once by the number of examples of the whole batch.
Log-probabilities of answers are SUMS over their tokens (`sequence_logp`); a loss on means per token takes the numbers
of tokens too, so that neither is ever assumed. Values of reference models get no gradient.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jinstr import errors
from jinstr.losses import checks, masked

DPO_KINDS = ("sigmoid", "robust", "hinge", "ipo")
# Probabilities of answers are taken to be below 1 - this where log(1 - p) is asked for.
LARGEST_LOGP = -1e-6


def sequence_logp(logp_BT, mask_BT):
    """(sum of logp over the mask [B], number of places [B]), f32: what the losses below take."""
    tokens_B = jnp.sum(jnp.asarray(mask_BT).astype(bool), axis=-1, dtype=jnp.float32)
    return jnp.sum(masked.keep(logp_BT, mask_BT), axis=-1), tokens_B


def _means(tokens, *logps_B):
    """Sums over answers as means per token; an answer without tokens keeps its 0."""
    return [masked.floats(x) / jnp.maximum(masked.floats(n), 1.0) for x, n in zip(logps_B, tokens)]


def pair(chosen_B, rejected_B, margin_B=0.0, centering=0.0):
    """Reward model on pairs: -log sigmoid(chosen - rejected - margin) + centering · (chosen + rejected)², [B].

    Margin: Llama 2 (arXiv 2307.09288), section 3.2.2; centering: arXiv 2312.09244, which keeps scores near 0.
    """
    chosen_B, rejected_B = masked.floats(chosen_B), masked.floats(rejected_B)
    loss_B = jax.nn.softplus(rejected_B - chosen_B + margin_B)
    return loss_B + centering * (chosen_B + rejected_B) ** 2


def _pairs(rewards_BK, ranks_BK, valid_BK):
    """(rewards with 0 for invalid answers [B, K], is i better than j [B, i, j])."""
    valid_BK = jnp.asarray(valid_BK).astype(bool)
    ranks_BK = jnp.asarray(ranks_BK)
    better_BKK = ranks_BK[:, :, None] < ranks_BK[:, None, :]
    kept_BKK = better_BKK & valid_BK[:, :, None] & valid_BK[:, None, :]
    return masked.keep(rewards_BK, valid_BK), kept_BKK


def ranking(rewards_BK, ranks_BK, valid_BK, margin=0.0, centering=0.0):
    """Reward model on rankings: (loss [B], pairs kept [B]), the mean of `pair` over a question's pairs.

    InstructGPT (arXiv 2203.02155), equation 1. Rank 1 is best; equal ranks make no pair, nor do answers that are not
    valid (padding up to K). `margin` is a scalar or [B, K, K], by which answer i should lie above j.
    A question without pairs gives loss 0 and pairs 0: divide the sum of losses by the questions with pairs > 0.
    """
    rewards_BK, kept_BKK = _pairs(rewards_BK, ranks_BK, valid_BK)
    loss_BKK = pair(rewards_BK[:, :, None], rewards_BK[:, None, :], margin, centering)
    pairs_B = jnp.sum(kept_BKK, axis=(1, 2), dtype=jnp.float32)
    sum_B = jnp.sum(masked.keep(loss_BKK, kept_BKK), axis=(1, 2))
    return sum_B / jnp.maximum(pairs_B, 1.0), pairs_B


def ranking_accuracy(rewards_BK, ranks_BK, valid_BK):
    """(pairs whose better answer has the larger reward [B], pairs [B]), f32; equal rewards are not right."""
    rewards_BK, kept_BKK = _pairs(rewards_BK, ranks_BK, valid_BK)
    right_BKK = kept_BKK & (rewards_BK[:, :, None] > rewards_BK[:, None, :])
    right_B, pairs_B = (jnp.sum(x, axis=(1, 2), dtype=jnp.float32) for x in (right_BKK, kept_BKK))
    return right_B, pairs_B


def implicit_reward(policy_B, reference_B, beta):
    """DPO's reward of an answer, beta · log(policy / reference), [B]: chosen minus rejected is the margin to log."""
    return beta * (masked.floats(policy_B) - masked.floats(reference_B))


def dpo(
    chosen_B,
    rejected_B,
    reference_chosen_B,
    reference_rejected_B,
    *,
    kind: str,
    beta: float,
    label_smoothing: float,
    tokens,
):
    """DPO and its relatives on D = log-ratio of the chosen minus log-ratio of the rejected answer, [B].

    sigmoid: -log sigmoid(beta · D) (arXiv 2305.18290, equation 7); with label_smoothing > 0, the probability that a
      pair is swapped, it is conservative DPO.
    robust: the same, corrected so that its expectation over swapped pairs is the clean loss (arXiv 2403.00409).
    hinge: max(0, 1 - beta · D) (SLiC, arXiv 2305.10425).  ipo: (D - 1 / (2 beta))² (arXiv 2310.12036, equation 17).
    `tokens` is None for D on sums over answers, or (chosen_tokens_B, rejected_tokens_B) for D on means per token:
    both are found under the names of ipo and sigmoid. `kind` and `label_smoothing` are static.

    Raises ConfigError JI-LOSS-001 for another kind, JI-LOSS-002 for smoothing that the kind would not use.
    """
    checks.one_of("kind of DPO", kind, DPO_KINDS)
    if label_smoothing and kind not in ("sigmoid", "robust"):
        raise errors.ConfigError(
            "JI-LOSS-002",
            f"label_smoothing = {label_smoothing} has no meaning for kind = {kind!r}; set 0, or use sigmoid or robust",
        )
    if kind == "robust" and not 0 <= label_smoothing < 0.5:
        raise errors.ConfigError(
            "JI-LOSS-002", f"label_smoothing = {label_smoothing}; robust needs a value in [0, 0.5)"
        )
    reference_B = (reference_chosen_B, reference_rejected_B)
    reference_B = [jax.lax.stop_gradient(masked.floats(x)) for x in reference_B]
    ratio_B = [masked.floats(x) - r for x, r in zip((chosen_B, rejected_B), reference_B)]
    if tokens is not None:
        ratio_B = _means(tokens, *ratio_B)
    difference_B = ratio_B[0] - ratio_B[1]
    right_B, swapped_B = (jax.nn.softplus(sign * beta * difference_B) for sign in (-1, 1))
    if kind == "sigmoid":
        return (1 - label_smoothing) * right_B + label_smoothing * swapped_B
    if kind == "robust":
        loss_B = (1 - label_smoothing) * right_B - label_smoothing * swapped_B
        return loss_B / (1 - 2 * label_smoothing)
    if kind == "hinge":
        return jax.nn.relu(1 - beta * difference_B)
    return (difference_B - 1 / (2 * beta)) ** 2


def chosen_nll(chosen_B, chosen_tokens_B):
    """Negative log-probability per token of the chosen answers (not of their prompts), [B].

    RPO (arXiv 2404.19733, section 2) is dpo(...) + alpha · chosen_nll(...).
    """
    return -_means([chosen_tokens_B], chosen_B)[0]


def kto_baseline(policy_B, reference_B, valid_B):
    """KTO's z0, a scalar without gradient: max(0, mean of log(policy / reference)) over mismatched pairs.

    The log-probabilities are those of answers to OTHER questions of the batch (arXiv 2402.01306). An
    estimate over few pairs is noisy: give it all those of an update.
    """
    difference_B = masked.floats(policy_B) - masked.floats(reference_B)
    return jax.lax.stop_gradient(jnp.maximum(masked.mean(difference_B, valid_B), 0.0))


def kto(
    policy_B,
    reference_B,
    desirable_B,
    baseline,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
):
    """KTO on single answers, [B]: weight · (1 - sigmoid(± beta · (log(policy / reference) - baseline))).

    arXiv 2402.01306; + and `desirable_weight` where desirable_B is set. `baseline`: `kto_baseline`.
    """
    reference_B = jax.lax.stop_gradient(masked.floats(reference_B))
    gain_B = beta * (masked.floats(policy_B) - reference_B - jax.lax.stop_gradient(baseline))
    desirable_B = jnp.asarray(desirable_B).astype(bool)
    weight_B = jnp.where(desirable_B, desirable_weight, undesirable_weight)
    return weight_B * jax.nn.sigmoid(jnp.where(desirable_B, -gain_B, gain_B))


def log1mexp(x):
    """log(1 - exp(x)) for x < 0, exact on both sides of -ln 2; x is capped at `LARGEST_LOGP`."""
    x = jnp.minimum(masked.floats(x), LARGEST_LOGP)
    # The cap keeps both branches finite, so that the one not taken adds no NaN to the gradient.
    return jnp.where(x > -math.log(2), jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


def log_odds_ratio(chosen_B, rejected_B, tokens):
    """ORPO's log of odds(chosen) / odds(rejected) with p = exp(mean logp per token), [B]."""
    chosen_B, rejected_B = _means(tokens, chosen_B, rejected_B)
    return (chosen_B - rejected_B) - (log1mexp(chosen_B) - log1mexp(rejected_B))


def orpo(chosen_B, rejected_B, tokens, *, beta: float, nll_weight: float):
    """ORPO without a reference model, [B]: nll_weight · chosen_nll - beta · log sigmoid(log odds ratio).

    arXiv 2403.07691, equations 6 and 7 (nll_weight 1). `tokens` = (chosen_tokens_B, rejected_tokens_B).
    """
    odds_B = beta * jax.nn.softplus(-log_odds_ratio(chosen_B, rejected_B, tokens))
    return nll_weight * chosen_nll(chosen_B, tokens[0]) + odds_B


def simpo(chosen_B, rejected_B, tokens, *, beta: float, target_margin: float):
    """SimPO without a reference model, [B]: -log sigmoid(beta · (mean logp chosen - rejected) - target_margin).

    arXiv 2405.14734, equation 6. `tokens` = (chosen_tokens_B, rejected_tokens_B).
    """
    chosen_B, rejected_B = _means(tokens, chosen_B, rejected_B)
    return jax.nn.softplus(target_margin - beta * (chosen_B - rejected_B))
