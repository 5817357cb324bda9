"""Do the devices that hold copies of a parameter hold the same bits? A flipped bit in one copy changes no shape and
raises nothing; every step then mixes it into the gradients of all."""

from __future__ import annotations

import collections
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jinstr import errors


def _sum_of_bits(x: jax.Array) -> jax.Array:
    """uint32[]: sum, modulo 2³², of the 32-bit words of an array, weighted by place so that swaps are seen."""
    words = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32).reshape(-1)
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


def make_check(abstract_params: dict, mesh: Mesh) -> Callable[[dict, int], None]:
    """A function (params, step) that compares all copies of every shard, by checksums made on the devices.

    Free where no parameter has a copy. Errors of it: PeerError naming parameter and devices.
    """
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    # For each parameter the groups of devices that hold the same part of it.
    order = {device: number for number, device in enumerate(mesh.devices.flat)}
    groups = []
    for _, leaf in leaves:
        same = collections.defaultdict(list)
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            same[str(index)].append(order[device])
        groups.append([numbers for numbers in same.values() if len(numbers) > 1])
    if not any(groups):
        return lambda params, step: None

    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, abstract_params)
    sums = jax.jit(
        jax.shard_map(
            lambda params: jnp.stack([_sum_of_bits(p) for p in jax.tree.leaves(params)])[None],
            mesh=mesh,
            in_specs=(specs,),
            out_specs=PartitionSpec(mesh.axis_names),
            check_vma=False,  # each device speaks of its own copy: that they differ is the point
        ),
        out_shardings=jax.sharding.NamedSharding(mesh, PartitionSpec()),
    )

    def check(params: dict, step: int) -> None:
        found = np.asarray(sums(params))  # [devices, parameters]
        for number, name in enumerate(names):
            for devices in groups[number]:
                values = found[devices, number]
                if (values != values[0]).any():
                    common = collections.Counter(values.tolist()).most_common(1)[0][0]
                    odd = [d for d, value in zip(devices, values.tolist()) if value != common]
                    raise errors.PeerError(
                        "JI-PEER-001",
                        f"step {step}: the copies of params{name} on devices {devices} differ (device "
                        f"{', '.join(map(str, odd))} from the rest): a bit flipped, or a device computes wrongly. "
                        "The same command goes on from the newest checkpoint; if it happens again, leave that "
                        "device out",
                    )

    return check


def flipped(params: dict) -> dict:
    """The parameters with one bit flipped in one copy of one of them: a fault that a test asks for."""
    leaves, tree = jax.tree.flatten(params)
    leaf = leaves[-1]
    parts = [shard.data for shard in leaf.addressable_shards]
    value = np.array(parts[-1])
    value.view(np.uint32).reshape(-1)[0] ^= 1 << 12
    parts[-1] = jax.device_put(value, parts[-1].device)
    leaves[-1] = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)
    return jax.tree.unflatten(tree, leaves)
