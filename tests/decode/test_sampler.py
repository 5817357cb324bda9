"""Decoding with a cache against the whole forward pass, and the rules of noise, masks and ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.decode import sampler, step
from jinstr.models import config as config_lib
from jinstr.models import decoder

SMALL = config_lib.DecoderConfig(
    vocab_size=67,
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=40,
)
# What the families differ in; each must come out of the step as it comes out of `decoder.forward`.
FAMILIES = {
    "llama3.1": dict(rope_scaling="llama3", rope_factor=8.0, rope_original_positions=64),
    "qwen2": dict(qkv_bias=True, tie_embeddings=False),
    "gemma2": dict(
        embed_scale=True, norm_plus_one=True, post_norms=True, attention_softcap=5.0, logit_softcap=3.0,
        window=6, layer_pattern="local,global", activation="gelu_tanh", query_scale=0.2,
    ),
    "gemma3": dict(
        embed_scale=True, norm_plus_one=True, post_norms=True, qk_norm=True, rope_local_theta=100.0,
        window=6, layer_pattern="local,local,global", rope_scaling="linear", rope_factor=8.0,
    ),
    "gpt_neox": dict(
        norm="layer", parallel_residual=True, qkv_bias=True, out_bias=True, mlp_bias=True, rotary_share=0.5,
        gated_mlp=False, activation="gelu", tie_embeddings=False, num_kv_heads=4,
    ),
}  # fmt: skip
PROMPTS = [[5, 9, 11], [7] * 17 + [3, 4], [13], [21, 22, 23, 24, 25, 26, 27]]
PAD = 0
GREEDY = dict(temperature=0.0, max_new_tokens=12)


def params_of(config, seed=0):
    """Random parameters, all of them: scales and biases at their start would hide a missing term."""
    params = decoder.init_params(config, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return jax.tree.unflatten(tree, noisy)


PARAMS = params_of(SMALL)
FORWARD = jax.jit(decoder.forward, static_argnums=0)


def next_logits(config, params, ids):
    """Slow twin: logits after `ids` from the whole forward pass, no cache, no padding before."""
    places = 40  # one compiled shape; what follows a place cannot reach it
    tokens = np.zeros((1, places), np.int32)
    tokens[0, : len(ids)] = ids
    segments = (np.arange(places)[None] < len(ids)).astype(np.int32)
    hidden = FORWARD(config, params, tokens, np.arange(places, dtype=np.int32)[None], segments)
    return np.asarray(decoder.logits(config, params, hidden[0, len(ids) - 1]))


def greedy_chain(config, params, prompt, count, stop=()):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(next_logits(config, params, ids).argmax()))
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]


def sample(config, params, prompts, stop_ids=(), row_ids=None, seed=0, forbidden=(), **sampling):
    s = sampler.Sampler(config, sampler.SamplingConfig(**sampling), stop_ids, PAD, forbidden)
    prompts_BP, lengths_B = sampler.left_pad(prompts, PAD)
    row_ids = np.arange(len(prompts)) if row_ids is None else np.array(row_ids)
    rollout = s(params, prompts_BP, lengths_B, row_ids, jax.random.key(seed))
    return jax.tree.map(np.asarray, rollout)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_equals_the_full_forward(family, scan):
    config = dataclasses.replace(SMALL, scan_layers=scan, **FAMILIES[family])
    params = params_of(config)
    got = sample(config, params, PROMPTS, **GREEDY)
    for prompt, ids, logp in zip(PROMPTS, got.ids, got.logp):
        assert ids.tolist() == greedy_chain(config, params, prompt, 12)
        # Teacher-forced log-probabilities as well: greedy ids alone could agree by luck.
        for n in (0, 5, 11):
            logits = next_logits(config, params, prompt + ids[:n].tolist())
            assert int(logits.argmax()) == ids[n]
            want_logp = jax.nn.log_softmax(jnp.asarray(logits))[ids[n]]
            np.testing.assert_allclose(logp[n], want_logp, atol=2e-4)
    assert len({tuple(ids) for ids in got.ids}) > 1


def test_negative_control_wrong_lengths_change_the_answers():
    prompts_BP, lengths_B = sampler.left_pad(PROMPTS, PAD)
    s = sampler.Sampler(SMALL, sampler.SamplingConfig(**GREEDY), (), PAD)
    right = s(PARAMS, prompts_BP, lengths_B, np.arange(4), jax.random.key(0))
    # Padding taken for text: what happens when the mask or the positions are wrong.
    wrong = s(PARAMS, prompts_BP, np.full(4, 19, np.int32), np.arange(4), jax.random.key(0))
    differ = np.abs(np.asarray(right.logp - wrong.logp)).max(-1)
    assert (differ[[0, 2, 3]] > 1e-3).all() and differ[1] == 0


def test_long_prompts_are_read_in_pieces_and_the_cache_grows(monkeypatch):
    prompts = [[3 + i % 60 for i in range(23)], [9, 8, 7]]
    whole = sample(SMALL, PARAMS, prompts, temperature=0.0, max_new_tokens=80)
    assert sampler.cache_slots(32) < 32 + 79  # the cache has to grow on the way
    jax.clear_caches()
    monkeypatch.setattr(step, "PREFILL_PLACES", 8)
    pieces = sample(SMALL, PARAMS, prompts, temperature=0.0, max_new_tokens=80)
    jax.clear_caches()
    assert (whole.ids == pieces.ids).all()
    np.testing.assert_allclose(whole.logp, pieces.logp, atol=1e-4)
    tail = whole.ids[1, :30].tolist()
    assert tail == greedy_chain(SMALL, PARAMS, prompts[1], 30)


def test_end_tokens_masks_and_logp():
    free = sample(SMALL, PARAMS, PROMPTS, **GREEDY)
    stop = int(free.ids[0, 3])
    got = sample(SMALL, PARAMS, PROMPTS, stop_ids=(stop,), **GREEDY)
    for prompt, ids, mask, logp, ended, length in zip(PROMPTS, *got):
        want = greedy_chain(SMALL, PARAMS, prompt, 12, stop=(stop,))
        assert ids[:length].tolist() == want and (ids[length:] == PAD).all()
        assert ended == (want[-1] == stop)
        assert (mask == (np.arange(12) < length)).all() and (logp[~mask] == 0).all()
        assert (logp[mask] < 0).all()
    assert got.ended[0] and not got.ended.all()


def test_pad_as_an_ordinary_sampled_token_is_still_counted():
    # Masks come from the end state: force the pad id to be the likeliest and let it be sampled.
    params = jax.tree.map(jnp.copy, PARAMS)
    config = dataclasses.replace(SMALL, tie_embeddings=False)
    params["head"] = {"kernel": jnp.zeros((24, 67)).at[:, 1].set(-1e-3)}
    got = sample(config, params, PROMPTS, **GREEDY)
    assert (got.ids == PAD).any() and got.mask.all() and (got.length == 12).all()


def test_forbidden_ids_are_never_sampled_and_stop_ids_still_are():
    free = sample(SMALL, PARAMS, PROMPTS, temperature=1.5, max_new_tokens=24)
    banned = sorted({int(i) for i in free.ids.ravel()} - {int(free.ids[1, 2])})[::2]
    got = sample(SMALL, PARAMS, PROMPTS, temperature=1.5, max_new_tokens=24, forbidden=banned)
    assert not np.isin(got.ids, banned).any() and np.isin(free.ids, banned).any()
    stop = next(i for i in banned if i != PAD)
    only = [i for i in range(67) if i != stop]
    ended = sample(SMALL, PARAMS, PROMPTS, (stop,), forbidden=[*only, stop], **GREEDY)
    assert (ended.length == 1).all() and ended.ended.all() and (ended.ids[:, 0] == stop).all()


def test_same_seed_same_text_whatever_the_batch():
    setting = dict(temperature=1.0, top_p=0.95, max_new_tokens=16)
    together = sample(SMALL, PARAMS, PROMPTS, row_ids=[10, 11, 12, 13], seed=3, **setting)
    order = [2, 0]
    apart = sample(SMALL, PARAMS, [PROMPTS[i] for i in order], row_ids=[12, 10], seed=3, **setting)
    assert (together.ids[order] == apart.ids).all()
    again = sample(SMALL, PARAMS, PROMPTS, row_ids=[10, 11, 12, 13], seed=3, **setting)
    assert (together.ids == again.ids).all() and (together.logp == again.logp).all()
    # Negative controls: another seed, another row id.
    assert (together.ids != sample(
        SMALL, PARAMS, PROMPTS, row_ids=[10, 11, 12, 13], seed=4, **setting
    ).ids).any(-1).all()  # fmt: skip
    other = sample(SMALL, PARAMS, PROMPTS, row_ids=[10, 11, 99, 13], seed=3, **setting).ids
    assert (other[2] != together.ids[2]).any() and (
        other[[0, 1, 3]] == together.ids[[0, 1, 3]]
    ).all()


@pytest.mark.parametrize(
    "setting",
    [
        dict(temperature=0.5),
        dict(top_k=3),
        dict(top_p=0.4),
        dict(min_p=0.5),
        dict(repetition_penalty=3.0),
    ],
    ids=lambda s: next(iter(s)),
)
def test_every_setting_reaches_the_sampler(setting):
    base = dict(temperature=1.0, max_new_tokens=16)
    plain = sample(SMALL, PARAMS, PROMPTS, **base)
    changed = sample(SMALL, PARAMS, PROMPTS, **(base | setting))
    assert (plain.ids != changed.ids).any()
    if "top_k" in setting:  # each token is among the three likeliest by the slow twin
        for prompt, ids in zip(PROMPTS, changed.ids):
            logits = next_logits(SMALL, PARAMS, prompt + ids[:7].tolist())
            assert ids[7] in np.argsort(logits)[-3:]


def test_repetition_penalty_counts_prompt_and_answer_but_not_padding():
    got = sample(SMALL, PARAMS, PROMPTS, repetition_penalty=2.5, **GREEDY)
    plain = sample(SMALL, PARAMS, PROMPTS, **GREEDY)
    assert (got.ids != plain.ids).any()
    for prompt, ids in zip(PROMPTS, got.ids):
        chain = list(prompt)
        for token in ids.tolist():
            logits = next_logits(SMALL, PARAMS, chain)
            seen = np.isin(np.arange(67), chain)
            scaled = np.where(logits > 0, logits / 2.5, logits * 2.5)
            assert token == np.where(seen, scaled, logits).argmax()
            chain.append(token)


def test_logp_is_that_of_the_sampling_temperature():
    got = sample(SMALL, PARAMS, PROMPTS, temperature=2.0, max_new_tokens=8)
    for prompt, ids, logp in zip(PROMPTS, got.ids, got.logp):
        logits = jnp.asarray(next_logits(SMALL, PARAMS, prompt + ids[:5].tolist()))
        np.testing.assert_allclose(logp[5], jax.nn.log_softmax(logits / 2)[ids[5]], atol=2e-4)
        assert abs(logp[5] - jax.nn.log_softmax(logits)[ids[5]]) > 1e-3


def test_advancing_in_small_parts_changes_nothing():
    s = sampler.Sampler(SMALL, sampler.SamplingConfig(temperature=1.0, max_new_tokens=20), (), PAD)
    prompts_BP, lengths_B = sampler.left_pad(PROMPTS, PAD)
    arguments = (PARAMS, prompts_BP, lengths_B, np.arange(4), jax.random.key(1))
    whole = s(*arguments)
    decoding = s.start(*arguments)
    while decoding.advance(decoding.written + 3):
        pass
    assert (decoding.rollout().ids == whole.ids).all()
    # A row that is told to end writes no more, the others go on undisturbed.
    decoding = s.start(*arguments)
    decoding.advance(5)
    decoding.finish(np.array([False, True, False, False]))
    decoding.advance(20)
    part = decoding.rollout()
    assert part.length.tolist() == [20, 5, 20, 20] and not part.ended.any()
    assert (part.ids[1, 5:] == PAD).all()
    assert (np.delete(part.ids, 1, 0) == np.delete(whole.ids, 1, 0)).all()


def test_settings_out_of_range_are_refused():
    for wrong in (dict(top_p=0.0), dict(temperature=-1.0), dict(stop_strings="###")):
        with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
            sampler.SamplingConfig(**wrong)
    with pytest.raises(errors.ConfigError, match="pad"):
        sampler.Sampler(SMALL, sampler.SamplingConfig(), (PAD,), PAD)
    with pytest.raises(errors.DataError):
        sampler.left_pad([[1], []], PAD)
