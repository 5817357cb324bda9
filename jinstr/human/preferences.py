"""Judgements as training data: rankings of all answers to a prompt, pairs, or single answers with a label.

Of one judgement, the margin of the left answer over the right one is a weighted mean of what the rater said: the
verdict as 1, 0 or -1, and of each axis the difference of scores over 4. Margins of raters on one pair are averaged with
the raters' weights; a hidden repeat and its first showing count as one judgement. Scores of answers are those whose
differences fit the margins best in least squares (Jiang et al. 2011, Statistical ranking and combinatorial Hodge
theory, section 4): where all answers were compared with each other equally often, this is the mean margin over others.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jinstr import errors
from jinstr.human import judgements as judgements_lib
from jinstr.human import study as study_lib

FORMS = ("groups", "pairs", "labels")
VERDICT = "verdict"
_TINY = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How judgements become training data."""

    form: str = "groups"  # groups (jinstr reward, dpo) | pairs (dpo) | labels (KTO)
    axis_weights: str = "verdict=1"  # of verdict, fluency, accuracy, detail, relevance
    rater_weights: str = ""  # raters that are not named count 1; 0 leaves one out
    margin: float = 0.0  # a smaller margin is a tie; 0 to 1
    labels_from: str = "scores"  # scores (1 to 5) | verdict (what won is desired, what lost is not)
    desired: float = 4.0  # least mean score of a desired answer
    undesired: float = 2.0  # greatest mean score of an undesired one
    length_share: float = 1.0  # greatest share of preferences for the longer answer; 1 = as it is

    def __post_init__(self):
        if self.form not in FORMS or self.labels_from not in ("scores", VERDICT):
            raise errors.ConfigError(
                "JI-PREFER-001",
                f"FORM={self.form!r} is one of {FORMS}; LABELS_FROM={self.labels_from!r} scores or verdict",
            )
        if not (
            0 <= self.margin < 1 and 0 < self.length_share <= 1 and self.undesired < self.desired
        ):
            raise errors.ConfigError(
                "JI-PREFER-002",
                f"MARGIN={self.margin:g} is from 0 to below 1, LENGTH_SHARE={self.length_share:g} above 0 to 1, "
                f"UNDESIRED={self.undesired:g} below DESIRED={self.desired:g}",
            )
        axes(self.axis_weights)
        weights(self.rater_weights, "RATER_WEIGHTS")


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


class Unit(NamedTuple):
    """Lines that stay together: what they say of long and short answers decides whether they are kept."""

    rows: list[dict]
    longer: int  # preferences for the longer of two answers
    shorter: int
    difference: int  # characters by which preferred answers are longer, in sum


@dataclasses.dataclass
class Exported:
    rows: list[dict]
    counts: dict[
        str, int | float
    ]  # what was left out, and the share of the longer answer before and after


def export(
    study: study_lib.Study, given: Sequence[judgements_lib.Judgement], config: ExportConfig
) -> Exported:
    """The training data of a study. Errors: DataError when the judgements are of another study, or nothing is left."""
    items, counts = study.item_of, collections.Counter()
    given = list(_usable(given, items, counts))
    by_item: dict[str, list[judgements_lib.Judgement]] = collections.defaultdict(list)
    for judgement in given:
        by_item[judgement.prompt].append(judgement)
    units: list[Unit] = []
    for item in study.items:
        compared = margins(
            by_item.get(item.id, ()), axes(config.axis_weights), weights(config.rater_weights, "")
        )
        counts["judged"] += bool(compared)
        if config.form == "pairs":
            units += _pairs(item, compared, config, counts)
        elif config.form == "groups":
            units += _groups(item, compared, config, counts)
        else:
            units += _labels(item, by_item.get(item.id, ()), compared, config, counts)
    before = longer_share(units)
    kept = length_matched(units, config.length_share)
    counts["length"] = len(units) - len(kept)
    if not kept:
        left_out = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        raise errors.DataError(
            "JI-PREFER-005", f"of {len(given)} judgements nothing is left to train on ({left_out})"
        )
    shares = {"longer_before": before, "longer_after": longer_share(kept)}
    return Exported([row for unit in kept for row in unit.rows], dict(counts) | shares)


def _usable(
    given, items: Mapping[str, study_lib.Item], counts
) -> Iterator[judgements_lib.Judgement]:
    """Judgements on answers that one prompt has in common and that say something."""
    for judgement in given:
        item = items.get(judgement.prompt)
        if item is None or not {judgement.left, judgement.right} <= item.answers.keys():
            raise errors.DataError(
                "JI-PREFER-006",
                f"{judgement.where}: the study holds no answers of {judgement.left} and {judgement.right} to prompt "
                f"{judgement.prompt!r}",
            )
        if item.turns > 1:
            counts["turns"] += (
                1  # the second answers follow upon different first ones: no common prompt
            )
        elif not all(item.answers[model][0].strip() for model in (judgement.left, judgement.right)):
            counts["blank"] += 1
        else:
            yield judgement


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
        near = place > 1 and table[ordered[place - 2]] - table[name] <= least + _TINY
        found[name] = found[ordered[place - 2]] if near else place
    return found


def _groups(item, compared, config: ExportConfig, counts) -> Iterator[Unit]:
    """One ranking for each connected part of the answers; those of one text are one answer."""
    for number, table in enumerate(scores(compared)):
        found = ranks(table, config.margin)
        if len(set(found.values())) < 2:
            counts["tied"] += 1
            continue
        models: dict[str, list[str]] = collections.defaultdict(list)
        for name in found:
            models[item.answers[name][0]].append(name)
        rank_of = {text: min(found[name] for name in names) for text, names in models.items()}
        preferred = [
            (better, worse) if rank_of[better] < rank_of[worse] else (worse, better)
            for better, worse in itertools.combinations(rank_of, 2)
            if rank_of[better] != rank_of[worse]
        ]
        if not preferred:
            counts["tied"] += 1
            continue
        order = sorted(rank_of, key=lambda text: _blind(item.id, text))
        row = {
            "id": item.id + (f":{number}" if number else ""),
            **study_lib.prompt_fields(item),
            "responses": order,
            "ranks": [rank_of[text] for text in order],
            "models": [models[text] for text in order],
        }
        yield _unit([row], preferred)


def _pairs(item, compared, config: ExportConfig, counts) -> Iterator[Unit]:
    for number, (pair, (value, _)) in enumerate(compared.items()):
        texts = [item.answers[name][0] for name in pair]
        if abs(value) <= config.margin + _TINY or texts[0] == texts[1]:
            counts["tied"] += 1
            continue
        step = 1 if value > 0 else -1
        chosen, rejected = texts[::step]
        row = {
            "id": f"{item.id}:{number}",
            **study_lib.prompt_fields(item),
            "chosen": chosen,
            "rejected": rejected,
            "margin": round(abs(value), 6),
            "models": list(pair[::step]),
        }
        yield _unit([row], [(chosen, rejected)])


def _labels(item, given, compared, config: ExportConfig, counts) -> Iterator[Unit]:
    """All answers of a prompt that are good or bad enough to have a label."""
    if config.labels_from == VERDICT:
        value_of = {name: score for table in scores(compared) for name, score in table.items()}
        # Of two answers, the scores are half of the margin and its negative.
        low, high = -config.margin / 2 - _TINY, config.margin / 2 + _TINY
    else:
        value_of = mean_scores(given, axes(config.axis_weights), weights(config.rater_weights, ""))
        low, high = config.undesired + _TINY, config.desired - _TINY
    label_of = {}
    for name, value in value_of.items():
        if low < value < high:
            counts["between"] += 1
        else:
            label_of[item.answers[name][0]] = "desired" if value >= high else "undesired"
    order = sorted(label_of, key=lambda text: _blind(item.id, text))
    good, bad = ([t for t in order if label_of[t] == label] for label in ("desired", "undesired"))
    rows = [
        {
            "id": f"{item.id}:{number}",
            **study_lib.prompt_fields(item),
            "response": text,
            "label": label_of[text],
            "models": [name for name in value_of if item.answers[name][0] == text],
        }
        for number, text in enumerate(order)
    ]
    if rows:
        yield _unit(rows, list(itertools.product(good, bad)))


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


def _blind(*parts: str) -> str:
    """An order that tells nothing of the models."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _unit(rows: list[dict], preferred: Sequence[tuple[str, str]]) -> Unit:
    by = [len(better) - len(worse) for better, worse in preferred]
    return Unit(rows, sum(b > 0 for b in by), sum(b < 0 for b in by), sum(by))


def longer_share(units: Iterable[Unit]) -> float:
    """Share of the preferences that are for the longer answer, equal lengths left aside; nan without any."""
    units = list(units)
    longer, shorter = sum(u.longer for u in units), sum(u.shorter for u in units)
    return longer / (longer + shorter) if longer + shorter else float("nan")


def length_matched(units: Sequence[Unit], bound: float) -> list[Unit]:
    """Units without those that prefer longer answers most, until the share of such preferences is within the bound.

    Left out first are those whose preferred answers are longer by most characters.
    """
    longer, shorter = sum(u.longer for u in units), sum(u.shorter for u in units)
    against = [u for u in units if u.longer > bound * (u.longer + u.shorter)]
    against.sort(key=lambda u: (-u.difference / (u.longer + u.shorter), _blind(u.rows[0]["id"])))
    out = set()
    for unit in against:
        if longer <= bound * (longer + shorter) + _TINY:
            break
        out.add(id(unit))
        longer, shorter = longer - unit.longer, shorter - unit.shorter
    return [unit for unit in units if id(unit) not in out]
