"""What an update minimises: packed rows against losses of one answer a row, halves of rows, critics, text beside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.losses import policy
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import experience, objectives, practice

LONGEST = 9
CLIPS = dict(clip_low=0.2, clip_high=0.28)
RULES = mesh_lib.AxisRules()
MODEL = config_lib.DecoderConfig(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=24,
    heads="both",
)  # fmt: skip


@functools.cache
def episodes():
    chance = np.random.default_rng(1)
    lengths = [(3, 1), (2, 9), *chance.integers(1, LONGEST + 1, (6, 2)).tolist()]
    return [experience.Episode(*(chance.integers(1, 64, n) for n in pair)) for pair in lengths]


def mask_of(left_out=()):
    mask = experience.answer_mask(episodes(), LONGEST)
    mask[list(left_out)] = False
    return mask


def arrays(seed=0):
    """Numbers [E, N] of every kind that rows carry, and what a policy says now; rubbish beyond the answers."""
    chance = np.random.default_rng(seed)
    shape = (len(episodes()), LONGEST)
    old = chance.normal(-2, 0.5, shape)
    found = {
        "old_logp": old,
        "new_logp": old + chance.normal(0, 0.4, shape),
        "reference_logp": old + chance.normal(0, 0.5, shape),
        "advantages": chance.normal(size=shape),
        "entropies": chance.uniform(0, 3, shape),
        "old_values": chance.normal(size=shape),
        "values": chance.normal(size=shape),
        "returns": chance.normal(size=shape),
    }
    return {name: value.astype(np.float32) for name, value in found.items()}


def packed(values, trained, reduction, num_rows=0):
    """Rows of all episodes with everything in them; weights as an update gets them."""
    mask = experience.answer_mask(episodes(), LONGEST)
    rows = experience.pack(episodes(), range(len(mask)), seq_len=24, pad_id=0, num_rows=num_rows)
    kept = [n for n in range(len(mask)) if trained[n].any()]
    rows = experience.pack(
        episodes(), kept, seq_len=24, pad_id=0, num_rows=len(rows.batch["tokens"])
    )
    assert len(rows.episodes) > len(set(rows.rows.tolist()))  # several in one row
    return practice.batch_of(rows, mask, values | practice.weights(rows, trained, reduction))


@functools.partial(jax.jit, static_argnums=0)
def policy_sums(config, batch):
    return objectives.policy_sums(config, batch["new_logp"], batch["entropies"], batch)


def found_in(config, batch):
    loss, logged = policy_sums(config, batch)
    return float(loss), {name: float(value) for name, value in logged.items()}


def unpacked_loss(config, values, mask, reduction):
    """The same loss, each answer a row of its own."""
    loss, _ = policy.clipped(
        values["new_logp"], values["old_logp"], values["advantages"], mask, level=config.level,
        clip_low=config.clip_low, clip_high=config.clip_high, dual_clip=config.dual_clip or None,
    )  # fmt: skip
    if config.kl_loss:
        loss = loss + config.kl_loss * policy.kl_estimate(
            values["new_logp"], values["reference_logp"], mask, config.kl_estimator
        )
    loss = loss - config.entropy * np.where(mask, values["entropies"], 0)
    whole = policy.token_denominator(mask, reduction, max_length=LONGEST)
    return float(policy.reduce_tokens(loss, mask, reduction, whole))


CONFIGS = [
    {},
    dict(level="sequence"),
    dict(dual_clip=1.5),
    dict(kl_loss=0.3),
    dict(kl_loss=0.3, kl_estimator="k2", entropy=0.1, level="sequence"),
]


@pytest.mark.parametrize("left_out", [(), (1, 4)], ids=["all", "some"])
@pytest.mark.parametrize("settings", CONFIGS, ids=str)
@pytest.mark.parametrize("reduction", objectives.REDUCTIONS)
def test_packed_rows_have_the_loss_of_answers_alone(reduction, settings, left_out):
    config = objectives.PolicyLossConfig(**CLIPS, **settings)
    values, mask = arrays(), mask_of(left_out)
    loss, logged = found_in(config, packed(values, mask, reduction))
    assert loss == pytest.approx(unpacked_loss(config, values, mask, reduction), rel=1e-5, abs=1e-6)
    assert logged["loss"] == loss
    # Negative controls: the advantages of other tokens, and (where answers differ in length) another reduction.
    other = values | {"advantages": np.roll(values["advantages"], 1, axis=1)}
    assert unpacked_loss(config, other, mask, reduction) != pytest.approx(loss, rel=1e-3)
    another = {"grpo": "dapo", "dapo": "dr_grpo", "dr_grpo": "grpo"}[reduction]
    assert unpacked_loss(config, values, mask, another) != pytest.approx(loss, rel=1e-3)


def test_ratios_of_sequences_are_those_of_episodes_and_not_of_rows():
    config = objectives.PolicyLossConfig(level="sequence", **CLIPS)
    values, mask = arrays(), mask_of()
    batch = packed(values, mask, "grpo")
    loss, _ = found_in(config, batch)
    row_wise, _ = policy.clipped(
        batch["new_logp"], batch["old_logp"], batch["advantages"], batch["loss_weights"],
        level="sequence", **CLIPS,
    )  # fmt: skip
    assert float((row_wise * batch["weights"]).sum()) != pytest.approx(loss, rel=1e-2)


def test_the_gradient_of_packed_rows_is_that_of_answers_alone():
    config = objectives.PolicyLossConfig(level="sequence", kl_loss=0.2, kl_estimator="k2", **CLIPS)
    values, mask = arrays(), mask_of([2])
    batch = packed(values, mask, "grpo")
    found = jax.jit(jax.grad(lambda batch: policy_sums(config, batch)[0], allow_int=True))(batch)

    def alone(new):
        loss, _ = policy.clipped(
            new, values["old_logp"], values["advantages"], mask, level="sequence", **CLIPS
        )
        loss = loss + 0.2 * policy.kl_estimate(new, values["reference_logp"], mask, "k2")
        return policy.reduce_tokens(loss, mask, "grpo", mask.any(1).sum())

    expected = jax.jit(jax.grad(alone))(values["new_logp"])
    per_episode = packed(values | {"slope": np.asarray(expected)}, mask, "grpo")["slope"]
    np.testing.assert_allclose(found["new_logp"], per_episode, rtol=1e-5, atol=1e-7)
    assert np.abs(per_episode).max() > 1e-3


def test_what_is_logged_beside_the_policy_loss():
    config = objectives.PolicyLossConfig(**CLIPS)
    values, mask = arrays(), mask_of([3])
    _, logged = found_in(config, packed(values, mask, "grpo"))
    change = np.where(mask, values["new_logp"] - values["old_logp"], 0)[mask]
    ratio, good = np.exp(change), values["advantages"][mask] > 0
    expected = {
        "approx_kl": (change**2 / 2).mean(),
        "clip_low": ((ratio < 0.8) & ~good).mean(),
        "clip_high": ((ratio > 1.28) & good).mean(),
        "ratio_mean": ratio.mean(),
        "ratio_change": np.abs(ratio - 1).mean(),
        "entropy": values["entropies"][mask].mean(),
    }
    assert logged == pytest.approx(expected | {"loss": logged["loss"]}, rel=1e-5)
    assert 0 < expected["clip_low"] < 1 and 0 < expected["clip_high"] < 1


def test_a_policy_that_has_not_moved_has_ratio_1_and_the_mean_advantage_as_loss():
    values, mask = arrays(), mask_of()
    values["new_logp"] = values["old_logp"]
    loss, logged = found_in(objectives.PolicyLossConfig(), packed(values, mask, "dapo"))
    assert loss == pytest.approx(-values["advantages"][mask].mean(), abs=1e-6)
    for name, value in {"approx_kl": 0, "ratio_change": 0, "ratio_mean": 1, "clip_low": 0}.items():
        assert logged[name] == pytest.approx(value, abs=1e-6)


def test_shares_of_an_update_add_up():
    mask = mask_of([0, 5])
    lengths = mask.sum(1)
    grpo, dapo, dr_grpo = (objectives.shares(mask, name) for name in objectives.REDUCTIONS)
    assert grpo.sum() == pytest.approx(1) == dapo.sum()
    assert grpo.sum(1)[lengths > 0] == pytest.approx(1 / 6)
    assert dapo[mask] == pytest.approx(1 / mask.sum())
    assert dr_grpo.sum() == pytest.approx(lengths.sum() / (6 * LONGEST)) != pytest.approx(1)
    for found in (grpo, dapo, dr_grpo):
        assert found.dtype == np.float32 and not found[~mask].any()
    assert not any(objectives.shares(mask & False, name).any() for name in objectives.REDUCTIONS)
    with pytest.raises(errors.ConfigError):
        objectives.shares(mask, "bnpo")


@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_a_critics_loss_is_the_mean_over_all_tokens(clip):
    values, mask = arrays(), mask_of([6])
    batch = packed(values, mask, "grpo")
    loss, logged = objectives.value_sums(
        objectives.ValueLossConfig(clip=clip), batch["values"], batch
    )
    each, clipped = policy.value_loss(
        values["values"], values["old_values"], values["returns"], mask, clip=clip or np.inf
    )
    assert float(loss) == pytest.approx(float(each.sum() / mask.sum()), rel=1e-5)
    assert float(logged["clipped"]) == pytest.approx(float(clipped.sum() / mask.sum()), rel=1e-5)
    assert (float(logged["clipped"]) > 0) == bool(clip)
    plain = np.mean((values["values"] - values["returns"])[mask] ** 2) / 2
    assert (float(loss) == pytest.approx(plain, rel=1e-5)) == (not clip)


@pytest.mark.parametrize("reduction", objectives.REDUCTIONS)
def test_sums_over_halves_of_the_rows_add_up_to_those_of_the_whole(reduction):
    config = objectives.PolicyLossConfig(level="sequence", kl_loss=0.1, entropy=0.01, **CLIPS)
    batch = packed(arrays(), mask_of([2]), reduction)
    whole = found_in(config, batch)[1]
    middle = len(batch["tokens"]) // 2
    halves = [
        found_in(config, {name: x[part] for name, x in batch.items()})[1]
        for part in (slice(None, middle), slice(middle, None))
    ]
    assert {n: halves[0][n] + halves[1][n] for n in whole} == pytest.approx(whole, rel=1e-5)
    assert all(half["loss"] != pytest.approx(whole["loss"], rel=1e-3) for half in halves)


# One small model: what rides along, and critics that share it.


@functools.cache
def parameters():
    params = jax.jit(lambda: decoder.init_params(MODEL, jax.random.key(0)))()
    chance = np.random.default_rng(0)
    params["score"]["kernel"] = jnp.asarray(chance.normal(size=(16, 1)), jnp.float32)
    return params


def text_batch():
    chance = np.random.default_rng(5)
    tokens = chance.integers(1, 64, (2, 13)).astype(np.int32)
    weights = np.ones((2, 12), np.float32)
    weights[1, 7:] = 0
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": weights / weights.sum(),
        "positions": np.tile(np.arange(12, dtype=np.int32), (2, 1)),
        "segment_ids": np.ones((2, 12), np.int32),
    }


def both(objective, batch):
    """((loss, what is logged), gradients) of an objective."""
    return compiled(objective)(parameters(), batch, {})


@functools.cache
def compiled(objective):
    return jax.jit(jax.value_and_grad(objective.sums, has_aux=True))


@functools.cache
def of_policy():
    config = objectives.PolicyLossConfig(kl_loss=0.1, **CLIPS)
    objective = objectives.policy_objective(MODEL, config, 0.7, RULES)
    batch = packed(arrays(), mask_of([4]), "dapo")
    return config, objective, batch, both(objective, batch)


def assert_trees_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )


def test_text_beside_the_policy_adds_its_coefficient_times_the_mean():
    _, objective, batch, ((loss, _), slope) = of_policy()
    text = text_batch()
    beside = batch | {f"{objectives.TEXT}{name}": x for name, x in text.items()}
    (total, logged), gradients = both(objectives.with_text(objective, MODEL, 2.5, RULES), beside)

    def nll(params):
        logp, _ = objectives.token_logps(MODEL, params, text, 1.0, RULES)
        return -jnp.sum(text["loss_weights"] * logp)

    mean, text_slope = jax.jit(jax.value_and_grad(nll))(parameters())
    assert float(logged["text_nll"]) == pytest.approx(float(mean), rel=1e-5)
    assert 3 < mean < 6  # near ln 64: a mean, not a sum
    assert float(total) == pytest.approx(float(loss + 2.5 * mean), rel=1e-5)
    assert float(logged["loss"]) == float(total)
    assert_trees_close(gradients, jax.tree.map(lambda a, b: a + 2.5 * b, slope, text_slope))
    with pytest.raises(
        AssertionError
    ):  # negative control: with another coefficient they are others
        assert_trees_close(gradients, jax.tree.map(jnp.add, slope, text_slope))


def test_a_shared_critic_adds_its_coefficient_times_its_loss():
    config, _, batch, ((loss, of_text), slope) = of_policy()
    critic = objectives.ValueLossConfig()
    value, value_slope = both(objectives.value_objective(MODEL, critic, RULES), batch)
    (total, logged), gradients = both(
        objectives.with_values(MODEL, config, 0.7, critic, 0.5, RULES), batch
    )
    assert float(value[0]) > 0.01
    assert float(total) == pytest.approx(float(loss + 0.5 * value[0]), rel=1e-5)
    assert float(logged["value_loss"]) == pytest.approx(float(value[0]), rel=1e-5)
    assert float(logged["ratio_mean"]) == pytest.approx(float(of_text["ratio_mean"]), rel=1e-5)
    assert_trees_close(gradients, jax.tree.map(lambda a, b: a + 0.5 * b, slope, value_slope))
    with pytest.raises(AssertionError):
        assert_trees_close(gradients, slope)


def test_gradients_are_finite_and_none_comes_from_what_is_left_out():
    _, objective, batch, (_, slope) = of_policy()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert any(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(slope))
    # Whatever stands where no token of an answer is.
    rubbish = {
        name: np.where(batch["loss_weights"] > 0, batch[name], np.nan)
        for name in ("old_logp", "reference_logp", "advantages")
    }
    _, again = both(objective, batch | rubbish)
    jax.tree.map(np.testing.assert_array_equal, again, slope)
    # An update of which every answer is left out.
    nothing = packed(arrays(), mask_of(), "dapo")
    nothing |= {"weights": 0 * nothing["weights"], "token_weights": 0 * nothing["weights"]}
    (loss, _), none = both(objective, nothing)
    assert float(loss) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(none))


def test_log_probabilities_are_those_of_the_logits_over_the_temperature():
    _, _, batch, _ = of_policy()
    inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
    forward = jax.jit(lambda params: decoder.forward(MODEL, params, *inputs))
    hidden = np.asarray(forward(parameters()), np.float64)
    logits = hidden @ np.asarray(decoder.head_kernel(MODEL, parameters()), np.float64)
    for temperature in (0.7, 1.0):
        tempered = logits / temperature
        logp = tempered - np.log(np.exp(tempered).sum(-1, keepdims=True))
        expected = np.take_along_axis(logp, batch["targets"][..., None], -1)[..., 0]
        entropy = -(np.exp(logp) * logp).sum(-1)
        logps = practice.make_logps(MODEL, temperature, RULES)
        whole = {name: x for name, x in batch.items() if name != "answer_places"}
        real, answers = batch["segment_ids"] > 0, batch["loss_weights"] > 0
        for asked, mask in ((whole, real), (batch, answers)):
            found = logps(parameters(), asked)
            np.testing.assert_allclose(found[0][mask], expected[mask], atol=2e-5)
            np.testing.assert_allclose(found[1][mask], entropy[mask], atol=2e-5)
        # Places that are not asked for are 0: the head was not computed for them.
        assert not np.any(found[0][~answers]) and np.all(expected[real & ~answers] < 0)
        plain = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        other = np.take_along_axis(plain, batch["targets"][..., None], -1)[..., 0]
        assert (np.abs(other - expected)[real].max() > 1e-2) == (temperature != 1.0)


def test_gradients_are_those_of_whole_rows():
    config, rules = objectives.PolicyLossConfig(entropy=0.1), RULES
    batch = packed(arrays(), mask_of(), "grpo")
    objective = objectives.policy_objective(MODEL, config, 1.0, rules)
    whole = {name: x for name, x in batch.items() if name != "answer_places"}
    assert batch["answer_places"].shape[1] < batch["tokens"].shape[1]  # or nothing is left out
    (loss, _), slope = both(objective, batch)
    (expected, _), wanted = both(objective, whole)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slope, wanted)
    # Negative control: places that leave one out give another loss.
    fewer = batch["answer_places"].copy()
    fewer[:, 0] = batch["tokens"].shape[1]
    (other, _), _ = both(objective, batch | {"answer_places": fewer})
    assert abs(float(other) - float(expected)) > 1e-4


@pytest.mark.parametrize("settings", [dict(level="row"), dict(kl_estimator="k1")], ids=str)
def test_unknown_settings_are_refused(settings):
    with pytest.raises(errors.ConfigError):
        objectives.PolicyLossConfig(**settings)
