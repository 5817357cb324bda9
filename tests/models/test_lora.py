"""Adapters: they begin as nothing, move alone, cost no gradient of a kernel, and go into the kernels and out again."""

import dataclasses
import json
import weakref

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.decode import step
from jinstr.losses import lm
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import flops, state

PLAIN = config_lib.DecoderConfig(
    vocab_size=61,
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=40,
    qkv_bias=True,
)
ADAPTED = dataclasses.replace(PLAIN, lora=config_lib.LoraConfig(rank=3, alpha=5))
FORWARD = jax.jit(decoder.forward, static_argnums=0)
T = 13  # 26 places: no size of a kernel
TOKENS = np.random.default_rng(0).integers(0, 61, (2, T)).astype(np.int32)
PLACES = np.tile(np.arange(T, dtype=np.int32), (2, 1))
BATCH = {
    "tokens": TOKENS,
    "targets": np.roll(TOKENS, -1, 1),
    "loss_weights": np.ones((2, T), np.float32),
    "positions": PLACES,
    "segment_ids": np.ones((2, T), np.int32),
}


def logits(config, params):
    hidden = FORWARD(config, params, TOKENS, PLACES, np.ones((2, T), np.int32))
    return np.asarray(decoder.logits(config, params, hidden))


def moved(params, seed=1):
    """The tree with adapters as after training: B is not zero."""
    adapters, base = lora.split(params)
    leaves, tree = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return lora.join(jax.tree.unflatten(tree, leaves), base)


@pytest.fixture(scope="module")
def params():
    return decoder.init_params(ADAPTED, jax.random.key(0))


def test_the_start_is_the_base_bit_for_bit(params):
    adapters, base = lora.split(params)
    for a, b in zip(
        jax.tree.leaves(base), jax.tree.leaves(decoder.init_params(PLAIN, jax.random.key(0)))
    ):
        np.testing.assert_array_equal(a, b)
    want = logits(PLAIN, base)
    np.testing.assert_array_equal(logits(ADAPTED, params), want)
    assert len(jax.tree.leaves(adapters)) == 14
    for name, leaf in adapters["blocks"]["mlp"]["down"].items():
        assert leaf.dtype == jnp.float32 and bool((leaf == 0).all()) == (name == "lora_b")
    assert 0.9 < float(jnp.abs(adapters["blocks"]["mlp"]["up"]["lora_a"]).max()) * 24**0.5 <= 1
    # Negative control: with B other than zero they are others.
    assert np.abs(logits(ADAPTED, moved(params)) - want).max() > 1e-3


def test_the_reference_policy_is_the_base_bit_for_bit(params):
    tuned = moved(params)
    config, base = lora.reference(ADAPTED, tuned)
    assert config == PLAIN
    want = logits(PLAIN, lora.split(params)[1])
    np.testing.assert_array_equal(logits(config, base), want)
    assert np.abs(logits(ADAPTED, tuned) - want).max() > 1e-3


def test_the_formula(params):
    tuned = moved(params)
    layer = jax.tree.map(lambda leaf: leaf[1], tuned["blocks"]["attention"]["query"])
    x = jax.random.normal(jax.random.key(5), (7, 24))
    want = x @ (layer["kernel"] + 5 / 3 * layer["lora_a"] @ layer["lora_b"])
    got = lora.merge(ADAPTED, tuned)["blocks"]["attention"]["query"]["kernel"][1]
    np.testing.assert_allclose(x @ got, want, atol=1e-6)
    assert np.abs(x @ layer["kernel"] - want).max() > 1e-3  # negative control
    assert config_lib.LoraConfig(rank=4).scale == 2
    assert config_lib.LoraConfig(rank=4, alpha=6, rslora=True).scale == 3


def test_merged_and_unmerged_agree(params):
    tuned = moved(params)
    merged = lora.merge(ADAPTED, tuned)
    assert jax.tree.structure(merged) == jax.tree.structure(decoder.abstract_params(PLAIN))
    want = logits(ADAPTED, tuned)
    np.testing.assert_allclose(logits(PLAIN, merged), want, atol=1e-5)
    adapters, base = lora.split(tuned)
    back = lora.unmerge(ADAPTED, merged, adapters)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tuned)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # Negative controls: another alpha is another model; a tree without adapters stays the same object.
    other = dataclasses.replace(ADAPTED, lora=config_lib.LoraConfig(rank=3, alpha=6))
    assert np.abs(logits(other, tuned) - want).max() > 1e-4
    assert lora.merge(PLAIN, base) is base
    # In bfloat16 the sum is made in float32 and rounded once.
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
    kernel = lora.merge(ADAPTED, lora.join(adapters, half))["blocks"]["mlp"]["up"]["kernel"]
    value = adapters["blocks"]["mlp"]["up"]
    exact = half["blocks"]["mlp"]["up"]["kernel"].astype(jnp.float32) + 5 / 3 * jnp.einsum(
        "lir,lro->lio", value["lora_a"], value["lora_b"]
    )
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(kernel.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_steps_of_decoding_read_the_sums_rounded_once(params):
    tuned = moved(params)
    for dtype, far in (("float32", 1e-6), ("bfloat16", 2**-8)):
        adapted, plain = (
            dataclasses.replace(config, compute_dtype=dtype) for config in (ADAPTED, PLAIN)
        )
        got = step.serving_params(adapted, tuned)
        want = step.serving_params(plain, lora.merge(ADAPTED, tuned))
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for a, b in zip(*map(jax.tree.leaves, (got, want))):
            assert a.dtype == b.dtype == dtype
            np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (a, b)), far, 1e-7)
        # Negative control: the base alone is further away.
        base = step.serving_params(plain, lora.split(tuned)[1])
        kernels = [np.asarray(x["layers"][1]["out"]["kernel"], np.float32) for x in (base, want)]
        assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_a_sum_is_made_without_a_second_model():
    """What is alive at once while adapters go into a base, and while the copy for decoding is made."""
    model = dataclasses.replace(
        PLAIN, num_layers=8, hidden_size=128, mlp_size=256, param_dtype="bfloat16",
        compute_dtype="bfloat16", lora=config_lib.LoraConfig(rank=1),
    )  # fmt: skip
    tuned = decoder.init_params(model, jax.random.key(0))
    adapters, base = lora.split(tuned)
    kernels = [base["blocks"]["mlp"][name]["kernel"] for name in ("gate", "up", "down")]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    head = {"head": {"kernel": jnp.zeros((128, 61), jnp.bfloat16)}}
    layer = (
        step.serving_layer.lower(model, mesh_lib.AxisRules(), tuned["blocks"], 0)
        .compile()
        .memory_analysis()
    )
    pieces = step.serving_params(dataclasses.replace(model, tie_embeddings=False), tuned | head)
    assert pieces["head"] is head["head"]["kernel"]
    assert pieces["embedding"] is tuned["embed"]["embedding"]
    assert layer.output_size_in_bytes < size / 6 and layer.temp_size_in_bytes < size / 3
    merged = lora.merge(model, tuned)
    assert not any(kernel.is_deleted() for kernel in kernels)
    seen = weakref.ref(base["blocks"]["mlp"]["up"]["kernel"])
    del tuned, kernels, pieces
    found = lora.merge_into(model, adapters, base)
    assert found is base and seen() is None
    for a, b in zip(*map(jax.tree.leaves, (found, merged))):
        np.testing.assert_array_equal(a, b)


def test_split_and_join(params):
    adapters, base = lora.split(params)
    for tree, where in ((params, lora.join(adapters, base)), (params, lora.join(params, {}))):
        assert jax.tree.structure(where) == jax.tree.structure(tree)
        assert all(a is b for a, b in zip(jax.tree.leaves(where), jax.tree.leaves(tree)))
    assert lora.split(base) == ({}, base)
    assert lora.count(ADAPTED) == sum(leaf.size for leaf in jax.tree.leaves(adapters))
    assert lora.count(PLAIN) == 0


def arrays_made(jaxpr):
    """(shape, primitive) of everything that a jaxpr computes, in all its inner programs."""
    for equation in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from arrays_made(inner)
        for value in equation.outvars:
            if hasattr(value.aval, "shape") and type(value).__name__ != "DropVar":
                yield tuple(value.aval.shape), equation.primitive.name


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_array_as_large_as_a_kernel_is_made(params, remat):
    """Neither a gradient nor a copy: nothing of a kernel's shape, stacked or of one layer, nor of the head's."""
    kernels = {tuple(leaf.shape) for leaf in jax.tree.leaves(lora.split(params)[1]["blocks"])}
    kernels = {shape for shape in kernels if len(shape) == 3}
    wanted = kernels | {shape[1:] for shape in kernels} | {(24, 61), (61, 24)}
    rules = mesh_lib.AxisRules()

    def made(config, adapters, base):
        config = dataclasses.replace(config, remat=remat)

        def loss(adapters, base):
            return state.nll_sum(config, lora.join(adapters, base), BATCH, rules)[0]

        jaxpr = jax.make_jaxpr(jax.grad(loss))(adapters, base).jaxpr
        # Transposed views of what is there are no products; the compiler folds them into those.
        return {shape for shape, name in arrays_made(jaxpr) if name not in ("transpose", "pjit")}

    adapters, base = lora.split(params)
    assert not made(ADAPTED, adapters, base) & wanted
    # Negative control: training everything makes every one of them.
    assert kernels <= made(PLAIN, base, {})


def test_a_head_that_stands_still_gets_no_gradient():
    hidden = jax.random.normal(jax.random.key(0), (2, 6, 8))
    head = jax.random.normal(jax.random.key(1), (8, 31))
    targets, weights = TOKENS[:, :6] % 31, jnp.ones((2, 6))

    def loss(hidden, head, chunk_bytes, value=0):
        return lm.weighted_nll(hidden, head, targets, weights, 0.1, 0.0, chunk_bytes)[value]

    for chunk_bytes in (1 << 20, 500):  # in one piece, and in several
        both = jax.grad(loss, argnums=(0, 1))(hidden, head, chunk_bytes)
        alone = jax.grad(loss)(hidden, head, chunk_bytes)
        np.testing.assert_array_equal(alone, both[0])
        jaxprs = [
            jax.make_jaxpr(jax.grad(loss, argnums=n), static_argnums=2)(hidden, head, chunk_bytes)
            for n in (0, (0, 1))
        ]
        shapes = [{shape for shape, _ in arrays_made(j.jaxpr)} for j in jaxprs]
        assert (8, 31) not in shapes[0] and (8, 31) in shapes[1]
        # Its second value is a measurement: differentiated, it gives zero.
        measured = jax.grad(loss, argnums=1)(hidden, head, chunk_bytes, 1)
        assert not measured.any() and both[1].any()


def test_what_is_refused():
    for values in (
        dict(rank=-1),
        dict(rank=2, alpha=-1.0),
        dict(rank=2, targets="query,q_proj"),
        dict(alpha=8.0),
    ):
        with pytest.raises(errors.ConfigError, match="JI-LORA-001"):
            config_lib.LoraConfig(**values)
    lonely = dataclasses.replace(
        ADAPTED, gated_mlp=False, lora=config_lib.LoraConfig(rank=2, targets="gate")
    )
    with pytest.raises(errors.ConfigError, match="JI-LORA-002"):
        lora.trained(lonely, decoder.abstract_params(lonely))


def test_model_json_is_that_of_the_base():
    assert ADAPTED.to_json() == PLAIN.to_json()
    assert config_lib.DecoderConfig.from_json(ADAPTED.to_json()) == PLAIN
    values = json.loads(PLAIN.to_json()) | {"lora": {"rank": 3}}
    with pytest.raises(errors.ConfigError, match="JI-MODEL-007"):
        config_lib.DecoderConfig.from_json(json.dumps(values))


def test_flops_of_adapters():
    weights = flops.matmul_weights(PLAIN)
    attention = 6 * 3 * 4 * 8 * 50
    assert flops.train_flops(PLAIN, 10, 50) == 6 * weights * 10 + attention
    wanted = (4 * weights + 6 * lora.count(ADAPTED)) * 10 + attention
    assert flops.train_flops(ADAPTED, 10, 50) == wanted
