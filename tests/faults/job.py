"""One job of the fault table: a process with a world of its own that runs rows one after the other."""

from __future__ import annotations

import pathlib
import tempfile
import time
import traceback

from tests.faults import rig as rig_lib
from tests.faults import table

_rig: rig_lib.Rig | None = None  # of this process


def start(folder: str) -> None:
    """In a job: its own world."""
    global _rig
    _rig = rig_lib.Rig(pathlib.Path(tempfile.mkdtemp(prefix="job-", dir=folder)))


def measure(number: str, full: bool) -> dict:
    """Run one row in a job."""
    (row,) = [row for row in table.ROWS if row.number == number]
    before = time.monotonic()
    try:
        measured, kept = row.measure(_rig, full)
    except Exception:  # the table goes on; the row stays in it as failing
        measured, kept = traceback.format_exc(limit=-2).strip().replace("\n", " "), False
    return {
        "row": row.number,
        "injected": row.injected,
        "promised": row.promised,
        "measured": measured,
        "pass": kept,
        "seconds": round(time.monotonic() - before, 1),
    }
