"""Mesh sizes, axis rules, and what they do to the parameters."""

import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib


def test_mesh_fills_the_open_axis_and_is_auto():
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("sizes", [dict(data=3), dict(data=-1, fsdp=-1), dict(data=-1, fsdp=16)])
def test_impossible_meshes_are_refused(sizes):
    with pytest.raises(errors.ConfigError):
        mesh_lib.make_mesh(mesh_lib.MeshConfig(**sizes))


def test_rules_map_names_and_refuse_clashes():
    rules = mesh_lib.AxisRules()
    assert rules.spec("batch", None) == PartitionSpec(("data", "fsdp"), None)
    with pytest.raises(ValueError, match="used twice"):
        rules.spec("heads", "mlp")
    with pytest.raises(ValueError, match="no logical axis"):
        rules.spec("haeds")


def test_parameter_table():
    model = config_lib.DecoderConfig(tie_embeddings=False, norm="layer", qkv_bias=True)
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = decoder.param_shardings(model, mesh, mesh_lib.AxisRules())
    spec = jax.tree.map(lambda sharding: sharding.spec, shardings)
    assert spec["embed"]["embedding"] == PartitionSpec("tensor", "fsdp")
    assert spec["head"]["kernel"] == PartitionSpec("fsdp", "tensor")
    attention = spec["blocks"]["attention"]
    assert attention["query"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert attention["query"]["bias"] == PartitionSpec(None, "tensor")
    assert attention["out"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert spec["blocks"]["mlp"]["down"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    shapes = decoder.abstract_params(model)
    jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), shapes, shardings)


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        ("--xla_force_host_platform_device_count=4 --xla_other=1", None, "32"),
        ("--xla_force_host_platform_device_count=4", "", "32"),
        ("--xla_force_host_platform_device_count=4", "7", "7"),  # somebody's own choice
        ("--xla_other=1", None, None),
    ],
)
def test_fake_devices_get_threads_for_several_programs(monkeypatch, flags, before, after):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.delenv("NPROC")
    if before is not None:
        monkeypatch.setenv("NPROC", before)
    mesh_lib.make_room_for_fake_devices()
    assert os.environ.get("NPROC") == after


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted by Linux")
def test_xla_makes_as_many_threads_as_it_is_told():
    """A release of XLA that reads another variable would bring the waiting for ever back."""
    script = "import jax, os; jax.devices(); print(len(os.listdir('/proc/self/task')))"
    flags = "--xla_force_host_platform_device_count=2"

    def threads(nproc):
        environment = os.environ | {"XLA_FLAGS": flags, "NPROC": nproc}
        told = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, env=environment, check=True
        )
        return int(told.stdout)

    assert threads("40") - threads("20") == 40  # in each of two pools
