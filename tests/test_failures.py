"""What the machine refuses, told with its way out; defects are left alone."""

import errno
import os

import pytest

from jinstr import errors, failures


@pytest.mark.parametrize(
    "error, kind, words",
    [
        (MemoryError(), errors.MachineError, "out of memory .peak of this process"),
        (RuntimeError("RESOURCE_EXHAUSTED: 8 bytes"), errors.MachineError, "lower BATCH_TOKENS"),
        (OSError(errno.EMFILE, "x", "a.txt"), errors.MachineError, "a.txt: .*ulimit -n"),
        (
            ValueError("RESOURCE_EXHAUSTED: Error opening: Too many open files"),
            errors.MachineError,
            "ulimit -n",
        ),
        (
            ValueError("RESOURCE_EXHAUSTED: Error writing d/1: No space left on device"),
            errors.StorageError,
            "make room",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "m"), errors.StorageError, "make room"),
        (OSError(errno.EROFS, "Read-only file system", "m"), errors.StorageError, "m: Read-only"),
    ],
)
def test_what_is_known(error, kind, words):
    found = failures.of_machine(error)
    assert type(found) is kind
    with pytest.raises(kind, match=words):
        raise found


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("y"), FileNotFoundError(2, "no", "f")])
def test_defects_keep_their_traceback(error):
    assert failures.of_machine(error) is None


def test_a_lost_process_is_told_from_other_errors():
    gone = "INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:3124"
    found = failures.of_peer(ValueError(gone))
    assert found.exit_code == 76 and "JI-PEER-004" in str(found) and "all-reduce" in str(found)
    assert failures.of_peer(ValueError("a shape is wrong")) is None
    # A server of rewards that closes a connection is no process of the run.
    assert failures.of_peer(ConnectionResetError(104, "Connection reset by peer")) is None
