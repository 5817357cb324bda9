"""Which source gives the rows of a step: a closed form, so that a run's data state is its step number.

The rows of a run are numbered slots. Shares become whole numbers of rows per period of `PERIOD` slots by largest
remainder, and each source's rows are spread evenly over the period. Slot → (source, how many rows of that source came
before) is then two table look-ups, on 1 host or 64, at any step. Shares may change at given slots.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class _Phase:
    first_slot: int
    before_S: np.ndarray  # i64: rows drawn from each source before this phase
    per_period_S: np.ndarray  # i64
    source_P: np.ndarray  # i64: source of each slot of the period
    rank_P: np.ndarray  # i64: rows of that source before it in the period


def _phase(first_slot: int, before_S: np.ndarray, shares: np.ndarray) -> _Phase:
    per_period_S = largest_remainder(shares, PERIOD)
    places = [(np.arange(count) + 0.5) / count for count in per_period_S]
    order_P = np.argsort(np.concatenate(places), kind="stable")
    return _Phase(
        first_slot=first_slot,
        before_S=before_S,
        per_period_S=per_period_S,
        source_P=np.repeat(np.arange(len(per_period_S)), per_period_S)[order_P],
        rank_P=np.concatenate([np.arange(count) for count in per_period_S])[order_P],
    )


class Schedule:
    """Slot → source and row ordinal, for shares that are constant from one given slot to the next."""

    def __init__(self, phases: Sequence[tuple[int, np.ndarray]]):
        """Args: phases, (first slot, row shares [S]) in ascending order, the first at slot 0."""
        if (
            not phases
            or phases[0][0] != 0
            or sorted({p[0] for p in phases}) != [p[0] for p in phases]
        ):
            raise errors.ConfigError(
                "JI-MIX-004",
                f"mixture phases must start at step 0 and ascend, found {[p[0] for p in phases]}",
            )
        self._phases: list[_Phase] = []
        for first_slot, shares in phases:
            before_S = self.counts(first_slot) if self._phases else np.zeros(len(shares), np.int64)
            self._phases.append(_phase(first_slot, before_S, shares))

    def _at(self, slot: int) -> _Phase:
        return [phase for phase in self._phases if phase.first_slot <= slot][-1]

    def counts(self, slot: int) -> np.ndarray:
        """Rows drawn from each source in slots 0 to `slot` - 1, i64 [S]."""
        phase = self._at(slot)
        periods, rest = divmod(slot - phase.first_slot, PERIOD)
        partial_S = np.bincount(phase.source_P[:rest], minlength=len(phase.per_period_S))
        return phase.before_S + periods * phase.per_period_S + partial_S

    def locate(self, slots: range) -> list[tuple[int, int]]:
        """(source, ordinal of the row within the source's endless sequence) of each slot."""
        found = []
        for slot in slots:
            phase = self._at(slot)
            periods, rest = divmod(slot - phase.first_slot, PERIOD)
            source = int(phase.source_P[rest])
            ordinal = phase.before_S[source] + periods * phase.per_period_S[source]
            found.append((source, int(ordinal + phase.rank_P[rest])))
        return found
