"""Named places where a run can be made to fail, so that what it then does can be tested on the product itself.

Nothing happens unless the environment variable JINSTR_FAULTS and the option --allow_faults agree. The variable lists
PLACE@NUMBER=ACTION, separated by commas: before_commit@30=kill. NUMBER is the step or item that the place is at (`*` =
any). Actions:
    kill, exit    the process ends at once, by SIGKILL or os._exit
    term, int     it sends itself SIGTERM or SIGINT and goes on
    error         OSError(EIO)
    slow, hang    it sleeps for a tenth of a second, or for an hour
    here          nothing by itself: the place asks `planned` and does something of its own, such as a NaN
Imports nothing from jinstr.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time

VARIABLE = "JINSTR_FAULTS"
ACTIONS = ("kill", "exit", "term", "int", "error", "slow", "hang", "here")

_active: list[tuple[str, int | None, str]] = []


def parse(text: str) -> list[tuple[str, int | None, str]]:
    """(place, number or None for any, action) of every fault. Errors: ValueError naming the word that is wrong."""
    found = []
    for word in filter(None, text.split(",")):
        match = re.fullmatch(r"(\w+)@(\d+|\*)=(\w+)", word)
        if not match or match[3] not in ACTIONS:
            raise ValueError(
                f"{VARIABLE}: {word!r} is not PLACE@NUMBER=ACTION with an action of {', '.join(ACTIONS)}"
            )
        found.append((match[1], None if match[2] == "*" else int(match[2]), match[3]))
    return found


def enable(text: str) -> None:
    """Arm the faults of the variable; each is shown in red."""
    _active[:] = parse(text)
    for place, number, action in _active:
        _say(f"fault armed: {place}@{'*' if number is None else number}={action}")


def armed() -> str:
    """The armed faults as `enable` takes them, "" where there are none: for child processes, which arm them again."""
    words = (f"{p}@{'*' if n is None else n}={action}" for p, n, action in _active)
    return ",".join(words)


def _say(text: str) -> None:
    # One write: the process may be about to end, and other threads may be printing.
    os.write(2, f"\x1b[31mjinstr: {text}\x1b[0m\n".encode())


def _action(place: str, number: int) -> str:
    for name, wanted, action in _active:
        if name == place and wanted in (None, number):
            return action
    return ""


def point(place: str, number: int = 0) -> None:
    """A place that may fail. Free when nothing is armed."""
    if not _active or not (action := _action(place, number)):
        return
    if action == "slow":
        time.sleep(0.1)
        return
    _say(f"fault: {place}@{number}={action}")
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "exit":
        os._exit(9)
    elif action in ("term", "int"):
        os.kill(os.getpid(), signal.SIGTERM if action == "term" else signal.SIGINT)
    elif action == "error":
        raise OSError(errno.EIO, f"injected at {place}@{number}")
    elif action == "hang":
        sys.stderr.flush()
        time.sleep(3600)


def planned(place: str) -> tuple[int, ...]:
    """The numbers at which a place with a fault of its own kind is to fail; () = never. For traced code."""
    return tuple(number for name, number, action in _active if name == place and action == "here")
