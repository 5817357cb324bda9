"""The decoder against itself in other forms, and against its definition by perturbation."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.models import attention, decoder, layers
from jinstr.models import config as config_lib

SMALL = config_lib.DecoderConfig(
    vocab_size=61,
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=40,
)
# One config a family, small; each switches on what the family differs in.
FAMILIES = {
    "llama3.1": dict(rope_scaling="llama3", rope_factor=8.0, rope_original_positions=64),
    "mistral": dict(window=5, layer_pattern="local"),
    "qwen2": dict(qkv_bias=True),
    "qwen3": dict(qk_norm=True),
    "gemma2": dict(
        embed_scale=True, norm_plus_one=True, post_norms=True, attention_softcap=50.0, logit_softcap=30.0,
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
FORWARD = jax.jit(decoder.forward, static_argnums=0)


def packed(T=20, seed=0):
    """Two rows of packed segments with a padded tail."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 61, (2, T)).astype(np.int32)
    segments = np.array([[1] * 7 + [2] * (T - 7), [1] * 5 + [2] * 9 + [0] * (T - 14)], np.int32)
    positions = np.array(
        [[*range(7), *range(T - 7)], [*range(5), *range(9)] + [0] * (T - 14)], np.int32
    )
    return tokens, positions, segments


def params_of(config, seed=0):
    # Norm scales and biases get values too: at their start they would hide a missing term.
    params = decoder.init_params(config, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return jax.tree.unflatten(tree, noisy)


@pytest.mark.parametrize("family", FAMILIES)
def test_scan_unrolled_and_cache_agree(family):
    config = dataclasses.replace(SMALL, **FAMILIES[family])
    params = params_of(config)
    tokens, positions, segments = packed()
    whole = FORWARD(config, params, tokens, positions, segments)
    unrolled = dataclasses.replace(config, scan_layers=False)
    np.testing.assert_allclose(
        whole, FORWARD(unrolled, params, tokens, positions, segments), rtol=2e-4, atol=2e-5
    )
    # The last segment of each row again, one token at a time through the cache, after a prefill of 4.
    length = 9
    rows = np.stack([tokens[0, 7 : 7 + length], tokens[1, 5:14]])
    place = np.broadcast_to(np.arange(length, dtype=np.int32), rows.shape)
    ones = np.ones_like(rows)
    cache = decoder.init_cache(config, 2, 16)
    hidden, cache = FORWARD(config, params, rows[:, :4], place[:, :4], ones[:, :4], cache)
    parts = [hidden]
    for t in range(4, length):
        at = slice(t, t + 1)
        hidden, cache = FORWARD(config, params, rows[:, at], place[:, at], ones[:, at], cache)
        parts.append(hidden)
    want = np.stack([whole[0, 7 : 7 + length], whole[1, 5:14]])
    np.testing.assert_allclose(np.concatenate(parts, 1), want, rtol=2e-4, atol=2e-5)
    assert int(cache["index"]) == length


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_field_changes_the_output(family):
    tokens, positions, segments = packed()
    config = dataclasses.replace(SMALL, **FAMILIES[family])
    params = params_of(config)
    whole = decoder.logits(config, params, FORWARD(config, params, tokens, positions, segments))
    for field, value in FAMILIES[family].items():
        plain = getattr(config_lib.DecoderConfig(), field)
        if (
            field in ("window", "rope_original_positions", "num_kv_heads", "layer_pattern")
            or value == plain
        ):
            continue  # only mean something together with another field, or change the parameters' shapes
        without = dataclasses.replace(config, **{field: plain})
        if jax.tree.structure(decoder.abstract_params(without)) != jax.tree.structure(params):
            continue
        other = decoder.logits(
            without, params, FORWARD(without, params, tokens, positions, segments)
        )
        assert np.abs(np.asarray(whole - other)).max() > 1e-4, field


def test_segments_never_see_each_other_nor_the_future():
    params = params_of(SMALL)
    tokens, positions, segments = packed()
    base = FORWARD(SMALL, params, tokens, positions, segments)
    other = tokens.copy()
    other[0, 10] = (other[0, 10] + 1) % 61
    moved = np.abs(np.asarray(FORWARD(SMALL, params, other, positions, segments) - base)).max(-1)
    assert (moved[0, :10] == 0).all() and (moved[1] == 0).all()
    assert (moved[0, 10:] > 1e-6).all()
    # Negative control: with one segment over the row the first part is seen by the second.
    joined = np.where(segments > 0, 1, 0)
    places = np.broadcast_to(np.arange(20, dtype=np.int32), tokens.shape)
    other = tokens.copy()
    other[0, 3] = (other[0, 3] + 1) % 61
    apart = FORWARD(SMALL, params, other, positions, segments) - base
    leaking = FORWARD(SMALL, params, other, places, joined) - FORWARD(
        SMALL, params, tokens, places, joined
    )
    assert np.abs(np.asarray(apart))[0, 7:].max() == 0
    assert np.abs(np.asarray(leaking))[0, 7:].max() > 1e-6


@pytest.mark.parametrize("T,window", [(300, 0), (256, 37), (130, 0)])
def test_blocked_attention_equals_reference(T, window):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, T, 4, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, T, 2, 8)).astype(np.float32)
    segments = np.sort(rng.integers(1, 4, (2, T)), axis=1).astype(np.int32)
    positions = np.stack([np.concatenate([np.arange(n) for n in np.bincount(s)]) for s in segments])
    arrays = (q, k, v, positions, positions, segments, segments)
    run = {
        name: jax.value_and_grad(
            lambda q, k, v, *rest, name=name: jnp.sum(
                attention.attend(q, k, v, *rest, scale=0.3, window=window, implementation=name) ** 2
            ),
            (0, 1, 2),
        )
        for name in ("xla", "blocked")
    }
    (value, grads), (value_blocked, grads_blocked) = (run[n](*arrays) for n in ("xla", "blocked"))
    np.testing.assert_allclose(value, value_blocked, rtol=1e-5)
    for a, b in zip(grads, grads_blocked):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    other = attention.attend(*arrays, scale=0.3, window=window + 3 if window else 9)
    assert np.abs(other - attention.attend(*arrays, scale=0.3, window=window)).max() > 1e-3


def test_attention_equals_a_loop():
    rng = np.random.default_rng(3)
    T, N, K, H = 6, 4, 2, 3
    q = rng.normal(size=(1, T, N, H)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, T, K, H)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 0]], np.int32)
    got = attention.attend(q, k, v, positions, positions, segments, segments, scale=0.5)
    for t in range(T):
        for n in range(N):
            seen = [s for s in range(T) if segments[0, s] == segments[0, t] and s <= t]
            scores = np.array([0.5 * q[0, t, n] @ k[0, s, n // 2] for s in seen])
            weights = np.exp(scores) / np.exp(scores).sum()
            want = sum(w * v[0, s, n // 2] for w, s in zip(weights, seen))
            np.testing.assert_allclose(got[0, t, n], want, rtol=1e-5, atol=1e-6)


def test_rope_depends_on_distance_only():
    config = dataclasses.replace(SMALL, rope_theta=100.0)
    x = np.random.default_rng(0).normal(size=(1, 2, 1, 8)).astype(np.float32)

    def product(first, second):
        positions = np.array([[first, second]], np.int32)
        turned = layers.rotate(x, *layers.rope_tables(config, positions))
        return float(turned[0, 0, 0] @ turned[0, 1, 0])

    assert product(3, 10) == pytest.approx(product(103, 110), rel=1e-3)
    assert abs(product(3, 10) - product(3, 11)) > 1e-3


@functools.cache
def value_and_gradient(remat, scan_layers=True):
    """Of the sum of squared hidden states, and the traced program."""
    config = dataclasses.replace(SMALL, remat=remat, scan_layers=scan_layers)
    tokens, positions, segments = packed()

    def value(params):
        return jnp.sum(decoder.forward(config, params, tokens, positions, segments) ** 2)

    traced = jax.jit(jax.value_and_grad(value)).trace(params_of(SMALL))
    return jax.device_get(traced.lower().compile()(params_of(SMALL))), traced.jaxpr


def products(jaxpr) -> int:
    """Matrix products of a program, those of a loop's body once."""
    inner = [each for eqn in jaxpr.eqns for each in jax.extend.core.jaxprs_in_params(eqn.params)]
    return sum(e.primitive.name == "dot_general" for e in jaxpr.eqns) + sum(map(products, inner))


# Beyond those of `none`: scores and what they weigh; gate, up; query, key, value, out.
AGAIN = {
    "none": 0,
    "minimal": 1,
    "dots": 2,
    "attention": 1 + 2,
    "full": 2 + 2 + 4,
    "offload": 1 + 2,
}


@pytest.mark.parametrize("remat", AGAIN)
def test_remat_changes_what_is_computed_again_and_nothing_else(remat):
    plain, kept = value_and_gradient("none")
    found, traced = value_and_gradient(remat)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())
    assert products(traced.jaxpr) - products(kept.jaxpr) == AGAIN[remat]
    assert ("<host>" in str(traced)) == (remat == "offload")


def test_every_remat_is_tested_and_another_parameter_has_another_gradient():
    assert list(AGAIN) == list(config_lib.REMAT)
    tokens, positions, segments = packed(seed=1)
    (_, gradient), _ = value_and_gradient("none")
    other = jax.grad(lambda p: jnp.sum(FORWARD(SMALL, p, tokens, positions, segments) ** 2))
    differs = [
        np.abs(a - b).max() > 1e-3 * np.abs(b).max()
        for a, b in zip(jax.tree.leaves(other(params_of(SMALL))), jax.tree.leaves(gradient))
    ]
    assert all(differs)


@pytest.mark.parametrize(
    "remat", ["none", pytest.param("minimal", marks=pytest.mark.slow), "offload"]
)
def test_unrolled_layers_have_the_gradient_of_the_loop(remat):
    for a, b in zip(
        jax.tree.leaves(value_and_gradient(remat, scan_layers=False)[0]),
        jax.tree.leaves(value_and_gradient("none")[0]),
        strict=True,
    ):
        # The loop adds up a layer's gradients in another order.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


def test_config_round_trip_and_refusals():
    config = dataclasses.replace(SMALL, **FAMILIES["gemma3"])
    assert config_lib.DecoderConfig.from_json(config.to_json()) == config
    for text, wanted in (
        ('{"hiden_size": 3}', "hiden_size is not known; did you mean hidden_size"),
        ('{"hidden_size": "3"}', "hidden_size = '3', but it is int"),
        ("[1]", "does not describe a model"),
        (b"\x80\x04N.", "does not describe a model"),
        ("[" * 100_000, "does not describe a model"),
    ):
        with pytest.raises(errors.ConfigError, match=wanted):
            config_lib.DecoderConfig.from_json(text)
    with pytest.raises(errors.ConfigError, match="not a multiple"):
        config_lib.DecoderConfig(num_heads=4, num_kv_heads=3)
    with pytest.raises(errors.ConfigError, match="relu"):
        config_lib.DecoderConfig(activation="relu")
