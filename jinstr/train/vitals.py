"""What each process of a run tells of itself, and how it ended: RUN_DIR/processes/<rank>.json and <rank>.stacks.

A thread writes the first file every BEAT seconds and in each new phase, aside and renamed, so that `jinstr doctor
RUN_DIR` can say from anywhere what a run does, which of its processes is gone or stands still, and how it ended. The
second file takes the stacks of all threads: those that the watchdog sees at its end, and those that somebody asks for
with SIGUSR1.
Nothing here may fail a run: what cannot be written is not. No JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import math
import os
import pathlib
import platform
import signal
import threading
import time
from collections.abc import Iterator

from jinstr import errors, failures, redact

FOLDER = "processes"
BEAT = 10.0  # seconds between two signs of life
SPACE = 1.0  # seconds between them at least, where another phase is told of at once
PATIENCE = 2.0  # seconds that the end of a process waits for its last word to be written
STACKS_SIGNAL = signal.SIGUSR1
FORMAT = 1


def began(pid: int | str = "self") -> int:
    """When a process began, in the kernel's ticks since the start of the machine; 0 where that cannot be known.

    Numbers of processes are used again; this tells whether it is still the same one.
    """
    try:
        # The name, in parentheses, may hold spaces and parentheses itself.
        words = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2]
        return int(words.split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def machine() -> dict[str, str]:
    """What tells whether a number of a process means the same here as there."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = ""
    return {"host": platform.node(), "boot": boot, "namespace": namespace}


@dataclasses.dataclass
class _Told:
    """The process of this run, as its file says."""

    path: pathlib.Path
    facts: dict
    phase: str = "start"
    step: int = 0
    allowed: float = math.inf  # seconds that may pass without progress
    since: float = dataclasses.field(default_factory=time.monotonic)
    ended: dict | None = None
    stacks: object = None  # the open file
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    wake: threading.Event = dataclasses.field(default_factory=threading.Event)  # another phase

    def write(self) -> None:
        """One sign of life. A disk that hangs holds up the thread that began to write, and nobody else."""
        if not self.lock.acquire(timeout=PATIENCE):
            return
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            stack.callback(self.lock.release)
            facts = self.facts | {
                "beat": time.time(),
                "phase": self.phase,
                "step": self.step,
                "waited": round(time.monotonic() - self.since, 1),
                "allowed": None if math.isinf(self.allowed) else self.allowed,
                "peak_gib": round(failures.peak_gib(), 2),
                "ended": self.ended,
            }
            aside = self.path.with_name(f".{self.path.name}.tmp")
            aside.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", "utf-8")
            os.replace(aside, self.path)


_told: _Told | None = None


def at(phase: str, step: int | None, allowed: float) -> None:
    """Progress. step: updates done, None = as before. allowed: seconds until the next sign of progress is due."""
    if _told:
        if phase != _told.phase:
            _told.wake.set()
        _told.phase, _told.allowed, _told.since = phase, allowed, time.monotonic()
        _told.step = _told.step if step is None else step


def ended(status: int, words: str = "", stacks: bool = False) -> None:
    """The last word of a process that ends by os._exit. stacks: of all threads, too."""
    if not (told := _told):
        return

    def tell() -> None:
        if stacks and told.stacks:
            with contextlib.suppress(OSError, ValueError):
                print(f"\n{words}", file=told.stacks, flush=True)
                faulthandler.dump_traceback(file=told.stacks, all_threads=True)
        told.ended = {"exit": status, "error": redact.text(words), "at": time.time()}
        told.write()

    thread = threading.Thread(target=tell, name="last word", daemon=True)
    thread.start()
    thread.join(PATIENCE)


def _how(error: BaseException | None) -> tuple[int, str]:
    """(exit status, words) of a process that ends with an error, as run.py gives them."""
    if error is None:
        return 0, ""
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    known = error if isinstance(error, errors.JinstrError) else failures.of_machine(error)
    if known:
        return known.exit_code, " ".join(str(known).split())
    return 1, " ".join(f"{type(error).__name__}: {error}".split())[:2000]


def _open_stacks(path: pathlib.Path):
    """The file that takes stacks, and SIGUSR1 that asks for them; None where that cannot be."""
    if threading.current_thread() is not threading.main_thread():
        return None
    if signal.getsignal(STACKS_SIGNAL) != signal.SIG_DFL:  # somebody else's
        return None
    try:
        file = path.open("w", encoding="utf-8")
    except OSError:
        return None
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)
    return file


@contextlib.contextmanager
def telling(run_dir: pathlib.Path, rank: int, command: str) -> Iterator[None]:
    """Within, this process of a run gives signs of life; at the end it says how it ended."""
    global _told
    path = pathlib.Path(run_dir) / FOLDER / f"{rank}.json"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    stacks = _open_stacks(path.with_suffix(".stacks"))
    facts = {"format": FORMAT, "rank": rank, "command": command, "pid": os.getpid()}
    facts |= machine() | {"began": began(), "started": time.time(), "beat_seconds": BEAT}
    told = _told = _Told(path=path, facts=facts | {"stacks": bool(stacks)}, stacks=stacks)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(SPACE):
            told.wake.wait(BEAT - SPACE)
            told.wake.clear()
            if not over.is_set():
                told.write()

    told.write()
    thread = threading.Thread(target=beat, name="vitals", daemon=True)
    thread.start()
    error: BaseException | None = None
    try:
        yield
    except BaseException as caught:
        error = caught
        raise
    finally:
        _told = None
        over.set()
        told.wake.set()
        thread.join(PATIENCE)  # its last sign of life is written before the last word
        status, words = _how(error)
        told.ended = {"exit": status, "error": redact.text(words), "at": time.time()}
        told.write()
        if stacks:
            faulthandler.unregister(STACKS_SIGNAL)
            stacks.close()
