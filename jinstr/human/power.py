"""How many prompts a comparison needs: the power of the exact two-sided sign test, before anybody starts.

`win` and `loss` are the shares of prompts that a model wins and loses; the rest are ties, which decide nothing.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

ALPHA = 0.05


def rejects(decisive, alpha: float = ALPHA):
    """The largest number of wins (or losses) out of `decisive` that is significant on its own side; -1 = none is."""
    edge = stats.binom.ppf(alpha / 2, decisive, 0.5)
    # The quantile is the first number whose tail reaches alpha / 2; it counts itself only where it meets it exactly.
    return np.where(stats.binom.cdf(edge, decisive, 0.5) <= alpha / 2, edge, edge - 1).astype(int)


def of_decisive(decisive, share: float, alpha: float = ALPHA):
    """P(p ≤ alpha) when a model wins `share` of `decisive` prompts on average; for arrays of numbers too."""
    edge = rejects(decisive, alpha)
    low = stats.binom.cdf(edge, decisive, share)
    return low + stats.binom.sf(decisive - edge - 1, decisive, share)


def of_prompts(prompts: int, win: float, loss: float, alpha: float = ALPHA) -> float:
    """Power of `prompts` prompts, ties among them. Errors: ValueError for shares that are none."""
    decisive = win + loss
    if not (win >= 0 and loss >= 0 and 0 < decisive <= 1):
        raise ValueError(f"win = {win} and loss = {loss} are no shares of prompts")
    chance = stats.binom.pmf(np.arange(prompts + 1), prompts, decisive)
    likely = np.flatnonzero(chance > 1e-9)
    return float(chance[likely] @ of_decisive(likely, win / decisive, alpha))


def prompts_needed(
    win: float, loss: float, *, power: float = 0.8, alpha: float = ALPHA, most: int = 100_000
) -> int:
    """Fewest prompts with that power; `most` where even those have less, as where both win equally often.

    Found by halving: power rises with prompts but for the saw teeth of whole numbers, which ties smooth away.
    """
    if win == loss or of_prompts(most, win, loss, alpha) < power:
        return most
    low, high = 1, 2
    while of_prompts(high, win, loss, alpha) < power:
        low, high = high, min(most, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        if of_prompts(middle, win, loss, alpha) < power:
            low = middle
        else:
            high = middle
    return high
