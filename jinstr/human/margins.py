"""How much better one answer is than another, by what raters said of it: margins, scores, ranks.

Of one judgement, the margin of the left answer over the right one is a weighted mean of what the rater said: the
verdict as 1, 0 or -1, and of each axis the difference of scores over 4. Margins of raters on one pair are averaged with
the raters' weights; a hidden repeat and its first showing count as one judgement. Scores of answers are those whose
differences fit the margins best in least squares (Jiang et al. 2011, Statistical ranking and combinatorial Hodge
theory, section 4): where all answers were compared with each other equally often, this is the mean margin over others.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping

import numpy as np

from jinstr import errors
from jinstr.human import judgements as judgements_lib

VERDICT = "verdict"
TINY = 1e-9  # sums of floats that should be equal may differ by so much


def weights(text: str, setting: str) -> dict[str, float]:
    """ "name=number,…" → weights. Errors: ConfigError."""
    found = {}
    for part in filter(None, (part.strip() for part in str(text).split(","))):
        name, _, value = part.rpartition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            found[name.strip()] = -1.0
        if not name or not 0 <= found[name.strip()] < float("inf"):
            raise errors.ConfigError(
                "JI-PREFER-003", f"{setting}={text!r}: {part!r} is not name=number from 0 on"
            )
    return found


def axes(text: str) -> dict[str, float]:
    """Weights of the verdict and the axes, at least one above 0. Errors: ConfigError."""
    found = weights(text, "AXIS_WEIGHTS")
    known = (VERDICT, *judgements_lib.AXES)
    unknown = [name for name in found if name not in known]
    if unknown or not any(found.values()):
        raise errors.ConfigError(
            "JI-PREFER-004", f"AXIS_WEIGHTS={text!r}: weights of {', '.join(known)}, one above 0"
        )
    return found


def margin(judgement: judgements_lib.Judgement, by_axis: Mapping[str, float]) -> float | None:
    """By how much the left answer is better, -1 to 1; None when nothing of what has a weight was said."""
    total = weight = 0.0
    for name, share in by_axis.items():
        if name == VERDICT:
            value = {"left": 1.0, "right": -1.0, "tie": 0.0}[judgement.verdict]
        elif name in judgement.scores_left and name in judgement.scores_right:
            value = (judgement.scores_left[name] - judgement.scores_right[name]) / 4
        else:
            continue
        total, weight = total + share * value, weight + share
    return total / weight if weight else None


def margins(
    given: Iterable[judgements_lib.Judgement],
    by_axis: Mapping[str, float],
    by_rater: Mapping[str, float],
) -> dict[tuple[str, str], tuple[float, float]]:
    """(model, model) in order of names → (margin of the first, sum of the raters' weights), of one prompt."""
    said: dict[tuple[str, str], dict[str, list[float]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for judgement in given:
        value = margin(judgement, by_axis)
        if value is not None and by_rater.get(judgement.rater, 1.0) > 0:
            first, second = sorted((judgement.left, judgement.right))
            said[first, second][judgement.rater].append(
                value if first == judgement.left else -value
            )
    found = {}
    for pair, values in said.items():
        each = [(by_rater.get(rater, 1.0), sum(v) / len(v)) for rater, v in values.items()]
        weight = sum(w for w, _ in each)
        found[pair] = sum(w * v for w, v in each) / weight, weight
    return found


def scores(compared: Mapping[tuple[str, str], tuple[float, float]]) -> list[dict[str, float]]:
    """Scores of the models of one prompt, whose differences fit the margins; one table for each connected part.

    The mean of a table is 0.
    """
    parts: list[set[str]] = []
    for pair in compared:
        touched = [part for part in parts if part & set(pair)]
        parts = [part for part in parts if part not in touched] + [set(pair).union(*touched)]
    tables = []
    for part in parts:
        names = sorted(part)
        edges = [(pair, *value) for pair, value in compared.items() if pair[0] in part]
        matrix, target = np.zeros((len(edges), len(names))), np.zeros(len(edges))
        for row, ((first, second), value, weight) in enumerate(edges):
            root = weight**0.5
            matrix[row, names.index(first)], matrix[row, names.index(second)] = root, -root
            target[row] = root * value
        # The least-squares solution of least norm has mean 0.
        found, *_ = np.linalg.lstsq(matrix, target, rcond=None)
        tables.append(dict(zip(names, found.tolist())))
    return tables


def ranks(table: Mapping[str, float], least: float) -> dict[str, int]:
    """Ranks, 1 = best; neighbours whose scores differ by no more than `least` share one."""
    ordered = sorted(table, key=lambda name: (-table[name], name))
    found: dict[str, int] = {}
    for place, name in enumerate(ordered, 1):
        near = place > 1 and table[ordered[place - 2]] - table[name] <= least + TINY
        found[name] = found[ordered[place - 2]] if near else place
    return found


def mean_scores(
    given, by_axis: Mapping[str, float], by_rater: Mapping[str, float]
) -> dict[str, float]:
    """Model → mean of its scores, 1 to 5, over axes and raters with their weights; all axes alike if none has one."""
    by_axis = {axis: by_axis.get(axis, 0.0) for axis in judgements_lib.AXES}
    if not any(by_axis.values()):
        by_axis = dict.fromkeys(by_axis, 1.0)
    total: dict[str, float] = collections.defaultdict(float)
    weight: dict[str, float] = collections.defaultdict(float)
    for judgement in given:
        for name, said in (
            (judgement.left, judgement.scores_left),
            (judgement.right, judgement.scores_right),
        ):
            for axis, score in said.items():
                share = by_axis[axis] * by_rater.get(judgement.rater, 1.0)
                total[name], weight[name] = total[name] + share * score, weight[name] + share
    return {name: total[name] / weight[name] for name in sorted(total) if weight[name] > 0}
