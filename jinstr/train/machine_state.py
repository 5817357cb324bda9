"""What a machine offers a run: versions, devices, memory, room, the variables that change runs. No JAX in this process.

JAX and TensorFlow are asked in child processes, with a time limit: a device that hangs, or a library that ends the
process, becomes a finding. A finding is one line of what is wrong and the way out.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import subprocess
import sys

from jinstr import redact

PATIENCE = 120.0  # seconds that JAX or TensorFlow may take to answer
NEEDED_FILES = 4096  # file handles
NEEDED_GB = 10.0  # room for a cache
LIBRARIES = (
    "jinstr", "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "flax", "optax",
    "orbax-checkpoint", "grain", "array-record", "tensorstore", "numpy", "sentencepiece", "tokenizers", "gin-config",
    "protobuf", "tensorflow", "seqio", "tensorflow-datasets", "apache-beam", "wandb",
)  # fmt: skip
# Variables that change what a run computes, on what, or how fast.
_VARIABLE = re.compile(
    r"(JAX|XLA|LIBTPU|TPU|PJRT|JINSTR|NCCL|CUDA|NVIDIA|TF_(CPP|XLA|FORCE|GPU)|OMP|OPENBLAS|MKL|MALLOC|SLURM|PBS|HF|WANDB|MPLBACKEND)(_.*)?"
    r"|XLA|LD_PRELOAD|LD_LIBRARY_PATH|NPROC|TMPDIR|PYTHONPATH|PYTHONHASHSEED"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH")  # more than redact.py, by name alone
_JAX = """
import json, os
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
import jax
found = []
for device in jax.local_devices():
    memory = {}
    try:
        memory = device.memory_stats() or {}
    except Exception:
        pass
    found.append({"platform": device.platform, "kind": device.device_kind, "bytes": memory.get("bytes_limit", 0)})
import jax.numpy as jnp
value = float(jnp.ones((256, 256)).sum())
print("ANSWER" + json.dumps({"devices": found, "sum": value}))
"""
_TENSORFLOW = """
import json
import tensorflow, seqio
print("ANSWER" + json.dumps({"tensorflow": tensorflow.__version__}))
"""


def versions() -> dict[str, str]:
    """Name → version of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _ask(code: str, patience: float) -> tuple[dict, str]:
    """(what a child process answers, "") or ({}, why it did not, in its own words)."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {patience:.0f} s"
    for line in done.stdout.splitlines():
        if line.startswith("ANSWER"):
            return json.loads(line.removeprefix("ANSWER")), ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b|F\d{4} |\w*: ", line)]
    words = (told or lines or [f"status {done.returncode}"])[-1]
    return {}, redact.text(words)[:400]


def jax_devices(patience: float = PATIENCE) -> tuple[list[dict], str]:
    """([{"platform", "kind", "bytes"} of each device that JAX sees], "") or ([], why it sees none)."""
    answer, problem = _ask(_JAX, patience)
    return answer.get("devices", []), problem


def tensorflow(patience: float = PATIENCE) -> str:
    """ "" where TensorFlow and seqio can be imported, else why not."""
    return _ask(_TENSORFLOW, patience)[1]


def nvidia() -> tuple[list[str], str]:
    """(GPUs that nvidia-smi names, what it says when it fails)."""
    program = shutil.which("nvidia-smi")
    if not program:
        return [], ""
    query = "--query-gpu=name,driver_version,memory.total,memory.used"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    if done.returncode:
        return [], f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())[:300]}"
    return [line.strip() for line in done.stdout.splitlines() if line.strip()], ""


def tpu_chips() -> int:
    """TPU chips that the kernel shows, without touching them."""
    accel = list(pathlib.Path("/dev").glob("accel[0-9]*"))
    if accel:
        return len(accel)
    # Newer TPU machines hand their chips over by vfio, as others may do with other devices: those name Google.
    vendors = pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    return sum(
        _read(path) == "0x1ae0"
        for path in vendors
        if list(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    )


def _read(path: pathlib.Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", "replace").strip()
    return ""


def memory() -> dict[str, float]:
    """GiB of memory: "total" of the machine, "free" (what programs may still take), "limit" of the container if any."""
    found = {}
    for line in _read(pathlib.Path("/proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found["total" if name == "MemTotal" else "free"] = int(value.split()[0]) / 2**20
    for place in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _read(pathlib.Path("/sys/fs/cgroup") / place)
        if limit.isdigit() and int(limit) / 2**30 < found.get("total", 0.0):
            found["limit"] = int(limit) / 2**30
    return found


def room(places: dict[str, pathlib.Path]) -> dict[str, tuple[str, float]]:
    """Name → (folder, free GB) of places, at the nearest folder above that is there."""
    found = {}
    for name, place in places.items():
        place = place.expanduser().absolute()
        there = next(path for path in (place, *place.parents) if path.exists())
        found[name] = str(place), shutil.disk_usage(there).free / 1e9
    return found


def variables() -> dict[str, str]:
    """The environment variables that change runs, without secrets."""
    found = {}
    for name, value in sorted(os.environ.items()):
        if _VARIABLE.fullmatch(name):
            shown = redact.text(f"{name}={value}").partition("=")[2]
            found[name] = redact.MARK if _SECRET.search(name) else shown
    return found


def about_devices(devices: list[dict], problem: str, libraries: dict[str, str]) -> list[str]:
    """Findings on what JAX sees, against what the machine has."""
    findings = []
    jax = libraries.get("jax", "")
    gpus, smi = nvidia()
    chips = tpu_chips()
    asked = os.environ.get("JAX_PLATFORMS", "")
    kinds = {device["platform"] for device in devices}
    if smi:
        findings.append(
            f"{smi}; the driver does not answer: look at dmesg, or start the machine again"
        )
    if problem:
        holds = " (another process may hold the device, and only one can)" if chips or gpus else ""
        flags = "; XLA_FLAGS and LIBTPU_INIT_ARGS are set: try without" * bool(
            os.environ.get("XLA_FLAGS") or os.environ.get("LIBTPU_INIT_ARGS")
        )
        findings.append(f"JAX does not start: {problem}{holds}{flags}")
    for name, seen, there, extra, plugin in (
        ("GPU", kinds & {"gpu", "cuda"}, gpus, "cuda12", "jax-cuda"),
        ("TPU", kinds & {"tpu"}, chips, "tpu", "libtpu"),
    ):
        if not there or seen or problem:
            continue
        what = f"this machine has {len(gpus) if name == 'GPU' else chips} {name}, but JAX sees only the CPU"
        installed = [library for library in libraries if library.startswith(plugin)]
        if "cpu" in asked.split(","):
            findings.append(f"{what}: JAX_PLATFORMS={asked}; unset it")
        elif not installed:
            findings.append(f'{what}: pip install "jax[{extra}]=={jax}"')
        else:
            findings.append(
                f"{what}, although {', '.join(installed)} is installed: a driver that is too old, or CUDA libraries "
                "of LD_LIBRARY_PATH in place of the installed ones; `JAX_PLATFORMS="
                + ("cuda" if name == "GPU" else "tpu")
                + ' python -c "import jax; jax.devices()"` says why'
            )
    return findings


def about_libraries(libraries: dict[str, str]) -> list[str]:
    """Findings on versions that do not fit together."""
    findings = []
    jax = libraries.get("jax", "")
    if "jaxlib" in libraries and libraries["jaxlib"] != jax:
        findings.append(f"jax {jax} with jaxlib {libraries['jaxlib']}: pip install jaxlib=={jax}")
    for name in libraries:
        if name.startswith("jax-cuda") and libraries[name] != libraries.get("jaxlib"):
            findings.append(
                f"{name} {libraries[name]} with jaxlib {libraries.get('jaxlib')}: pip install "
                f'"jax[cuda{name[8:10]}]=={jax}"'
            )
    return findings


def about_variables() -> list[str]:
    """Findings on variables that change runs in ways that people forget."""
    findings = []
    flags = os.environ.get("XLA_FLAGS", "")
    if found := re.search(r"xla_force_host_platform_device_count=(\d+)", flags):
        findings.append(
            f"XLA_FLAGS splits the CPU into {found[1]} devices, which is for tests; unset it for real runs"
        )
    for name, value, what in (
        (
            "JINSTR_DEBUG",
            "1",
            "nothing is compiled and every operation is checked, which is very slow",
        ),
        ("JAX_DISABLE_JIT", "1", "nothing is compiled, which is very slow"),
        ("JAX_DEBUG_NANS", "1", "every operation is checked, which is slow"),
        ("JAX_ENABLE_X64", "1", "numbers have 64 bits: other results, twice the memory"),
    ):
        if os.environ.get(name, "").lower() in (value, "true"):
            findings.append(f"{name} is set: {what}; unset it")
    if os.environ.get("JINSTR_FAULTS"):
        findings.append("JINSTR_FAULTS is set: with --allow_faults runs fail on purpose; unset it")
    return findings


def about_limits(space: dict[str, tuple[str, float]], free: dict[str, float]) -> list[str]:
    """Findings on room, memory and file handles."""
    findings = []
    handles, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= handles < NEEDED_FILES and handles != resource.RLIM_INFINITY:
        words = f"ulimit -n {NEEDED_FILES}"
        if 0 <= most < NEEDED_FILES:
            words += " (as root, or in /etc/security/limits.conf)"
        findings.append(
            f"a process may open {handles} files; checkpoints of large models open more: {words}"
        )
    for name, (place, gigabytes) in space.items():
        if gigabytes < NEEDED_GB:
            findings.append(
                f"{name} {place} has {gigabytes:.1f} GB left; make room, or choose another place ({_SETTING[name]})"
            )
    if free.get("free", 99.0) < 1.0:
        findings.append(f"{free['free']:.1f} GiB of memory are free; end what else runs here")
    return findings


_SETTING = {
    "prepared sets": "CACHE_DIR",
    "compiled programs": "JAX_COMPILATION_CACHE_DIR",
    "temporary files": "TMPDIR",
    "this folder": "RUN_DIR",
}


def places() -> dict[str, pathlib.Path]:
    """Folders that fill up."""
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/jinstr/compiled")
    return {
        "prepared sets": pathlib.Path("~/.cache/jinstr/prepared"),
        "compiled programs": pathlib.Path(compiled),
        "temporary files": pathlib.Path(os.environ.get("TMPDIR", "/tmp")),
        "this folder": pathlib.Path(),
    }
