"""Several processes of one run: how they find each other, and how one that ends takes the others with it.

Each process is started with the same command. Where the others are is told by, in this order,

    JINSTR_COORDINATOR=host:port JINSTR_PROCESSES=4 JINSTR_PROCESS=0    plain lists of machines
    srun (SLURM_…), mpirun (OMPI_…), the metadata of a TPU slice        nothing has to be set

and without any of these the process is alone. A process that ends with an error says so in the key-value store of JAX's
coordination service, where all others look twice a second, and leave too: none hangs in a collective that will never
be complete. One that dies without a word is noticed by a collective that fails (76), or by its missing heartbeats.
JAX is imported by `start` only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jinstr import errors

VARIABLES = ("JINSTR_COORDINATOR", "JINSTR_PROCESSES", "JINSTR_PROCESS")
HEARTBEAT_SECONDS = 30  # without a sign of life of a process, after which JAX ends all others
START_SECONDS = 300  # for all processes to come
LOOK_SECONDS = 0.5  # between looks at whether another process has ended
LEAVE_SECONDS = 6.0  # that a process which ends waits for the others to have noticed
PATIENCE = {75: 3.0}  # seconds to end by itself, too, where another one ended so; else a look
# Statuses that are true of the whole run: the others end with the same one. Any other is that of a lost peer to them.
SHARED = (65, 70, 71, 73, 74, 75, 78)
LOST = errors.PeerError.exit_code
_ENDED, _LEFT = "jinstr/ended", "jinstr/left/"
_PORTS = 1 << 12  # the last ones, of which a job takes one by its number


class Address(NamedTuple):
    """Where the processes of a run meet, and which of them this one is."""

    coordinator: str  # host:port of process 0
    count: int
    index: int
    device: int | None = None  # the only one of this machine that this process uses; None = all
    told_by: str = ""


_here = Address("", 1, 0)
_client: Any = None
_over = threading.Event()  # this process is about to end
_last_word: Callable[[int, str], None] = print  # told of an end that another process brings


def count() -> int:
    """Processes of this run."""
    return _here.count


def index() -> int:
    """Number of this process, from 0; the first one writes what all share."""
    return _here.index


def client() -> Any:
    """JAX's client of the coordination service; None where the process is alone."""
    return _client


def find(environment: Mapping[str, str]) -> Address | None:
    """Where the variables of an environment say that the processes of a run are; None = this one is alone.

    Errors: ConfigError for variables that are incomplete or contradict each other.
    """
    found = _by_hand(environment) or _by_slurm(environment) or _by_open_mpi(environment)
    return found if found and found.count > 1 else None


def _by_hand(environment: Mapping[str, str]) -> Address | None:
    given = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if not given:
        return None
    shown = " ".join(f"{name}={value}" for name, value in given.items())
    if missing := [name for name in VARIABLES if name not in given]:
        raise errors.ConfigError(
            "JI-PROCESS-001",
            f"{shown}, but {' and '.join(missing)} is not set; give all three in every process, or none",
        )
    coordinator, *numbers = given.values()
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:]+):\d{1,5}", coordinator):
        raise errors.ConfigError(
            "JI-PROCESS-002", f"{shown}: {coordinator!r} is not host:port, such as 10.0.0.1:8476"
        )
    if not all(number.isdecimal() for number in numbers) or not int(numbers[1]) < int(numbers[0]):
        raise errors.ConfigError(
            "JI-PROCESS-003",
            f"{shown}: JINSTR_PROCESSES is how many there are, JINSTR_PROCESS the number of this one, from 0",
        )
    return Address(coordinator, int(numbers[0]), int(numbers[1]), told_by="JINSTR_PROCESS")


def _number(environment: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that holds a number."""
    for name in names:
        if (found := re.match(r"\d+", environment.get(name, ""))) is not None:
            return int(found[0])
    return None


def _port(job: int) -> str:
    """A port that the processes of a job agree on, and other jobs of the machine probably do not take."""
    return os.environ.get("JAX_COORDINATOR_PORT") or str(65536 - _PORTS + job % _PORTS)


def _placed(
    coordinator: str, total: int, own: int, local: int, beside: int, told_by: str
) -> Address:
    """local: number of this process on its machine, of `beside`. Of several each has a device of its own."""
    if own >= total:
        raise errors.ConfigError(
            "JI-PROCESS-004",
            f"{told_by} tells of process {own} of {total}; start it by srun or mpirun itself",
        )
    return Address(coordinator, total, own, local if beside > 1 else None, told_by)


def _by_slurm(environment: Mapping[str, str]) -> Address | None:
    """A step of srun; in the batch script itself, which is one process, there is no list of the step's nodes."""
    nodes, job = environment.get("SLURM_STEP_NODELIST"), _number(environment, "SLURM_JOB_ID")
    total = _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    own, local = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID")
    if not nodes or None in (job, total, own, local) or total == 1:
        return None
    first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    coordinator = f"{first[1]}{first[2] or ''}:{_port(job)}"
    # "2(x3),1" says of each node how many tasks it has; where any has several, each task has a device of its own.
    tasks = environment.get(
        "SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "")
    )
    beside = max(map(int, re.findall(r"(?:^|,)(\d+)", tasks)), default=total)
    return _placed(coordinator, total, own, local, beside, "srun")


def _by_open_mpi(environment: Mapping[str, str]) -> Address | None:
    """mpirun of Open MPI 4: process 0 is on the machine where mpirun runs."""
    total, own, local, beside = (
        _number(environment, f"OMPI_COMM_WORLD_{name}")
        for name in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")
    )
    if None in (total, own) or total == 1:
        return None
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    host = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    job = _number(environment, "OMPI_MCA_orte_hnp_uri")
    if host is None or job is None:
        raise errors.ConfigError(
            "JI-PROCESS-005",
            f"mpirun started {total} processes but does not tell where it runs; set {VARIABLES[0]}=host:port of "
            f"process 0, {VARIABLES[1]} and {VARIABLES[2]}",
        )
    name = host[1] or f"[{host[2]}]"
    return _placed(f"{name}:{_port(job // _PORTS)}", total, own, local or 0, beside or 1, "mpirun")


def _has_tpu() -> bool:
    import jax
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm and "tpu" in (jax.config.jax_platforms or "")


def _by_tpu() -> Address | None:
    """The hosts of a TPU slice, as their metadata tell; asked only where this machine has a TPU that is to be used."""
    if not _has_tpu():
        return None
    from jax._src.clusters import cloud_tpu_cluster

    for cluster in (cloud_tpu_cluster.GkeTpuCluster, cloud_tpu_cluster.GceTpuCluster):
        if not cluster.is_env_present():
            continue
        if (total := cluster.get_process_count()) == 1:
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        coordinator = cluster.get_coordinator_address(START_SECONDS, port)
        return Address(coordinator, total, cluster.get_process_id(), told_by=cluster.name)
    return None


def start(last_word: Callable[[int, str], None]) -> None:
    """Meet the other processes, where there are any. To be called before JAX starts a backend, and before handlers of
    signals are set: JAX sets some of its own.

    last_word(status, words) is called before this process ends because of another one. Errors: ConfigError of `find`;
    PeerError where the others do not come.
    """
    global _here, _client, _last_word
    address = find(os.environ) or _by_tpu()
    if address is None or _client is not None:
        return
    import jax
    from jax._src import distributed

    try:
        jax.distributed.initialize(
            address.coordinator,
            address.count,
            address.index,
            None if address.device is None else [address.device],
            cluster_detection_method="deactivate",
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise errors.PeerError(
            "JI-PEER-003",
            f"process {address.index} of {address.count} (told by {address.told_by}) did not meet the others at "
            f"{address.coordinator}: {' '.join(str(error).split())[:300]}",
        ) from None
    _here, _client, _last_word = address, distributed.global_state.client, last_word
    print(
        f"jinstr: process {address.index} of {address.count}, met at {address.coordinator}",
        flush=True,
    )
    if address.index:
        # What all of them do alike, the first one tells.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for good)
    threading.Thread(target=_listen, name="processes", daemon=True).start()


def _ended() -> dict | None:
    """What the first process that ended with an error said."""
    with contextlib.suppress(Exception):  # nobody has ended, or there is no service any more
        return json.loads(_client.key_value_try_get(_ENDED))
    return None


def _listen() -> None:
    while not _over.wait(LOOK_SECONDS):
        if told := _ended():
            break
    else:
        return
    if _over.wait(PATIENCE.get(told["status"], LOOK_SECONDS)):
        return  # it ends by itself
    status = _own_status(told)
    words = f"JI-PEER-002: process {told['index']} of {count()} ended with {told['status']}; its log says why"
    os.write(2, f"\njinstr: {words}\n".encode())
    _last_word(status, words)
    _go(status)


def _own_status(told: dict) -> int:
    """The exit status of a process that ends because another one did."""
    return told["status"] if told["status"] in SHARED else LOST


def _go(status: int) -> None:
    """os._exit, when the others have noticed."""

    def tell() -> None:
        with contextlib.suppress(Exception):
            _client.key_value_set(f"{_LEFT}{index()}", "")
            limit = time.monotonic() + LEAVE_SECONDS
            # The first one holds the service that the others ask.
            while time.monotonic() < limit and len(_client.key_value_dir_get(_LEFT)) < count():
                time.sleep(0.05)
            time.sleep(0.2 * (index() == 0))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(LEAVE_SECONDS + 1.0)  # a service that is gone may not answer
    os._exit(status)


def leave(status: int) -> None:
    """End this process of several with an error, and so the others. Does not return; does nothing where it is alone."""
    if _client is None:
        return
    _over.set()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

    told: dict = {}

    def tell() -> None:
        own = {"index": index(), "status": status}
        with contextlib.suppress(Exception):  # another one was first
            _client.key_value_set(_ENDED, json.dumps(own))
        told.update(_ended() or own)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(1.0)
    # A collective that failed may be another's end, which knows more.
    _go(_own_status(told) if told and status == LOST and told["index"] != index() else status)


def finish() -> None:
    """Wait until every process is done, and let go of the others. For the end of a run without an error."""
    global _client
    if _client is None:
        return
    import jax

    _client.wait_at_barrier("jinstr/done", 24 * 3600 * 1000)
    _over.set()
    jax.distributed.shutdown()
    _client = None
