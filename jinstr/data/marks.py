"""Which examples a process that encodes is at, in files, so that when it is killed people still learn of them."""

from __future__ import annotations

import os
import pathlib
import signal
import threading
import time
from collections.abc import Collection

from jinstr import errors

_PLACES = 256  # bytes of an id that are kept
_FILE = "at-{pid}-{thread}"


class Mark:
    """The mark of this thread, in a folder."""

    def __init__(self, folder: pathlib.Path):
        folder.mkdir(exist_ok=True)
        path = folder / _FILE.format(pid=os.getpid(), thread=threading.get_native_id())
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def at(self, id: str) -> None:
        """This thread is at an example; "" = at none. One write within one page, so it is seen as a whole."""
        os.pwrite(self._file, id.encode("utf-8", "replace")[:_PLACES].ljust(_PLACES), 0)

    def __del__(self):
        os.close(self._file)


def left(folder: pathlib.Path, pids: Collection[int] = ()) -> list[str]:
    """The examples that processes (those of `pids`, if any are given) were at."""
    paths = [path for pid in pids or "*" for path in folder.glob(_FILE.format(pid=pid, thread="*"))]
    ids = [path.read_bytes().decode("utf-8", "replace").strip() for path in sorted(paths)]
    return [id for id in ids if id]


def killed(source: str, status: int, ids: Collection[str]) -> errors.DataError:
    """The error of a source whose encoding process ended by itself. status: as multiprocessing gives it."""
    how = f"ended with status {status}"
    if status < 0:
        how = f"was killed by signal {-status} ({signal.Signals(-status).name})"
    memory = "; where memory ran out, take fewer WORKERS" if status == -signal.SIGKILL else ""
    places = f"at example {' or '.join(ids)}" if ids else "between two examples"
    return errors.DataError(
        "JI-PREPARE-013",
        f"{source}: a process that prepares it {how} {places}; nothing of the set is kept, so run the command again"
        f"{memory}",
    )


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends, however that came: nobody else would.

    A process that waits for work, or for its own children, would do so for ever. parent: its process id.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
