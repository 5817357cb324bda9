"""From scores to advantages: rewards per token, GAE, advantages within groups. Nothing here gets a gradient.

B rows, T places, P prompts, G answers to each. Every per-token array at index j speaks about targets[j]:
values_BT[b, j] is the value of the state BEFORE targets[j], rewards_BT[b, j] what choosing it gave. Masks are bool or
0/1.
A score of NaN means that the answer could not be scored: its row is left out, never given 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jinstr.losses import checks, masked

GROUP_KINDS = ("grpo", "dr_grpo", "rloo")
# Added to the standard deviation of a group.
STD_EPSILON = 1e-4


def missing_eos(score_B, ended_B, *, kind: str, value: float):
    """Scores [B] in which answers that did not end pay: "subtract" `value`, or "override" the score by it.

    A penalty of 1 is common as "subtract" (1.0), -1 (arXiv 2403.17031) as "override". NaN stays NaN under both.
    """
    checks.one_of("kind of penalty for a missing end", kind, ("subtract", "override"))
    score_B, ended_B = masked.floats(score_B), jnp.asarray(ended_B).astype(bool)
    paid_B = (
        score_B - value if kind == "subtract" else jnp.where(jnp.isnan(score_B), score_B, value)
    )
    return jnp.where(ended_B, score_B, paid_B)


def clip_scores(score_B, limit: float):
    """Scores within ± limit; NaN stays NaN."""
    return jnp.clip(masked.floats(score_B), -limit, limit)


def overlong_penalty(length_B, *, max_length: int, buffer: int):
    """To be added to scores, [B], in [-1, 0]: falls linearly over the last `buffer` tokens before `max_length`.

    DAPO (arXiv 2503.14476), section 3.4. `buffer` > 0.
    """
    over_B = masked.floats(length_B) - (max_length - buffer)
    return -jnp.clip(over_B, 0.0, buffer) / buffer


def token_rewards(
    score_B, logp_BT, reference_logp_BT, mask_BT, kl_coefficient, score_at: str = "eos"
):
    """(rewards [B, T], policy mask [B, T], value mask [B, T]) of answers with one score each.

    The reward of a token is -kl_coefficient · (logp - reference logp) (InstructGPT, arXiv 2203.02155, equation 2). The
    score is added at the last token of the mask ("eos"), or at the place after it where there is one ("eos_plus_1"):
    then the value mask has that place too, and the policy mask does not. Rows whose score is NaN are False in both
    masks. Masks are bool, and are those to go on with.
    """
    checks.one_of("score_at", score_at, ("eos", "eos_plus_1"))
    score_B = masked.floats(score_B)
    mask_BT = jnp.asarray(mask_BT).astype(bool) & ~jnp.isnan(score_B)[:, None]
    T = mask_BT.shape[1]
    last_B = T - 1 - jnp.argmax(mask_BT[:, ::-1], axis=1)
    place_B = jnp.minimum(last_B + 1, T - 1) if score_at == "eos_plus_1" else last_B
    here_BT = (jnp.arange(T) == place_B[:, None]) & jnp.any(mask_BT, axis=1, keepdims=True)
    kl_BT = masked.keep(logp_BT, mask_BT) - masked.keep(reference_logp_BT, mask_BT)
    rewards_BT = -kl_coefficient * kl_BT + masked.keep(score_B[:, None], here_BT)
    return jax.lax.stop_gradient(rewards_BT), mask_BT, mask_BT | here_BT


def gae(rewards_BT, values_BT, mask_BT, *, discount: float, trace: float):
    """Generalised advantage estimation (arXiv 1506.02438): (advantages [B, T], returns = advantages + values [B, T]).

    `trace` is the paper's lambda. After the last place of the mask the value is 0. Places left out in the middle (turns
    of others) are passed over: the next chosen token is the next state, without a step of discount or trace, and
    rewards at such places do not count. Both results are 0 where the mask is not set, and neither is whitened.
    """
    mask_BT = jnp.asarray(mask_BT).astype(bool)
    rewards_BT, values_BT = (masked.keep(x, mask_BT) for x in (rewards_BT, values_BT))

    def back(carry, column):
        advantage_B, next_value_B = carry
        reward_B, value_B, mask_B = column
        error_B = reward_B + discount * next_value_B - value_B
        advantage_B = jnp.where(mask_B, error_B + discount * trace * advantage_B, advantage_B)
        return (advantage_B, jnp.where(mask_B, value_B, next_value_B)), advantage_B

    start = (jnp.zeros_like(rewards_BT[:, 0]), jnp.zeros_like(values_BT[:, 0]))
    columns = (rewards_BT.T, values_BT.T, mask_BT.T)
    _, advantages_TB = jax.lax.scan(back, start, columns, reverse=True)
    advantages_BT = masked.keep(advantages_TB.T, mask_BT)
    return jax.lax.stop_gradient((advantages_BT, advantages_BT + values_BT))


def group_advantages(scores_PG, kind: str):
    """(advantages [P, G], flat [P] bool) from the scores of G answers to each prompt.

    grpo: (score - mean) / (std + 1e-4), std with G - 1 (arXiv 2402.03300). dr_grpo: score - mean (arXiv 2503.20783).
    rloo: score - mean of the others (arXiv 2402.14740). NaN is left out of mean and std and gets advantage 0.
    flat: groups that teach nothing, as all their scores are equal (or fewer than two are left); their advantages are
    exactly 0. Its mean is the metric frac_zero_std.
    """
    checks.one_of("kind of group advantage", kind, GROUP_KINDS)
    scores_PG = masked.floats(scores_PG)
    valid_PG = ~jnp.isnan(scores_PG)
    n_P1 = jnp.sum(masked.keep(1.0, valid_PG), axis=1, keepdims=True)
    mean_P1 = jnp.sum(masked.keep(scores_PG, valid_PG), axis=1, keepdims=True)
    mean_P1 = mean_P1 / jnp.maximum(n_P1, 1.0)
    # Equal scores are told by their extremes: their mean need not be exactly one of them.
    least_P1, most_P1 = (
        reduce(jnp.where(valid_PG, scores_PG, fill), axis=1, keepdims=True)
        for reduce, fill in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
    )
    flat_P1 = ~(most_P1 > least_P1)
    centred_PG = masked.keep(scores_PG - mean_P1, valid_PG & ~flat_P1)
    others_P1 = jnp.maximum(n_P1 - 1.0, 1.0)
    if kind == "grpo":
        std_P1 = jnp.sqrt(jnp.sum(centred_PG**2, axis=1, keepdims=True) / others_P1)
        centred_PG = centred_PG / (std_P1 + STD_EPSILON)
    elif kind == "rloo":
        centred_PG = centred_PG * n_P1 / others_P1
    return centred_PG, flat_P1[:, 0]
