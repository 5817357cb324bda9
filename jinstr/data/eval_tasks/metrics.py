"""What is computed from targets and predictions, under names that say whose definition it is.

A metric takes (targets of every example, predictions) and returns figures by name. `Mean` is the mean of a score of
each example, so that intervals can be drawn from the scores; `OfClasses` knows counts of classes alone; the others need
all examples at once. Texts are compared
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

from jinstr.data.eval_tasks import harness_text, reading

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


_LATIN_1 = dict.fromkeys(range(0x80, 0x100))


def _sorted_words(text: str) -> str:
    """fuzzywuzzy's processing: U+0080–U+00FF (é, °, ×) fall away, signs become spaces; lower case, words in order."""
    words = re.sub(r"\W", " ", text.translate(_LATIN_1)).lower().split()
    return " ".join(sorted(words))


def _char_f1_llm_jp_eval(targets: tuple[str, ...], prediction: str) -> float:
    """fuzzywuzzy.fuzz.token_sort_ratio / 100 against the first target: what llm-jp-eval calls char_f1.

    It is no F1: whole per cent of difflib's ratio, so 富士山 against 富士山です is .75. After NFKC; punctuation and
    brackets are spaces, é and ° are nothing, order of words and case do not count, kanji numerals are letters.
    Source: llm-jp-eval 1.x metrics; fuzzywuzzy 0.18 with difflib. Of 5,200 pairs 3 % have another figure (up to .37)
    where python-Levenshtein is installed beside it, and 29 % with rapidfuzz as it comes.
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


@dataclasses.dataclass(frozen=True)
class OfClasses:
    """A figure that depends only on how often which class was predicted for which."""

    name: str
    figure: Callable[[np.ndarray], float]  # of a confusion of at least one example

    def __call__(self, targets: Targets, predictions: Predictions) -> dict[str, float]:
        _, confusion = _counts(targets, predictions)
        return {self.name: self.figure(confusion) if confusion.size else 0.0}

    def resampled(
        self, targets: Targets, predictions: Predictions, rng: np.random.Generator, times: int
    ) -> list[float]:
        """The figure of `times` draws of as many examples, with replacement: only their counts matter."""
        _, confusion = _counts(targets, predictions)
        total = confusion.sum()
        draws = rng.multinomial(total, confusion.ravel() / total, times)
        return [self.figure(draw.reshape(confusion.shape)) for draw in draws]


def _macro_f1(confusion: np.ndarray) -> float:
    """Mean of the F1 of every class that is a target or a prediction, as scikit-learn's f1_score(average="macro")."""
    both = (confusion.sum(0) + confusion.sum(1)).astype(float)
    return float(_shares(2.0 * np.diag(confusion), both)[both > 0].mean())


def _balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean over the classes of the targets of the share found, as scikit-learn's balanced_accuracy_score."""
    rows = confusion.sum(1)
    return float(_shares(np.diag(confusion).astype(float), rows.astype(float))[rows > 0].mean())


def _mcc(confusion: np.ndarray) -> float:
    """Matthews correlation of several classes (Gorodkin 2004), as scikit-learn's; 0 where one side is constant."""
    total, right = int(confusion.sum()), int(np.trace(confusion))
    golds = [int(n) for n in confusion.sum(1)]
    texts = [int(n) for n in confusion.sum(0)]
    shared = right * total - sum(g * t for g, t in zip(golds, texts))
    spread = (total**2 - sum(n * n for n in golds)) * (total**2 - sum(n * n for n in texts))
    return shared / spread**0.5 if spread else 0.0


macro_f1 = OfClasses("macro_f1", _macro_f1)
balanced_accuracy = OfClasses("balanced_accuracy", _balanced_accuracy)
mcc = OfClasses("mcc", _mcc)


def _number(text: str) -> float:
    """A prediction that was read (reading.similarity_llm_jp_eval); anything else has no number."""
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    return number if np.isfinite(number) else float(reading.NO_SIMILARITY)


def _correlation(name: str, targets: Targets, predictions: Predictions) -> float:
    # Lazily, because scipy.stats takes a second; jax brings it anyway.
    from scipy import stats

    golds = [float(target[0]) for target in targets]
    texts = [_number(text) for text in predictions]
    if len(golds) < 2 or len(set(golds)) == 1 or len(set(texts)) == 1:
        return 0.0
    value = getattr(stats, name)(golds, texts)[0]
    return 0.0 if np.isnan(value) else float(value)


def pearson(targets: Targets, predictions: Predictions) -> dict[str, float]:
    """Pearson's r as in llm-jp-eval: texts without a number are -2.0, and where one side is constant it is 0.

    Predictions went through reading.similarity_llm_jp_eval, which says what of NFKC, widths and kanji.
    """
    return {"pearson": _correlation("pearsonr", targets, predictions)}


def spearman(targets: Targets, predictions: Predictions) -> dict[str, float]:
    """Spearman's rank correlation, read and with the same exceptions as `pearson`."""
    return {"spearman": _correlation("spearmanr", targets, predictions)}


def _set_f1_llm_jp_eval(targets: tuple[str, ...], prediction: str) -> float:
    """F1 of lines as llm-jp-eval's set_f1, against the first target; after NFKC, spaces at the ends of lines fall away.

    Lines of the prediction count once, lines of the target as often as they stand there.
    """
    wanted = [line.strip() for line in nfkc(targets[0]).split("\n")]
    found = {line.strip() for line in nfkc(prediction).split("\n")}
    hits = sum(line in wanted for line in found)
    precision, recall = hits / len(found), hits / len(wanted)
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def _longest_common(first: str, second: str) -> int:
    """Length of the longest common subsequence, by bit rows (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for number, sign in enumerate(first):
        places[sign] = places.get(sign, 0) | 1 << number
    whole = (1 << len(first)) - 1
    row = whole
    for sign in second:
        hits = row & places.get(sign, 0)
        row = (row + hits | row - hits) & whole
    return len(first) - row.bit_count()


def _rouge_l_characters(targets: tuple[str, ...], prediction: str) -> float:
    """F1 of the longest common subsequence of characters (Lin 2004, beta 1), spaces left out; the best target counts.

    After NFKC and in lower case; brackets, punctuation and kanji numerals are characters like others. It equals
    rouge-score's rougeL with a tokenizer that gives characters.
    """
    text = "".join(nfkc(prediction).lower().split())
    best = 0.0
    for target in targets:
        gold = "".join(nfkc(target).lower().split())
        if gold and text:
            best = max(best, 2 * _longest_common(gold, text) / (len(gold) + len(text)))
    return best


def _exact_match_jsquad_harness(targets: tuple[str, ...], prediction: str) -> float:
    """Exact match of JSQuAD in the JP LM evaluation harness (jp-stable, jasquad/evaluate.py); any target counts.

    Without emoji and as neologdn writes texts, instead of NFKC: full-width letters, digits and signs are half-width,
    tildes and most spaces are nothing, ① and kanji numerals stay; case, brackets and punctuation count. (The harness
    also cuts what is written to as many tokens as the longest target has; that is a setting of generation.)
    """
    text = harness_text.normalised(prediction)
    return float(any(text == harness_text.normalised(target) for target in targets))


def _char_f1_jsquad_harness(targets: tuple[str, ...], prediction: str) -> float:
    """F1 of JSQuAD in the JP LM evaluation harness with characters for MeCab's words; the best target counts.

    Normalised as for exact match above, then without punctuation and spaces. The harness's own figure needs MeCab and
    a dictionary of its version, so this one is not comparable with it; JGLUE's paper too reports F1 of characters.
    """
    text = collections.Counter(harness_text.without_signs(prediction))
    best = 0.0
    for target in targets:
        gold = collections.Counter(harness_text.without_signs(target))
        if (same := (gold & text).total()) > 0:
            best = max(best, 2 * same / (gold.total() + text.total()))
    return best


exact_match_jsquad_harness = Mean("exact_match_jsquad_harness", _exact_match_jsquad_harness)
char_f1_jsquad_harness = Mean("char_f1_jsquad_harness", _char_f1_jsquad_harness)
set_f1_llm_jp_eval = Mean("set_f1_llm_jp_eval", _set_f1_llm_jp_eval)
rouge_l_characters = Mean("rouge_l_characters", _rouge_l_characters)
