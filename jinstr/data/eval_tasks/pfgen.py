"""pfgen-bench: short answers to 50 questions, scored without a judge from what thousands of reference answers share.

Score = (fluency + truthfulness + helpfulness) / 3, the first two averaged over the groups of reference answers. Source:
pfnet-research/pfgen-bench, pfgen_eval.py (2024), whose rounding in between is left out. No NFKC: full-width and
half-width signs are different characters, kanji numerals are kanji.

Files: the official data/Q*.json ({"question_id", "question", "answers": {group: [text]}, "keywords": [tree]}), or
JSON Lines of question and answer alone, which know no score but likeness to that one answer.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from jinstr import errors
from jinstr.data import readers
from jinstr.data.eval_tasks import benchmark, official_files

LONGEST = 10  # characters of an n-gram for fluency
TRIGRAM = 3
FREE = 100  # characters that an answer may have
FADE = 50  # so many more, and nothing is left
READ = 200  # characters of an answer that are looked at
_SIGNS = frozenset("^$、。・「」『』（）【】［］〈〉《》")
_NOWHERE = 9999


def discount(length: int) -> float:
    """What the first `length` characters are worth: 1 up to 100, falling to 0 at 150, below 0 beyond."""
    return 1 - max(length - FREE, 0) / FADE


def _new_ngrams(answer: str) -> Iterator[list[str]]:
    """For every character of an answer, the n-grams ending there that were not there before."""
    seen: set[str] = set()
    for end in range(1, len(answer) + 1):
        found = []
        for start in range(end - 1, max(end - LONGEST, 0) - 1, -1):
            ngram = answer[start:end]
            if ngram not in seen:
                seen.add(ngram)
                found.append(ngram)
        yield found


class References:
    """Reference answers of one group to one question, as how many of them have each n-gram."""

    def __init__(self, answers: Sequence[str]):
        self.count = len(answers)
        self.having: dict[str, int] = {}
        for answer in answers:
            for ngrams in _new_ngrams(answer):
                for ngram in ngrams:
                    self.having[ngram] = self.having.get(ngram, 0) + 1
        self.usual = sum(map(self._fluency, answers)) / self.count

    def _fluency(self, answer: str) -> float:
        """The best over all beginnings of an answer, before it is set against the references' mean."""
        total, best = 0, 0.0
        for length, ngrams in enumerate(_new_ngrams(answer[:READ]), 1):
            total += sum(self.having.get(ngram, 0) for ngram in ngrams)
            best = max(best, total * discount(length))
        return best

    def fluency(self, answer: str) -> float:
        """N-grams that references have, new ones only; the references themselves have 1 on average."""
        return self._fluency(answer) / self.usual if self.usual else 0.0

    def truthfulness(self, answer: str) -> float:
        """Share of characters that stand in a trigram which 1 in 200 references has (less counts in part)."""
        text = f"^{answer}$"[: READ + 2]
        best_having = [0] * len(text)
        for start in range(len(text) - TRIGRAM + 1):
            having = self.having.get(text[start : start + TRIGRAM], 0)
            for place in range(start, start + TRIGRAM):
                best_having[place] = max(best_having[place], having)
        total, count, score, best = 0.0, 0, 0.0, 0.0
        for place, sign in enumerate(text):
            if sign in _SIGNS:
                continue
            total += min(1.0, 200.0 * best_having[place] / self.count)
            count += 1
            score = total / count * discount(place)
            if place >= FREE:
                best = max(best, score)
        return max(best, score)


def _end(tree: Mapping, answer: str) -> int:
    """Characters of the answer after which a keyword tree is fulfilled."""
    if "t" in tree:
        found = re.search(tree["t"], answer)
        return found.end() if found else _NOWHERE
    if "and" in tree:
        return max(_end(part, answer) for part in tree["and"])
    return min(_end(part, answer) for part in tree["or"])


def helpfulness(keywords: Sequence[Mapping], answer: str) -> float:
    """The best beginning: its discount, times 1 - importance for every keyword that it has not reached."""
    answer = answer[:READ]
    scores = [discount(length) for length in range(len(answer) + 1)]
    scores = [score for score in scores if score >= 0]
    for keyword in keywords:
        for length in range(min(len(scores), _end(keyword, answer))):
            scores[length] *= 1 - keyword.get("importance", 1.0)
    return max(scores)


def scores(official: Mapping, answers: Sequence[str]) -> list[dict[str, float]]:
    """Scores of answers to one official question."""
    groups = [References(found) for found in official["answers"].values()]
    result = []
    for answer in answers:
        found = {
            "fluency": sum(group.fluency(answer) for group in groups) / len(groups),
            "truthfulness": sum(group.truthfulness(answer) for group in groups) / len(groups),
            "helpfulness": helpfulness(official["keywords"], answer),
        }
        result.append({"pfgen": sum(found.values()) / 3} | found)
    return result


def _check_tree(tree, where: str) -> None:
    names = [name for name in ("t", "and", "or") if isinstance(tree, Mapping) and name in tree]
    if len(names) != 1:
        raise official_files.bad(where, f"the keyword {tree!r} has not one of t, and, or")
    if names[0] == "t":
        try:
            re.compile(tree["t"])
        except (re.error, TypeError) as error:
            raise official_files.bad(where, f"keyword {tree['t']!r}: {error}") from None
        return
    parts = tree[names[0]]
    if not isinstance(parts, list) or not parts:
        raise official_files.bad(where, f"the keyword {tree!r} has no parts")
    for part in parts:
        _check_tree(part, where)


def _check(official: Mapping, where: str) -> None:
    """Errors: DataError for what is no official question."""
    answers, keywords = official.get("answers"), official.get("keywords")
    if not isinstance(answers, dict) or not answers:
        raise official_files.bad(where, "answers is no object of groups")
    for group, texts in answers.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise official_files.bad(where, f"answers.{group} is no list of texts")
    if not isinstance(keywords, list):
        raise official_files.bad(where, "keywords is no list")
    for keyword in keywords:
        _check_tree(keyword, where)
        importance = keyword.get("importance", 1.0)
        if isinstance(importance, bool) or not isinstance(importance, int | float):
            raise official_files.bad(where, f"importance is {importance!r}, not a number")


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
    question = official_files.text_of(row, "question", where)
    id = official_files.id_of(row, "question_id", where) if "question_id" in row else question
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
            for where, row in official_files.rows(str(file)):
                answer = official_files.text_of(row, "answer", where)
                yield where, _example(where, row, answer)

    return official_files.collect(path, found())


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
            for place, score in zip(places, scores(official, [predictions[n] for n in places])):
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
