"""Signals ask a run to save and end; a second one ends it at once.

Schedulers send SIGTERM some time before they kill; a person presses Ctrl-C; a lost terminal sends SIGHUP. mpirun kills
its processes when it gets one of these but hands SIGUSR2 on, which launch/pbs.sh therefore sends. What happens depends
on the phase that the run is in:

    start     nothing is trained yet: the run ends where it stands (PreemptedError)
    compile   as start, but Python cannot run while XLA compiles, so a thread ends the process (75)
    step      the loop looks after every step, where arrays are whole: it saves, then ends with 75
    save      the save is finished, then as after a step
    evaluate  the evaluation is left (`check`), the step saved; the run that goes on makes the evaluation up

Of several processes each may get the signal, or one of them: they hear of it from each other (`Signals.asked`), so that
all save the same step. One that gets it before the first step takes the others with it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from jinstr import errors
from jinstr.parallel import processes
from jinstr.train import storage

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
_PATIENCE = 0.5  # seconds that the main thread has to notice a signal before a compilation is cut


class Asked(Exception):
    """Raised by `check` in the middle of an evaluation that a signal asked to leave."""


class Signals:
    """While entered, `name` is the signal that asked to stop, or "" while none has. One at a time in a process."""

    def __init__(self):
        self.name = ""
        self.phase = "start"
        self._before: dict[int, object] = {}
        self._votes: Any = None

    def __enter__(self) -> Signals:
        global _current
        _current = self
        for number in SIGNALS:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:  # nohup
                continue
            self._before[number] = signal.signal(number, self._ask)
        # The C handler writes the number here at once, also while the main thread is inside XLA.
        self._reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._writer = writer
        self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        global _current
        _current = None
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._writer.close()  # ends the thread

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A stretch of the run in another phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def _listen(self) -> None:
        """In a thread of its own: what cannot wait until the main thread runs Python again."""
        asked = False
        with self._reader:
            while True:
                try:
                    data = self._reader.recv(1)
                except TimeoutError:  # a signal came before, and the main thread has had its time
                    self._cut()
                    continue
                if not data:
                    return
                if data[0] not in self._before:
                    continue
                if asked:
                    _end()
                asked = True
                # Also for a compilation that begins only after the signal.
                self._reader.settimeout(_PATIENCE)

    def _cut(self) -> None:
        if self.phase == "compile":
            _tell("ended while compiling; no step was trained since the start, so nothing is lost")
            _end()

    def asked(self, wait: bool = False) -> str:
        """The signal that asked to stop, or "".

        Of several processes, one that any of them got: they call this alike, and hear the same. wait: for the devices,
        to hear of it at once and not one call later."""
        if processes.count() == 1:
            return self.name
        if self._votes is None:
            from jinstr.parallel import (
                together,  # not above: run.py imports this module without JAX
            )

            self._votes = together.Votes()
        own = signal.Signals[self.name] if self.name else 0
        if (heard := self._votes.cast(own, wait)) and not self.name:
            self.name = signal.Signals(heard).name
            _tell(f"{self.name} to another process: saving and ending")
        return self.name if heard else ""

    def _ask(self, number: int, frame) -> None:
        name = signal.Signals(number).name
        if self.phase == "start":
            raise errors.PreemptedError(
                "JI-LOOP-005", f"{name} before the first step: nothing was trained, nothing is lost"
            )
        if not self.name:
            self.name = name
            _tell(f"{name}: saving and ending; once more ends at once")


_current: Signals | None = None


def _end() -> None:
    """End at once, with the other processes of the run."""
    processes.leave(errors.PreemptedError.exit_code)
    os._exit(errors.PreemptedError.exit_code)


def _tell(text: str) -> None:
    # Not print: a handler may stand in the middle of another print.
    os.write(2, f"\njinstr: {text}\n".encode())


def current() -> Signals:
    """The signals of the run in this process. Outside a run: ones that never ask."""
    return _current or Signals()


def check() -> None:
    """A place in an evaluation where it may be left. Errors: Asked when a signal came."""
    if _current and _current.phase == "evaluate" and _current.asked():
        raise Asked


@contextlib.contextmanager
def running(run_dir: pathlib.Path, writes: bool) -> Iterator[None]:
    """A training run in this process: signals are heard, and the process that writes holds the directory.

    Errors: RunInUseError, StorageError of storage.lease.
    """
    with contextlib.ExitStack() as stack:
        if writes:
            stack.enter_context(storage.lease(run_dir))
        stack.enter_context(Signals())
        yield
