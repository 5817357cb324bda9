"""Attention over packed rows and caches.

B batch, T queries, S keys, N query heads, K key/value heads, G = N // K, H head size.
A query sees a key when both carry the same segment id, the key's position is not later, and, in local layers,
fewer than `window` places back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Not -inf: a fully masked row (padding in a cache) must stay finite.
MASKED = -1e30
BLOCK = 128


def visible(positions_BT, positions_BS, segments_BT, segments_BS, window) -> jax.Array:
    """Which keys a query may see: bool [B, T, S]. `window` 0 (or a traced 0) means no limit."""
    back = positions_BT[:, :, None] - positions_BS[:, None, :]
    same = segments_BT[:, :, None] == segments_BS[:, None, :]
    window = jnp.asarray(window)
    return same & (back >= 0) & ((window == 0) | (back < window))


def attend_dense(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *, scale, softcap) -> jax.Array:
    """Reference: softmax(q k^T) v in float32 with the whole [T, S] score matrix; returns [B, T, N, H]."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = (q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    # Divided by the sum after the product with v, in [T, H] and not in [T, S]: two passes over the scores fewer.
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total_BKGT = weights.sum(-1)
    out_BKGTH = jnp.einsum(
        "bkgts,bskh->bkgth",
        weights.astype(v_BSKH.dtype),
        v_BSKH,
        preferred_element_type=jnp.float32,
    )
    out_BKGTH = (out_BKGTH / total_BKGT[..., None]).astype(v_BSKH.dtype)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def attend(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    positions_BT,
    positions_BS,
    segments_BT,
    segments_BS,
    *,
    scale: float,
    window=0,
    softcap: float = 0.0,
    implementation: str = "xla",
) -> jax.Array:
    """Attention output [B, T, N, H] in the type of v.

    `blocked` needs T == S and keys in the order of the queries (training, no cache): a block of queries then never
    sees later keys, so those products are not computed at all. Same values as `xla` up to rounding.
    """
    if implementation == "xla" or q_BTNH.shape[1] <= BLOCK:
        mask = visible(positions_BT, positions_BS, segments_BT, segments_BS, window)
        return attend_dense(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale, softcap=softcap)
    T = q_BTNH.shape[1]
    if T != k_BSKH.shape[1]:
        raise ValueError(
            f"blocked attention needs as many keys as queries, got {k_BSKH.shape[1]} and {T}"
        )
    outputs = []
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        mask = visible(
            positions_BT[:, start:end],
            positions_BS[:, :end],
            segments_BT[:, start:end],
            segments_BS[:, :end],
            window,
        )
        outputs.append(
            attend_dense(
                q_BTNH[:, start:end],
                k_BSKH[:, :end],
                v_BSKH[:, :end],
                mask,
                scale=scale,
                softcap=softcap,
            )
        )
    return jnp.concatenate(outputs, axis=1)
