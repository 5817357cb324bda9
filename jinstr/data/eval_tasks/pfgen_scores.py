"""pfgen-bench's scores of an answer: fluency, truthfulness, helpfulness, from reference answers and keywords.

Source: pfnet-research/pfgen-bench, pfgen_eval.py (2024), whose rounding in between is left out. No NFKC: full-width and
half-width signs are different characters, kanji numerals are kanji.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

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
