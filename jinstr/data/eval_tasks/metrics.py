"""What is computed from targets and predictions, under names that say whose definition it is.

A metric takes (targets of every example, predictions) and returns figures by name. `Mean` is the mean of a score of
each example, so that intervals can be drawn from the scores; the others need all examples at once. Texts are compared
after NFKC (full-width ＡＢ１２ become AB12), as llm-jp-eval does before every metric of its own; kanji numerals stay
what they are, and brackets and punctuation count, unless a metric says otherwise.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from jinstr.data.eval_tasks import reading

Targets = Sequence[tuple[str, ...]]
Predictions = Sequence[str]


def nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean of a score of each example, 0 to 1; 0 where there are none."""

    name: str
    score: Callable[[tuple[str, ...], str], float]

    def scores(self, targets: Targets, predictions: Predictions) -> list[float]:
        return [self.score(t, p) for t, p in zip(targets, predictions, strict=True)]

    def __call__(self, targets: Targets, predictions: Predictions) -> dict[str, float]:
        found = self.scores(targets, predictions)
        return {self.name: sum(found) / len(found) if found else 0.0}


def _exact_match(targets: tuple[str, ...], prediction: str) -> float:
    """1 where the prediction is one of the targets, after NFKC and without spaces at the ends.

    With one target this is llm-jp-eval's exact_match (and accuracy, where the prediction is a choice). Case, brackets
    and kanji numerals count.
    """
    return float(nfkc(prediction).strip() in [nfkc(target).strip() for target in targets])


def _sorted_words(text: str) -> str:
    """fuzzywuzzy's full_process and sorting: signs to spaces, lower case, words in order. Letters of Japanese stay."""
    words = re.sub(r"(?ui)\W", " ", text).lower().strip().split()
    return " ".join(sorted(words)).strip()


def _char_f1_llm_jp_eval(targets: tuple[str, ...], prediction: str) -> float:
    """fuzzywuzzy.fuzz.token_sort_ratio / 100 against the first target: what llm-jp-eval calls char_f1.

    It is no F1: whole per cent of difflib's ratio, so 富士山 against 富士山です is .75. After NFKC; punctuation and
    brackets are spaces, order of words and case do not count, kanji numerals are letters. Source: llm-jp-eval 1.x
    metrics; fuzzywuzzy 0.18 with difflib (its optional C module and rapidfuzz give other figures).
    """
    gold, text = _sorted_words(nfkc(targets[0])), _sorted_words(nfkc(prediction))
    if not gold or not text:
        return 0.0
    ratio = difflib.SequenceMatcher(None, text, gold).ratio()
    return int(round(100 * ratio)) / 100


def _multiset_char_f1(targets: tuple[str, ...], prediction: str) -> float:
    """F1 of the characters that prediction and target share, each as often as in both; the best target counts.

    After NFKC and without spaces; brackets, punctuation and kanji numerals are characters like others. This is what
    the words "character F1" mean; llm-jp-eval's char_f1 is another thing (above).
    """
    found = collections.Counter("".join(nfkc(prediction).split()))
    best = 0.0
    for target in targets:
        wanted = collections.Counter("".join(nfkc(target).split()))
        total = wanted.total() + found.total()
        best = max(best, 2 * (wanted & found).total() / total if total else 1.0)
    return best


exact_match = Mean("exact_match", _exact_match)
accuracy = Mean("accuracy", _exact_match)
char_f1_llm_jp_eval = Mean("char_f1_llm_jp_eval", _char_f1_llm_jp_eval)
multiset_char_f1 = Mean("multiset_char_f1", _multiset_char_f1)


def _counts(targets: Targets, predictions: Predictions) -> tuple[list[str], np.ndarray]:
    """(classes, confusion i64 [class of the target, class of the prediction]); texts that are no class are one too."""
    golds = [nfkc(target[0]).strip() for target in targets]
    texts = [nfkc(text).strip() for text in predictions]
    names = sorted({*golds, *texts})
    place = {name: number for number, name in enumerate(names)}
    confusion = np.zeros((len(names), len(names)), np.int64)
    for gold, text in zip(golds, texts, strict=True):
        confusion[place[gold], place[text]] += 1
    return names, confusion


def _shares(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below != 0)


def macro_f1(targets: Targets, predictions: Predictions) -> dict[str, float]:
    """Mean of the F1 of every class that is a target or a prediction, as scikit-learn's f1_score(average="macro")."""
    _, confusion = _counts(targets, predictions)
    f1 = _shares(2.0 * np.diag(confusion), (confusion.sum(0) + confusion.sum(1)).astype(float))
    return {"macro_f1": float(f1.mean()) if f1.size else 0.0}


def balanced_accuracy(targets: Targets, predictions: Predictions) -> dict[str, float]:
    """Mean over the classes of the targets of the share found, as scikit-learn's balanced_accuracy_score."""
    _, confusion = _counts(targets, predictions)
    rows = confusion.sum(1)
    found = _shares(np.diag(confusion).astype(float), rows.astype(float))[rows > 0]
    return {"balanced_accuracy": float(found.mean()) if found.size else 0.0}


def mcc(targets: Targets, predictions: Predictions) -> dict[str, float]:
    """Matthews correlation of several classes (Gorodkin 2004), as scikit-learn's; 0 where one side is constant."""
    _, confusion = _counts(targets, predictions)
    total, right = int(confusion.sum()), int(np.trace(confusion))
    golds = [int(n) for n in confusion.sum(1)]
    texts = [int(n) for n in confusion.sum(0)]
    shared = right * total - sum(g * t for g, t in zip(golds, texts))
    spread = (total**2 - sum(n * n for n in golds)) * (total**2 - sum(n * n for n in texts))
    return {"mcc": shared / spread**0.5 if spread else 0.0}


def _numbers(targets: Targets, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    read = [float(reading.similarity_llm_jp_eval(text)) for text in predictions]
    return np.array([float(target[0]) for target in targets]), np.array(read)
