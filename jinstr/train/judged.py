"""How right a model is about answers that people compared: accuracy by prompt, by difference of length, by annotator.

A pair is right when the answer that people ranked better gets the larger score. Ties of people are no pairs; equal
scores count one half. Every prompt counts once, however many pairs it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from jinstr.data import records
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import together
from jinstr.train import evaluation
from jinstr.train import state as state_lib

SIMILAR = 0.1  # share by which the lengths of two answers may differ to be called similar


class Judged(NamedTuple):
    """One prompt: its answers, as people and a model see them."""

    scores: np.ndarray  # f32 [K], of the model
    ranks: np.ndarray  # int [K], of people, 1 = best
    tokens: np.ndarray  # int [K], lengths of the answers
    annotator: str


def pairs(judged: Judged) -> list[tuple[int, int]]:
    """(better, worse) answers by people's ranks."""
    count = len(judged.ranks)
    return [(i, j) for i in range(count) for j in range(count) if judged.ranks[i] < judged.ranks[j]]


def rightness(difference: float) -> float:
    """1 for a positive difference, 0 for a negative one, a half for none."""
    return 0.5 + 0.5 * float(np.sign(difference))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _bucket(better: int, worse: int) -> str:
    if abs(better - worse) <= SIMILAR * max(better, worse):
        return "similar_length"
    return "better_is_longer" if better > worse else "better_is_shorter"


def accuracy(prompts: Iterable[Judged]) -> dict[str, float]:
    """Shares of right pairs, the mean over prompts; NaN where there is no such pair.

    accuracy with its standard_error (over prompts), prompts and pairs; always_longer and always_shorter: of these
    rules; better_is_longer, similar_length, better_is_shorter: the model's accuracy on these pairs, and how many there
    are; annotator/<name>: the model's accuracy on what they ranked.
    """
    of_prompt, rules = [], {"always_longer": [], "always_shorter": []}
    buckets = {"better_is_longer": [], "similar_length": [], "better_is_shorter": []}
    annotators: dict[str, list[float]] = {}
    count = 0
    for judged in prompts:
        found = pairs(judged)
        if not found:
            continue
        right = [rightness(judged.scores[i] - judged.scores[j]) for i, j in found]
        longer = [rightness(judged.tokens[i] - judged.tokens[j]) for i, j in found]
        for (i, j), value in zip(found, right):
            buckets[_bucket(judged.tokens[i], judged.tokens[j])].append(value)
        of_prompt.append(_mean(right))
        rules["always_longer"].append(_mean(longer))
        rules["always_shorter"].append(1 - _mean(longer))
        annotators.setdefault(judged.annotator, []).append(_mean(right))
        count += len(found)
    spread = float(np.std(of_prompt, ddof=1)) if len(of_prompt) > 1 else math.nan
    results = {
        "accuracy": _mean(of_prompt),
        "standard_error": spread / math.sqrt(max(1, len(of_prompt))),
        "prompts": float(len(of_prompt)),
        "pairs": float(count),
    }
    results |= {name: _mean(values) for name, values in rules.items()}
    for name, values in buckets.items():
        results |= {name: _mean(values), f"{name}_pairs": float(len(values))}
    if annotators.keys() - {""}:
        named = {name or "unknown": values for name, values in sorted(annotators.items())}
        results |= {f"annotator/{name}": _mean(values) for name, values in named.items()}
    return results


def by_label(answers: Iterable[Judged]) -> dict[str, float]:
    """Of single answers with labels (rank 1 = desired): mean scores, how many, and auc, the chance that a desired one
    scores above another one; NaN where a label is missing."""
    found = [(judged.scores[0], judged.ranks[0] == 1) for judged in answers]
    desired, others = (
        [s for s, wanted in found if wanted is kind] for kind in (np.True_, np.False_)
    )
    above = np.sign(np.subtract.outer(desired, others)) if desired and others else np.array([])
    return {
        "auc": 0.5 + 0.5 * _mean(above.ravel()),
        "desired_score": _mean(desired),
        "undesired_score": _mean(others),
        "desired": float(len(desired)),
        "undesired": float(len(others)),
    }


def judge(score: Callable, params: dict, loader, mesh, rules: mesh_lib.AxisRules) -> list[Judged]:
    """Every prompt of a prepared set of comparisons, each once. score: (params, batch) → f32 [B, G, K]."""
    found: list[Judged] = []
    size = loader.config.batch_rows
    batches = loader.evaluation_batches(state_lib.places_here(mesh, rules, size))
    for number, batch in enumerate(tqdm.tqdm(batches, desc="held out", leave=False, disable=None)):
        evaluation.going_on()
        placed = state_lib.place_rows(batch, mesh, rules, size)
        score_BGK = together.fetch(score(params, placed))
        first = number * size
        rows = loader.read_records(range(first, min(first + size, loader.num_rows)))
        for scores_GK, row in zip(score_BGK, rows):
            found += [_judged(scores_K, record) for scores_K, record in zip(scores_GK, row)]
    return found


def _judged(scores_K: np.ndarray, record: records.Ranked) -> Judged:
    return Judged(
        scores_K[: len(record.ranks)],
        np.array(record.ranks),
        np.array([int(mask.sum()) for mask in record.masks]),
        record.annotator,
    )
