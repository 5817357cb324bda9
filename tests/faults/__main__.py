"""The fault table: `python -m tests.faults [ROW ...] [--short] [--jobs 2] [--out table.json]`.

Runs every row (or those named, such as 14), prints what was injected, promised and measured, and ends with 1 when a
promise was broken. --short: the rows and repeats that CI runs. --jobs: rows at once, each job with a world of its own.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import time

from tests.faults import job, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    chosen = [
        row.number
        for row in table.ROWS
        if (row.number in arguments.rows if arguments.rows else row.in_ci or not arguments.short)
    ]
    # Under nohup it is ignored, by all children too, and jinstr leaves it so.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="jinstr-faults-") as folder:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            arguments.jobs, context, job.start, (folder,)
        ) as pool:
            rows = [pool.submit(job.measure, number, not arguments.short) for number in chosen]
            for future in concurrent.futures.as_completed(rows):
                result = future.result()
                results[result["row"]] = result
                print(
                    f"{'pass' if result['pass'] else 'FAIL'}  {result['row']:>4}  {result['injected']}\n"
                    f"            promised: {result['promised']}\n"
                    f"            measured: {result['measured']}  ({result['seconds']:.0f} s)",
                    flush=True,
                )
    kept = sum(result["pass"] for result in results.values())
    minutes = (time.monotonic() - before) / 60
    print(f"{kept} of {len(results)} rows keep their promise ({minutes:.1f} min)")
    if arguments.out:
        text = json.dumps([results[number] for number in chosen], ensure_ascii=False, indent=1)
        pathlib.Path(arguments.out).write_text(text + "\n", "utf-8")
    return int(kept < len(results))


if __name__ == "__main__":
    sys.exit(main())
