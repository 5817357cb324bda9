"""The fault table: `python -m tests.faults [ROW ...] [--short] [--out table.json]`.

Runs every row (or those named, such as 14), prints what was injected, promised and measured, and ends with 1 when a
promise was broken. --short: the rows and repeats that CI runs.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time
import traceback

from tests.faults import rig as rig_lib
from tests.faults import table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    chosen = [
        row
        for row in table.ROWS
        if (row.number in arguments.rows if arguments.rows else row.in_ci or not arguments.short)
    ]
    results = []
    with tempfile.TemporaryDirectory(prefix="jinstr-faults-") as folder:
        rig = rig_lib.Rig(pathlib.Path(folder))
        for row in chosen:
            before = time.monotonic()
            try:
                measured, kept = row.measure(rig, not arguments.short)
            except Exception:  # the table goes on; the row stays in it as failing
                measured, kept = traceback.format_exc(limit=-2).strip().replace("\n", " "), False
            seconds = time.monotonic() - before
            results.append(
                {
                    "row": row.number,
                    "injected": row.injected,
                    "promised": row.promised,
                    "measured": measured,
                    "pass": kept,
                    "seconds": round(seconds, 1),
                }
            )
            print(
                f"{'pass' if kept else 'FAIL'}  {row.number:>4}  {row.injected}\n"
                f"            promised: {row.promised}\n            measured: {measured}  ({seconds:.0f} s)",
                flush=True,
            )
    kept = sum(result["pass"] for result in results)
    print(f"{kept} of {len(results)} rows keep their promise")
    if arguments.out:
        text = json.dumps(results, ensure_ascii=False, indent=1)
        pathlib.Path(arguments.out).write_text(text + "\n", "utf-8")
    return int(kept < len(results))


if __name__ == "__main__":
    sys.exit(main())
