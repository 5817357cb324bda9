"""Device mesh and the rules that name what is split over it.

All knowledge of sharding is in this file: models name logical axes (`embed`, `mlp`, `heads`, …), the rules map
them to the mesh axes `data`, `fsdp`, `context`, `tensor`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jinstr import errors

MESH_AXES = ("data", "fsdp", "context", "tensor")


def make_room_for_fake_devices() -> None:
    """Where XLA_FLAGS splits this machine's CPU into several devices: threads for eight programs at a time on each of
    them. To be called before JAX starts its backend.

    A device's part of a program holds a thread while it waits for its input or for the other devices, and XLA makes
    only as many threads as there are devices or cores, in each of its pools. On few cores programs in flight, begun in
    an unlucky order, then wait for each other for ever. XLA takes the size of its pools from this variable.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    found = re.search(r"xla_force_host_platform_device_count=(\d+)", flags)
    if found and not os.environ.get("NPROC"):
        os.environ["NPROC"] = str(8 * int(found[1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices along each axis; one axis may be -1 (all that are left).

    slices: groups of devices with a slow network between them (TPU slices, GPU nodes). `data` is laid over them, all
    other axes within: only sums of gradients then cross the slow network. -1 = as many as the devices say they are of;
    1 = any axis may cross any device, as on a network that is fast everywhere; n = processes in order, in n groups,
    where the devices say nothing.
    """

    data: int = -1  # replicas: parameters whole, batch split
    fsdp: int = 1  # parameters and batch split
    context: int = 1  # sequence split
    tensor: int = 1  # heads, mlp and vocabulary split
    slices: int = (
        1  # groups with a slow network between them, which `data` is laid over; -1 = as reported
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxisRules:
    """Logical axis name → mesh axis (or axes), None = whole on every device."""

    batch: tuple[str, ...] | str | None = ("data", "fsdp")  # rows of a batch
    sequence: str | None = "context"  # places in a row
    embed: str | None = "fsdp"  # model width in parameters
    heads: str | None = "tensor"  # query heads × head size
    kv_heads: str | None = "tensor"  # key and value heads × head size
    mlp: str | None = "tensor"  # hidden width of the feed-forward part
    vocab: str | None = "tensor"  # rows of the embedding, columns of the head

    def spec(self, *names: str | None) -> PartitionSpec:
        """PartitionSpec of an array whose axes carry these logical names (None = not split).

        Errors: ValueError for an unknown name, or when two axes of one array land on one mesh axis.
        """
        mapped = []
        seen: set[str] = set()
        for name in names:
            if name is not None and not hasattr(self, name):
                raise ValueError(f"AxisRules has no logical axis {name!r}")
            axes = None if name is None else getattr(self, name)
            for axis in (axes,) if isinstance(axes, str) else axes or ():
                if axis in seen:
                    raise ValueError(f"mesh axis {axis!r} is used twice in {names}: {self}")
                seen.add(axis)
            mapped.append(axes)
        return PartitionSpec(*mapped)


def sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Devices along each axis. Errors: ConfigError when the sizes do not multiply to the number of devices."""
    found = {axis: getattr(config, axis) for axis in MESH_AXES}
    opened = [axis for axis, size in found.items() if size == -1]
    if len(opened) > 1:
        raise errors.ConfigError("JI-MESH-001", f"only one mesh axis may be -1: {config}")
    known = math.prod(size for size in found.values() if size != -1)
    if opened and known > 0:
        found[opened[0]] = devices // known
    if math.prod(found.values()) != devices:
        raise errors.ConfigError(
            "JI-MESH-002",
            f"mesh {found} needs {math.prod(found.values())} devices, {devices} are here; set one axis to -1 or change "
            "the sizes",
        )
    return found


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The one place that makes a mesh: axes `data, fsdp, context, tensor`, all AxisType.Auto.

    jax would default to Explicit axes, where every ambiguous contraction needs an annotation, and refuses devices of
    several slices, as which it sees the nodes of GPUs. Errors: ConfigError when the sizes do not multiply to the number
    of devices, or `data` does not divide over the slices.
    """
    devices = list(jax.devices()) if devices is None else devices
    found = sizes(config, len(devices))
    groups = slices_of(devices, config.slices)
    if found["data"] % len(groups):
        raise errors.ConfigError(
            "JI-MESH-005",
            f"mesh {found}: `data` is laid over the {len(groups)} slices, so MESH_DATA must be a multiple of "
            f"{len(groups)}: MESH_DATA={len(groups)}, and the other axes within {len(devices) // len(groups)} devices",
        )
    return mesh_over(groups, found)


def mesh_over(groups: list[list[jax.Device]], found: dict[str, int]) -> Mesh:
    """The mesh of these sizes whose `data` axis goes over the groups first: every other axis lies within one group."""
    shape = (found["data"] // len(groups), *(found[axis] for axis in MESH_AXES[1:]))
    # As jax.make_mesh does: on a torus of two dimensions an axis may take a part of one.
    is_flat = groups[0][0].device_kind in ("TPU v5 lite", "TPU v5e")
    grids = [
        mesh_utils.create_device_mesh(shape, group, allow_split_physical_axes=is_flat)
        for group in groups
    ]
    return Mesh(np.concatenate(grids), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def slices_of(devices: list[jax.Device], wanted: int) -> list[list[jax.Device]]:
    """The devices in groups of equal size with a slow network between them (see MeshConfig.slices).

    Errors: ConfigError where there are no such groups.
    """
    reported = _grouped(devices, "slice_index")
    if wanted == len(reported) or wanted == -1:
        groups = reported
    elif wanted == 1:
        if devices[0].platform == "tpu":
            raise errors.ConfigError(
                "JI-MESH-004",
                f"the devices are of {len(reported)} TPU slices; set MESH_SLICES=-1, and MESH_DATA to a multiple of "
                f"{len(reported)}",
            )
        groups = [devices]
    else:
        processes = _grouped(devices, "process_index")
        if len(reported) > 1 or wanted < 1 or len(processes) % wanted:
            raise errors.ConfigError(
                "JI-MESH-004",
                f"MESH_SLICES={wanted}, but the devices are of {len(reported)} slices and {len(processes)} processes; "
                "set -1 for the slices, or a number that the processes divide into",
            )
        each = len(processes) // wanted
        groups = [sum(processes[i : i + each], []) for i in range(0, len(processes), each)]
    if len({len(group) for group in groups}) > 1:
        raise errors.ConfigError(
            "JI-MESH-004",
            f"slices of {sorted(len(group) for group in groups)} devices; a mesh needs as many in each",
        )
    return groups


def _grouped(devices: list[jax.Device], attribute: str) -> list[list[jax.Device]]:
    """By this attribute, in its order; all in one group where devices have none."""
    groups: dict[int, list[jax.Device]] = {}
    for device in devices:
        groups.setdefault(getattr(device, attribute, 0), []).append(device)
    return [groups[key] for key in sorted(groups)]


def abstract(found: dict[str, int]) -> AbstractMesh:
    """A mesh that only has a shape: for sizes of arrays, not for programs."""
    shape = tuple(found[axis] for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def devices_along(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """How many parts the axes of one entry of a PartitionSpec make."""
    return math.prod(
        mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ())
    )


def ambient_devices(axes: str | tuple[str, ...] | None) -> int:
    """How many parts these axes of the mesh in context make; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else devices_along(mesh, axes)


def row_devices() -> int:
    """Devices of the ambient mesh that share the rows of a batch by the usual rules; 1 without a mesh."""
    return ambient_devices(("data", "fsdp"))


def sequence_devices() -> int:
    """Devices of the ambient mesh that share the places of a row by the usual rules; 1 without a mesh."""
    return ambient_devices("context")


def batch_sharding(mesh: Mesh, rules: AxisRules) -> NamedSharding:
    """Sharding of every [B, T] array of a batch."""
    return NamedSharding(mesh, rules.spec("batch", "sequence"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def without(spec: PartitionSpec, axes: str | tuple[str, ...] | None) -> PartitionSpec:
    """The spec of an array that is whole along these mesh axes."""
    axes = (axes,) if isinstance(axes, str) else axes or ()
    entries = []
    for entry in spec:
        kept = tuple(
            a for a in ((entry,) if isinstance(entry, str) else entry or ()) if a not in axes
        )
        entries.append(kept[0] if len(kept) == 1 else kept or None)
    return PartitionSpec(*entries)


def _pins() -> bool:
    """Is there a mesh to pin activations on, inside of jit?"""
    return not (jax.sharding.get_abstract_mesh().empty or jax.config.jax_disable_jit)


def constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Pin an activation inside jit; without a mesh in context, or without jit, this does nothing."""
    return jax.lax.with_sharding_constraint(x, spec) if _pins() else x


def gathered(x: jax.Array, own: PartitionSpec, whole: PartitionSpec) -> jax.Array:
    """x, which lies in parts (`own`), as `whole` says; its gradient is added up into the parts again (FSDP)."""
    return _gathered(x, own, whole) if _pins() else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x, own, whole):
    return constrain(x, whole)


def _gathered_forward(x, own, whole):
    return constrain(x, whole), None


def _gathered_backward(own, whole, _, gradient):
    return (constrain(gradient, own),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
