"""A run that makes no progress ends itself: it prints where every thread stands and exits with 124.

A collective whose peer is stuck, a hung file system or a deadlock otherwise holds machines until somebody looks.
"""

from __future__ import annotations

import faulthandler
import math
import os
import statistics
import sys
import threading
import time

from jinstr.parallel import processes
from jinstr.train import debug, vitals

EXIT_CODE = 124
COMPILE_SECONDS = 1800.0
SAVE_SECONDS = 900.0
EVALUATE_SECONDS = 1800.0  # between two of its batches or answers
STEP_SECONDS = 120.0  # at least; a step may take ten times the median
FACTOR = 10
# More for a process that waits for the devices: the one that holds up all of them ends first, and its stacks say why.
PEER_SECONDS = 20.0
_WINDOW = 32  # steps that the median is taken of


class Watchdog:
    """Progress is `beat(phase)`, which also says what is being waited for from now on.

    limit: seconds allowed in any phase; 0 = by the phase. Time is monotonic, so a clock that jumps changes nothing.
    """

    def __init__(self, limit: float = 0.0):
        self._limit = limit
        self._seconds: list[float] = []
        self._phase, self._since = "start", time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        global _current
        _current = self
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        global _current
        _current = None
        self._ended.set()

    def beat(self, phase: str, step: int | None = None) -> None:
        """step: updates done, where that is known."""
        now = time.monotonic()
        if phase == self._phase == "step":
            self._seconds = [*self._seconds, now - self._since][-_WINDOW:]
        self._phase, self._since = phase, now
        vitals.at(phase, step, self.allowed())

    def allowed(self) -> float:
        """Seconds that the present phase may take without a beat."""
        if debug.is_on():  # a person may stand at a breakpoint
            return math.inf
        return self._by_phase() + (PEER_SECONDS if _waits_for_devices() else 0.0)

    def _by_phase(self) -> float:
        if self._limit:
            return self._limit
        if self._phase == "step":
            median = statistics.median(self._seconds) if self._seconds else 0.0
            return max(STEP_SECONDS, FACTOR * median)
        limits = {"save": SAVE_SECONDS, "evaluate": EVALUATE_SECONDS}
        return limits.get(self._phase, COMPILE_SECONDS)

    def _watch(self) -> None:
        while not self._ended.wait(min(5.0, self.allowed() / 4)):
            waited = time.monotonic() - self._since
            if waited > self.allowed():
                words = f"JI-STALL-001: no progress for {waited:.0f} s in phase {self._phase!r}"
                print(
                    f"\njinstr: {words}; where every thread stands follows, then the run ends with {EXIT_CODE}",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                sys.stderr.flush()
                vitals.ended(EXIT_CODE, words, stacks=True)
                processes.leave(EXIT_CODE)
                os._exit(EXIT_CODE)


def _waits_for_devices() -> bool:
    """Is this one of several processes whose main thread waits inside JAX, perhaps for another process?"""
    if processes.count() == 1:
        return False
    frame = sys._current_frames().get(threading.main_thread().ident)
    return frame is not None and "/jax/" in frame.f_code.co_filename


_current: Watchdog | None = None


def alive() -> None:
    """Progress inside an evaluation, which has many parts. Free where no run is watched."""
    if _current:
        _current.beat("evaluate")
