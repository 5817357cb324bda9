"""Rows of embedding and head for a vocabulary that has grown.

V new vocabulary, U old one, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# (path of a table, axis of the vocabulary)
_TABLES = ((("embed", "embedding"), 0), (("head", "kernel"), 1))


def _with(tree: dict, path: tuple[str, str], leaf) -> dict:
    return tree | {path[0]: tree[path[0]] | {path[1]: leaf}}


def narrowed(abstract: dict, rows: int) -> dict:
    """Abstract parameters as they are before the vocabulary grows to theirs from `rows`, kept whole on every device."""
    for path, axis in _TABLES:
        if path[0] in abstract:
            leaf = abstract[path[0]][path[1]]
            shape = tuple(rows if i == axis else n for i, n in enumerate(leaf.shape))
            # The old number of rows need not divide over the devices.
            place = leaf.sharding
            if isinstance(place, jax.sharding.NamedSharding):
                place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
            new = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=place)
            abstract = _with(abstract, path, new)
    return abstract


def widened(params: dict, abstract: dict, pieces: dict[int, list[int]], used: int) -> dict:
    """Parameters with the shapes and shardings of `abstract`.

    pieces: for every new id, the old ids of its text, whose rows it starts as the mean of. used: old ids that stand for
    a piece; rows that stand for none (a vocabulary is rounded up) start as the mean of all of these.
    """
    longest = max((len(ids) for ids in pieces.values()), default=1)
    for path, axis in _TABLES:
        if path[0] not in params:
            continue
        target = abstract[path[0]][path[1]]
        old_UD = params[path[0]][path[1]]
        rows = target.shape[axis]
        # Row v is the sum of old rows ids[v] with weights[v]: itself, its pieces, or (no weight) the mean of all.
        ids = np.zeros((rows, longest), np.int32)
        weights = np.zeros((rows, longest), np.float32)
        ids[:used, 0], weights[:used, 0] = np.arange(used), 1.0
        for new, old in pieces.items():
            ids[new, : len(old)], weights[new, : len(old)] = old, 1.0 / len(old)

        def widen(old_UD, ids, weights, axis=axis, dtype=target.dtype):
            table = old_UD.astype(jnp.float32)
            table = table.T if axis else table
            mean_D = table[:used].mean(0)
            wide = jnp.zeros((ids.shape[0], table.shape[1]), jnp.float32)
            for place in range(ids.shape[1]):
                wide += table[ids[:, place]] * weights[:, place, None]
            wide = jnp.where(weights.sum(1, keepdims=True) > 0, wide, mean_D)
            return (wide.T if axis else wide).astype(dtype)

        leaf = jax.jit(widen, out_shardings=target.sharding)(old_UD, ids, weights)
        params = _with(params, path, leaf)
    return params
