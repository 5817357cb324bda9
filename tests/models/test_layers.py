"""The product with its own gradient rule, and attention, against slow and obvious twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jinstr.models import attention, config, layers


@pytest.mark.parametrize("size_in, size_out", [(8, 24), (24, 8), (8, 8)])
def test_gradients_of_the_product_are_those_of_jax(size_in, size_out):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(2, 5, size_in)), jnp.float32)
    kernel = jnp.asarray(draw.normal(size=(size_in, size_out)), jnp.float32)
    weight = jnp.asarray(draw.normal(size=(2, 5, size_out)), jnp.float32)

    def gradients(product):
        return jax.grad(lambda x, k: (jnp.tanh(product(x, k)) * weight).sum(), (0, 1))(x, kernel)

    ours, theirs = gradients(layers.matmul), gradients(jnp.matmul)
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    # Negative control: the gradient depends on the operands.
    wrong = gradients(lambda x, k: layers.matmul(x, k + 0.01))
    assert np.abs(np.asarray(wrong[1] - theirs[1])).max() > 1e-4


def by_hand(q, k, v, segments, scale, window):
    """Attention with a loop over rows, queries, heads and keys, in float64."""
    B, T, N, H = q.shape
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for t in range(T):
            for n in range(N):
                kv = n // (N // k.shape[2])
                seen = [
                    s
                    for s in range(t + 1)
                    if segments[b, s] == segments[b, t] and (not window or t - s < window)
                ]
                scores = np.array([q[b, t, n] @ k[b, s, kv] * scale for s in seen])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[b, t, n] = sum(w * v[b, s, kv] for w, s in zip(weights, seen))
    return out


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
@pytest.mark.parametrize("window", [0, 40])
def test_attention_is_what_the_loop_computes(implementation, window, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 16)
    draw = np.random.default_rng(1)
    B, T, N, K, H = 2, 70, 4, 2, 8
    q = draw.normal(size=(B, T, N, H)) * 3
    k, v = draw.normal(size=(2, B, T, K, H))
    segments = np.stack([np.repeat([1, 2, 0], [30, 35, 5]), np.repeat([1, 2], [1, 69])])
    positions = np.tile(np.arange(T), (B, 1))
    arguments = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    arguments += [jnp.asarray(x, jnp.int32) for x in (positions, positions, segments, segments)]

    def attend(*arguments):
        return attention.attend(*arguments, scale=0.3, window=window, implementation=implementation)

    wanted = by_hand(q, k, v, segments, 0.3, window)
    np.testing.assert_allclose(attend(*arguments), wanted, rtol=2e-5, atol=2e-5)
    # Negative control: with one segment a row, much would be seen that must not be.
    leaking = by_hand(q, k, v, np.ones_like(segments), 0.3, window)
    assert np.abs(leaking - wanted).max() > 0.1


def plain(q, k, v, mask, scale, softcap):
    """The same by einsum and softmax, for autodiff."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * scale
    scores = softcap * jnp.tanh(scores / softcap) if softcap else scores
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_gradients_of_attention_are_those_of_autodiff(softcap):
    draw = np.random.default_rng(2)
    B, T, S, N, K, H = 2, 12, 15, 6, 2, 8
    q = jnp.asarray(draw.normal(size=(B, T, N, H)), jnp.float32)
    k, v = jnp.asarray(draw.normal(size=(2, B, S, K, H)), jnp.float32)
    mask = jnp.asarray(draw.random((B, T, S)) < 0.6).at[:, :, 0].set(True)
    weight = jnp.asarray(draw.normal(size=(B, T, N, H)), jnp.float32)

    def gradients(attend, mask=mask):
        def value(q, k, v):
            return (attend(q, k, v, mask, scale=0.7, softcap=softcap) * weight).sum()

        return jax.grad(value, (0, 1, 2))(q, k, v)

    ours, theirs = gradients(attention.attend_dense), gradients(plain)
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
    # Negative control: another mask gives other gradients.
    wrong = gradients(plain, mask=jnp.ones_like(mask))
    assert all(np.abs(np.asarray(a - b)).max() > 1e-2 for a, b in zip(ours, wrong))


@pytest.mark.parametrize("rank", [0, 3])
def test_projections_by_heads_are_projections(rank):
    """Values and gradients, with bias and adapters. Tolerance: sums in another order."""
    lora = config.LoraConfig(rank=rank) if rank else None
    rngs = nnx.Rngs(params=jax.random.key(0))
    spec = jax.sharding.PartitionSpec(None, None)
    settings = dict(scale=0.3, bias=True, dtype=jnp.float32, rngs=rngs, lora=lora)
    with nnx.use_eager_sharding(False):  # annotations only
        into, out = layers.Linear(12, 20, spec, **settings), layers.Linear(20, 12, spec, **settings)
    draw = np.random.default_rng(0)
    (into_graph, into_state), (out_graph, out_state) = nnx.split(into), nnx.split(out)
    tree = {"into": nnx.to_pure_dict(into_state), "out": nnx.to_pure_dict(out_state)}
    tree = jax.tree.map(lambda x: x + draw.normal(size=x.shape).astype(np.float32), tree)
    x_BTD = jnp.asarray(draw.normal(size=(2, 6, 12)), jnp.float32)

    def plain(tree, x):
        y = nnx.merge(into_graph, tree["into"])(x).reshape(2, 6, 4, 5) ** 2
        return nnx.merge(out_graph, tree["out"])(y.reshape(2, 6, 20))

    def by_heads(tree, x):
        y_BNTH = nnx.merge(into_graph, tree["into"]).to_heads(x, 4) ** 2
        assert y_BNTH.shape == (2, 4, 6, 5)
        return nnx.merge(out_graph, tree["out"]).from_heads(y_BNTH)

    weight = draw.normal(size=(2, 6, 12)).astype(np.float32)
    both = [
        jax.value_and_grad(lambda t, x, f=f: (f(t, x) * weight).sum(), (0, 1))(tree, x_BTD)
        for f in (plain, by_heads)
    ]
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5 * np.abs(one).max())
    # Negative control: heads that are cut otherwise are something else.
    assert not np.allclose(by_heads(tree, x_BTD[:, ::-1]), plain(tree, x_BTD), atol=1e-2)


@pytest.mark.parametrize("half", [4, 3])
def test_rotations_by_a_product_are_the_same_bits(half):
    """Of whole heads and of a part of each. On the CPU a compiler may fuse a product and a sum, so op by op."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(2, 3, 5, 8)), jnp.float32)
    angle = jnp.asarray(draw.uniform(0, 7, size=(2, 1, 5, half)), jnp.float32)
    tables = jnp.cos(angle), jnp.sin(angle)
    for dtype in (jnp.float32, jnp.bfloat16):
        found = layers.rotate_by_product(x.astype(dtype), *tables)
        wanted = layers.rotate(x.astype(dtype), *tables)
        assert found.dtype == dtype and (np.asarray(found) == np.asarray(wanted)).all()
    # Negative control: the other way round.
    assert not np.allclose(
        layers.rotate_by_product(x, tables[0], -tables[1]), layers.rotate(x, *tables)
    )
