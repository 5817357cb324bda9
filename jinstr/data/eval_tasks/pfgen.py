"""pfgen-bench: short answers to 50 questions, scored without a judge from what thousands of reference answers share.

Score = (fluency + truthfulness + helpfulness) / 3, the first two averaged over the groups of reference answers
(pfgen_scores.py).

Files: the official data/Q*.json ({"question_id", "question", "answers": {group: [text]}, "keywords": [tree]}), or
JSON Lines of question and answer alone, which know no score but likeness to that one answer.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from jinstr import errors
from jinstr.data import readers
from jinstr.data.eval_tasks import benchmark, file_checks, pfgen_scores


def _check_tree(tree, where: str) -> None:
    names = [name for name in ("t", "and", "or") if isinstance(tree, Mapping) and name in tree]
    if len(names) != 1:
        raise file_checks.bad(where, f"the keyword {tree!r} has not one of t, and, or")
    if names[0] == "t":
        try:
            re.compile(tree["t"])
        except (re.error, TypeError) as error:
            raise file_checks.bad(where, f"keyword {tree['t']!r}: {error}") from None
        return
    parts = tree[names[0]]
    if not isinstance(parts, list) or not parts:
        raise file_checks.bad(where, f"the keyword {tree!r} has no parts")
    for part in parts:
        _check_tree(part, where)


def _check(official: Mapping, where: str) -> None:
    """Errors: DataError for what is no official question."""
    answers, keywords = official.get("answers"), official.get("keywords")
    if not isinstance(answers, dict) or not answers:
        raise file_checks.bad(where, "answers is no object of groups")
    for group, texts in answers.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise file_checks.bad(where, f"answers.{group} is no list of texts")
    if not isinstance(keywords, list):
        raise file_checks.bad(where, "keywords is no list")
    for keyword in keywords:
        _check_tree(keyword, where)
        importance = keyword.get("importance", 1.0)
        if isinstance(importance, bool) or not isinstance(importance, int | float):
            raise file_checks.bad(where, f"importance is {importance!r}, not a number")


def _official(file: pathlib.Path) -> dict | None:
    """The official question of a file; None where it holds something else."""
    if readers.kind_of(file) not in ("json", "jsonl"):
        return None
    try:
        whole = json.loads(readers.decode(file.read_bytes(), file))
    except ValueError:
        return None  # JSON Lines
    return whole if isinstance(whole, dict) and "answers" in whole else None


def _example(where: str, row: Mapping, answer: str) -> benchmark.Example:
    question = file_checks.text_of(row, "question", where)
    id = file_checks.id_of(row, "question_id", where) if "question_id" in row else question
    return benchmark.Example(id=id, fields={"question": question}, targets=(answer,))


def read(path: str) -> tuple[benchmark.Example, ...]:
    """Questions with one answer each; of official files the first reference answer of the first group."""

    def found():
        for file in readers.files_of(path):
            official = _official(file)
            if official is not None:
                _check(official, str(file))
                first = next(iter(official["answers"].values()))[0]
                yield str(file), _example(str(file), official, first)
                continue
            for where, row in file_checks.rows(str(file)):
                answer = file_checks.text_of(row, "answer", where)
                yield where, _example(where, row, answer)

    return file_checks.collect(path, found())


def _by_first_answer(path: str) -> dict[str, pathlib.Path]:
    """First reference answer → official file of a path; empty where the files are others."""
    found = {}
    for file in readers.files_of(path):
        official = _official(file)
        if official is not None:
            found[next(iter(official["answers"].values()))[0]] = file
    return found


@dataclasses.dataclass(frozen=True)
class Score:
    """The official scores against reference answers. `name` is the one that `scores` gives for each example."""

    files: Mapping[str, pathlib.Path]  # first reference answer, which is the target → official file
    name: str = "pfgen"

    def _all(self, targets: Sequence[tuple[str, ...]], predictions: Sequence[str]) -> list[dict]:
        found: list[dict] = [{}] * len(targets)
        numbers: dict[str, list[int]] = {}
        for number, target in enumerate(targets):
            numbers.setdefault(target[0], []).append(number)
        for gold, places in numbers.items():  # one question at a time: n-grams take much memory
            if gold not in self.files:
                raise errors.DataError("JI-EVAL-019", f"no reference answers for {gold!r}")
            official = json.loads(readers.decode(self.files[gold].read_bytes(), self.files[gold]))
            for place, score in zip(
                places, pfgen_scores.scores(official, [predictions[n] for n in places])
            ):
                found[place] = score
        return found

    def scores(self, targets: Sequence[tuple[str, ...]], predictions: Sequence[str]) -> list[float]:
        return [found[self.name] for found in self._all(targets, predictions)]

    def __call__(self, targets: Sequence[tuple[str, ...]], predictions: Sequence[str]) -> dict:
        every = self._all(targets, predictions)
        names = ("pfgen", "fluency", "truthfulness", "helpfulness")
        return {n: sum(s[n] for s in every) / len(every) if every else 0.0 for n in names}


def metrics_of(path: str) -> tuple[Callable, ...]:
    """The official scores against the reference answers at a path; none where it holds no official files."""
    files = _by_first_answer(path)
    return (Score(files),) if files else ()
