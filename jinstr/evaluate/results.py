"""Results of benchmarks as files: a line for each figure, the predictions behind it, and what a table says of them.

OUT                          JSON Lines, a line for each model, task, template, number of worked examples and format;
                             its key says all that the figure depends on, and a key that is there is not computed again
OUT.predictions/KEY.jsonl    what was predicted for every example, beside its targets: from these the figures follow
OUT.answers/KEY.jsonl        written answers of a figure that is not finished
OUT.summary.json, OUT.html   the table across models and the page that shows it
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from jinstr import errors
from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.data.eval_tasks import benchmarks
from jinstr.decode import requests
from jinstr.evaluate import intervals

# What a row of the table tells of its lines, which differ in their template alone.
SHARED = ("model", "weights", "task", "version", "file", "format", "by", "shots", "examples")


def beside(output, ending: str) -> pathlib.Path:
    """A place that belongs to the results: a/results.jsonl → a/results.predictions."""
    path = pathlib.Path(output)
    return path.with_name(path.name.removesuffix(".jsonl") + ending)


def open_log(output) -> requests.AnswerLog:
    """The lines so far, by key. Errors: DataError for a file that holds something else."""
    log = requests.AnswerLog(output)
    for key, line in log.answers.items():
        if not {"group", "template", "metrics", "weights"} <= line.keys():
            log.close()
            raise errors.DataError(
                "JI-RESULTS-001",
                f"{output} holds {key!r} without group, template, metrics and weights: no results of jinstr evaluate; "
                "name another OUTPUT",
            )
    return log


def predictions_of(output, key: str) -> pathlib.Path:
    return beside(output, ".predictions") / f"{key}.jsonl"


def write_predictions(output, key: str, rows: Iterable[dict]) -> None:
    """All rows or nothing."""
    path = predictions_of(output, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    requests.write_jsonl(path, rows)


def read_predictions(output, key: str) -> list[dict]:
    """The predictions of a figure. Errors: StorageError where they are gone."""
    path = predictions_of(output, key)
    if not path.is_file():
        raise errors.StorageError(
            "JI-RESULTS-002",
            f"{path} is gone, and with it what a figure of {output} rests on; take its line out",
        )
    return [row for _, row in requests.read_rows(path)]


def recompute(line: dict, rows: Sequence[dict]) -> dict[str, float]:
    """The figures of a line from its predictions alone, but for metrics that need more than targets (pfgen)."""
    benchmark = benchmarks.find(line["task"])
    targets = [tuple(row["targets"]) for row in rows]
    found = {}
    for ending in ("", "_per_character"):
        if "prediction" + ending in rows[0]:
            predictions = [row["prediction" + ending] for row in rows]
            for metric in benchmark.metrics:
                for name, value in metric(targets, predictions).items():
                    found[name + ending] = float(value)
    return found


def _of_templates(
    main: str, lines: Sequence[dict], predictions: Sequence[list[dict]]
) -> list[float]:
    """Interval of the mean over templates: every draw takes the same examples for each of them."""
    if all("score" in rows[0] for rows in predictions):
        scores_NE = np.array([[row["score"] for row in rows] for rows in predictions])
        return intervals.of_mean(scores_NE.mean(0))
    metric = _metric(benchmarks.find(lines[0]["task"]), main)
    targets = [tuple(row["targets"]) for row in predictions[0]]
    by_template = [[row["prediction"] for row in rows] for rows in predictions]

    def mean(targets, chosen: Sequence[tuple[str, ...]]) -> dict[str, float]:
        figures = [metric(targets, texts)[main] for texts in zip(*chosen)]
        return {main: sum(figures) / len(figures)}

    return intervals.of_figure(mean, targets, list(zip(*by_template)))[main]


def _metric(benchmark: benchmark_lib.Benchmark, main: str):
    """The metric that gives the figure of this name."""
    return next(
        m for m in benchmark.metrics if getattr(m, "name", getattr(m, "__name__", "")) == main
    )


def summary(output, lines: Iterable[dict]) -> list[dict]:
    """A row for each group of lines that differ only in their template, in the order in which they came.

    {SHARED …, "main", "mean", "low" and "high" (the range over templates), "interval" (of the mean), "templates":
    [{"template", "value", "interval", "per_character", …}], "chance", "too_long", "overlap"}.
    """
    groups: dict[str, list[dict]] = collections.defaultdict(list)
    for line in lines:
        groups[line["group"]].append(line)
    rows = []
    for found in groups.values():
        main = found[0]["main"]
        values = [line["metrics"][main] for line in found]
        rows.append(
            {name: found[0][name] for name in SHARED}
            | {
                "main": main,
                "mean": sum(values) / len(values),
                "low": min(values),
                "high": max(values),
                "interval": _of_templates(
                    main, found, [read_predictions(output, line["key"]) for line in found]
                ),
                "templates": [_template(line, main) for line in found],
                "chance": found[0].get("chance"),
                "overlap": found[0].get("overlap", {}),
            }
        )
    return rows


def _template(line: dict, main: str) -> dict:
    """What the table tells of one line."""
    return {
        "template": line["template"],
        "value": line["metrics"][main],
        "interval": line["intervals"].get(main),
        "metrics": line["metrics"],
        "intervals": line["intervals"],
        "too_long": line["too_long"],
        "ended": line.get("ended"),
        "chosen_place": line.get("chosen_place"),
        "groups": line.get("groups", {}),
        "key": line["key"],
    }
