"""Files that are whole or not there: digests, fsync, atomic replacement."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import platform
import secrets
import sys
from collections.abc import Iterator

import xxhash

from jinstr import errors
from jinstr.parallel import processes


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


def incident(run_dir: pathlib.Path, step: int, kind: str, message: str, **facts) -> None:
    """Tell, loudly and in RUN_DIR/incidents.jsonl, of something that a run survived but that people should know of."""
    if processes.index():  # the first of several tells of what all of them find
        return
    print(f"jinstr: {kind} at step {step}: {message}", file=sys.stderr, flush=True)
    line = {"step": step, "kind": kind, "message": message} | facts
    try:
        with (pathlib.Path(run_dir) / "incidents.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError:  # a full disk is one of the things that are told of
        print("jinstr: incidents.jsonl could not be written", file=sys.stderr)


_held: dict[
    pathlib.Path, tuple[int, str]
] = {}  # run directories held by this process: inode, words


@contextlib.contextmanager
def lease(run_dir: pathlib.Path) -> Iterator[None]:
    """Hold a run directory: RUN_DIR/run.lock, locked in the kernel, so that no crash or reboot leaves it held.

    Two processes that train in one directory would delete each other's saves. Errors: RunInUseError naming the holder.
    """
    run_dir = run_dir.absolute()
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
        file.seek(0)
        if before := file.read().strip():  # left by a process that did not end by itself
            print(f"jinstr: {run_dir} was held by {before}, which is gone; taking over")
        words = f"process {os.getpid()} on {platform.node()}, {secrets.token_hex(8)}\n"
        _write_lock(file, words)
        _held[run_dir] = os.fstat(file.fileno()).st_ino, words
        try:
            yield
        finally:
            del _held[run_dir]
            with contextlib.suppress(OSError):  # a full disk must not hide how the run ended
                _write_lock(file, "")


def _write_lock(file, words: str) -> None:
    file.truncate(0)
    file.write(words)
    file.flush()


def check_lease(run_dir: pathlib.Path) -> None:
    """Is run.lock still the file that this process locked? Free where it holds none.

    Errors: RunInUseError when somebody removed or replaced it: another process may be training there now.
    """
    if run_dir not in _held:
        return
    inode, words = _held[run_dir]
    path = run_dir / "run.lock"
    try:
        same = path.stat().st_ino == inode and path.read_text("utf-8") == words
    except OSError:
        same = False
    if not same:
        raise errors.RunInUseError(
            "JI-RUN-003",
            f"{path} is no longer this process's: it was removed or replaced; nothing more is saved here",
        )
