"""Means and variances over masks, safe against whatever stands in the places left out.

A mask is bool or 0/1 and has the shape of its values. Values are replaced, not multiplied, where the mask is 0:
NaN and inf in padding reach neither the result nor its gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def floats(x):
    """`x` as f32; f64 stays f64 where x64 is on."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def keep(x, mask):
    """`x` in floats where the mask is set, 0 elsewhere. `x` broadcasts to the mask."""
    return jnp.where(jnp.asarray(mask).astype(bool), floats(x), 0.0)


def count(mask):
    """How many places are set, f32 scalar."""
    return jnp.sum(jnp.asarray(mask).astype(bool), dtype=jnp.float32)


def mean(x, mask):
    """Mean of `x` over the mask; 0 for an empty mask."""
    return jnp.sum(keep(x, mask)) / jnp.maximum(count(mask), 1.0)


def variance(x, mask):
    """Unbiased variance over the mask (divided by n - 1); 0 for fewer than two places."""
    centred = keep(floats(x) - mean(x, mask), mask)
    return jnp.sum(centred**2) / jnp.maximum(count(mask) - 1.0, 1.0)


def whiten(x, mask, shift_mean: bool = True):
    """`x` with variance 1 over the mask, and mean 0 if `shift_mean`; 0 where the mask is not set.

    To be taken over the whole batch of an update: over parts of it, each part gets its own scale. 1e-8 is added to the
    variance, so that one place, equal places and none give finite values.
    """
    centre = mean(x, mask)
    white = keep(floats(x) - centre, mask) * jax.lax.rsqrt(variance(x, mask) + 1e-8)
    return white if shift_mean else keep(white + centre, mask)
