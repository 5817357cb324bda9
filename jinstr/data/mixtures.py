"""Rates of a seqio Mixture in the unit that the run's own rates count.

A Mixture promises shares of examples, while a run's rates count tokens, examples or passes. How many examples a row
holds is known only when the sets are packed, so the rates are converted then.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from jinstr.data import loader as loader_lib
from jinstr.data import packing, prepared
from jinstr.data import sources as sources_lib


def converted(
    rates: Sequence[float], unit: str, rows: Sequence[int], examples: Sequence[int]
) -> list[float]:
    """Rates in `unit` with which examples of a Mixture's parts come in the ratio of `rates`.

    The sum of `rates` is what the whole Mixture asks for, in `unit`: a share of the tokens (rows), a share of the
    examples, or passes, in each of which as many rows are drawn as all parts hold.
    """
    if unit == "examples":
        return list(rates)
    rates, rows = np.asarray(rates, np.float64), np.asarray(rows, np.float64)
    weights = rates * rows / np.asarray(examples, np.float64)
    row_rates = rates.sum() * weights / weights.sum()
    return (row_rates if unit == "tokens" else row_rates * rows.sum() / rows).tolist()


def _size(
    place: prepared.PreparedSource, config: loader_lib.LoaderConfig, kinds: Sequence[str]
) -> tuple[int, int]:
    """(rows, examples) of a set, which is packed where that was not done yet."""
    loader = loader_lib.Loader((place,), config, kinds)
    counts = prepared.PreparedSet(place.path).manifest["counts"]
    index = packing.load(prepared.PreparedSet(place.path).path, config.seq_len)
    return loader.num_rows, counts["examples"] - index.dropped


def with_rates(
    sources: Sequence[sources_lib.SourceConfig],
    sets: Sequence[prepared.PreparedSource],
    config: loader_lib.LoaderConfig,
    kinds: Sequence[str] = loader_lib.TEXT,
) -> tuple[prepared.PreparedSource, ...]:
    """The sets of the sources, those of a Mixture's tasks with rates in the run's unit."""
    parts = collections.defaultdict(list)
    for number, source in enumerate(sources):
        if source.mixture:
            parts[source.mixture].append(number)
    found = list(sets)
    for numbers in parts.values():
        rows, examples = zip(*(_size(sets[n], config, kinds) for n in numbers))
        rates = converted([sets[n].rate for n in numbers], config.rate_unit, rows, examples)
        for n, rate in zip(numbers, rates):
            found[n] = dataclasses.replace(sets[n], rate=rate)
    return tuple(found)
