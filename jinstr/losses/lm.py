"""Losses of language models, without ever holding [B, T, V] logits when they are large.

B batch, T places, D width, V vocabulary, M = B·T places, C places of one chunk.
Both functions walk over chunks of places whose f32 logits stay below `CHUNK_BYTES`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

CHUNK_BYTES = 256 * 2**20


def chunk_places(places: int, vocab_size: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Places a chunk holds: the largest even split of `places` whose f32 logits fit `chunk_bytes`."""
    chunks = max(1, -(-places * vocab_size * 4 // chunk_bytes))
    return -(-places // chunks)


def _chunked(places: int, size: int, *arrays):
    """Cut [M, …] arrays into [chunks, C, …], zero-padded at the end."""
    chunks = -(-places // size)
    extra = chunks * size - places
    return [
        jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, size, *x.shape[1:])
        for x in arrays
    ]


def _logits(hidden_CD, head_DV, softcap):
    """f32 logits and the derivative of the soft cap (None without a cap)."""
    raw_CV = jnp.matmul(
        hidden_CD, head_DV.astype(hidden_CD.dtype), preferred_element_type=jnp.float32
    )
    if not softcap:
        return raw_CV, None
    tanh_CV = jnp.tanh(raw_CV / softcap)
    return softcap * tanh_CV, 1.0 - tanh_CV * tanh_CV


def _chunk_nll(hidden_CD, head_DV, targets_C, weights_C, z_loss, softcap):
    """(weighted nll + z-loss, weighted nll) of one chunk, f32 scalars."""
    logits_CV, _ = _logits(hidden_CD, head_DV, softcap)
    logsumexp_C = jax.nn.logsumexp(logits_CV, axis=-1)
    target_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
    nll = jnp.sum(weights_C * (logsumexp_C - target_C))
    return nll + z_loss * jnp.sum(weights_C * logsumexp_C**2), nll


def _chunk_gradients(hidden_CD, head_DV, targets_C, weights_C, z_loss, softcap, head_is_trained):
    """As `_chunk_nll`, and the gradients of its first value by hidden [C, D] and head [D, V] (None if not trained)."""
    logits_CV, slope_CV = _logits(hidden_CD, head_DV, softcap)
    top_C = jax.lax.stop_gradient(logits_CV.max(-1))
    exp_CV = jnp.exp(logits_CV - top_C[:, None])
    sum_C = exp_CV.sum(-1)
    logsumexp_C = jnp.log(sum_C) + top_C
    target_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
    nll = jnp.sum(weights_C * (logsumexp_C - target_C))
    total = nll + z_loss * jnp.sum(weights_C * logsumexp_C**2)
    factor_C = weights_C * (1.0 + 2.0 * z_loss * logsumexp_C) / sum_C
    hit_CV = targets_C[:, None] == jnp.arange(logits_CV.shape[-1])[None, :]
    slope_of_logits_CV = exp_CV * factor_C[:, None] - jnp.where(hit_CV, weights_C[:, None], 0.0)
    if slope_CV is not None:
        slope_of_logits_CV = slope_of_logits_CV * slope_CV
    slope_of_logits_CV = slope_of_logits_CV.astype(hidden_CD.dtype)
    grad_hidden_CD = jnp.matmul(slope_of_logits_CV, head_DV.T.astype(hidden_CD.dtype))
    if not head_is_trained:
        return total, nll, grad_hidden_CD, None
    grad_head_DV = jnp.matmul(hidden_CD.T, slope_of_logits_CV, preferred_element_type=jnp.float32)
    return total, nll, grad_hidden_CD, grad_head_DV


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def weighted_nll(
    hidden_BTD, head_DV, targets_BT, weights_BT, z_loss=0.0, softcap=0.0, chunk_bytes=CHUNK_BYTES
):
    """Sum over places of weight · (−log p(target)), with `z_loss` · weight · logsumexp² added to the first value.

    Returns (loss to differentiate, plain nll), f32 scalars in nats. Gradients with respect to hidden and head are
    formed in the forward pass, chunk by chunk, so the backward pass only scales them; targets and weights get none, nor
    does a head that is not differentiated (under LoRA).
    z-loss: PaLM (arXiv 2204.02311), section 5; soft cap: Gemma 2 (arXiv 2408.00118).
    """
    *_, D = hidden_BTD.shape
    places = targets_BT.size
    size = chunk_places(places, head_DV.shape[1], chunk_bytes)
    flat = (hidden_BTD.reshape(places, D), targets_BT.reshape(-1), weights_BT.reshape(-1))
    if size >= places:
        return _chunk_nll(flat[0], head_DV, flat[1], flat[2], z_loss, softcap)

    def add(sums, chunk):
        values = _chunk_nll(chunk[0], head_DV, chunk[1], chunk[2], z_loss, softcap)
        return jax.tree.map(jnp.add, sums, values), None

    return jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), _chunked(places, size, *flat))[0]


def _nll_forward(hidden_BTD, head_DV, targets_BT, weights_BT, z_loss, softcap, chunk_bytes):
    trained = head_DV.perturbed
    hidden_BTD, head_DV = hidden_BTD.value, head_DV.value
    targets_BT, weights_BT = targets_BT.value, weights_BT.value
    D, V = head_DV.shape
    places = targets_BT.size
    size = chunk_places(places, V, chunk_bytes)
    flat = (hidden_BTD.reshape(places, D), targets_BT.reshape(-1), weights_BT.reshape(-1))
    if size >= places:
        total, nll, grad_hidden, grad_head = _chunk_gradients(
            flat[0], head_DV, flat[1], flat[2], z_loss, softcap, trained
        )
    else:

        def add(sums, chunk):
            total, nll, grad_hidden_CD, grad_head_DV = _chunk_gradients(
                chunk[0], head_DV, chunk[1], chunk[2], z_loss, softcap, trained
            )
            return jax.tree.map(jnp.add, sums, (total, nll, grad_head_DV)), grad_hidden_CD

        head_sum = jnp.zeros((D, V), jnp.float32) if trained else None
        start = (jnp.float32(0), jnp.float32(0), head_sum)
        (total, nll, grad_head), grad_hidden = jax.lax.scan(
            add, start, _chunked(places, size, *flat)
        )
        grad_hidden = grad_hidden.reshape(-1, D)[:places]
    grad_head = grad_head.astype(head_DV.dtype) if trained else None
    return (total, nll), (grad_hidden.reshape(hidden_BTD.shape), grad_head)


def _nll_backward(z_loss, softcap, chunk_bytes, residuals, cotangents):
    # Only the first value is differentiable; the plain nll is a measurement.
    grad_hidden, grad_head = residuals
    scale = cotangents[0]
    if isinstance(scale, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    if grad_head is not None:  # in the type of the head, as it is added to that of a tied embedding
        grad_head = (grad_head * scale).astype(grad_head.dtype)
    return grad_hidden * scale.astype(grad_hidden.dtype), grad_head, None, None


weighted_nll.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)


def token_logprobs(
    hidden_BTD, head_DV, targets_BT, softcap=0.0, chunk_bytes=CHUNK_BYTES, temperature=1.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log p(target), logsumexp, entropy) of every place, f32 [B, T] each, in nats, of the logits over `temperature`.

    Takes arbitrary cotangents (DPO, PPO): each chunk is computed again in the backward pass.
    """
    places, D = targets_BT.size, hidden_BTD.shape[-1]
    size = chunk_places(places, head_DV.shape[1], chunk_bytes)

    @jax.checkpoint
    def of_chunk(hidden_CD, targets_C):
        logits_CV, _ = _logits(hidden_CD, head_DV, softcap)
        if temperature != 1.0:
            logits_CV = logits_CV / temperature
        logsumexp_C = jax.nn.logsumexp(logits_CV, axis=-1)
        target_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
        probs_CV = jnp.exp(logits_CV - logsumexp_C[:, None])
        entropy_C = logsumexp_C - jnp.sum(probs_CV * logits_CV, axis=-1)
        return target_C - logsumexp_C, logsumexp_C, entropy_C

    chunks = _chunked(places, size, hidden_BTD.reshape(places, D), targets_BT.reshape(-1))
    values = jax.lax.map(lambda chunk: of_chunk(*chunk), tuple(chunks))
    return tuple(value.reshape(-1)[:places].reshape(targets_BT.shape) for value in values)
