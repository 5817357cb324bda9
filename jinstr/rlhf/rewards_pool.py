"""Python functions that give scores, called in processes of their own: one that hangs or dies costs one answer.

Each process is a fresh interpreter that runs `rewards_worker` and nothing of the caller's: no JAX, no `__main__` that
is imported again. It does one call at a time and is told the next when it has answered, so that the limit of time holds
for each call alone. It leads a process group, which ends with it.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection

from jinstr import errors
from jinstr.rlhf import outcomes

START_SECONDS = 120.0  # for importing the modules of the functions
END_SECONDS = 1.0  # for a process to end by itself
MOST_LOST = 2  # so many processes may end, one after another, before they are asked
_LOOK_SECONDS = 0.5  # so often a run looks whether it was closed
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from jinstr.rlhf import rewards_worker; rewards_worker.main(int(sys.argv[2]), int(sys.argv[3]))"
)

# (name of the function, messages of the prompt, answer, fields of the line)
Call = tuple[str, list[dict], str, dict]


class _Worker:
    """A process and the socket to it."""

    def __init__(self, functions: Sequence[str]):
        self.is_ready = False
        self.number: int | None = None  # of the call that it is at
        self.deadline = time.monotonic() + START_SECONDS
        self.link, theirs = multiprocessing.Pipe()
        words = [json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *words],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            raise errors.MachineError(
                "JI-REWARDS-003",
                f"a process for rewards cannot be started ({error}); take fewer workers",
            ) from None
        finally:
            theirs.close()
        self.tell(list(functions))

    def tell(self, message) -> bool:
        """Send a message; False when nobody is there."""
        try:
            self.link.send(message)
        except OSError:
            return False
        return True

    def end(self, patience: float = 0.0) -> str:
        """End the process and those that it started; returns how it ended."""
        self.link.close()
        self._wait_unreaped(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        if status < 0:
            return f"was killed by signal {-status}"
        return f"ended with status {status}"

    def _wait_unreaped(self, seconds: float) -> None:
        """Wait for its end without taking notice: until then its id is given to no other process group."""
        limit = time.monotonic() + seconds
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while time.monotonic() < limit and not os.waitid(os.P_PID, self.process.pid, flags):
            time.sleep(0.01)


class Pool:
    """Processes that call functions, started when they are needed and kept until `close`.

    functions: "module:function" or a name of `rewards_worker.BUILT_IN`; that all can be imported is tried at once.
    timeout: seconds of one call. Errors: ConfigError for a function that cannot be imported, MachineError for
    processes that cannot be started.
    """

    def __init__(self, functions: Sequence[str], workers: int, timeout: float):
        self._functions, self._workers, self._timeout = tuple(functions), workers, timeout
        self._live: list[_Worker] = []
        self._lost = 0
        self._lock = threading.Lock()
        self._is_closed = False
        try:
            self._live.append(_Worker(self._functions))
            while not any(worker.is_ready for worker in self._live):
                for _ in self._heard():
                    pass
                if not self._live:
                    self._live.append(_Worker(self._functions))
        except BaseException:
            self.close()
            raise

    def run(
        self, calls: Sequence[Call], failed: Callable[[int, str], None]
    ) -> list[outcomes.Outcome]:
        """The outcomes of calls, in their order.

        failed(number, text) is told of each call that raised an error, and may raise one itself to end the run. A call
        that takes too long, or ends its process, has the fault "timeout". One run at a time; others wait.
        """
        with self._lock:
            found: list = [None] * len(calls)
            waiting = collections.deque(range(len(calls)))
            try:
                while waiting or any(worker.number is not None for worker in self._live):
                    self._hand_out(calls, waiting)
                    for number, outcome in self._heard():
                        found[number] = outcome
                        if outcome.fault == "error":
                            failed(number, outcome.text)
            except BaseException:
                # They would answer the next run's questions with this one's scores.
                self._dismiss([worker for worker in self._live if worker.number is not None])
                raise
            return found

    def _hand_out(self, calls: Sequence[Call], waiting: collections.deque) -> None:
        busy = sum(worker.number is not None for worker in self._live)
        for _ in range(len(self._live), min(self._workers, busy + len(waiting))):
            self._live.append(_Worker(self._functions))
        for worker in [w for w in self._live if w.is_ready and w.number is None]:
            if not waiting:
                return
            number = waiting.popleft()
            if worker.tell(calls[number]):
                worker.number, worker.deadline = number, time.monotonic() + self._timeout
            else:
                waiting.appendleft(number)  # it ended before it was asked: not the call's doing
                self._replace(worker)

    def _heard(self) -> Iterator[tuple[int, outcomes.Outcome]]:
        """Wait for the next answers or the next limit of time; yields what came of calls."""
        if self._is_closed:
            raise RuntimeError("the rewards were closed while they were asked")
        soonest = min((worker.deadline for worker in self._live), default=math.inf)
        patience = min(max(0.0, soonest - time.monotonic()), _LOOK_SECONDS)
        spoke = connection.wait([worker.link for worker in self._live], patience)
        for worker in [w for w in self._live if w.link in spoke]:
            try:
                message = worker.link.recv()
            except (EOFError, OSError):
                number = worker.number
                how = self._replace(worker)
                if number is not None:
                    yield number, outcomes.Outcome(math.nan, "timeout", f"its process {how}")
                continue
            worker.deadline = math.inf
            if worker.is_ready:
                number, worker.number, self._lost = worker.number, None, 0
                yield number, outcomes.Outcome(*message)
            elif message:
                self._dismiss([worker])
                raise errors.ConfigError("JI-REWARDS-004", f"a reward cannot be used: {message}")
            worker.is_ready = True
        for worker in [w for w in self._live if w.deadline < time.monotonic()]:
            if (number := worker.number) is None:
                self._dismiss([worker])
                raise errors.ConfigError(
                    "JI-REWARDS-004",
                    f"importing {', '.join(self._functions)} takes more than {START_SECONDS:g} seconds",
                )
            self._replace(worker, hung=True)
            text = f"no score after {self._timeout:g} seconds"
            yield number, outcomes.Outcome(math.nan, "timeout", text)

    def _replace(self, worker: _Worker, *, hung: bool = False) -> str:
        """Take a process away, to be replaced when there is work; returns how it ended. Errors: MachineError."""
        self._live.remove(worker)
        how = worker.end(0.0 if hung else END_SECONDS)
        self._lost = 0 if worker.number is not None else self._lost + 1
        # Those that waited for work may all have been ended at once.
        if self._lost > MOST_LOST + self._workers * worker.is_ready:
            raise errors.MachineError(
                "JI-REWARDS-005",
                f"{self._lost} processes for {', '.join(self._functions)} ended before they were asked for a score; "
                f"the last {how}",
            )
        return how

    def _dismiss(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            self._live.remove(worker)
            worker.end()

    def close(self) -> None:
        """End all processes; a run in another thread ends with an error."""
        self._is_closed = True
        with self._lock:
            for worker in self._live:
                worker.link.close()  # they end by themselves, all at the same time
            limit = time.monotonic() + END_SECONDS
            for worker in self._live:
                worker.end(max(0.0, limit - time.monotonic()))
            self._live.clear()
