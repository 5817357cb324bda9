"""The arrays of a checkpoint: what Orbax writes and reads, and what is said of them in the manifest."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jinstr.parallel import processes, together

# Orbax measures a save by the wall clock, which may jump by a day; stalls are the watchdog's business.
ORBAX_SECONDS = 10_000_000


def leaves(tree) -> dict[str, dict]:
    """Path → shape and dtype of every array."""
    return {
        jax.tree_util.keystr(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def item(tree):
    """Orbax's standard handler takes no bare arrays."""
    return {"value": tree} if jax.tree_util.all_leaves([tree]) else tree


@jax.jit
def all_finite(tree) -> jax.Array:
    """bool[]: is every number of every array finite?"""
    found = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return functools.reduce(jnp.logical_and, [jnp.isfinite(leaf).all() for leaf in found])


def writer() -> ocp.AsyncCheckpointer:
    """Orbax's own part of a save, by all processes, or by this one alone (`together.alone`)."""
    options = ocp.options.MultiprocessingOptions()
    if together.count() < processes.count():
        own = processes.index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"alone{own}"
        )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options)
    )
    return ocp.AsyncCheckpointer(
        handler, timeout_secs=ORBAX_SECONDS, multiprocessing_options=options
    )


def owner(name: str) -> int:
    """The process that digests a file of a save: the one that wrote it, where its name says so."""
    if together.count() == 1:
        return 0
    found = re.search(r"(?:^|/)ocdbt\.process_(\d+)/", name)
    return int(found[1]) if found else 0
