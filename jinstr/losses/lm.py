"""Losses of language models, without ever holding [B, T, V] logits when they are large.

B batch, T places, D width, V vocabulary, C places of one chunk, X groups of them.
Both functions walk over chunks of places whose f32 logits stay below `CHUNK_BYTES`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jinstr.parallel import mesh as mesh_lib

CHUNK_BYTES = 256 * 2**20
EXCHANGING_DEVICES = 16


class Chunks(NamedTuple):
    """How places [*shape] are walked over: whole (1 chunk), or in chunks of `size` places.

    by_rows: each chunk has places of every row, every `count`-th of it, so that no device waits for another whose rows
    or part of the sequence are at work.
    """

    shape: tuple[int, ...]
    count: int
    size: int
    by_rows: bool


def chunks_of(
    shape: tuple[int, ...], vocab_size: int, chunk_bytes: int = CHUNK_BYTES, devices: int = 1
) -> Chunks:
    """The fewest even chunks whose f32 logits fit `chunk_bytes` on each of the devices that share the rows."""
    places = math.prod(shape)
    count = max(1, -(-places * vocab_size * 4 // (chunk_bytes * devices)))
    if devices == 1 or len(shape) != 2 or count == 1:
        return Chunks(shape, count, -(-places // count), by_rows=False)
    rows, length = shape
    count = next((n for n in range(min(count, length), length) if length % n == 0), length)
    return Chunks(shape, count, rows * (length // count), by_rows=True)


def cut(chunks: Chunks, x: jax.Array) -> jax.Array:
    """[*shape, …] → [count, size, …], zero-padded at the end."""
    rest = x.shape[len(chunks.shape) :]
    if chunks.by_rows:
        rows, length = chunks.shape
        x = x.reshape(rows, length // chunks.count, chunks.count, *rest)
        return jnp.moveaxis(x, 2, 0).reshape(chunks.count, chunks.size, *rest)
    x = x.reshape(-1, *rest)
    extra = chunks.count * chunks.size - len(x)
    x = jnp.pad(x, [(0, extra)] + [(0, 0)] * len(rest))
    return x.reshape(chunks.count, chunks.size, *rest)


def join(chunks: Chunks, x: jax.Array) -> jax.Array:
    """The inverse of `cut`."""
    rest = x.shape[2:]
    if chunks.by_rows:
        rows, length = chunks.shape
        x = x.reshape(chunks.count, rows, length // chunks.count, *rest)
        return jnp.moveaxis(x, 0, 2).reshape(*chunks.shape, *rest)
    return x.reshape(-1, *rest)[: math.prod(chunks.shape)].reshape(*chunks.shape, *rest)


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


def _chunk_gradients(hidden_CD, head_DV, targets_C, weights_C, z_loss, softcap, groups):
    """As `_chunk_nll`, and the gradients of its first value by hidden [C, D] and head, [groups, D, V].

    The latter is left as a sum over each group of places, to be added up later; None for no groups (not trained).
    """
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
    if not groups:
        return total, nll, grad_hidden_CD, None
    hidden_XCD, slope_XCV = (
        x.reshape(groups, -1, x.shape[-1]) for x in (hidden_CD, slope_of_logits_CV)
    )
    grad_head_XDV = jnp.matmul(
        hidden_XCD.swapaxes(1, 2), slope_XCV, preferred_element_type=jnp.float32
    )
    return total, nll, grad_hidden_CD, grad_head_XDV


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
    chunks = chunks_of(targets_BT.shape, head_DV.shape[1], chunk_bytes, mesh_lib.row_devices())
    parts = tuple(cut(chunks, x) for x in (hidden_BTD, targets_BT, weights_BT))
    if chunks.count == 1:
        hidden_CD, targets_C, weights_C = (part[0] for part in parts)
        return _chunk_nll(hidden_CD, head_DV, targets_C, weights_C, z_loss, softcap)

    def add(sums, chunk):
        values = _chunk_nll(chunk[0], head_DV, chunk[1], chunk[2], z_loss, softcap)
        return jax.tree.map(jnp.add, sums, values), None

    return jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), parts)[0]


def _nll_forward(hidden_BTD, head_DV, targets_BT, weights_BT, z_loss, softcap, chunk_bytes):
    trained = head_DV.perturbed
    hidden_BTD, head_DV = hidden_BTD.value, head_DV.value
    targets_BT, weights_BT = targets_BT.value, weights_BT.value
    D, V = head_DV.shape
    devices = mesh_lib.row_devices()
    chunks = chunks_of(targets_BT.shape, V, chunk_bytes, devices)
    # Each device adds up the head's gradient of its own rows, and all of them are added once, after the last chunk.
    groups = (devices if chunks.by_rows else 1) if trained else 0

    def gradients(chunk):
        return _chunk_gradients(chunk[0], head_DV, chunk[1], chunk[2], z_loss, softcap, groups)

    def add(sums, chunk):
        total, nll, grad_hidden_CD, grad_head_XDV = gradients(chunk)
        return jax.tree.map(jnp.add, sums, (total, nll, grad_head_XDV)), grad_hidden_CD

    parts = tuple(cut(chunks, x) for x in (hidden_BTD, targets_BT, weights_BT))
    if chunks.count == 1:
        total, nll, grad_hidden, grad_head = gradients([part[0] for part in parts])
        grad_hidden = grad_hidden[None]
    else:
        head_sum = None
        if trained:
            spec = mesh_lib.AxisRules().spec("batch" if chunks.by_rows else None, None, "vocab")
            head_sum = mesh_lib.constrain(jnp.zeros((groups, D, V), jnp.float32), spec)
        start = (jnp.float32(0), jnp.float32(0), head_sum)
        (total, nll, grad_head), grad_hidden = jax.lax.scan(add, start, parts)
    if trained and chunks.by_rows:
        grad_head = _over_devices(grad_head, hidden_BTD.dtype)
        # Now, and not when the layers are done, as a scheduler may choose: all of it would be held meanwhile.
        grad_hidden, grad_head = jax.lax.optimization_barrier((grad_hidden, grad_head))
    elif trained:
        grad_head = grad_head.sum(0)
    grad_head = grad_head.astype(head_DV.dtype) if trained else None
    return (total, nll), (join(chunks, grad_hidden), grad_head)


def _over_devices(parts_XDV, dtype):
    """The sum of what each device has, [D, V], in parts along D. Sent in `dtype`, as gradients of layers are.

    Few devices exchange parts and add up their own in f32, half the bytes of an all-reduce; on many the parts would
    have too far to go (in a torus, more links than the ring of an all-reduce).
    """
    rules = mesh_lib.AxisRules()
    X, D, _ = parts_XDV.shape
    if X <= EXCHANGING_DEVICES and D % X == 0:
        parts_XDV = mesh_lib.constrain(parts_XDV.astype(dtype), rules.spec("batch", None, "vocab"))
        parts_XDV = mesh_lib.constrain(parts_XDV, rules.spec(None, "batch", "vocab"))
    return mesh_lib.constrain(parts_XDV.astype(jnp.float32).sum(0), rules.spec("embed", "vocab"))


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
    chunks = chunks_of(targets_BT.shape, head_DV.shape[1], chunk_bytes, mesh_lib.row_devices())

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

    parts = (cut(chunks, hidden_BTD), cut(chunks, targets_BT))
    values = jax.lax.map(lambda chunk: of_chunk(*chunk), parts)
    return tuple(join(chunks, value) for value in values)
