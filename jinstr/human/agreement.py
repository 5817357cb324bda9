"""Do people agree? Krippendorff's alpha, shares of equal verdicts, raters against the others and against themselves.

Values are [raters, units] with NaN where a rater did not judge. R raters, U units, V values.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from jinstr.human import bootstrap
from jinstr.human import judgements as judgements_lib

LEVELS = ("nominal", "ordinal", "interval", "ratio")


def table(rows: Sequence[tuple[Hashable, Hashable, float]]) -> tuple[list, list, np.ndarray]:
    """(raters, units, values [R, U]) of rows (rater, unit, value)."""
    raters, units = (
        list(dict.fromkeys(r for r, _, _ in rows)),
        list(dict.fromkeys(u for _, u, _ in rows)),
    )
    values = np.full((len(raters), len(units)), math.nan)
    places = {r: n for n, r in enumerate(raters)}, {u: n for n, u in enumerate(units)}
    for rater, unit, value in rows:
        values[places[0][rater], places[1][unit]] = value
    return raters, units, values


def _distances(values_V: np.ndarray, total_V: np.ndarray, level: str) -> np.ndarray:
    """Squared differences between values, [V, V] (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011)."""
    a, b = values_V[:, None], values_V[None, :]
    if level == "nominal":
        return (a != b).astype(float)
    if level == "interval":
        return (a - b) ** 2
    if level == "ratio":
        whole = a + b
        return np.where(whole == 0, 0.0, (a - b) / np.where(whole == 0, 1, whole)) ** 2
    ends = np.cumsum(total_V)
    low, high = (
        np.minimum.outer(range(len(a)), range(len(a))),
        np.maximum.outer(range(len(a)), range(len(a))),
    )
    between = ends[high] - (ends[low] - total_V[low])
    return (between - (total_V[low] + total_V[high]) / 2) ** 2 * (low != high)


def _coincidences(values_RU: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values [V], coincidences of each unit [U, V, V]) of the units that two raters or more judged."""
    values_RU = values_RU[:, (~np.isnan(values_RU)).sum(0) >= 2]
    values_V = np.unique(values_RU[~np.isnan(values_RU)])
    count_UV = (values_RU[:, :, None] == values_V).sum(0).astype(float)
    pairs_UVV = count_UV[:, :, None] * count_UV[:, None, :]
    pairs_UVV -= np.einsum("uv,vw->uvw", count_UV, np.eye(len(values_V)))
    return values_V, pairs_UVV / np.maximum(count_UV.sum(1) - 1, 1)[:, None, None]


def _alpha(values_V: np.ndarray, found_VV: np.ndarray, level: str) -> float:
    total_V = found_VV.sum(1)
    count = total_V.sum()
    distance_VV = _distances(values_V, total_V, level)
    expected = (np.outer(total_V, total_V) * distance_VV).sum() / max(count - 1, 1)
    if expected == 0:
        return math.nan  # everybody always said the same: nothing to agree about
    return float(1 - (found_VV * distance_VV).sum() / expected)


def alpha(values_RU: np.ndarray, level: str) -> float:
    """Krippendorff's alpha: 1 agreement, 0 chance, below 0 worse; NaN where only one value or no pair was seen."""
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is none of {LEVELS}")
    values_V, found_UVV = _coincidences(np.asarray(values_RU, float))
    return _alpha(values_V, found_UVV.sum(0), level) if found_UVV.size else math.nan


def alpha_interval(
    values_RU: np.ndarray, level: str, *, samples: int, seed: int
) -> tuple[float, float]:
    """A 95 % interval of alpha by drawing units again; (NaN, NaN) where there is no alpha."""
    values_V, found_UVV = _coincidences(np.asarray(values_RU, float))
    if not found_UVV.size:
        return math.nan, math.nan
    drawn_SU = bootstrap.draws(len(found_UVV), samples, np.random.default_rng(seed))
    found = [_alpha(values_V, np.tensordot(drawn, found_UVV, 1), level) for drawn in drawn_SU]
    found = np.array([a for a in found if not math.isnan(a)])
    return bootstrap.interval(found) if len(found) else (math.nan, math.nan)


def raw(values_RU: np.ndarray) -> float:
    """Share of pairs of judgements of one unit that are equal; InstructGPT's labelers: 0.73."""
    _, found_UVV = _coincidences(np.asarray(values_RU, float))
    found_VV = found_UVV.sum(0)
    return float(np.trace(found_VV) / found_VV.sum()) if found_VV.sum() else math.nan


def verdict_rows(judged: Sequence[judgements_lib.Judgement]) -> list[tuple[str, tuple, float]]:
    """(rater, unit, verdict) of first looks: a unit is a prompt with its two models; 1 = the one first by name won,
    -1 the other, 0 a tie, whatever side they were shown on."""
    found = []
    for j in judged:
        if not j.repeat:
            first, second = sorted((j.left, j.right))
            value = {first: 1.0, second: -1.0, None: 0.0}[j.winner]
            found.append((j.rater, (j.prompt, first, second), value))
    return found


def score_rows(
    judged: Sequence[judgements_lib.Judgement], axis: str
) -> list[tuple[str, tuple, float]]:
    """(rater, unit, score 1–5) of an axis: a unit is a model's answer to a prompt."""
    found = {}
    for j in judged:
        for model, scores in ((j.left, j.scores_left), (j.right, j.scores_right)):
            if not j.repeat and axis in scores:
                found[j.rater, (j.prompt, model)] = float(scores[axis])
    return [(rater, unit, value) for (rater, unit), value in found.items()]


def with_oneself(judged: Sequence[judgements_lib.Judgement]) -> tuple[int, int]:
    """(equal, all) verdicts at the hidden second showing of a pair."""
    first = {(r, u): v for r, u, v in verdict_rows(judged)}
    again = [
        (j.rater, (j.prompt, *sorted((j.left, j.right))), j.winner) for j in judged if j.repeat
    ]
    found = [
        first[rater, unit] == {unit[1]: 1.0, unit[2]: -1.0, None: 0.0}[winner]
        for rater, unit, winner in again
        if (rater, unit) in first
    ]
    return sum(found), len(found)


def raters(judged: Sequence[judgements_lib.Judgement]) -> dict[str, Mapping[str, float]]:
    """Each rater: judgements, agreement with the others (share of equal pairs), alpha without this rater, the verdict
    most used with its share (1 = always the same), scores never used, agreement with oneself."""
    rows = verdict_rows(judged)
    names, _, values_RU = table(rows)
    found = {}
    for number, name in enumerate(names):
        others = np.delete(values_RU, number, 0)
        own = values_RU[number]
        both = ~np.isnan(others) & ~np.isnan(own)
        shown = [j for j in judged if j.rater == name and not j.repeat]
        sides = [sum(j.verdict == v for j in shown) for v in judgements_lib.VERDICTS]
        scores = {
            s for j in shown for side in (j.scores_left, j.scores_right) for s in side.values()
        }
        same, again = with_oneself([j for j in judged if j.rater == name])
        found[name] = {
            "judgements": len(shown),
            "agreement": float((others == own)[both].mean()) if both.any() else math.nan,
            "alpha_without": alpha(others, "nominal"),
            "most_used": judgements_lib.VERDICTS[int(np.argmax(sides))],
            "most_used_share": max(sides) / max(1, sum(sides)),
            "unused_scores": sorted(set(range(1, 6)) - scores) if scores else [],
            "with_oneself": same / again if again else math.nan,
            "repeats": again,
        }
    return found
