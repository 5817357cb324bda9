"""One figure of one model: a task as one template asks it, answered by likelihood or by writing, and what came out."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jinstr import errors
from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.decode import requests
from jinstr.evaluate import answers, choices, intervals, tasks
from jinstr.train import serving

PER_CHARACTER = "_per_character"
TOO_LONG = "too long"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How tasks are answered."""

    by: str = "likelihood"  # of tasks with choices: likelihood (the likeliest) | writing; others are always written
    max_new_tokens: int = 0  # longest written answer; 0 = the task's own
    batch_tokens: int = 8192  # places computed at a time for choices
    batch_rows: int = 16  # answers written at a time

    def __post_init__(self):
        if self.by not in tasks.WAYS:
            raise errors.ConfigError("JI-EVALUATE-007", f"BY={self.by!r}: likelihood or writing")
        if self.max_new_tokens < 0 or min(self.batch_tokens, self.batch_rows) < 1:
            raise errors.ConfigError("JI-EVALUATE-008", f"{self}: sizes are positive numbers")

    def way(self, benchmark: benchmark_lib.Benchmark) -> str:
        """How this benchmark is answered."""
        return self.by if benchmark.chooses else "writing"

    def identity(self, benchmark: benchmark_lib.Benchmark) -> dict:
        """What a figure depends on, as its key has it."""
        if self.way(benchmark) == "likelihood":
            return {"by": "likelihood"}
        return {"by": "writing", "max_new_tokens": self.max_new_tokens or benchmark.max_new_tokens}


class Outcome(NamedTuple):
    """A figure and what it is made of."""

    facts: dict  # of the result's line
    rows: list[dict]  # a prediction for each example, in their order


def score(
    job: tasks.Job, run: serving.Run, template, config: ScoringConfig, log: requests.AnswerLog
) -> Outcome:
    """Answer every example of a job and compute the benchmark's metrics, with intervals.

    template: the chat template, or None for plain text. log: of written answers, kept between attempts. An example that
    does not fit into the model is answered by nothing, which is wrong, and counted.
    Errors: DataError where no example fits.
    """
    benchmark = job.task.benchmark
    asked = [benchmark_lib.ask(job.template, example, job.worked) for example in job.examples]
    if config.way(benchmark) == "likelihood":
        rows, facts = _chosen(job, asked, run, template, config)
    else:
        rows, facts = _written(job, asked, run, template, config, log)
    too_long = sum(row["finish"] == TOO_LONG for row in rows)
    if too_long == len(rows):
        raise errors.DataError(
            "JI-EVALUATE-009",
            f"{benchmark.name}, template {job.template.name}, {job.shots} worked examples: no question fits into the "
            f"{run.config.max_positions} places of the model",
        )
    facts |= figures(benchmark, job.examples, rows)
    if benchmark.chooses:
        facts["chance"] = tasks.chance(job.examples)
    if found := _groups(job.examples, rows):
        facts["groups"] = found
    return Outcome({"examples": len(rows), "too_long": too_long} | facts, rows)


def _row(example: benchmark_lib.Example) -> dict:
    row = {"id": example.id, "targets": list(example.targets)}
    return row | ({"choices": list(example.choices)} if example.choices else {})


def _chosen(job: tasks.Job, asked, run: serving.Run, template, config: ScoringConfig):
    """(rows, facts) of choices by likelihood, as a whole and for each character of the candidate."""
    questions = [tasks.question(one, template, run.tokenizer) for one in asked]
    fitting = [n for n, q in enumerate(questions) if q.positions <= run.config.max_positions]
    rows = [
        _row(example) | {"prediction": "", "prediction" + PER_CHARACTER: "", "finish": TOO_LONG}
        for example in job.examples
    ]
    if not fitting:
        return rows, {}
    found = choices.score(
        run.config, run.params, [questions[n] for n in fitting], config.batch_tokens
    )
    for number, logp in zip(fitting, found.logp):
        example = job.examples[number]
        lengths = np.array([len(text) for text in asked[number].candidates])
        best, best_per_character = int(np.argmax(logp)), int(np.argmax(logp / lengths))
        rows[number] |= {
            "finish": "chosen",
            "candidates": list(asked[number].candidates),
            "logp": [round(float(value), 5) for value in logp],
            "chosen": best,
            "prediction": benchmark_lib.chosen(example, best),
            "prediction" + PER_CHARACTER: benchmark_lib.chosen(example, best_per_character),
        }
    facts = {
        "tokens": {"useful": found.useful, "computed": found.computed},
        "chosen_place": max(np.bincount([row["chosen"] for row in rows if "chosen" in row]))
        / len(fitting),
    }
    return rows, facts | {"chosen_place": float(facts["chosen_place"])}


def _written(job: tasks.Job, asked, run: serving.Run, template, config, log):
    """(rows, facts) of written answers."""
    benchmark = job.task.benchmark
    most = config.max_new_tokens or benchmark.max_new_tokens
    prompts = {
        example.id: tasks.prompt_ids(one, template, run.tokenizer)
        for example, one in zip(job.examples, asked)
    }
    room = run.config.max_positions - most
    found = answers.write(
        run,
        template,
        {key: ids for key, ids in prompts.items() if len(ids) <= room},
        max_new_tokens=most,
        stop=() if template is not None else benchmark.stop,
        batch_rows=config.batch_rows,
        log=log,
    )
    rows = []
    for example, one in zip(job.examples, asked):
        said = found.get(example.id, {"text": "", "finish": TOO_LONG})
        prediction = benchmark_lib.predicted(benchmark, example, one, said["text"])
        told = {"text": said["text"], "finish": said["finish"], "prediction": prediction}
        rows.append(_row(example) | told)
    ended = sum(row["finish"] in ("end", "stop") for row in rows)
    return rows, {"ended": ended / max(1, len(found))}


def figures(
    benchmark: benchmark_lib.Benchmark,
    examples: Sequence[benchmark_lib.Example],
    rows: Sequence[dict],
) -> dict:
    """{"main", "metrics", "intervals"} of predictions; each row gets its `score` where the main metric is a mean.

    Where choices were made, the figures of those for each character stand beside the others.
    """
    targets = [example.targets for example in examples]
    found: dict[str, dict] = {"main": benchmark.main, "metrics": {}, "intervals": {}}
    for ending in ("", PER_CHARACTER):
        if "prediction" + ending not in rows[0]:
            continue
        predictions = [row["prediction" + ending] for row in rows]
        for metric in benchmark.metrics:
            for name, value in metric(targets, predictions).items():
                found["metrics"][name + ending] = float(value)
            if hasattr(metric, "scores"):
                scores = metric.scores(targets, predictions)
                drawn = {metric.name: intervals.of_mean(scores)}
                if metric.name == benchmark.main and not ending:
                    for row, value in zip(rows, scores):
                        row["score"] = float(value)
            else:
                drawn = intervals.of_figure(metric, targets, predictions)
            found["intervals"] |= {name + ending: drawn[name] for name in drawn}
    return found


def _groups(examples: Sequence[benchmark_lib.Example], rows: Sequence[dict]) -> dict:
    """Examples and mean score by group (a subject, a category), where there are several."""
    scores: dict[str, list[float]] = {}
    for example, row in zip(examples, rows):
        if example.group and "score" in row:
            scores.setdefault(example.group, []).append(row["score"])
    if len(scores) < 2:
        return {}
    return {
        name: {"examples": len(values), "score": statistics.fmean(values)}
        for name, values in sorted(scores.items())
    }
