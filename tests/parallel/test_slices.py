"""Meshes over groups of devices with a slow network between them: what lies where, and what crosses it."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh reads of a device."""

    id: int
    process_index: int
    slice_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"
    core_on_chip: int = 0


def gpus(nodes=4, each=4):
    return [Device(n * each + i, n, n) for n in range(nodes) for i in range(each)]


def tpus(slices=2):
    """v5e slices of 4 × 4 chips, four on each host."""
    return [
        Device(100 * s + 4 * y + x, 4 * s + 2 * (y // 2) + x // 2, s, (x, y, 0), "tpu", "TPU v5 lite")
        for s in range(slices)
        for y in range(4)
        for x in range(4)
    ]  # fmt: skip


def shuffled(devices):
    return [devices[i] for i in np.random.default_rng(0).permutation(len(devices))]


def groups_along(mesh, axes, attribute="slice_index"):
    """How many slices each line of devices along these axes touches: the largest number."""
    kept = [i for i, axis in enumerate(mesh.axis_names) if axis not in axes]
    moved = np.moveaxis(mesh.devices, kept, range(len(kept)))
    lines = moved.reshape(int(np.prod(moved.shape[: len(kept)])), -1)
    return max(len({getattr(device, attribute) for device in line}) for line in lines)


WITHIN = ("fsdp", "context", "tensor")


@pytest.mark.parametrize(
    "devices, config",
    [
        (tpus(2), dict(fsdp=16)),
        (tpus(4), dict(fsdp=8, tensor=2)),
        (tpus(2), dict(fsdp=4, context=2, tensor=2)),
        (tpus(2), dict(data=4, fsdp=8)),
        (gpus(4), dict(fsdp=4)),
        (gpus(4), dict(data=8, tensor=2)),
    ],
)
def test_only_data_goes_over_slices(devices, config):
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(**config, slices=-1), shuffled(devices))
    slices = len({device.slice_index for device in devices})
    assert sorted(device.id for device in mesh.devices.flat) == sorted(d.id for d in devices)
    assert groups_along(mesh, WITHIN) == 1
    assert groups_along(mesh, ("data",)) == slices


def test_without_slices_an_axis_crosses_nodes():
    """Negative control, and what slices=1 is for: kernels split over all GPUs of a fast network."""
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(fsdp=16), shuffled(gpus()))
    assert groups_along(mesh, WITHIN) == 4
    assert [device.id for device in mesh.devices.flat] == list(range(16))


def test_processes_stand_in_for_slices_that_are_not_reported():
    hosts = [
        dataclasses.replace(device, slice_index=0, process_index=device.id // 2)
        for device in gpus(2, 4)
    ]
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(fsdp=4, slices=2), hosts)
    assert groups_along(mesh, WITHIN, "process_index") == 2  # of four: two in each group
    assert {d.process_index for d in mesh.devices[0].flat} == {0, 1}
    for slices in (3, -2):
        with pytest.raises(errors.ConfigError, match="JI-MESH-004.*1 slices and 4 processes"):
            mesh_lib.make_mesh(mesh_lib.MeshConfig(slices=slices), hosts)


@pytest.mark.parametrize(
    "devices, config, wanted",
    [
        (tpus(2), dict(data=1, fsdp=32, slices=-1), "JI-MESH-005.*multiple of 2.*within 16 devices"),
        (tpus(2), dict(fsdp=16), "JI-MESH-004.*2 TPU slices; set MESH_SLICES=-1"),
        (tpus(2), dict(fsdp=16, slices=4), "JI-MESH-004.*of 2 slices and 8 processes"),
        (gpus(2)[:-1], dict(slices=-1), r"JI-MESH-004.*\[3, 4\] devices"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(devices, config, wanted):
    with pytest.raises(errors.ConfigError, match=wanted):
        mesh_lib.make_mesh(mesh_lib.MeshConfig(**config), devices)


MODEL = config_lib.DecoderConfig(
    vocab_size=96, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    mlp_size=64, tie_embeddings=False,
)  # fmt: skip


def three_steps(mesh):
    """Losses, and the compiled step's text."""
    rules, optimizer = mesh_lib.AxisRules(), optimizer_lib.OptimizerConfig(learning_rate=1e-3)
    transform = optimizer_lib.make_optimizer(optimizer, 10)
    abstract = state_lib.abstract_state(MODEL, transform, mesh, rules, ema=False)
    state = state_lib.init_state(MODEL, transform, abstract, 0)
    step = state_lib.make_step(MODEL, optimizer, transform, mesh, rules, abstract)
    draw = np.random.default_rng(0)
    batch = {
        "tokens": draw.integers(0, 96, (8, 32)).astype(np.int32),
        "targets": draw.integers(0, 96, (8, 32)).astype(np.int32),
        "loss_weights": np.ones((8, 32), np.float32),
        "positions": np.tile(np.arange(32, dtype=np.int32), (8, 1)),
        "segment_ids": np.ones((8, 32), np.int32),
    }
    placed = state_lib.place_batch(batch, mesh, rules)
    with jax.set_mesh(mesh):
        compiled = step.jitted.lower(abstract, placed, {}).compile()
    losses = []
    for _ in range(3):
        state, metrics = compiled(state, placed, {})
        losses.append(float(metrics["loss"]))
    return np.array(losses), compiled.as_text()


def iota(text):
    """[4,2]T(1,0): the numbers from 0 in this shape, transposed."""
    shape, order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    shape = [int(size) for size in shape.split(",")]
    found = np.arange(np.prod(shape)).reshape(shape)
    return found.transpose([int(axis) for axis in order.split(",")]) if order else found


def groups_of(line):
    """Places of the devices of each group of a collective, in the three ways that XLA writes them."""
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line):
        return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line):
        return iota(found[3]).reshape(int(found[1]), int(found[2])).tolist()
    found = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line)
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    places = iota(found[2] or f"[{np.prod(list(sizes.values()))}]").reshape(list(sizes.values()))
    used = re.findall(r"'(\w+)'", found[3])
    assert ":" not in found[3], line  # a part of an axis: not met so far
    kept = [i for i, name in enumerate(sizes) if name not in used]
    return (
        np.moveaxis(places, kept, range(len(kept)))
        .reshape(-1, int(np.prod([sizes[n] for n in used])))
        .tolist()
    )


def crossing(text, slices_by_place):
    """Kinds of collectives of a program with a group of devices that are not all of one slice."""
    found = set()
    for line in text.split("\n"):
        kind = re.search(
            r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(",
            line,
        )
        if kind and any(len({slices_by_place[i] for i in group}) > 1 for group in groups_of(line)):
            found.add(kind[1])
    return found


def test_only_sums_cross_the_slow_network_and_the_run_is_that_of_one_device():
    devices = jax.devices()
    slices = {device: i // 2 % 2 for i, device in enumerate(devices)}
    groups = [[d for d in devices if slices[d] == n] for n in (0, 1)]
    sizes = {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    mesh = mesh_lib.mesh_over(groups, sizes)
    losses, text = three_steps(mesh)
    expected, _ = three_steps(mesh_lib.make_mesh(mesh_lib.MeshConfig(data=1), devices[:1]))
    # Sums over other numbers of rows and parts of kernels: rounding of float32, some steps long.
    assert np.abs(losses / expected - 1).max() < 1e-5
    assert expected[0] - expected[-1] > 1e-3  # there is something to agree on
    found = crossing(text, [slices[device] for device in mesh.devices.flat])
    assert found == {"all-reduce"}
    # Negative control: laid out without regard to the slices, kernels are gathered from both.
    mixed = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2), devices)
    found = crossing(text, [slices[device] for device in mixed.devices.flat])
    assert "all-gather" in found
