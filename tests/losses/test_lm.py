"""The chunked loss against a loop in NumPy and jax's own autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr.losses import lm
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import collectives

B, T, D, V = 3, 7, 5, 11


def example(seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(B, T, D)).astype(np.float32)
    head = rng.normal(size=(D, V)).astype(np.float32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    weights = (rng.random((B, T)) * (rng.random((B, T)) < 0.6)).astype(np.float32)
    return hidden, head, targets, weights


def slow_nll(hidden, head, targets, weights, z_loss=0.0, softcap=0.0):
    total = plain = 0.0
    for b in range(B):
        for t in range(T):
            logits = hidden[b, t].astype(np.float64) @ head.astype(np.float64)
            if softcap:
                logits = softcap * np.tanh(logits / softcap)
            logsumexp = np.log(np.exp(logits).sum())
            plain += weights[b, t] * (logsumexp - logits[targets[b, t]])
            total += weights[b, t] * z_loss * logsumexp**2
    return total + plain, plain


def direct(hidden, head, targets, weights, z_loss, softcap):
    logits = hidden @ head
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    logsumexp = jax.nn.logsumexp(logits, -1)
    nll = logsumexp - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return jnp.sum(weights * (nll + z_loss * logsumexp**2))


@pytest.mark.parametrize("z_loss,softcap", [(0.0, 0.0), (1e-2, 0.0), (1e-2, 3.0)])
@pytest.mark.parametrize("chunk_bytes", [2**20, V * 4 * 4])
def test_weighted_nll_equals_slow_twin_and_autodiff(z_loss, softcap, chunk_bytes):
    hidden, head, targets, weights = example()
    total, plain = lm.weighted_nll(hidden, head, targets, weights, z_loss, softcap, chunk_bytes)
    want = slow_nll(hidden, head, targets, weights, z_loss, softcap)
    np.testing.assert_allclose((total, plain), want, rtol=1e-5)

    def loss(hidden, head):
        return (
            0.5 * lm.weighted_nll(hidden, head, targets, weights, z_loss, softcap, chunk_bytes)[0]
        )

    got = jax.grad(loss, (0, 1))(hidden, head)
    twin = jax.grad(lambda h, w: 0.5 * direct(h, w, targets, weights, z_loss, softcap), (0, 1))
    for g, w in zip(got, twin(hidden, head)):
        np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-6)


def test_places_without_weight_do_not_count_and_others_do():
    hidden, head, targets, weights = example()
    total, _ = lm.weighted_nll(hidden, head, targets, weights)
    unweighted = np.where(weights == 0, (targets + 1) % V, targets)
    assert float(lm.weighted_nll(hidden, head, unweighted, weights)[0]) == float(total)
    weighted = np.where(weights > 0, (targets + 1) % V, targets)
    assert abs(float(lm.weighted_nll(hidden, head, weighted, weights)[0]) - float(total)) > 1e-3


@pytest.mark.parametrize("chunk_bytes", [2**20, V * 4 * 4])
def test_token_logprobs_equal_log_softmax(chunk_bytes):
    hidden, head, targets, _ = example(1)
    logp, logsumexp, entropy = lm.token_logprobs(hidden, head, targets, 0.0, chunk_bytes)
    log_probs = np.asarray(jax.nn.log_softmax(hidden @ head, -1))
    want = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(logp, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(entropy, -(np.exp(log_probs) * log_probs).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(logsumexp, jax.nn.logsumexp(hidden @ head, -1), rtol=1e-5)
    shifted = np.roll(targets, 1, axis=1)
    assert np.abs(np.asarray(lm.token_logprobs(hidden, head, shifted)[0]) - want).max() > 1e-2
    cotangent = np.random.default_rng(2).normal(size=(B, T)).astype(np.float32)

    def through(hidden):
        logp, logsumexp, entropy = lm.token_logprobs(hidden, head, targets, 0.0, chunk_bytes)
        return jnp.sum(cotangent * (logp + 0.3 * logsumexp - 0.2 * entropy))

    def twin(hidden):
        logits = hidden @ head
        log_probs = jax.nn.log_softmax(logits, -1)
        logp = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
        return jnp.sum(cotangent * (logp + 0.3 * jax.nn.logsumexp(logits, -1) - 0.2 * entropy))

    np.testing.assert_allclose(
        jax.grad(through)(hidden), jax.grad(twin)(hidden), rtol=1e-3, atol=1e-5
    )


def test_chunks_are_as_large_as_allowed():
    assert lm.chunks_of((8, 512), 8000).count == 1
    chunks = lm.chunks_of((8, 512), 32000)
    assert chunks.count * chunks.size >= 8 * 512 and not chunks.by_rows
    assert chunks.size * 32000 * 4 <= lm.CHUNK_BYTES < 2 * chunks.size * 32000 * 4
    # Four devices have four times the room, and each chunk has places of all their rows.
    spread = lm.chunks_of((8, 512), 128_000, devices=4)
    assert spread.by_rows and spread.count == 2 and spread.size == 8 * 256


@pytest.mark.parametrize("shape, devices", [((8, 6), 1), ((8, 6), 4), ((8, 7), 4), ((5,), 1)])
def test_what_is_cut_is_joined_again(shape, devices):
    chunks = lm.chunks_of(shape, 100, 4 * 100 * 2, devices)
    assert chunks.count > 1
    x = np.arange(np.prod(shape) * 3).reshape(*shape, 3)
    parts = lm.cut(chunks, x)
    assert parts.shape == (chunks.count, chunks.size, 3)
    np.testing.assert_array_equal(lm.join(chunks, parts), x)
    if chunks.by_rows:
        rows = np.asarray(parts)[0, :, 0] // (shape[1] * 3)
        assert set(rows.tolist()) == set(range(shape[0]))


@pytest.mark.parametrize("shape", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_chunks_on_a_mesh_give_the_same(shape, monkeypatch):
    """And nothing as large as a chunk's logits is moved between devices, nor the head's gradient more than once."""
    rng = np.random.default_rng(3)
    rows, length, width, vocab = 8, 12, 16, 64
    hidden = rng.normal(size=(rows, length, width)).astype(np.float32)
    head = rng.normal(size=(width, vocab)).astype(np.float32)
    targets = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    weights = rng.random((rows, length)).astype(np.float32)
    budget = 4 * vocab * 4  # four places a device

    def loss(hidden, head):
        return lm.weighted_nll(hidden, head, targets, weights, 1e-3, 0.0, budget)[0]

    expected, wanted = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head)
    mesh, rules = mesh_lib.make_mesh(mesh_lib.MeshConfig(**shape)), mesh_lib.AxisRules()
    with jax.set_mesh(mesh):
        places = [
            jax.sharding.NamedSharding(mesh, spec)
            for spec in (rules.spec("batch", None, None), rules.spec("embed", "vocab"))
        ]
        function = jax.jit(jax.value_and_grad(loss, (0, 1)), in_shardings=places)
        found, slopes = function(hidden, head)
        moved = collectives.read(function.lower(hidden, head).compile().as_text())
        # Negative control: chunks that are cut as if there were one device.
        monkeypatch.setattr(mesh_lib, "row_devices", lambda: 1)
        again = jax.jit(jax.value_and_grad(lambda *x: loss(*x), (0, 1)), in_shardings=places)
        worse = collectives.read(again.lower(hidden, head).compile().as_text())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for slope, other in zip(slopes, wanted):
        np.testing.assert_allclose(slope, other, rtol=1e-4, atol=1e-5)
    assert moved.unknown == 0 and moved.kinds
    # The head is gathered once and its gradient added up once, in f32.
    assert sum(kind.payload for kind in moved.kinds.values()) < 3 * head.nbytes
    if "fsdp" in shape:  # else the places are moved, which are few here
        assert sum(kind.payload for kind in worse.kinds.values()) > 3 * head.nbytes
