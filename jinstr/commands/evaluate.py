"""`jinstr evaluate`: scores of models on benchmarks, with what they depend on."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterable
from typing import NamedTuple

import jax
from tqdm import tqdm

from jinstr import errors
from jinstr.commands import generate as generate_lib
from jinstr.decode import requests
from jinstr.evaluate import leaderboard, overlap, results
from jinstr.evaluate import scoring as scoring_lib
from jinstr.evaluate import tasks as tasks_lib
from jinstr.models import decoder
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import base as base_lib
from jinstr.train import serving, storage


class Candidate(NamedTuple):
    """A model that is to be scored, not read yet."""

    name: str
    init: str  # with its step
    format: str  # plain | chat
    identity: dict  # what its figures depend on
    overlap: dict  # task → training source → examples found in it; {} where nobody looked


def evaluate(
    *,
    models: str,
    tasks: str,
    shots: str | int | tuple[int, ...],
    shots_from: str,
    output: str,
    limit: int,
    format: str,
    task_templates: str,
    scoring: scoring_lib.ScoringConfig,
    step: int | None,
    weights: str,
    template: str,
    contamination: bool,
) -> dict:
    """Score every model on every task, by every template and number of worked examples; `evaluate.results` tells of the
    files. A figure that is there already is not computed again: its key says all that it depends on.

    models: "RUN_DIR" or "name=RUN_DIR,name=hf:FOLDER". tasks, shots_from: "benchmark=path,…". format: "plain" text,
    "chat" in the model's own template, "auto" = chat where it has one. contamination: look for the tasks' questions in
    the training data of every run. Returns what OUT.summary.json holds.
    Errors: ConfigError, DataError and StorageError before any model is read, but for what only its tokenizer can tell.
    """
    if format not in tasks_lib.FORMATS:
        raise errors.ConfigError(
            "JI-EVALUATE-011", f"FORMAT={format!r}: {', '.join(tasks_lib.FORMATS)}"
        )
    counts = tasks_lib.parse_shots(shots)
    jobs = [
        job
        for task in tasks_lib.parse(tasks, shots_from)
        for job in tasks_lib.jobs(task, counts, task_templates, limit)
    ]
    sets = {job.task.benchmark.name: job.task.examples for job in jobs} if contamination else {}
    asked = [
        _candidate(
            name, place if step is None else f"{place}@{step}", format, weights, template, sets
        )
        for name, place in generate_lib.parse_models(models)
    ]
    log = results.open_log(output)
    try:
        for candidate in asked:
            wanted = {}  # key → (job, identity)
            for job in jobs:
                own = scoring.identity(job.task.benchmark)
                identity = candidate.identity | tasks_lib.identity(job) | own
                wanted[requests.digest(identity)] = job, identity
            todo = {key: pair for key, pair in wanted.items() if key not in log.answers}
            run = (
                serving.load_run(candidate.init, weights=weights, template=template)
                if todo
                else None
            )
            bar = tqdm(todo.items(), desc=candidate.name, unit="figure", disable=None)
            for key, (job, identity) in bar:
                bar.set_postfix_str(
                    f"{job.task.benchmark.name} {job.template.name} {job.shots}-shot"
                )
                begun = time.monotonic()
                partial = results.beside(output, ".answers") / f"{key}.jsonl"
                outcome = _score(job, run, candidate, scoring, partial)
                results.write_predictions(output, key, outcome.rows)
                partial.unlink(missing_ok=True)
                log.add(
                    {"key": key, "group": _group(identity)} | identity | outcome.facts
                    | {"file": job.task.file, "limit": limit, "format": candidate.format}
                    | _today(candidate, job)
                    | {"computed": _computed(run), "seconds": round(time.monotonic() - begun, 2)}
                )  # fmt: skip
            del run
            for key, (job, _) in wanted.items():  # a model may have another name by now
                line = log.answers[key]
                if line | _today(candidate, job) != line:
                    log.add(line | _today(candidate, job))
    finally:
        log.close()
    rows = results.summary(output, log.answers.values())
    found = {"results": rows}
    storage.write_json(results.beside(output, ".summary.json"), found)
    page = leaderboard.write(results.beside(output, ".html"), found)
    for line in _told(rows):
        print(line)
    print(f"{output}: {len(log.answers)} figures; {page} shows them")
    return found


def _candidate(
    name: str, init: str, format: str, weights: str, template: str, sets: dict
) -> Candidate:
    """What is known of a model from its files. Errors: StorageError where it is none, ConfigError for its format."""
    base = base_lib.pinned(base_lib.open_base(init, weights), weights)
    own = template or base.template
    if format == "chat" and not own:
        raise errors.ConfigError(
            "JI-EVALUATE-010",
            f"FORMAT=chat: {name} ({init}) has no chat template; give TEMPLATE, or FORMAT=plain or auto",
        )
    is_chat = bool(own) and format != "plain"
    written = pathlib.Path(own).read_text("utf-8") if own.endswith(".jinja") else own
    tokenizer = tokenizer_lib.load(base.tokenizer_path)
    identity = {
        "weights": base_lib.digest_of(base.init) + (":ema" if weights == "ema" else ""),
        "tokenizer": tokenizer.fingerprint,
        "chat_template": requests.digest(written) if is_chat else "",
    }
    # Nothing is known of what strangers trained on, and nothing is written into their folders.
    found = overlap.look(base.folder, sets, tokenizer) if sets and base.is_run else {}
    return Candidate(name, base.init, "chat" if is_chat else "plain", identity, found)


def _score(job: tasks_lib.Job, run, candidate: Candidate, scoring, partial: pathlib.Path):
    """The outcome of one job; answers written so far are in `partial`."""
    template = run.template if candidate.format == "chat" else None
    log = requests.AnswerLog(partial)
    try:
        return scoring_lib.score(job, run, template, scoring, log)
    finally:
        log.close()


def _group(identity: dict) -> str:
    """The same for figures that differ in their template alone."""
    return requests.digest({k: v for k, v in identity.items() if k not in ("template", "wording")})


def _today(candidate: Candidate, job: tasks_lib.Job) -> dict:
    """What may change while the figure stays: the name, and what was found of the task in the training data.

    overlap: examples found by source; None where nobody looked.
    """
    return {
        "model": candidate.name,
        "overlap": candidate.overlap.get(job.task.benchmark.name),
    }


def _computed(run: serving.Run) -> str:
    return f"{decoder.compute_dtype(run.config)} on {jax.devices()[0].device_kind}"


def _told(rows: Iterable[dict]) -> list[str]:
    """The table as lines."""
    lines = []
    for row in rows:
        low, high = row["interval"]
        line = (
            f"{row['model']} · {row['task']} · {row['format']}, {row['shots']}-shot, {row['examples']} examples: "
            f"{row['main']} {row['mean']:.4f} ({low:.4f} to {high:.4f})"
        )
        if len(row["templates"]) > 1:
            line += f", templates {row['low']:.4f} to {row['high']:.4f}"
        if row["chance"]:
            line += f"; by lot {row['chance']['by_lot']:.4f}, always one place {row['chance']['one_place']:.4f}"
        if too_long := sum(t["too_long"] for t in row["templates"]):
            line += f"; {too_long} questions too long for the model, which count as wrong"
        if found := [
            f"{count} in {name}" for name, count in (row["overlap"] or {}).items() if count
        ]:
            line += f"; questions in training data: {', '.join(found)}"
        lines.append(line)
    return lines
