"""Attention over packed rows and caches.

B batch, T queries, S keys, N query heads, K key/value heads, G = N // K, M = G·T, H head size.
A query sees a key when both carry the same segment id, the key's position is not later, and, in local layers,
fewer than `window` places back. Where a segment branches, branch 0 is the stem that all its branches go on from: a
query then sees the stem and its own branch.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jinstr.models import splash, triton
from jinstr.parallel import mesh as mesh_lib

# Not -inf: a fully masked row (padding in a cache) must stay finite.
MASKED = -1e30
BLOCK = 128


def visible(
    positions_BT, positions_BS, segments_BT, segments_BS, window, branches_BT=None, branches_BS=None
) -> jax.Array:
    """Which keys a query may see: bool [B, T, S]. `window` 0 (or a traced 0) means no limit."""
    back = positions_BT[:, :, None] - positions_BS[:, None, :]
    same = segments_BT[:, :, None] == segments_BS[:, None, :]
    if branches_BT is not None:
        own = branches_BT[:, :, None] == branches_BS[:, None, :]
        same &= own | (branches_BS == 0)[:, None, :]
    window = jnp.asarray(window)
    return same & (back >= 0) & ((window == 0) | (back < window))


def attend_dense(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *, scale, softcap) -> jax.Array:
    """Reference: softmax(q k^T) v in float32 with the whole [T, S] score matrix; returns [B, T, N, H]."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = (q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).reshape(B, T, K, N // K, H)
    # The heads of a group are rows beside each other, M = G·T, so that all products are plain batched ones.
    q_BKMH = q_BTKGH.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    mask_BMS = jnp.tile(mask_BTS, (1, N // K, 1))
    out_BKMH = _softmax_product(q_BKMH, k_BKSH, v_BKSH, mask_BMS, softcap)
    return out_BKMH.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _batched(left, right, contract: tuple[int, int]) -> jax.Array:
    """float32 product of [B, K, …] arrays over one axis of each; what is left keeps its order, left before right."""
    numbers = (((contract[0],), (contract[1],)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(left, right, numbers, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _softmax_product(q_BKMH, k_BKSH, v_BKSH, mask_BMS, softcap):
    return _softmax_product_forward(q_BKMH, k_BKSH, v_BKSH, mask_BMS, softcap)[0]


def _softmax_product_forward(q_BKMH, k_BKSH, v_BKSH, mask_BMS, softcap):
    scores_BKMS = _batched(q_BKMH, k_BKSH, (3, 3))
    slope_BKMS = None
    if softcap:
        tanh_BKMS = jnp.tanh(scores_BKMS / softcap)
        scores_BKMS, slope_BKMS = softcap * tanh_BKMS, 1.0 - tanh_BKMS * tanh_BKMS
    scores_BKMS = jnp.where(mask_BMS[:, None], scores_BKMS, MASKED)
    weights_BKMS = jnp.exp(scores_BKMS - scores_BKMS.max(-1, keepdims=True))
    total_BKM1 = weights_BKMS.sum(-1, keepdims=True)
    weights_BKMS = weights_BKMS.astype(v_BKSH.dtype)
    # Divided by the sum after the product, in [M, H] and not in [M, S].
    out_BKMH = (_batched(weights_BKMS, v_BKSH, (3, 2)) / total_BKM1).astype(v_BKSH.dtype)
    out_BKMH = checkpoint_name(out_BKMH, "attention")
    return out_BKMH, (q_BKMH, k_BKSH, v_BKSH, weights_BKMS, total_BKM1, out_BKMH, slope_BKMS)


def _softmax_product_backward(softcap, residuals, grad_BKMH):
    """As autodiff would, but of two operands the narrow one is transposed in memory, never [M, S] (layers.matmul).

    Holds for queries that see a key, as in training, where each sees itself.
    """
    q_BKMH, k_BKSH, v_BKSH, weights_BKMS, total_BKM1, out_BKMH, slope_BKMS = residuals
    dtype = v_BKSH.dtype
    grad_BKMH = grad_BKMH.astype(jnp.float32) / total_BKM1
    mean_BKM1 = (grad_BKMH * out_BKMH.astype(jnp.float32)).sum(-1, keepdims=True)
    grad_BKMH = grad_BKMH.astype(dtype)
    grad_v_BKHS = _batched(grad_BKMH, weights_BKMS, (2, 2))
    slope_of_scores_BKMS = weights_BKMS * (_batched(grad_BKMH, v_BKSH, (3, 3)) - mean_BKM1)
    if slope_BKMS is not None:
        slope_of_scores_BKMS = slope_of_scores_BKMS * slope_BKMS
    slope_of_scores_BKMS = slope_of_scores_BKMS.astype(dtype)
    grad_q_BKMH = _batched(slope_of_scores_BKMS, k_BKSH, (3, 2))
    grad_k_BKHS = _batched(q_BKMH, slope_of_scores_BKMS, (2, 2))
    return (
        grad_q_BKMH.astype(q_BKMH.dtype),
        grad_k_BKHS.swapaxes(2, 3).astype(dtype),
        grad_v_BKHS.swapaxes(2, 3).astype(dtype),
        None,
    )


_softmax_product.defvjp(_softmax_product_forward, _softmax_product_backward)


def here(places: int) -> tuple[str, ...]:
    """Implementations that the devices of this process have for rows of so many places, on one device."""
    kernels = {"tpu": ("splash", splash.can), "gpu": ("triton", triton.can)}
    name, can = kernels.get(jax.default_backend(), ("", lambda *_: False))
    return ("xla", "blocked", *([name] if can(places, mesh_lib.AxisRules()) else []))


def chosen(implementation: str, places: int, window, rules: mesh_lib.AxisRules) -> str:
    """The implementation that `auto` is, for rows of so many places."""
    if implementation != "auto":
        return implementation
    can = isinstance(window, int) and not window and splash.can(places, rules)
    return "splash" if jax.default_backend() == "tpu" and can else "blocked"


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
    branches_BT=None,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
) -> jax.Array:
    """Attention output [B, T, N, H] in the type of v. Branches need T == S, as there is none in a cache.

    `blocked`, `splash` and `triton` need T == S and keys in the order of the queries (training, no cache): a block of
    queries then never sees later keys, so those products are not computed at all. Same values as `xla` up to rounding.
    The kernels of `splash` and `triton` know no branches: rows that have them are computed as `blocked`. `auto` is
    `splash` on TPU where there is neither a window nor a row of an odd length or split over devices, else `blocked`.
    """
    implementation = chosen(implementation, q_BTNH.shape[1], window, rules)
    if implementation in ("splash", "triton") and branches_BT is None:
        kernel = splash if implementation == "splash" else triton
        return kernel.attend(
            q_BTNH, k_BSKH, v_BSKH, segments_BT, scale=scale, softcap=softcap, rules=rules
        )
    if implementation == "xla" or q_BTNH.shape[1] <= BLOCK:
        mask = visible(
            positions_BT,
            positions_BS,
            segments_BT,
            segments_BS,
            window,
            branches_BT,
            branches_BT,
        )
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
            None if branches_BT is None else branches_BT[:, start:end],
            None if branches_BT is None else branches_BT[:, :end],
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
