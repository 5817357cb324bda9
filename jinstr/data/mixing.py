"""Which source gives the rows of a step: a closed form, so that a run's data state is its step number.

The rows of a run are numbered slots. Shares become whole numbers of rows per period of `PERIOD` slots by largest
remainder, and each source's rows are spread evenly over the period. Slot → (source, how many rows of that source came
before) is then two table look-ups, on 1 host or 64, at any step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jinstr import errors

PERIOD = 1 << 16


def largest_remainder(shares: np.ndarray, seats: int) -> np.ndarray:
    """Whole numbers [S] that sum to `seats`, each within 1 of seats * share (Hamilton's method)."""
    exact = np.asarray(shares, np.float64) / np.sum(shares) * seats
    counts = np.floor(exact).astype(np.int64)
    short = seats - int(counts.sum())
    counts[np.argsort(-(exact - counts), kind="stable")[:short]] += 1
    return counts


def row_shares(
    rates: Sequence[float], unit: str, rows: Sequence[int], examples: Sequence[int]
) -> np.ndarray:
    """Share of the rows that each source gets, f64 [S], summing to 1.

    Args: rates [S] in `unit`: "tokens" (shares of the rows), "examples" (shares of the examples: a source whose
    examples are long needs more rows), "passes" (how often each source is seen while the others are seen at their own
    rate: shares follow the sizes); rows, examples [S] of each packed source.
    Errors: ConfigError for a rate that is not positive, or a source so rare that it would never be drawn.
    """
    rates, rows = np.asarray(rates, np.float64), np.asarray(rows, np.float64)
    if not (rates > 0).all():
        raise errors.ConfigError("JI-MIX-001", f"rates must be above 0, found {rates.tolist()}")
    if unit == "tokens":
        weights = rates
    elif unit == "examples":
        weights = rates * rows / np.asarray(examples, np.float64)
    elif unit == "passes":
        weights = rates * rows
    else:
        raise errors.ConfigError(
            "JI-MIX-002", f"RATE_UNIT={unit} is not one of tokens, examples, passes"
        )
    shares = weights / weights.sum()
    if not (largest_remainder(shares, PERIOD) > 0).all():
        raise errors.ConfigError(
            "JI-MIX-003",
            f"row shares {shares.tolist()}: a source gets less than one row in {PERIOD}; "
            "raise its rate or leave it out",
        )
    return shares


class Schedule:
    """Slot → source and row ordinal."""

    def __init__(self, shares: np.ndarray):
        """Args: shares, f64 [S], of the rows (`row_shares`)."""
        self._per_period_S = largest_remainder(shares, PERIOD)
        places = [(np.arange(count) + 0.5) / count for count in self._per_period_S]
        order_P = np.argsort(np.concatenate(places), kind="stable")
        # Of each slot of the period: its source, and the rows of that source before it.
        self._source_P = np.repeat(np.arange(len(places)), self._per_period_S)[order_P]
        self._rank_P = np.concatenate([np.arange(n) for n in self._per_period_S])[order_P]

    def counts(self, slot: int) -> np.ndarray:
        """Rows drawn from each source in slots 0 to `slot` - 1, i64 [S]."""
        periods, rest = divmod(slot, PERIOD)
        partial_S = np.bincount(self._source_P[:rest], minlength=len(self._per_period_S))
        return periods * self._per_period_S + partial_S

    def locate(self, slots: range) -> list[tuple[int, int]]:
        """(source, ordinal of the row within the source's endless sequence) of each slot."""
        found = []
        for slot in slots:
            periods, rest = divmod(slot, PERIOD)
            source = int(self._source_P[rest])
            ordinal = periods * self._per_period_S[source] + self._rank_P[rest]
            found.append((source, int(ordinal)))
        return found
