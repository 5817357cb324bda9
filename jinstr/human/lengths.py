"""How much of a win rate may be length: answers' lengths, the always-longer baseline, an estimate at equal length.

Length is counted in characters as they were written, and in tokens where a tokenizer is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jinstr.human import judgements as judgements_lib

Texts = Mapping[tuple[str, str], str]  # (prompt, model) → answer
PRECISION = 0.01  # of a normal prior with standard deviation 10, so that separated data has a finite estimate


def of_models(
    texts: Texts, tokenize: Callable[[str], Sequence] | None = None
) -> dict[str, dict[str, float]]:
    """model → mean characters, and with a tokenizer mean tokens and mean different tokens of its answers."""
    found: dict[str, list[list[float]]] = {}
    for (_, model), text in texts.items():
        row = [float(len(text))]
        if tokenize:
            tokens = list(tokenize(text))
            row += [len(tokens), len(set(tokens))]
        found.setdefault(model, []).append(row)
    names = ("characters", "tokens", "unique_tokens")
    return {model: dict(zip(names, map(float, np.mean(rows, 0)))) for model, rows in found.items()}


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's r; NaN of fewer than three, or where one does not vary."""
    if len(a) < 3 or np.std(a) == 0 or np.std(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def longer_wins(judged: Sequence[judgements_lib.Judgement], texts: Texts) -> tuple[int, int]:
    """(how often the longer answer won, decided judgements of answers that are not equally long)."""
    won = decided = 0
    for judgement in judged:
        if judgement.repeat or judgement.winner is None:
            continue
        left, right = (len(texts[judgement.prompt, m]) for m in (judgement.left, judgement.right))
        if left != right:
            decided += 1
            won += (judgement.winner == judgement.left) == (left > right)
    return won, decided


def always_longer(judged: Sequence[judgements_lib.Judgement], texts: Texts, model: str) -> float:
    """The adjusted rate of `model` if the longer answer always won, and equally long ones tied; NaN of no look."""
    found = []
    for j in judged:
        if model in (j.left, j.right) and not j.repeat:
            own, other = (len(texts[j.prompt, m]) for m in (model, *({j.left, j.right} - {model})))
            found.append((own > other) + (own == other) / 2)
    return float(np.mean(found)) if found else math.nan


class Controlled(NamedTuple):
    """P(model wins) = sigmoid(strength + slope · tanh(difference in length / its standard deviation))."""

    rate: float  # at equal length
    low: float  # its 95 % interval
    high: float
    slope: float  # log odds for an answer that is much longer
    slope_error: float
    scale: float  # the standard deviation, about 0, in characters


def controlled(
    judged: Sequence[judgements_lib.Judgement], texts: Texts, model: str
) -> Controlled | None:
    """The win rate (ties half) that is left when lengths are equal; None where no length differs.

    As `length_controlled_minimal` of AlpacaEval (arXiv 2404.04475) has it, by logistic regression with ties as half a
    win and half a loss. It takes away what goes with length, be it padding or substance: a lower bound of what a longer
    and better model is worth.
    """
    shown = [j for j in judged if not j.repeat]
    if not shown:
        return None
    outcome = np.array([judgements_lib.outcome(j, model) for j in shown])
    other = [j.right if j.left == model else j.left for j in shown]
    difference = np.array(
        [len(texts[j.prompt, model]) - len(texts[j.prompt, o]) for j, o in zip(shown, other)],
        float,
    )
    if not difference.any():
        return None
    # About 0 and not about the mean: equal length is what is asked about.
    scale = math.sqrt((difference**2).mean())
    x = np.stack([np.ones(len(shown)), np.tanh(difference / scale)], 1)
    theta = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ theta))
        information = (x * (p * (1 - p))[:, None]).T @ x + PRECISION * np.eye(2)
        step = np.linalg.solve(information, x.T @ (outcome - p) - PRECISION * theta)
        theta += step * min(1.0, 2.0 / max(1e-12, np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    error = np.sqrt(np.diag(np.linalg.inv(information)))
    rates = 1 / (1 + np.exp(-(theta[0] + np.array([0.0, -1.96, 1.96]) * error[0])))
    return Controlled(*map(float, rates), float(theta[1]), float(error[1]), scale)
