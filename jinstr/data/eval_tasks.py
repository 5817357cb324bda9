"""Questions with known answers, for evaluation while training: choose among candidates, or write and compare.

`EVAL_TASKS=facts=eval/facts.jsonl,my_task`: a file in any chat format, or a seqio Task of the user's module with
metric_fns. A row with `candidates` is answered by the likeliest candidate; others are answered by greedy writing.
"""

from __future__ import annotations

import dataclasses
import pathlib
import unicodedata
from collections.abc import Callable, Sequence

from jinstr import errors
from jinstr.data import formats, readers
from jinstr.data import sources as sources_lib

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question; `answer` is the right one among `candidates`, if there are any."""

    id: str
    messages: tuple[dict[str, str], ...]
    answer: str
    candidates: tuple[str, ...] = ()


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
        """Expected accuracy of a uniform choice."""
        return sum(1 / len(question.candidates) for question in self.questions) / len(
            self.questions
        )


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target after NFKC and without spaces at the ends."""

    def same(text: str) -> str:
        return unicodedata.normalize("NFKC", text).strip()

    hits = sum(
        same(target) == same(text) for target, text in zip(targets, predictions, strict=True)
    )
    return {"accuracy": hits / len(targets)}


def _candidates(row: dict, example: dict, where: str) -> tuple[str, ...]:
    """The whole answers that are compared: `candidates`, or the answer with each value in place of the right one."""
    found = example.get("candidates") or row.get("candidates") or ()
    answer = example["contents"][-1]
    value = row.get("answer")
    if found and isinstance(value, str) and value != answer:
        if value not in found or answer.count(value) != 1:
            raise errors.DataError(
                "JI-EVAL-001",
                f"{where}: {value!r} must stand once in the output and be a candidate",
            )
        found = [answer.replace(value, candidate) for candidate in found]
    if found and answer not in found:
        raise errors.DataError("JI-EVAL-002", f"{where}: the answer {answer!r} is no candidate")
    return tuple(found)


def _file_task(name: str, path: str, limit: int) -> EvalTask:
    questions = []
    for file in readers.files_of(path):
        for where, row in readers.rows(file):
            if isinstance(row, readers.Skip):
                raise errors.DataError("JI-EVAL-003", f"{where}: {row}")
            fitting = [n for n in formats.fits(row) if formats.FORMATS[n].kind == "chat"]
            if len(fitting) != 1:
                raise errors.DataError(
                    "JI-EVAL-004",
                    f"{where}: the fields {', '.join(row)} are no question with its answer",
                )
            for number, example in enumerate(formats.FORMATS[fitting[0]].examples(row)):
                messages = [
                    {"role": role, "content": content}
                    for role, content in zip(example["roles"], example["contents"])
                ]
                questions.append(
                    Question(
                        id=example["id"] or f"{where}/{number}",
                        messages=tuple(messages[:-1]),
                        answer=messages[-1]["content"],
                        candidates=_candidates(row, example, where),
                    )
                )
                if len(questions) == limit:
                    return EvalTask(name=name, questions=tuple(questions), metrics=(exact_match,))
    if not questions:
        raise errors.DataError("JI-EVAL-005", f"{path}: no questions")
    return EvalTask(name=name, questions=tuple(questions), metrics=(exact_match,))


def _seqio_task(name: str, module: str, limit: int) -> EvalTask:
    from jinstr.data import tasks

    source = sources_lib.SourceConfig(task=name, module=module, split="validation")
    questions = []
    for example in tasks.examples(source):
        turns = zip(example["roles"], example["contents"])
        *messages, answer = [{"role": role, "content": content} for role, content in turns]
        questions.append(
            Question(
                id=example["id"] or str(len(questions)),
                messages=tuple(messages),
                answer=answer["content"],
                candidates=tuple(example.get("candidates", ())),
            )
        )
        if len(questions) == limit:
            break
    if not questions:
        raise errors.DataError("JI-EVAL-006", f"the task {name} has no examples in its last split")
    return EvalTask(
        name=name, questions=tuple(questions), metrics=tasks.metrics(source) or (exact_match,)
    )


def parse(words: str, module: str, limit: int) -> tuple[EvalTask, ...]:
    """Tasks of `EVAL_TASKS=[name=]path,task,…`, each with its first `limit` questions (0 = all)."""
    found = []
    for word in filter(None, (word.strip() for word in words.split(","))):
        name, equals, path = word.partition("=")
        path = path if equals else name
        if "/" in path or pathlib.Path(path).suffix or pathlib.Path(path).exists():
            found.append(_file_task(name if equals else pathlib.Path(path).stem, path, limit))
        else:
            found.append(_seqio_task(path, module, limit))
    return tuple(found)
