"""What the processes of a run do together: wait, hear what the first one decided, agree on a signal, share arrays.

Every function is to be called by all processes alike, in the same order. Where a process is alone each is the plain
thing that it stands for, and costs nothing.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jinstr.parallel import processes

DAY = 24 * 3600 * 1000  # milliseconds; that the others live and move on is watched by other means
KEPT = 4  # decisions of one name that no process can be behind: collectives come between them
_numbers: collections.defaultdict[str, itertools.count] = collections.defaultdict(itertools.count)
_alone = contextvars.ContextVar("alone", default=False)  # a save may be committed in another thread


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, this process does something by itself: it waits for nobody and tells nobody."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def count() -> int:
    """Processes that take part in what is done: 1 within `alone`."""
    return 1 if _alone.get() else processes.count()


def index() -> int:
    """Number of this process among them."""
    return 0 if _alone.get() else processes.index()


def _keys(name: str) -> tuple[str, str]:
    """(a key that was not used before, the same in all processes; one so old that all have read it)."""
    number = next(_numbers[name])
    return f"jinstr/{name}/{number}", f"jinstr/{name}/{number - KEPT}"


def barrier(name: str) -> None:
    """Wait until all processes are here. May be called in a thread."""
    if count() > 1:
        processes.client().wait_at_barrier(_keys(name)[0], DAY)


def first_decides(name: str, decide: Callable[[], Any]) -> Any:
    """decide() as the first process finds it; its result, of JSON values, is heard by the others.

    An error there is one of the first process, which ends all.
    """
    if count() == 1:
        return decide()
    (key, old), client = _keys(name), processes.client()
    if index():
        return json.loads(client.blocking_key_value_get(key, DAY))
    found = json.dumps(decide())
    client.key_value_set(key, found)
    client.key_value_delete(old)
    return json.loads(found)


def gathered(name: str, value: Any) -> list:
    """For the first process: the value, of JSON values, of every process, in their order; [] for the others. May be
    called in a thread."""
    if count() == 1:
        return [value]
    (key, _), client = _keys(name), processes.client()
    if index():
        client.key_value_set(f"{key}/{index()}", json.dumps(value))
        return []
    others = [f"{key}/{number}" for number in range(1, count())]
    found = [json.loads(client.blocking_key_value_get(other, DAY)) for other in others]
    for other in others:
        client.key_value_delete(other)
    return [value, *found]


@functools.cache
def _everywhere(mesh: Mesh) -> Callable:
    """Jitted: a tree of arrays, each whole on every device."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def fetch(tree: Any) -> Any:
    """Arrays of the devices as arrays of the host, whole and equal in all processes."""
    if count() == 1:
        return jax.device_get(tree)
    leaves, structure = jax.tree.flatten(tree)
    split = {
        place: leaf
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array)
        and not leaf.is_fully_addressable
        and not leaf.is_fully_replicated
    }
    if split:
        mesh = next(iter(split.values())).sharding.mesh
        whole = _everywhere(mesh)(list(split.values()))
        for place, leaf in zip(split, whole):
            leaves[place] = leaf
    return jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])


def put(tree: Any, sharding: Any) -> Any:
    """Host arrays, whole and equal in all processes, on the devices. sharding: one, or a tree of them."""
    if count() == 1:
        return jax.device_put(tree, sharding)

    def place(value, sharding):
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(value), sharding))
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    if isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda value: place(value, sharding), tree)
    return jax.tree.map(place, tree, sharding)


def own_copy(tree: Any) -> Any:
    """Arrays that lie in parts on the devices, whole on the first device of each process."""
    if count() == 1:
        return jax.device_put(tree, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))

    def whole(leaf):
        if leaf.is_fully_addressable:
            return jax.device_put(leaf, jax.local_devices()[0])
        if not leaf.is_fully_replicated:
            leaf = _everywhere(leaf.sharding.mesh)(leaf)
        return leaf.addressable_data(0)

    return jax.tree.map(whole, tree)


def rows_here(sharding: NamedSharding, rows: int) -> Sequence[int] | None:
    """The rows of a batch of so many that the devices of this process hold; None = all, as it is alone."""
    if count() == 1:
        return None
    spec = PartitionSpec(*sharding.spec[:1])
    places = NamedSharding(sharding.mesh, spec).addressable_devices_indices_map((rows,))
    return sorted({row for (part,) in places.values() for row in range(*part.indices(rows))})


def place_rows(values: Any, sharding: NamedSharding, rows: int) -> Any:
    """Arrays of the `rows_here` of a batch of so many rows → global arrays."""
    if (here := rows_here(sharding, rows)) is None:
        return {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in values.items()
        }
    number = np.full(rows, -1)
    number[here] = np.arange(len(here))

    def place(value):
        def part(index):
            return value[(number[index[0]], *index[1:])]

        return jax.make_array_from_callback((rows, *value.shape[1:]), sharding, part)

    return {name: place(value) for name, value in values.items()}


def joined(batch: dict, places: Sequence[int] | None, rows: int) -> dict[str, np.ndarray]:
    """The whole batch of so many rows, on the host, of what every process read at its `places`."""
    if places is None:
        return batch
    whole = {name: np.zeros((rows, *value.shape[1:]), value.dtype) for name, value in batch.items()}
    found = multihost_utils.process_allgather((np.array(places), batch))  # [process, row of its, …]
    for process, numbers in enumerate(found[0]):
        for name, value in whole.items():
            value[numbers] = found[1][name][process]
    return whole


class Votes:
    """A number of each process, of which all hear the largest."""

    def __init__(self):
        devices = np.array(jax.devices())
        mesh = Mesh(devices, ("all",), axis_types=(AxisType.Auto,))
        self._sharding = NamedSharding(mesh, PartitionSpec("all"))
        self._size = len(devices)
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._last: jax.Array | None = None

    def cast(self, value: int, wait: bool) -> int:
        """Give this process's number; returns the largest. Without waiting for the devices, that of the call before (0
        at the first)."""
        own = np.full(1, value, np.int32)
        numbers = jax.make_array_from_callback((self._size,), self._sharding, lambda index: own)
        before, self._last = self._last, self._largest(numbers)
        before = self._last if wait else before
        return 0 if before is None else int(before)
