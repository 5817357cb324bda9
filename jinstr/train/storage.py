"""Files that are whole or not there: digests, fsync, atomic replacement."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import platform
from collections.abc import Iterator

import xxhash

from jinstr import errors


def digest(path: pathlib.Path) -> str:
    """xxh3-128 of a file's bytes, hex; reads 4 MiB at a time."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(4 * 2**20):
            state.update(block)
    return state.hexdigest()


def sync(path: pathlib.Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: pathlib.Path, value) -> None:
    """Write JSON aside, fsync, rename into place, fsync the folder: readers see the old file or the whole new one."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


@contextlib.contextmanager
def lease(run_dir: pathlib.Path) -> Iterator[None]:
    """Hold a run directory: RUN_DIR/run.lock, locked in the kernel, so that no crash leaves it held.

    Two processes that train in one directory would delete each other's saves. Errors: RunInUseError naming the holder.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / "run.lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise errors.StorageError("JI-RUN-001", f"cannot write to {run_dir}: {error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise errors.RunInUseError(
                "JI-RUN-002",
                f"{run_dir} is in use by {file.read().strip() or 'another process'}; "
                "wait for it, stop it, or choose another RUN_DIR",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
