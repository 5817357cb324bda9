"""How often a model is preferred: counts, rates with intervals, the sign test, the effect of the side it was shown on.

A prompt is the unit: several people's judgements of one prompt are no independent evidence (its answers are the same),
so tests go by prompts, and intervals by drawing whole prompts (human/bootstrap.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jinstr.human import judgements as judgements_lib

Z = 1.959963984540054  # of a two-sided interval at 95 %


class Tally(NamedTuple):
    wins: int
    losses: int
    ties: int

    @property
    def count(self) -> int:
        return sum(self)

    @property
    def adjusted(self) -> float:
        """(wins + ties / 2) / all (FastChat's adjusted win rate); NaN of nothing."""
        return (self.wins + self.ties / 2) / self.count if self.count else math.nan


def between(
    judged: Iterable[judgements_lib.Judgement], model: str, other: str
) -> list[judgements_lib.Judgement]:
    """Judgements of these two models, without the hidden repeats, which only measure a rater against himself."""
    pair = {model, other}
    return [j for j in judged if not j.repeat and {j.left, j.right} == pair]


def tally(outcomes: Iterable[float]) -> Tally:
    """Counts of outcomes above, below and at one half."""
    found = np.asarray(list(outcomes), float)
    return Tally(int((found > 0.5).sum()), int((found < 0.5).sum()), int((found == 0.5).sum()))


def by_prompt(judged: Sequence[judgements_lib.Judgement], model: str) -> dict[str, float]:
    """prompt → mean outcome for `model`, in the order in which prompts first come: above one half it won there."""
    found: dict[str, list[float]] = {}
    for judgement in judged:
        found.setdefault(judgement.prompt, []).append(judgements_lib.outcome(judgement, model))
    return {prompt: float(np.mean(outcomes)) for prompt, outcomes in found.items()}


def wilson(hits: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share (Wilson, JASA 22, 1927); (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    share, square = hits / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_test(wins: int, losses: int) -> float:
    """Exact and two-sided p of as uneven a split where neither is better; ties say nothing (1 of nothing)."""
    if not wins + losses:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def position_effect(judged: Sequence[judgements_lib.Judgement]) -> float:
    """Share of the answer on the left (ties half) minus that on the right, from -1 to 1: 0 where the side has no say.

    Over all models: where each is shown on both sides equally often, which one is better cancels out.
    """
    shown = [j for j in judged if not j.repeat]
    if not shown:
        return math.nan
    return float(np.mean([2 * judgements_lib.outcome(j, j.left) - 1 for j in shown]))
