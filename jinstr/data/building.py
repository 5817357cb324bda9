"""Folders in which prepared sets are built: beside their place, locked while somebody builds there, moved when whole.

A build that is killed leaves its folder behind. The lock ends with the last process that holds it, so a folder whose
lock is free is left over, and the next build in the same cache removes it. Locks of other machines in a shared folder
may not be seen here, so theirs are left alone for a day.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator

from jinstr.data import prepared

WORK = "work"  # in a folder that is being built: what is not part of the set
LOCK = "lock"
FORGOTTEN = 24 * 3600  # seconds after which a folder whose lock says nothing is taken for left over


def _is_left_over(folder: pathlib.Path) -> bool:
    """Does nobody build in a folder any more?"""
    try:
        with open(folder / WORK / LOCK) as file:
            if file.read() not in ("", platform.node()):
                return _is_forgotten(folder)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except FileNotFoundError:
        return _is_forgotten(folder)  # between two moments of a build that goes on
    except OSError:
        return False  # held, or a file system without locks


def _is_forgotten(folder: pathlib.Path) -> bool:
    """Has nothing been written in a folder for a day?"""
    with contextlib.suppress(OSError):
        return time.time() - max(p.stat().st_mtime for p in (folder, *folder.iterdir())) > FORGOTTEN
    return False


def remove_left_over(cache_dir: pathlib.Path) -> list[pathlib.Path]:
    """Remove the folders of builds that were killed; returns them."""
    found = [path for path in cache_dir.glob(".*-*") if path.is_dir() and _is_left_over(path)]
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return found


@contextlib.contextmanager
def folder_for(place: pathlib.Path) -> Iterator[tuple[pathlib.Path, int]]:
    """(folder to build the set of `place` in, descriptor that holds its lock, for child processes to inherit)."""
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    work = aside / WORK
    work.mkdir()
    # Locked before it has its name: nobody finds it unlocked.
    lock = os.open(work / "new", os.O_RDWR | os.O_CREAT)
    try:
        os.write(lock, platform.node().encode())
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(work / "new", work / LOCK)
        yield aside, lock
    finally:
        os.close(lock)
        shutil.rmtree(aside, ignore_errors=True)


def put(aside: pathlib.Path, place: pathlib.Path) -> None:
    """Move a finished set to its place; where another process made the same set meanwhile, that one stays."""
    shutil.rmtree(aside / WORK)
    if place.exists() and not prepared.is_prepared(place):
        remove(place)  # what is left of a set whose manifest was lost
    try:
        os.rename(aside, place)
    except OSError:
        if not prepared.is_prepared(place):
            raise


def remove(place: pathlib.Path) -> None:
    """Remove a set, first from its place: a reader sees a whole set or none."""
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    with contextlib.suppress(FileNotFoundError):
        os.rename(place, aside / place.name)
    shutil.rmtree(aside, ignore_errors=True)
