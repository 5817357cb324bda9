"""Copies of parameters: one flipped bit in one of them is found, whatever the mesh; sound ones pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jinstr import errors
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import replicas


def params_on(mesh):
    """A split and a whole parameter."""
    draw = np.random.default_rng(0)
    places = {"w": PartitionSpec("fsdp", None), "b": PartitionSpec()}
    values = {"w": draw.normal(size=(8, 6)), "b": draw.normal(size=(5,))}
    return {
        name: jax.device_put(jnp.float32(value), NamedSharding(mesh, places[name]))
        for name, value in values.items()
    }


def abstract(params):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )


@pytest.mark.parametrize("fsdp", [1, 4])
def test_a_flipped_bit_is_found(fsdp):
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(fsdp=fsdp), jax.devices()[:8])
    params = params_on(mesh)
    check = replicas.make_check(abstract(params), mesh)
    check(params, 1)
    with pytest.raises(errors.PeerError, match=r"step 7: the copies of params\['w'\]"):
        check(replicas.flipped(params), 7)


def test_swapped_numbers_are_found():
    """A sum alone would not see them."""
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(), jax.devices()[:2])
    params = params_on(mesh)
    parts = [shard.data for shard in params["b"].addressable_shards]
    parts[1] = jax.device_put(np.asarray(parts[1])[[1, 0, 2, 3, 4]], parts[1].device)
    swapped = jax.make_array_from_single_device_arrays((5,), params["b"].sharding, parts)
    with pytest.raises(errors.PeerError, match=r"params\['b'\]"):
        replicas.make_check(abstract(params), mesh)(params | {"b": swapped}, 1)


def test_without_copies_nothing_is_compared():
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=1), jax.devices()[:1])
    params = params_on(mesh)
    replicas.make_check(abstract(params), mesh)(params, 1)
