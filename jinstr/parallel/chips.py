"""Accelerators by name: what one chip has, and slices of them that nobody has rented yet.

A TPU topology is described by the real TPU compiler (the wheel `libtpu`), which runs on any Linux machine with x86-64
CPUs and needs no TPU.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pathlib
import re
from typing import NamedTuple

import jax

from jinstr import errors

GIB = 2**30


class Chip(NamedTuple):
    """Figures of one chip (for TPUs: JAX team, How to Scale Your Model; for GPUs: NVIDIA's data sheets, dense)."""

    flops: float  # bf16 FLOP/s
    memory: float  # bytes of HBM that a program can have
    link: float  # bytes/s that one chip sends: along one axis of the torus, both ways; for GPUs to all others
    hertz: float = 0.0  # clock that the compiler's cycles are counted in


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 9e10, 1.05e9),
    "v5e": Chip(197e12, 16 * GIB, 9e10, 1.5e9),
    "v5p": Chip(459e12, 95 * GIB, 1.8e11, 1.75e9),
    "v6e": Chip(920e12, 32 * GIB, 1.8e11, 1.75e9),
    "a100": Chip(312e12, 80e9, 3e11),
    "h100": Chip(989e12, 80e9, 4.5e11),
    "h200": Chip(989e12, 141e9, 4.5e11),
}
DIMENSIONS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
BETWEEN_SLICES = (
    2.5e10 / 4
)  # bytes/s that one chip sends to other slices: that of a host, over its four chips
HOST = 3.2e10  # bytes/s between a chip and its host, one way at a time: PCIe of the fifth generation, not measured
FITS = 0.92  # of a chip's memory: the rest is for the runtime and for fragmentation


class Topology(NamedTuple):
    """kind: tpu | cpu | gpu. chip: a key of CHIPS ("" for cpu). shape: chips along each axis of one slice."""

    kind: str
    chip: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def size(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def text(self) -> str:
        count = f"{self.slices}x" if self.slices > 1 else ""
        one = ":".join(filter(None, (self.chip or self.kind, "x".join(map(str, self.shape)))))
        return count + one

    def axes_of(self, devices: int) -> int:
        """Axes of the torus whose links a group of so many chips has: the fewest that hold it."""
        count, held = 0, 1
        for size in self.shape:
            if held >= devices:
                break
            held *= size
            count += size > 1
        return max(1, count)


def parse(text: str) -> Topology:
    """`v5p:4x4x4`, `2xv6e:16x16` (two slices), `cpu:8`, `gpu:h100:8`. Errors: ConfigError with what is known."""
    kind, _, rest = text.strip().lower().partition(":")
    slices = 1
    if found := re.fullmatch(r"([1-9]\d*)x(.+)", kind):
        slices, kind = int(found[1]), found[2] if found[2] in DIMENSIONS else ""
    if kind in DIMENSIONS and re.fullmatch(r"\d+(x\d+)*", rest):
        shape = tuple(map(int, rest.split("x")))
        if len(shape) == DIMENSIONS[kind] and min(shape) > 0:
            return Topology("tpu", kind, shape, slices)
        raise errors.ConfigError(
            "JI-PLAN-001",
            f"TOPOLOGY={text!r}: {kind} slices have {DIMENSIONS[kind]} dimensions, as in "
            f"{kind}:{'x'.join(['4'] * DIMENSIONS[kind])}",
        )
    if kind == "cpu" and rest.isdigit() and int(rest) > 0:
        return Topology("cpu", "", (int(rest),))
    name, _, count = rest.partition(":")
    gpus = [chip for chip in CHIPS if chip not in DIMENSIONS]
    if kind == "gpu" and name in gpus and (count or "1").isdigit() and int(count or "1") > 0:
        return Topology("gpu", name, (int(count or "1"),))
    raise errors.ConfigError(
        "JI-PLAN-001",
        f"TOPOLOGY={text!r}; write v4:4x4x4, v5p:4x4x4, v5e:16x16, v6e:16x16 (any size), 2xv6e:16x16 (slices), cpu:8, "
        f"or gpu:NAME:8 with "
        f"one of {', '.join(gpus)}",
    )


def use_cpu() -> None:
    """Plans are made on the CPU, whatever is in the machine. To be called before JAX starts its backend."""
    jax.config.update("jax_platforms", "cpu")


def devices(topology: Topology) -> list[jax.Device]:
    """Devices that programs can be compiled for; those of `cpu` can run them too. Errors: ConfigError, StorageError."""
    if topology.kind == "cpu":
        return _fake_cpus(topology.size)
    if topology.kind == "gpu":
        raise errors.ConfigError(
            "JI-PLAN-002", f"nothing is compiled for {topology.text}: GPUs are planned by formula"
        )
    _find_compiler()
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", **_description(topology)).devices)
    except Exception as error:  # libtpu has no types of errors of its own
        message = " ".join(str(error).split())
        if "lockfile" in message:
            raise errors.StorageError(
                "JI-PLAN-003", "another program of this machine has libtpu; wait until it has ended"
            ) from None
        raise errors.ConfigError(
            "JI-PLAN-001", f"libtpu knows no slice {topology.text}: {message[:300]}"
        ) from None


def _fake_cpus(count: int) -> list[jax.Device]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the backend has started: with as many devices as XLA_FLAGS said
        pass
    found = jax.devices("cpu")
    if len(found) < count:
        raise errors.ConfigError(
            "JI-PLAN-004", f"cpu:{count} asked for, {len(found)} made; unset XLA_FLAGS"
        )
    return found[:count]


def _find_compiler() -> None:
    """Make libtpu findable and keep it from asking the machine for TPUs."""
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    # A compiler alone touches no chip, so several may run at a time.
    for name, value in (quiet | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}).items():
        os.environ.setdefault(name, value)
    if "TPU_LIBRARY_PATH" not in os.environ:
        found = importlib.util.find_spec("libtpu")
        if found is None:
            raise errors.ConfigError(
                "JI-PLAN-005",
                "TPUs are planned with their compiler, which is not installed: pip install 'jinstr[plan]' (libtpu, "
                "Linux on x86-64), or TPU_LIBRARY_PATH=…/libtpu.so; cpu:N and gpu:NAME:N need none",
            )
        folder = pathlib.Path(found.submodule_search_locations[0])
        os.environ["TPU_LIBRARY_PATH"] = str(folder / "libtpu.so")


def compiler_version() -> str:
    """Version of the libtpu that `devices` uses."""
    folder = pathlib.Path(os.environ.get("TPU_LIBRARY_PATH", "")).parent
    found = sorted(folder.parent.glob("libtpu-*.dist-info"))
    return found[-1].name.removesuffix(".dist-info").replace("-", " ") if found else "libtpu"


def _description(topology: Topology) -> dict:
    """What libtpu wants to know. Without the torus' wrap it makes all-gathers of all-reduces, 1.5 times the bytes.

    Slices of v4 and v5p are a torus along axes of 4 and more, those of v5e and v6e along an axis of 16.
    """
    shape = topology.shape
    is_3d = len(shape) == 3
    wrap = tuple(size % 4 == 0 if is_3d else size == 16 for size in shape)
    name = {"v5p": "v5"}.get(topology.chip, topology.chip)
    hosts = tuple(min(size, most) for size, most in zip((*shape, 1)[:3], (2, 2, 1)))
    return {
        "topology_name": f"{name}:{'x'.join(map(str, shape))}",
        "chip_config_name": "megacore" if is_3d else "default",
        "chips_per_host_bounds": hosts,
        "num_slices": topology.slices,
        "wrap": wrap if is_3d else (*wrap, False),
    }
