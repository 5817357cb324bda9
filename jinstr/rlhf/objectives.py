"""What the updates of PPO and GRPO minimise, over rows of rlhf/experience.py.

Beside the fields of every batch the rows carry f32 [R, T] arrays about the tokens of answers, 0 elsewhere:
    old_logp, reference_logp      log-probabilities by the policy before the update, and by the reference
    advantages                    of the chosen tokens
    weights                       what a token counts in the loss, as a share of the whole update (`shares`)
    token_weights                 1 / tokens of the whole update, for means that are logged
    old_values, returns           of a critic
and answer_places, i32 [R, A]: the places of those tokens in each row, T where there are fewer.
The host knows the whole update, so every sum over rows is a share of the mean over it, however rows are cut.
R rows, T places, A places of answers, S segments.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jinstr.losses import checks, lm, policy
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import state as state_lib

REDUCTIONS = ("grpo", "dapo", "dr_grpo")
TEXT = "text_"  # before the names of a batch of text that rides along


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """The policy's loss. Defaults are PPO's."""

    clip_low: float = 0.2  # the ratio may not fall below 1 - this by the loss's wish
    clip_high: float = 0.2  # nor rise above 1 + this (DAPO: 0.28)
    dual_clip: float = 0.0  # > 1 bounds the loss of unlikely tokens with bad advantages; 0 = off
    level: str = "token"  # token | sequence: whose ratio (GSPO: sequence, with clips near 3e-4)
    kl_loss: float = 0.0  # weight of KL(policy || reference) in the loss; 0 = none
    kl_estimator: str = "k3"  # k2 (its gradient is the KL's) | k3 (GRPO's; that of the reversed KL)
    entropy: float = 0.0  # weight of the entropy, to keep it up

    def __post_init__(self):
        checks.one_of("PolicyLossConfig.level", self.level, ("token", "sequence"))
        checks.one_of("PolicyLossConfig.kl_estimator", self.kl_estimator, ("k2", "k3"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueLossConfig:
    """A critic's loss."""

    clip: float = (
        0.2  # how far a value may move from the old one by the loss's wish; 0 = as it likes
    )


def token_logps(
    model: config_lib.DecoderConfig,
    params: dict,
    batch: dict,
    temperature: float,
    rules: mesh_lib.AxisRules,
) -> tuple[jax.Array, jax.Array]:
    """(log-probability of each target, entropy), f32 [R, T], of the logits over `temperature`.

    Where the batch names its answer_places, only these are computed, and the others are 0.
    """
    params = state_lib.cast_params(model, params)
    inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
    hidden_BTD = decoder.forward(model, params, *inputs, rules=rules)
    return _of_answers(model, params, hidden_BTD, batch, temperature, rules)


def _of_answers(
    model: config_lib.DecoderConfig,
    params: dict,
    hidden_BTD,
    batch: dict,
    temperature: float,
    rules,
) -> tuple[jax.Array, jax.Array]:
    """`token_logps` of hidden states: the head is half of the work of a small model, and prompts have no use for it."""
    targets_BT = batch["targets"]
    kernel, softcap = decoder.head_kernel(model, params, rules), model.logit_softcap
    if (places_BA := batch.get("answer_places")) is None:
        logp_BT, _, entropy_BT = lm.token_logprobs(
            hidden_BTD, kernel, targets_BT, softcap, temperature=temperature
        )
        return logp_BT, entropy_BT

    def taken(x_BT):
        return jax.vmap(lambda x_T, places_A: x_T.at[places_A].get(mode="fill", fill_value=0))(
            x_BT, places_BA
        )

    def put_back(x_BA):
        def of_row(x_A, places_A):
            return jnp.zeros(targets_BT.shape[1:], x_A.dtype).at[places_A].set(x_A, mode="drop")

        return jax.vmap(of_row)(x_BA, places_BA)

    logp_BA, _, entropy_BA = lm.token_logprobs(
        taken(hidden_BTD), kernel, taken(targets_BT), softcap, temperature=temperature
    )
    return put_back(logp_BA), put_back(entropy_BA)


def values(
    model: config_lib.DecoderConfig, params: dict, batch: dict, rules: mesh_lib.AxisRules
) -> jax.Array:
    """A critic's value of the state before each target, f32 [R, T]."""
    params = state_lib.cast_params(model, params)
    inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
    return decoder.scores(params, decoder.forward(model, params, *inputs, rules=rules))


def _segment_means(x_BT, mask_BT, segment_ids_BT) -> jax.Array:
    """The mean of x over each segment's masked places, at every one of its places."""
    segments = x_BT.shape[1] + 1

    def of_row(x_T, mask_T, ids_T):
        total_S = jax.ops.segment_sum(jnp.where(mask_T, x_T, 0.0), ids_T, segments)
        count_S = jax.ops.segment_sum(mask_T.astype(jnp.float32), ids_T, segments)
        return (total_S / jnp.maximum(count_S, 1))[ids_T]

    return jax.vmap(of_row)(x_BT, mask_BT, segment_ids_BT)


def policy_sums(
    config: PolicyLossConfig, logp_BT, entropy_BT, batch: dict
) -> tuple[jax.Array, dict]:
    """(loss, what is logged beside it) of an update's rows.

    approx_kl: of the policy from the one that wrote, k2 a token; clip_low, clip_high: shares of tokens whose gradient
    the clip removes; ratio_change: mean of |ratio − 1|.
    """
    mask_BT = batch["loss_weights"] > 0
    new_BT, old_BT = logp_BT, batch["old_logp"]
    if config.level == "sequence":
        new_BT, old_BT = (
            _segment_means(x, mask_BT, batch["segment_ids"]) for x in (new_BT, old_BT)
        )
    loss_BT, ratio_BT = policy.clipped(
        new_BT, old_BT, batch["advantages"], mask_BT,
        clip_low=config.clip_low, clip_high=config.clip_high, dual_clip=config.dual_clip or None,
    )  # fmt: skip
    if config.kl_loss:
        kl_BT = policy.kl_estimate(logp_BT, batch["reference_logp"], mask_BT, config.kl_estimator)
        loss_BT = loss_BT + config.kl_loss * kl_BT
    if config.entropy:
        loss_BT = loss_BT - config.entropy * jnp.where(mask_BT, entropy_BT, 0.0)
    weights_BT, each_BT = batch["weights"], batch["token_weights"]
    loss = jnp.sum(jnp.where(mask_BT, weights_BT * loss_BT, 0.0))

    def mean(x_BT):
        return jax.lax.stop_gradient(jnp.sum(jnp.where(mask_BT, each_BT * x_BT, 0.0)))

    down_BT = (ratio_BT < 1 - config.clip_low) & (batch["advantages"] < 0)
    up_BT = (ratio_BT > 1 + config.clip_high) & (batch["advantages"] > 0)
    return loss, {
        "loss": loss,
        "approx_kl": mean(policy.kl_estimate(logp_BT, batch["old_logp"], mask_BT, "k2")),
        "clip_low": mean(down_BT.astype(jnp.float32)),
        "clip_high": mean(up_BT.astype(jnp.float32)),
        "ratio_mean": mean(ratio_BT),
        "ratio_change": mean(jnp.abs(ratio_BT - 1)),
        "entropy": mean(entropy_BT),
    }


def shares(mask_EN: np.ndarray, reduction: str) -> np.ndarray:
    """What each token of an update counts in its loss, f32 [E, N]; they add up to 1 but under dr_grpo.

    grpo: answers alike, and in an answer its tokens (arXiv 2402.03300). dapo: all tokens alike (arXiv 2503.14476, and
    PPO). dr_grpo: 1 / (answers · longest answer allowed) a token (arXiv 2503.20783), so that long ones count more.
    mask_EN: tokens of the answers that are kept, N the longest answer allowed.
    """
    checks.one_of("reduction", reduction, REDUCTIONS)
    mask_EN = mask_EN.astype(np.float32)
    lengths_E1 = mask_EN.sum(1, keepdims=True)
    answers = max(1.0, float((lengths_E1 > 0).sum()))
    if reduction == "grpo":
        return mask_EN / np.maximum(lengths_E1, 1) / np.float32(answers)
    if reduction == "dapo":
        return mask_EN / np.float32(max(1.0, float(mask_EN.sum())))
    return mask_EN / np.float32(answers * mask_EN.shape[1])


def _whole(batch: dict) -> jax.Array:
    """The weight of an update whose rows carry their weights: they are shares of a mean already."""
    return jnp.float32(1)


def policy_objective(
    model: config_lib.DecoderConfig,
    config: PolicyLossConfig,
    temperature: float,
    rules: mesh_lib.AxisRules,
) -> state_lib.Objective:
    """The clipped objective (PPO, arXiv 1707.06347, equation 7; GRPO, arXiv 2402.03300) of a policy."""

    def sums(params, batch, frozen):
        joined = lora.join(params, frozen)
        logp_BT, entropy_BT = token_logps(model, joined, batch, temperature, rules)
        return policy_sums(config, logp_BT, entropy_BT, batch)

    return state_lib.Objective(sums, _whole)


def with_text(
    objective: state_lib.Objective,
    model: config_lib.DecoderConfig,
    coefficient: float,
    rules: mesh_lib.AxisRules,
) -> state_lib.Objective:
    """PPO-ptx: `coefficient` · mean negative log-likelihood of text is added (arXiv 2203.02155, equation 2).

    The batch of the objective has the fields of an ordinary one beside its own, with TEXT before their names, whose
    loss_weights add up to 1 over the update.
    """

    def sums(params, batch, frozen):
        total, found = objective.sums(params, batch, frozen)
        text = {name.removeprefix(TEXT): x for name, x in batch.items() if name.startswith(TEXT)}
        # The first of the two: the second is a measurement, through which no gradient flows.
        nll, _ = state_lib.nll_sum(model, lora.join(params, frozen), text, rules)
        loss = total + coefficient * nll
        return loss, found | {"loss": loss, "text_nll": nll}

    return state_lib.Objective(sums, _whole)


def value_sums(config: ValueLossConfig, values_BT, batch: dict) -> tuple[jax.Array, dict]:
    """(loss, what is logged beside it) of a critic."""
    mask_BT = batch["loss_weights"] > 0
    loss_BT, clipped_BT = policy.value_loss(
        values_BT, batch["old_values"], batch["returns"], mask_BT, clip=config.clip or jnp.inf
    )
    loss = jnp.sum(batch["token_weights"] * loss_BT)
    clipped = jax.lax.stop_gradient(jnp.sum(batch["token_weights"] * clipped_BT))
    return loss, {"loss": loss, "clipped": clipped}


def with_values(
    model: config_lib.DecoderConfig,
    config: PolicyLossConfig,
    temperature: float,
    value_config: ValueLossConfig,
    coefficient: float,
    rules: mesh_lib.AxisRules,
) -> state_lib.Objective:
    """The policy's objective and `coefficient` times that of its critic, which is a score head on the same model."""

    def sums(params, batch, frozen):
        joined = state_lib.cast_params(model, lora.join(params, frozen))
        inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
        hidden_BTD = decoder.forward(model, joined, *inputs, rules=rules)
        logp_BT, entropy_BT = _of_answers(model, joined, hidden_BTD, batch, temperature, rules)
        total, found = policy_sums(config, logp_BT, entropy_BT, batch)
        value, of_critic = value_sums(value_config, decoder.scores(joined, hidden_BTD), batch)
        loss = total + coefficient * value
        return loss, found | {
            "loss": loss,
            "value_loss": value,
            "value_clipped": of_critic["clipped"],
        }

    return state_lib.Objective(sums, _whole)


def value_objective(
    model: config_lib.DecoderConfig, config: ValueLossConfig, rules: mesh_lib.AxisRules
) -> state_lib.Objective:
    """The clipped squared error of a critic of its own (the model's score head)."""

    def sums(params, batch, frozen):
        return value_sums(config, values(model, lora.join(params, frozen), batch, rules), batch)

    return state_lib.Objective(sums, _whole)


def ppo_objective(
    model: config_lib.DecoderConfig,
    config: PolicyLossConfig,
    value_config: ValueLossConfig,
    value_coefficient: float,
    text_coefficient: float,
    temperature: float,
    rules: mesh_lib.AxisRules,
) -> state_lib.Objective:
    """Of a policy, with that of a critic on it (heads "both") and of text, where there are these."""
    found = policy_objective(model, config, temperature, rules)
    if model.heads == "both":
        found = with_values(model, config, temperature, value_config, value_coefficient, rules)
    return with_text(found, model, text_coefficient, rules) if text_coefficient else found
