"""Attention on CUDA GPUs: Pallas' Triton kernel of JAX, which never holds the scores.

It goes by places in the row, as `splash` does: a packed row holds its segments one after the other, each in order of
its positions. B batch, T places, N query heads, K key/value heads, H head size.

cuDNN's kernel, which is faster where it can be, is not here: jax 0.10's way to it with packed rows is private, wrong
for grouped heads, and takes a fixed number of segments a row.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jinstr import errors
from jinstr.parallel import mesh as mesh_lib

BLOCK = 128  # places that the kernel takes at a time
INTERPRET = False  # tests run the kernel's own code on the CPU


def can(places: int, rules: mesh_lib.AxisRules) -> bool:
    """Are rows of so many places, on the mesh in context, ones that the kernel takes?"""
    return places % BLOCK == 0 and mesh_lib.ambient_devices(rules.sequence) == 1


def attend(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, *, scale: float, softcap: float, rules: mesh_lib.AxisRules
) -> jax.Array:
    """Causal attention within segments, [B, T, N, H] in the type of v.

    Under a mesh every device computes its own rows and heads, of whole sequences. Keys and values of a group of heads
    are repeated: the kernel knows no groups.
    Errors: ConfigError where T is no multiple of 128, the sequence is split over devices, or scores are capped.
    """
    T = q_BTNH.shape[1]
    wrong = [
        (T % BLOCK, f"rows of a multiple of {BLOCK} places, not {T}; change SEQ_LEN"),
        (mesh_lib.ambient_devices(rules.sequence) > 1, "whole sequences on a device; set MESH_CONTEXT=1"),
        (softcap, "scores as they are, and this model caps them"),
    ]  # fmt: skip
    for is_wrong, needs in wrong:
        if is_wrong:
            raise errors.ConfigError(
                "JI-ATTENTION-003",
                f"attention = 'triton' needs {needs} (or take attention = 'blocked')",
            )
    local = functools.partial(_own_rows, scale=scale)
    if not jax.sharding.get_abstract_mesh().empty:
        queries, keys = (rules.spec("batch", None, name, None) for name in ("heads", "kv_heads"))
        local = jax.shard_map(
            local,
            in_specs=(queries, keys, keys, rules.spec("batch", None)),
            out_specs=queries,
            check_vma=False,  # a Pallas call says nothing of it
        )
    return local(q_BTNH, k_BTKH, v_BTKH, segments_BT)


def _own_rows(q_BTNH, k_BTKH, v_BTKH, segments_BT, *, scale: float) -> jax.Array:
    """The rows and heads of one device."""
    group = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = (jnp.repeat(x, group, axis=2) for x in (k_BTKH, v_BTKH))
    return _attention(q_BTNH, k_BTNH, v_BTNH, segments_BT, scale)


def _kernel():
    # Not at the top: a jaxlib without Triton, as on other systems than Linux, serves all else.
    from jax.experimental.pallas.ops.gpu import attention

    return attention


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q_BTNH, k_BTNH, v_BTNH, segments_BT, scale):
    return _forward(q_BTNH, k_BTNH, v_BTNH, segments_BT, scale)[0]


def _forward(q_BTNH, k_BTNH, v_BTNH, segments_BT, scale):
    out_BTNH, log_sum_BNT = _kernel().mha(
        q_BTNH, k_BTNH, v_BTNH, segments_BT, sm_scale=scale, causal=True, interpret=INTERPRET,
        return_residuals=True,
    )  # fmt: skip
    # Named, which JAX's own rule does not: else every remat would run the kernel again.
    out_BTNH, log_sum_BNT = checkpoint_name((out_BTNH, log_sum_BNT), "attention")
    return out_BTNH, (q_BTNH, k_BTNH, v_BTNH, segments_BT, out_BTNH, log_sum_BNT)


def _backward(scale, residuals, grad_BTNH):
    kernel = _kernel()
    blocks, how = kernel.BlockSizes.get_default(), "triton"
    return kernel._mha_backward(
        scale, True, blocks, how, None, 2, None, INTERPRET, False, False, residuals, grad_BTNH
    )


_attention.defvjp(_forward, _backward)
