"""How sure a score of a benchmark is: percentile bootstrap over its examples (Efron and Tibshirani 1993, section 13.3).

It tells what another draw of examples would have given, not what another wording or another training would have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


def percentiles(draws: Sequence[float]) -> list[float]:
    """[low, high] that hold the middle 95 % of the draws."""
    outside = (1 - LEVEL) / 2
    return [float(value) for value in np.quantile(draws, [outside, 1 - outside])]


def of_mean(scores: Sequence[float]) -> list[float]:
    """Interval of the mean of the scores of examples."""
    values, rng = np.asarray(scores, np.float64), np.random.default_rng(SEED)
    size = len(values)
    return percentiles([values[rng.integers(0, size, size)].mean() for _ in range(RESAMPLES)])


def of_figure(metric, targets: Sequence[tuple[str, ...]], predictions: Sequence[str]) -> dict:
    """Intervals by name of the figures of a metric that is no mean: it is computed anew of every draw of examples."""
    rng, size = np.random.default_rng(SEED), len(targets)
    if hasattr(metric, "resampled"):
        return {metric.name: percentiles(metric.resampled(targets, predictions, rng, RESAMPLES))}
    draws: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, size, size)
        found = metric([targets[n] for n in chosen], [predictions[n] for n in chosen])
        for name, value in found.items():
            draws.setdefault(name, []).append(value)
    return {name: percentiles(values) for name, values in draws.items()}
