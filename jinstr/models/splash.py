"""Attention on TPU: Pallas' splash kernel, which skips blocks that no query may see and never holds the scores.

It goes by places in the row: a packed row holds its segments one after the other, each in order of its positions, so an
earlier place of the same segment is an earlier position. B batch, T places, N query heads, K key/value heads, H head
size.
"""

from __future__ import annotations

import functools

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from jinstr import errors
from jinstr.parallel import mesh as mesh_lib

BLOCKS = (512, 256, 128)  # places that the kernel takes at a time: the largest that divides T
BACKWARD_ELEMENTS = 2048 * 128  # of keys in one block of the backward pass, places times head size
LANES = 128  # of a vector
INTERPRET = False  # tests run the kernel's own code on the CPU


def can(places: int, rules: mesh_lib.AxisRules) -> bool:
    """Are rows of so many places, on the mesh in context, ones that the kernel takes?"""
    return places % BLOCKS[-1] == 0 and mesh_lib.ambient_devices(rules.sequence) == 1


def attend(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, *, scale: float, softcap: float, rules: mesh_lib.AxisRules
) -> jax.Array:
    """Causal attention within segments, [B, T, N, H] in the type of v. Errors: those of `attend_heads`."""
    q_BNTH, k_BKTH, v_BKTH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
    settings = dict(scale=scale, softcap=softcap, rules=rules)
    return attend_heads(q_BNTH, k_BKTH, v_BKTH, segments_BT, **settings).swapaxes(1, 2)


def attend_heads(
    q_BNTH, k_BKTH, v_BKTH, segments_BT, *, scale: float, softcap: float, rules: mesh_lib.AxisRules
) -> jax.Array:
    """The same with heads before places, as the kernel reads them: [B, N, T, H].

    Under a mesh every device computes its own rows and heads, of whole sequences.
    Errors: ConfigError where T is no multiple of 128, or the sequence is split over devices.
    """
    T = q_BNTH.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    if T % BLOCKS[-1]:
        raise errors.ConfigError(
            "JI-ATTENTION-001",
            f"attention = 'splash' needs rows of a multiple of {BLOCKS[-1]} places, not {T}; change SEQ_LEN or take "
            "attention = 'blocked'",
        )
    if mesh_lib.ambient_devices(rules.sequence) > 1:
        raise errors.ConfigError(
            "JI-ATTENTION-002",
            "attention = 'splash' needs whole sequences on a device; set MESH_CONTEXT=1 or attention = 'blocked'",
        )
    q_BNTH = q_BNTH * jax.numpy.asarray(scale, q_BNTH.dtype)
    local = functools.partial(_own_rows, softcap=softcap)
    if not mesh.empty:
        queries, keys = (rules.spec("batch", name, None, None) for name in ("heads", "kv_heads"))
        local = jax.shard_map(
            local,
            in_specs=(queries, keys, keys, rules.spec("batch", None)),
            out_specs=queries,
            check_vma=False,  # a Pallas call says nothing of it
        )
    return local(q_BNTH, k_BKTH, v_BKTH, segments_BT)


def _own_rows(q_BNTH, k_BKTH, v_BKTH, segments_BT, *, softcap: float) -> jax.Array:
    """The rows and heads of one device."""
    N, T = q_BNTH.shape[1:3]
    block = next(size for size in BLOCKS if T % size == 0)
    # The backward kernel writes a gradient of all queries for each block of keys: few large ones take less memory and
    # time, as long as keys, values and their gradients fit the chip's own memory.
    most = BACKWARD_ELEMENTS // q_BNTH.shape[3]
    sizes = [
        block << n for n in range(5) if T % (block << n) == 0 and block << n <= max(most, block)
    ]
    block_dkv = sizes[-1]
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((T, T))] * N),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap or None,
        interpret=INTERPRET,
        residual_checkpoint_name="attention",
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block,
            block_q_dkv=block, block_kv_dkv=block_dkv, block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
        ),
    )  # fmt: skip

    def of_row(q_NTH, k_KTH, v_KTH, segments_T):
        ids = splash_attention_kernel.SegmentIds(q=segments_T, kv=segments_T)
        return kernel(q_NTH, k_KTH, v_KTH, segment_ids=ids)

    return jax.vmap(of_row)(q_BNTH, k_BKTH, v_BKTH, segments_BT)
