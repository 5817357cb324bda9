"""The last files of a run: summary.json, data.json and report.html."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from jinstr.data.eval_tasks import questions as questions_lib
from jinstr.parallel import processes
from jinstr.train import metrics, report, storage


def write(run_dir, *, title: str, facts: dict, data: list[dict], previous: Sequence = ()) -> dict:
    """Write what is known at the end of a run, then the report; returns the summary."""
    if processes.index():  # the first of several writes them
        return facts
    run_dir = pathlib.Path(run_dir)
    storage.write_json(run_dir / "summary.json", facts)
    storage.write_json(run_dir / "data.json", data)
    page = report.write(run_dir, title=title, previous=previous)
    print(f"jinstr: {page}")
    return json.loads((run_dir / "summary.json").read_text("utf-8"))


def before_and_after(run_dir, tasks: Sequence[questions_lib.EvalTask]) -> dict[str, dict]:
    """Accuracy of each task in the first and the last evaluation of a run, with chance where there are candidates."""
    lines = metrics.read_lines(pathlib.Path(run_dir) / "metrics.jsonl")
    found = {}
    for task in tasks:
        name = f"eval/{task.name}/accuracy"
        values = [line[name] for line in lines if name in line]
        if values:
            found[task.name] = {
                "base": values[0],
                "tuned": values[-1],
                "chance": task.chance,
                "count": len(task.questions),
            }
    return found
