"""What the machine refuses, as errors that a user can act on: memory, file handles, room on disk."""

from __future__ import annotations

import errno
import os
import resource
import sys

from jinstr import errors

_HANDLES = (errno.EMFILE, errno.ENFILE)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of what a collective or the coordination service says when a process is gone.
_LOST = (
    "Gloo",
    "gloo",
    "NCCL",
    "coordination service",
    "CoordinationService",
    "Connection closed by peer",
    "Connection reset by peer",
    "Socket closed",
    "heartbeat",
)
_UNWRITABLE = (errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM)


def peak_gib() -> float:
    """The most memory that this process has held, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)


def _is(error: BaseException, code: int) -> bool:
    """Is it the system's error of this number, or one that quotes its words?"""
    return getattr(error, "errno", 0) == code or os.strerror(code) in str(error)


def of_peer(error: BaseException) -> errors.PeerError | None:
    """The error as that of a lost process, or None where it is something else. For a run of several processes."""
    text = " ".join(str(error).split())
    # Of a server of rewards or of models, the system tells.
    if isinstance(error, OSError) or not any(sign in text for sign in _LOST):
        return None
    return errors.PeerError(
        "JI-PEER-004",
        "another process of this run is gone, or cannot be reached; the same command, started again in all of them, "
        f"goes on from the newest checkpoint: {text[:200]}",
    )


def of_machine(error: BaseException) -> errors.JinstrError | None:
    """The error as one of ours, or None where it is something else (a defect, which keeps its traceback).

    JAX is not imported for this: its out-of-memory error is known by the status that it names.
    """
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    # TensorStore tells of file handles under the same status as of memory, with the words of the system.
    if any(_is(error, code) for code in _HANDLES):
        return errors.MachineError(
            "JI-MACHINE-002",
            f"{where}no file handles are left; raise the limit of this shell: ulimit -n 4096",
        )
    # So it does of a full disk.
    if full := [code for code in _FULL if _is(error, code)]:
        return errors.StorageError(
            "JI-STORAGE-001",
            f"{where}{os.strerror(full[0])}; make room, then start the same command",
        )
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return errors.MachineError(
            "JI-MACHINE-001",
            f"out of memory (peak of this process {peak_gib():.1f} GiB): lower BATCH_TOKENS or raise MICROBATCHES, or "
            "REMAT=full; what does not fit: " + str(error).partition("\n")[0][:200],
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in _UNWRITABLE:
        return errors.StorageError(
            "JI-STORAGE-002", f"{where}{error.strerror}; look at the disk or mount"
        )
    return None
