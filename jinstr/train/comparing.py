"""Answers compared with each other: what reward models and preference tuning minimise, and how right a model is.

Batches are those of data/comparisons.py. B rows, T places, G prompts of a row, K answers, P = B · G prompts; the
segment numbers in `answers` are 0 where there is no answer.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jinstr import errors
from jinstr.data import comparisons
from jinstr.losses import checks, lm, preference
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import state as state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """The loss of a reward model."""

    margin: float = 0.0  # by which the better answer should lie above the other one
    centering: float = (
        0.0  # weight of (score + score)² of a pair: keeps scores near 0; 0.01 is usual
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """The loss of preference tuning."""

    loss: str = "sigmoid"  # sigmoid (DPO) | robust | hinge | ipo | simpo | orpo | kto (labels)
    beta: float = 0.1  # how far from the reference: large = stays close
    label_smoothing: float = (
        0.0  # share of pairs that may be swapped; with sigmoid: conservative DPO
    )
    length_normalize: bool = False  # log-probabilities a token instead of an answer (sigmoid … ipo)
    gamma: float = 0.5  # margin of simpo, beyond which a pair is right enough
    nll: float = 0.0  # weight of the better answer's negative log-likelihood a token (RPO)
    desirable_weight: float = 1.0  # of desired answers in kto
    undesirable_weight: float = 1.0  # of the others

    def __post_init__(self):
        kinds = (*preference.DPO_KINDS, "simpo", "orpo", "kto")
        checks.one_of("PreferenceConfig.loss", self.loss, kinds)
        unused = {
            "label_smoothing": self.label_smoothing and self.loss not in ("sigmoid", "robust"),
            "length_normalize": self.length_normalize and self.loss not in preference.DPO_KINDS,
            "gamma": self.gamma != 0.5 and self.loss != "simpo",
            "nll": self.nll and self.loss == "kto",
            "desirable_weight": self.desirable_weight != 1.0 and self.loss != "kto",
            "undesirable_weight": self.undesirable_weight != 1.0 and self.loss != "kto",
        }
        for field in (field for field, is_unused in unused.items() if is_unused):
            raise errors.ConfigError(
                "JI-DPO-001",
                f"PreferenceConfig.{field} = {getattr(self, field)!r} has no meaning for loss = {self.loss!r}; leave "
                "it out",
            )

    @property
    def needs_reference(self) -> bool:
        return self.loss in (*preference.DPO_KINDS, "kto")

    @property
    def needs_labels(self) -> bool:
        """Is the data single answers with labels, and not answers that are compared?"""
        return self.loss == "kto"


def _by_segment(values_BT, batch: dict) -> jax.Array:
    """Sums [B, G, K] of f32 [B, T] over each answer's segment; 0 where there is none."""
    B, G, K = batch["answers"].shape
    add = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, num_segments=G * K + 1))
    sums_BS = add(values_BT, batch["segment_ids"])
    found_BS = jnp.take_along_axis(sums_BS, batch["answers"].reshape(B, G * K), axis=1)
    return jnp.where(batch["answers"] > 0, found_BS.reshape(B, G, K), 0.0)


def _per_prompt(values_BGK) -> jax.Array:
    return values_BGK.reshape(-1, values_BGK.shape[-1])


def scores(
    model: config_lib.DecoderConfig, params: dict, batch: dict, rules: mesh_lib.AxisRules
) -> jax.Array:
    """The reward of every answer, f32 [B, G, K]: the score head at its last token."""
    params = state_lib.cast_params(model, params)
    inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
    hidden_BTD = decoder.forward(model, params, *inputs, rules=rules)
    ids_BT = batch["segment_ids"]
    next_BT = jnp.pad(ids_BT[:, 1:], ((0, 0), (0, 1)))
    last_BT = (ids_BT > 0) & (ids_BT != next_BT)
    return _by_segment(jnp.where(last_BT, decoder.scores(params, hidden_BTD), 0.0), batch)


def answer_logps(
    model: config_lib.DecoderConfig, params: dict, batch: dict, rules: mesh_lib.AxisRules
) -> jax.Array:
    """Log-probability of every answer given its prompt, f32 [B, G, K], nats: a sum over its trained tokens."""
    params = state_lib.cast_params(model, params)
    inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
    hidden_BTD = decoder.forward(model, params, *inputs, rules=rules)
    head_DV = decoder.head_kernel(model, params)
    logp_BT, _, _ = lm.token_logprobs(hidden_BTD, head_DV, batch["targets"], model.logit_softcap)
    return _by_segment(jnp.where(batch["loss_weights"] > 0, logp_BT, 0.0), batch)


def answer_tokens(batch: dict) -> jax.Array:
    """Trained tokens of every answer, f32 [B, G, K]."""
    return _by_segment((batch["loss_weights"] > 0).astype(jnp.float32), batch)


def prompts_compared(batch: dict) -> jax.Array:
    """Prompts of which two answers differ in rank, f32 []: only they have a loss."""
    rank_PK = _per_prompt(batch["ranks"])
    lowest_P = jnp.where(rank_PK > 0, rank_PK, jnp.iinfo(jnp.int32).max).min(-1)
    return (rank_PK.max(-1) > lowest_P).sum().astype(jnp.float32)


def ranking_objective(
    model: config_lib.DecoderConfig, config: RankingConfig, rules: mesh_lib.AxisRules
) -> state_lib.Objective:
    """InstructGPT's: the mean over a prompt's pairs, then over prompts (arXiv 2203.02155, equation 1)."""

    def sums(params, batch, frozen):
        score_PK = _per_prompt(scores(model, lora.join(params, frozen), batch, rules))
        rank_PK = _per_prompt(batch["ranks"])
        loss_P, pairs_P = preference.ranking(
            score_PK, rank_PK, rank_PK > 0, config.margin, config.centering
        )
        right_P, _ = preference.ranking_accuracy(score_PK, rank_PK, rank_PK > 0)
        loss = loss_P.sum()
        return loss, {"loss": loss, "accuracy": (right_P / jnp.maximum(pairs_P, 1)).sum()}

    return state_lib.Objective(sums, prompts_compared)


def rewards(
    model: config_lib.DecoderConfig,
    config: PreferenceConfig,
    params: dict,
    batch: dict,
    frozen: dict,
    rules: mesh_lib.AxisRules,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(reward that the policy stands for, log-probability, tokens) of every answer, f32 [B, G, K] each.

    The reward is beta · log(policy / reference) (arXiv 2305.18290, equation 5); for the losses without a reference
    beta · log(policy) a token. frozen: {"base": what adapters stand on, else {}; "reference": the reference policy}.
    Without "reference" the adapters are turned off for it.
    """
    logp_BGK = answer_logps(model, lora.join(params, frozen["base"]), batch, rules)
    tokens_BGK = answer_tokens(batch)
    reward_BGK = config.beta * logp_BGK
    if config.needs_reference:
        reference = frozen.get("reference", frozen["base"])
        reference_BGK = answer_logps(lora.plain(model), reference, batch, rules)
        reward_BGK = reward_BGK - config.beta * jax.lax.stop_gradient(reference_BGK)
    if config.length_normalize or not config.needs_reference:
        reward_BGK = reward_BGK / jnp.maximum(tokens_BGK, 1)
    return reward_BGK, logp_BGK, tokens_BGK


def _pair_losses(config: PreferenceConfig, reward_PK, logp_PK, tokens_PK) -> jax.Array:
    """[P, K, K]: the loss of the pair of a better answer i and a worse one j."""
    better, worse = (lambda x: x[:, :, None]), (lambda x: x[:, None, :])
    tokens = better(tokens_PK), worse(tokens_PK)
    logps = better(logp_PK), worse(logp_PK)
    if config.loss == "simpo":
        loss_PKK = preference.simpo(*logps, tokens, beta=config.beta, target_margin=config.gamma)
    elif config.loss == "orpo":
        loss_PKK = preference.orpo(*logps, tokens, beta=config.beta, nll_weight=1.0)
    else:
        ratio_PK = reward_PK / config.beta
        loss_PKK = preference.dpo(
            better(ratio_PK), worse(ratio_PK), 0.0, 0.0,
            kind=config.loss, beta=config.beta, label_smoothing=config.label_smoothing, tokens=None,
        )  # fmt: skip
    return loss_PKK + config.nll * better(preference.chosen_nll(logp_PK, tokens_PK))


def preference_sums(
    config: PreferenceConfig, reward_BGK, logp_BGK, tokens_BGK, ranks_BGK
) -> tuple[jax.Array, dict]:
    """(loss, what is logged beside it) of what `rewards` gives: means over a prompt's pairs, summed over prompts.

    accuracy: share of right pairs, by the policy's reward; margin, of the rewards of a pair; chosen_logp and
    rejected_logp, of an answer in nats: both may fall while the margin grows.
    """
    reward_PK, logp_PK, tokens_PK, rank_PK = map(
        _per_prompt, (reward_BGK, logp_BGK, tokens_BGK, ranks_BGK)
    )
    valid_PKK = (rank_PK > 0)[:, :, None] & (rank_PK > 0)[:, None, :]
    kept_PKK = valid_PKK & (rank_PK[:, :, None] < rank_PK[:, None, :])
    pairs_P = jnp.maximum(kept_PKK.sum((1, 2)), 1)

    def mean(x_PKK):
        return (jnp.where(kept_PKK, x_PKK, 0.0).sum((1, 2)) / pairs_P).sum()

    loss = mean(_pair_losses(config, reward_PK, logp_PK, tokens_PK))
    margin_PKK = reward_PK[:, :, None] - reward_PK[:, None, :]
    return loss, {
        "loss": loss,
        "accuracy": mean((margin_PKK > 0).astype(jnp.float32)),
        "margin": mean(margin_PKK),
        "chosen_logp": mean(logp_PK[:, :, None]),
        "rejected_logp": mean(logp_PK[:, None, :]),
    }


def preference_objective(
    model: config_lib.DecoderConfig, config: PreferenceConfig, rules: mesh_lib.AxisRules
) -> state_lib.Objective:
    """DPO and its relatives over all pairs of a prompt, as for a reward model. frozen: as in `rewards`."""

    def sums(params, batch, frozen):
        found = rewards(model, config, params, batch, frozen, rules)
        return preference_sums(config, *found, batch["ranks"])

    return state_lib.Objective(sums, prompts_compared)


def labelled_objective(
    model: config_lib.DecoderConfig, config: PreferenceConfig, rules: mesh_lib.AxisRules
) -> state_lib.Objective:
    """KTO (arXiv 2402.01306) on batches of `comparisons.with_others`: the mean over answers. frozen: as in `rewards`.

    The reference point is that of the batch; where gradients are accumulated, each part has its own.

    Logged beside it: kl, the reference point; accuracy: share of answers whose reward lies on their label's side of it.
    """

    def sums(params, batch, frozen):
        prefix = comparisons.OTHERS
        others = {n.removeprefix(prefix): x for n, x in batch.items() if n.startswith(prefix)}
        other_BGK, _, _ = rewards(model, config, params, others, frozen, rules)
        kl = preference.kto_baseline(other_BGK / config.beta, 0.0, others["answers"] > 0)
        reward_BGK, logp_BGK, _ = rewards(model, config, params, batch, frozen, rules)
        there_BGK, desired_BGK = batch["ranks"] > 0, batch["ranks"] == 1
        loss_BGK = preference.kto(
            reward_BGK / config.beta, 0.0, desired_BGK, kl, beta=config.beta,
            desirable_weight=config.desirable_weight, undesirable_weight=config.undesirable_weight,
        )  # fmt: skip
        right_BGK = (reward_BGK > config.beta * kl) == desired_BGK
        loss = jnp.where(there_BGK, loss_BGK, 0.0).sum()
        count = answers_labelled(batch)
        return loss, {
            "loss": loss,
            "accuracy": (there_BGK & right_BGK).sum().astype(jnp.float32),
            "kl": kl * count,
            "logp": jnp.where(there_BGK, logp_BGK, 0.0).sum(),
        }

    return state_lib.Objective(sums, answers_labelled)


def answers_labelled(batch: dict) -> jax.Array:
    """Answers of a batch, f32 []."""
    return (batch["ranks"] > 0).sum().astype(jnp.float32)


def first_loss(config: PreferenceConfig) -> float | None:
    """The loss of a policy that equals its reference, where it has one value for all pairs."""
    values = {
        "sigmoid": math.log(2),
        "robust": math.log(2),
        "hinge": 1.0,
        "ipo": 1 / (4 * config.beta**2),
    }
    if config.desirable_weight == config.undesirable_weight:
        values["kto"] = 0.5 * config.desirable_weight
    return None if config.nll else values.get(config.loss)
