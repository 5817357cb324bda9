"""How sure a score of a benchmark is: percentile bootstrap over its examples (Efron and Tibshirani 1993, section 13.3).

It tells what another draw of examples would have given, not what another wording or another training would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def of_figure(figure: Callable[[np.ndarray], float], size: int) -> list[float]:
    """Interval of a figure of `size` examples, given their numbers (some twice or more)."""
    rng = np.random.default_rng(SEED)
    return percentiles([figure(rng.integers(0, size, size)) for _ in range(RESAMPLES)])


def of_metric(metric, targets: Sequence[tuple[str, ...]], predictions: Sequence[str]) -> dict:
    """Intervals of a metric's figures by name; of those that come from scores, of the one that the metric is named by."""
    if hasattr(metric, "scores"):
        return {metric.name: of_mean(metric.scores(targets, predictions))}
    if hasattr(metric, "resampled"):
        rng = np.random.default_rng(SEED)
        return {metric.name: percentiles(metric.resampled(targets, predictions, rng, RESAMPLES))}

    def drawn(name: str) -> Callable[[np.ndarray], float]:
        return lambda chosen: metric(
            [targets[n] for n in chosen], [predictions[n] for n in chosen]
        )[name]

    return {name: of_figure(drawn(name), len(targets)) for name in metric(targets, predictions)}
