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
