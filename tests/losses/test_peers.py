"""Values and gradients against TRL and rlax, from what make_peer_fixtures.py wrote on its fixed inputs."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr.losses import advantages, lm, masked, policy, preference

FILE = dict(np.load(pathlib.Path(__file__).with_name("peers.npz")))
IN = {key.removeprefix("in/"): value for key, value in FILE.items() if key.startswith("in/")}
NEW, PLAIN, FIRST, RLAX = "trl-1.9.0/", "trl-0.25.1/", "trl-0.11.4/", "rlax-0.1.9/"
B = len(IN["mask"])


def close(got, want, scale=None):
    """Equal to 1e-5 of the largest value; and something is there to be equal to."""
    scale = np.abs(want).max() if scale is None else scale
    assert scale > 1e-4
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * scale)


def differs(got, want):
    """Negative control."""
    assert np.abs(np.asarray(got) - want).max() > 1e-3 * np.abs(want).max()


def value_and_grad(function, *arrays):
    """(value, gradient of its sum by the first array)"""
    value, back = jax.vjp(lambda first: jnp.asarray(function(first, *arrays[1:])), arrays[0])
    return value, back(jnp.ones_like(value))[0]


def check(name, function, array):
    value, gradient = value_and_grad(jax.jit(function), array)
    close(value, FILE[f"{name}/loss"])
    close(gradient, FILE[f"{name}/grad"])


@pytest.mark.parametrize(
    "name, margin, centering", [("plain", 0.0, 0.0), ("margin", 1.0, 0.0), ("centering", 1.0, 0.05)]
)
def test_pairs_of_a_reward_model(name, margin, centering):
    def loss(rewards, centering=centering):
        return preference.pair(*rewards, margin * IN["margin"], centering).mean()

    check(f"{NEW}pair_{name}", loss, IN["rewards"])
    differs(loss(IN["rewards"], 0.1), FILE[f"{NEW}pair_{name}/loss"])


def dpo_settings(name):
    kind, _, basis = name.partition("_")
    smoothing = {"conservative": 0.2, "robust": 0.2}.get(kind, 0.0)
    tokens = IN["tokens"] if basis == "means" else None
    kind = "sigmoid" if kind == "conservative" else kind
    return dict(kind=kind, beta=0.1, label_smoothing=smoothing, tokens=tokens)


@pytest.mark.parametrize(
    "name", ["sigmoid", "conservative", "robust", "hinge", "ipo_sums", "ipo_means"]
)
def test_dpo_on_sums(name):
    settings = dpo_settings(name)
    policy_sums, reference_sums = IN["sums"][:2], IN["sums"][2:]

    def loss(sums):
        return preference.dpo(*sums, *reference_sums, **settings)

    check(f"{PLAIN}dpo_{name}", loss, policy_sums)
    other = preference.dpo(*IN["sums"], **settings | dict(beta=0.12))
    differs(other, FILE[f"{PLAIN}dpo_{name}/loss"])


@pytest.mark.parametrize("kind", preference.DPO_KINDS)
def test_dpo_from_logits(kind):
    """The whole way from logits, with the masks of a language model: answers of one token, of all, of none."""
    targets, mask = IN["ids"][:, 1:], IN["completion_mask"][:, 1:]
    identity = np.eye(IN["logits"].shape[-1], dtype=np.float32)
    smoothing = 0.1 if kind == "robust" else 0.0

    def loss(logits, mask=mask):
        logp, _, _ = lm.token_logprobs(logits[:, :-1], identity, targets)
        sums, tokens = (x.reshape(2, B) for x in preference.sequence_logp(logp, mask))
        by_mean = tokens if kind == "ipo" else None
        return preference.dpo(
            *sums, *IN["sums"][2:], kind=kind, beta=0.1, label_smoothing=smoothing, tokens=by_mean
        ).mean()

    check(f"{NEW}dpo_{kind}", loss, IN["logits"])
    differs(loss(IN["logits"], np.ones_like(mask)), FILE[f"{NEW}dpo_{kind}/loss"])


def test_kto():
    baseline = preference.kto_baseline(*IN["other_sums"], np.ones(B, bool))
    close(baseline, FILE[f"{PLAIN}kto/baseline"])
    weights = dict(beta=0.2, desirable_weight=1.5, undesirable_weight=0.7)

    def loss(sums, desirable=IN["desirable"]):
        return preference.kto(sums, IN["sums"][2], desirable, baseline, **weights)

    check(f"{PLAIN}kto", loss, IN["sums"][0])
    differs(loss(IN["sums"][0], ~IN["desirable"]), FILE[f"{PLAIN}kto/loss"])


def test_orpo_and_simpo():
    sums, tokens = IN["sums"][:2], IN["tokens"]
    check(f"{NEW}orpo", lambda s: preference.orpo(*s, tokens, beta=0.3, nll_weight=0.0), sums)
    check(f"{NEW}simpo", lambda s: preference.simpo(*s, tokens, beta=2, target_margin=0.5), sums)
    differs(preference.orpo(*sums, tokens, beta=0.3, nll_weight=0.1), FILE[f"{NEW}orpo/loss"])
    swapped = preference.simpo(*IN["sums"][:2], tokens[::-1], beta=2.0, target_margin=0.5)
    differs(swapped, FILE[f"{NEW}simpo/loss"])


# name: (reduction, level, clip_low, clip_high, weight of k3, with weights)
GRPO = {
    "grpo": ("grpo", "token", 0.2, 0.28, 0.04, False),
    "bnpo": ("bnpo", "token", 0.2, 0.28, 0.0, False),
    "dr_grpo": ("dr_grpo", "token", 0.2, 0.28, 0.0, False),
    "dapo": ("dapo", "token", 0.2, 0.28, 0.0, False),
    "dapo_weights": ("dapo", "token", 0.2, 0.28, 0.04, True),
    "gspo": ("grpo", "sequence", 0.05, 0.06, 0.0, False),
}


def peers_denominator(kind):
    """TRL counts rows without tokens too; here they are not there, unless the caller says so."""
    own = policy.token_denominator(IN["mask"], kind, max_length=10)
    return own * B / IN["mask"].any(1).sum() if kind in ("grpo", "dr_grpo") else own


@pytest.mark.parametrize("name", GRPO)
def test_grpo_family(name):
    reduction, level, low, high, beta, weighted = GRPO[name]
    mask, clip = IN["mask"], dict(clip_low=low, clip_high=high)

    def loss(logp, level=level):
        each, ratio = policy.clipped(
            logp, IN["old"], IN["advantage"][:, None], mask, level=level, **clip
        )
        if weighted:
            each = each * IN["weights"]
        each += beta * policy.kl_estimate(logp, IN["reference"], mask, "k3")
        return policy.reduce_tokens(each, mask, reduction, peers_denominator(reduction)), ratio

    check(NEW + name, lambda logp: loss(logp)[0], IN["logp"])
    other = {"token": "sequence", "sequence": "token"}[level]
    differs(loss(IN["logp"], other)[0], FILE[f"{NEW}{name}/loss"])
    if level == "token":
        ratio = loss(IN["logp"])[1]
        sums, _ = policy.ratio_stats(ratio, IN["advantage"][:, None], mask, **clip)
        shares = [sums["clipfrac_low"] / mask.sum(), sums["clipfrac_high"] / mask.sum()]
        close(shares, FILE[f"{NEW}{name}/clipped"])


def test_cispo():
    def loss(logp, cap=1.3):
        each, _ = policy.cispo(logp, IN["old"], IN["advantage"][:, None], IN["mask"], cap=cap)
        return policy.reduce_tokens(each, IN["mask"], "dapo", peers_denominator("dapo"))

    check(f"{NEW}cispo", loss, IN["logp"])
    differs(loss(IN["logp"], 1 + 1.3), FILE[f"{NEW}cispo/loss"])


def test_group_advantages_with_scores_that_are_missing():
    got, flat = advantages.group_advantages(IN["group_scores"], "grpo")
    close(got, FILE[f"{NEW}group/advantages"])
    np.testing.assert_array_equal(flat, [1, 1, 1, 0, 0, 0])
    unscaled, _ = advantages.group_advantages(IN["group_scores"], "dr_grpo")
    differs(unscaled, FILE[f"{NEW}group/advantages"])


def test_overlong_penalty():
    got = advantages.overlong_penalty(IN["lengths"], max_length=100, buffer=20)
    close(got, FILE[f"{NEW}overlong/penalty"])
    differs(advantages.overlong_penalty(IN["lengths"], max_length=100, buffer=30), got)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening(shift_mean):
    got = masked.whiten(IN["advantages"], IN["mask"], shift_mean)
    name = "shifted" if shift_mean else "unshifted"
    want = np.where(IN["mask"], FILE[f"{NEW}whiten/{name}"], 0.0)
    close(got, want)
    differs(masked.whiten(IN["advantages"], np.ones_like(IN["mask"]), shift_mean), want)


def test_rewards_advantages_and_losses_of_ppo():
    rows = IN["mask"].any(1)
    logp, old, reference, values, old_values, score, mask = (
        IN[name][rows]
        for name in ("logp", "old", "reference", "values", "old_values", "score", "mask")
    )
    rewards, kept, _ = advantages.token_rewards(score, old, reference, mask, 0.1, "eos")
    close(rewards, FILE[f"{FIRST}ppo/rewards"])
    raw, returns = advantages.gae(rewards, old_values, kept, discount=0.98, trace=0.95)
    white = masked.whiten(raw, kept)
    close(white, FILE[f"{FIRST}ppo/advantages"])
    close(returns, FILE[f"{FIRST}ppo/returns"])
    differs(advantages.gae(rewards, old_values, kept, discount=1.0, trace=0.95)[1], returns)

    def losses(logp, values, clip=0.2):
        each, ratio = policy.clipped(logp, old, white, mask, clip_low=clip, clip_high=clip)
        value, held = policy.value_loss(values, old_values, returns, mask, clip=clip)
        # the peer weighs its value loss by 0.1
        both = jnp.stack([masked.mean(each, mask), 0.1 * masked.mean(value, mask)])
        return both.sum(), (both, ratio, held)

    run = jax.jit(jax.value_and_grad(losses, (0, 1), has_aux=True))
    (_, (both, ratio, held)), slopes = run(logp, values)
    close(both, FILE[f"{FIRST}ppo/losses"])
    close(slopes[0], FILE[f"{FIRST}ppo/grad_logp"])
    close(slopes[1], FILE[f"{FIRST}ppo/grad_values"])
    for got, name in zip(run(logp, values, 0.1)[1], ("logp", "values")):
        differs(got, FILE[f"{FIRST}ppo/grad_{name}"])
    sums, _ = policy.ratio_stats(ratio, white, mask, clip_low=0.2, clip_high=0.2)
    share = (sums["clipfrac_low"] + sums["clipfrac_high"]) / mask.sum()
    approximate_kl = masked.mean(policy.kl_estimate(logp, old, mask, "k2"), mask)
    got = [approximate_kl, share, masked.mean(held, mask)]
    close(got, FILE[f"{FIRST}ppo/approxkl_clipfracs"])


def test_rlax_as_the_second_witness_of_gae_and_clipping():
    mask = IN["mask"]
    got, _ = advantages.gae(IN["returns"], IN["old_values"], mask, discount=0.98, trace=0.95)
    close(got, FILE[f"{RLAX}gae/advantages"])
    loss, _ = policy.clipped(
        IN["logp"], IN["old"], IN["advantages"], mask, clip_low=0.2, clip_high=0.2
    )
    means = loss.sum(1) / np.maximum(mask.sum(1), 1)
    close(means, FILE[f"{RLAX}clipped/row_means"])
    loss, _ = policy.clipped(
        IN["logp"], IN["old"], IN["advantages"], mask, clip_low=0.2, clip_high=0.4
    )
    differs(loss.sum(1) / np.maximum(mask.sum(1), 1), FILE[f"{RLAX}clipped/row_means"])
