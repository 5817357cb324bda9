"""SIGTERM and SIGINT ask a run to save and end; a second one ends it at once.

Schedulers send SIGTERM some time before they kill; a person presses Ctrl-C. The handler only sets a flag, which the
loop reads after every step: arrays are whole there.
"""

from __future__ import annotations

import os
import signal
import sys

from jinstr import errors

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """While entered, `name` is the signal that asked to stop, or "" while none has."""

    def __init__(self):
        self.name = ""
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame) -> None:
        if self.name:
            os._exit(errors.PreemptedError.exit_code)
        self.name = signal.Signals(number).name
        # Not print: a handler may stand in the middle of another print.
        os.write(
            sys.__stderr__.fileno(),
            f"\njinstr: {self.name}: saving after this step; once more ends at once\n".encode(),
        )
