"""Attention of one layer from its input to its output: projections, rotation, and what attends between them.

B batch, T places, D width, N query heads, K key/value heads, H head size, S cache slots. `a` are the layer's
layers.AttentionParameters, `rope` its (cos, sin) tables.
"""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

from jinstr.models import attention, layers, splash


def places_first(
    config, a, h_BTD, rope, window, positions_BT, segments_BT, cache, rules, branches_BT
):
    """Attention of one layer, [B, T, D], and its keys and values (with those of the cache)."""
    B, T, _ = h_BTD.shape
    # Named before norms and rotation: the backward pass of a norm needs what went in.
    q_BTD, k_BTD, v_BTD = (
        checkpoint_name(project(h_BTD), "attention") for project in (a.query, a.key, a.value)
    )
    q_BTNH = q_BTD.reshape(B, T, config.num_heads, config.head_dim)
    k_BTKH = k_BTD.reshape(B, T, config.num_kv_heads, config.head_dim)
    v_BTKH = v_BTD.reshape(B, T, config.num_kv_heads, config.head_dim)
    if config.qk_norm:
        q_BTNH, k_BTKH = a.query_norm(q_BTNH), a.key_norm(k_BTKH)
    q_BTNH, k_BTKH = layers.rotate(q_BTNH, *rope), layers.rotate(k_BTKH, *rope)
    keys, values, positions_BS, segments_BS = k_BTKH, v_BTKH, positions_BT, segments_BT
    if cache is not None:
        old_k, old_v, positions_BS, segments_BS, index = cache
        keys = jax.lax.dynamic_update_slice(old_k, k_BTKH.astype(old_k.dtype), (0, index, 0, 0))
        values = jax.lax.dynamic_update_slice(old_v, v_BTKH.astype(old_v.dtype), (0, index, 0, 0))
    out_BTNH = attention.attend(
        q_BTNH,
        keys,
        values,
        positions_BT,
        positions_BS,
        segments_BT,
        segments_BS,
        scale=config.query_scale or config.head_dim**-0.5,
        window=window,
        softcap=config.attention_softcap,
        implementation="xla" if cache is not None else config.attention,
        branches_BT=branches_BT,
        rules=rules,
    )
    return a.out(out_BTNH.reshape(B, T, -1)), (keys, values)


def heads_first(config, a, h_BTD, rope, segments_BT, rules):
    """The same for the kernel of TPUs, which reads [B, N, T, H]: products that write so move nothing."""
    N, K = config.num_heads, config.num_kv_heads
    q_BNTH, k_BKTH, v_BKTH = (
        checkpoint_name(project.to_heads(h_BTD, heads), "attention")
        for project, heads in ((a.query, N), (a.key, K), (a.value, K))
    )
    if config.qk_norm:
        q_BNTH, k_BKTH = a.query_norm(q_BNTH), a.key_norm(k_BKTH)
    rope = [table.swapaxes(1, 2) for table in rope]
    out_BNTH = splash.attend_heads(
        layers.rotate_by_product(q_BNTH, *rope),
        layers.rotate_by_product(k_BKTH, *rope),
        v_BKTH,
        segments_BT,
        scale=config.query_scale or config.head_dim**-0.5,
        softcap=config.attention_softcap,
        rules=rules,
    )
    return a.out.from_heads(out_BNTH)
