"""Questions with known answers, for evaluation while training: choose among candidates, or write and compare.

`EVAL_TASKS=facts=eval/facts.jsonl,jnli=eval/jnli_valid.json,my_task`: a file in any chat format, the official file of
a benchmark (benchmarks.py) under its name, or a seqio Task of the user's module with metric_fns. A row with
`candidates` is answered by the likeliest candidate; others are answered by greedy writing.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import unicodedata
from collections.abc import Callable, Sequence

from jinstr import errors
from jinstr.data import bad_rows, formats, readers
from jinstr.data import sources as sources_lib
from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.data.eval_tasks import benchmarks

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question, in one of three kinds: choose among candidates, name one of several values, write an answer."""

    id: str
    messages: tuple[dict[str, str], ...]
    answer: str  # whole answer, or with `values` the value that it must name
    candidates: tuple[str, ...] = ()  # whole answers to choose from
    values: tuple[str, ...] = ()  # values of which the answer must name the right one and no other


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTask:
    """Questions of one kind, and what is computed from (targets, predictions) of written answers."""

    name: str
    questions: tuple[Question, ...]
    metrics: tuple[Metric, ...]

    @property
    def chooses(self) -> bool:
        return bool(self.questions[0].candidates)

    @property
    def chance(self) -> float:
        """Expected accuracy of a uniform choice; 0 where nothing is given to choose from."""
        sizes = [len(question.candidates or question.values) for question in self.questions]
        return sum(1 / size for size in sizes if size) / len(sizes)


def names(text: str, values: Sequence[str]) -> set[str]:
    """The values that a text names; of values within one another the longest counts."""
    longest_first = sorted(values, key=len, reverse=True)
    return set(re.findall("|".join(map(re.escape, longest_first)), text))


def naming_accuracy(questions: Sequence[Question], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that name the right value and no other, beside chance: one of the values."""
    hits = sum(
        names(text, question.values) == {question.answer}
        for question, text in zip(questions, predictions, strict=True)
    )
    return {"accuracy": hits / len(questions)}


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target after NFKC and without spaces at the ends."""

    def same(text: str) -> str:
        return unicodedata.normalize("NFKC", text).strip()

    hits = sum(
        same(target) == same(text) for target, text in zip(targets, predictions, strict=True)
    )
    return {"accuracy": hits / len(targets)}


def _question(row: dict, example: dict, where: str, id: str) -> Question:
    """A question from a row and its example. `candidates` are whole answers, or values when `answer` is one of them."""
    found = tuple(example.get("candidates") or row.get("candidates") or ())
    *messages, answer = [
        {"role": role, "content": content}
        for role, content in zip(example["roles"], example["contents"])
    ]
    output, value = answer["content"], row.get("answer")
    if found and isinstance(value, str):
        if names(output, found) != {value}:
            raise errors.DataError(
                "JI-EVAL-001", f"{where}: the output must name {value!r} and no other candidate"
            )
        return Question(id=id, messages=tuple(messages), answer=value, values=found)
    if found and output not in found:
        raise errors.DataError("JI-EVAL-002", f"{where}: the answer {output!r} is no candidate")
    return Question(id=id, messages=tuple(messages), answer=output, candidates=found)


def _file_task(name: str, path: str, limit: int) -> EvalTask:
    questions = []
    for file in readers.files_of(path):
        for where, row in readers.rows(file):
            if isinstance(row, bad_rows.BadRow):
                raise errors.DataError("JI-EVAL-003", f"{where}: {row}")
            fitting = [n for n in formats.fits(row) if formats.FORMATS[n].kind == "chat"]
            if len(fitting) != 1:
                raise errors.DataError(
                    "JI-EVAL-004",
                    f"{where}: the fields {', '.join(row)} are no question with its answer",
                )
            try:
                examples = list(formats.FORMATS[fitting[0]].examples(row))
            except bad_rows.WRONG_SHAPES as error:
                raise errors.DataError(
                    "JI-EVAL-007", f"{where}: {bad_rows.of(error)}; correct the row or take it out"
                ) from None
            for number, example in enumerate(examples):
                id = example["id"] or f"{where}/{number}"
                questions.append(_question(row, example, where, id))
                if len(questions) == limit:
                    return EvalTask(name=name, questions=tuple(questions), metrics=(exact_match,))
    if not questions:
        raise errors.DataError("JI-EVAL-005", f"{path}: no questions")
    return EvalTask(name=name, questions=tuple(questions), metrics=(exact_match,))


def _benchmark_task(name: str, path: str, limit: int) -> EvalTask:
    """A benchmark as its first template asks it, without shots."""
    benchmark, examples = benchmarks.load(name, path)
    examples = examples[: limit or None]
    asked = [benchmark_lib.ask(benchmark.templates[0], example) for example in examples]

    def metric(targets: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        del targets  # in the template's words; the metrics take those of the examples
        predictions = [
            benchmark_lib.predicted(benchmark, example, one, text)
            for example, one, text in zip(examples, asked, texts, strict=True)
        ]
        return benchmark_lib.figures(benchmark, examples, predictions)

    questions = tuple(
        Question(
            id=example.id,
            messages=one.messages,
            answer=one.answer,
            candidates=one.candidates if benchmark.chooses else (),
        )
        for example, one in zip(examples, asked)
    )
    return EvalTask(name=name, questions=questions, metrics=(metric,))


def _seqio_task(name: str, module: str, limit: int) -> EvalTask:
    from jinstr.data import tasks

    source = sources_lib.SourceConfig(task=name, module=module, split="validation")
    questions = []
    for example in tasks.examples(source, bad_rows.Report()):
        id = example["id"] or str(len(questions))
        questions.append(_question(example, example, name, id))
        if len(questions) == limit:
            break
    if not questions:
        raise errors.DataError("JI-EVAL-006", f"the task {name} has no examples in its last split")
    return EvalTask(
        name=name, questions=tuple(questions), metrics=tasks.metrics(source) or (exact_match,)
    )


def parse(words: str, module: str, limit: int) -> tuple[EvalTask, ...]:
    """Tasks of `EVAL_TASKS=[name=]path,benchmark=path,task,…`, each with its first `limit` questions (0 = all)."""
    found = []
    for word in filter(None, (word.strip() for word in words.split(","))):
        name, equals, path = word.partition("=")
        path = path if equals else name
        if equals and name in benchmarks.BENCHMARKS:
            found.append(_benchmark_task(name, path, limit))
        elif "/" in path or pathlib.Path(path).suffix or pathlib.Path(path).exists():
            found.append(_file_task(name if equals else pathlib.Path(path).stem, path, limit))
        else:
            found.append(_seqio_task(path, module, limit))
    return tuple(found)
