"""Where the processes of a run meet. In this order it is told by

    JINSTR_COORDINATOR=host:port JINSTR_PROCESSES=4 JINSTR_PROCESS=0        plain lists of machines
    srun (SLURM_…), mpirun of Open MPI (OMPI_…), metadata of a TPU slice    nothing has to be set

and without any of these a process is alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from jinstr import errors

VARIABLES = ("JINSTR_COORDINATOR", "JINSTR_PROCESSES", "JINSTR_PROCESS")
START_SECONDS = 300  # for all processes to come
_PORTS = 1 << 12  # the last ones, of which a job takes one by its number


class Address(NamedTuple):
    """Where the processes of a run meet, and which of them this one is."""

    coordinator: str  # host:port of process 0
    count: int
    index: int
    device: int | None = None  # the only one of this machine that this process uses; None = all
    told_by: str = ""


def find(environment: Mapping[str, str]) -> Address | None:
    """Where the variables of an environment say that the processes of a run are; None = this one is alone.

    Errors: ConfigError for variables that are incomplete or contradict each other.
    """
    found = _by_hand(environment) or _by_slurm(environment) or _by_open_mpi(environment)
    if found and found.index >= found.count:
        raise errors.ConfigError(
            "JI-PROCESS-004",
            f"{found.told_by} tells of process {found.index} of {found.count}; start it by srun or mpirun itself",
        )
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


def _device(environment: Mapping[str, str], local: int, beside: int) -> int | None:
    """The device of a process that is the `local`-th of `beside` ones on its machine; None = all that it sees."""
    seen = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    # Each may see its own one alone already (srun --gpus-per-task).
    return local if beside > 1 and not (seen[0] and len(seen) < beside) else None


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
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    beside = max(map(int, re.findall(r"(?:^|,)(\d+)", tasks)), default=total)
    device = _device(environment, local, beside)
    return Address(coordinator, total, own, device, "srun")


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
    device = _device(environment, local or 0, beside or 1)
    return Address(f"{name}:{_port(job // _PORTS)}", total, own, device, "mpirun")


def _has_tpu() -> bool:
    import jax
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm and "tpu" in (jax.config.jax_platforms or "")


def of_tpu() -> Address | None:
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
