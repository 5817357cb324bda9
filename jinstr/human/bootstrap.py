"""Intervals of means by drawing whole clusters again: prompts, and with several raters raters too.

With the prompts alone drawn, the interval is about other prompts judged by these raters; with both (Owen's pigeonhole
bootstrap, Annals of Applied Statistics 1, 2007) about other raters as well. P prompts, R raters, S samples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def draws(count: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` clusters is drawn, [S, count]: `count` of them with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), size=samples).astype(float)


def numbered(labels: Sequence[Hashable]) -> np.ndarray:
    """Labels as numbers from 0, in the order in which they first come."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], int)


def means(
    values: Sequence[float],
    prompts: Sequence[Hashable],
    raters: Sequence[Hashable] | None = None,
    *,
    samples: int,
    seed: int,
) -> np.ndarray:
    """Means of `values` (one a judgement) in S samples of their clusters, f64 [S]; samples that draw none are left out.

    Errors: ValueError without values.
    """
    values = np.asarray(values, float)
    if not len(values):
        raise ValueError("nothing to draw from")
    rng = np.random.default_rng(seed)
    p = numbered(prompts)
    r = np.zeros(len(values), int) if raters is None else numbered(raters)
    total_PR = np.zeros((p.max() + 1, r.max() + 1))
    count_PR = np.zeros_like(total_PR)
    np.add.at(total_PR, (p, r), values)
    np.add.at(count_PR, (p, r), 1)
    drawn_SP = draws(len(total_PR), samples, rng)
    drawn_SR = np.ones((samples, total_PR.shape[1]))
    if raters is not None:
        drawn_SR = draws(total_PR.shape[1], samples, rng)
    total_S = ((drawn_SP @ total_PR) * drawn_SR).sum(1)
    count_S = ((drawn_SP @ count_PR) * drawn_SR).sum(1)
    return total_S[count_S > 0] / count_S[count_S > 0]


def interval(found: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples."""
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
