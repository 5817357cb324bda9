"""Judgements as training data: rankings of all answers to a prompt, pairs, or single answers with a label."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

from jinstr import errors
from jinstr.human import judgements as judgements_lib
from jinstr.human import length_matching as matching
from jinstr.human import margins as margins_lib
from jinstr.human import study as study_lib

FORMS = ("groups", "pairs", "labels")


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
        if self.form not in FORMS or self.labels_from not in ("scores", margins_lib.VERDICT):
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
        margins_lib.axes(self.axis_weights)
        margins_lib.weights(self.rater_weights, "RATER_WEIGHTS")


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
    units: list[matching.Unit] = []
    for item in study.items:
        compared = margins_lib.margins(
            by_item.get(item.id, ()),
            margins_lib.axes(config.axis_weights),
            margins_lib.weights(config.rater_weights, ""),
        )
        counts["judged"] += bool(compared)
        if config.form == "pairs":
            units += _pairs(item, compared, config, counts)
        elif config.form == "groups":
            units += _groups(item, compared, config, counts)
        else:
            units += _labels(item, by_item.get(item.id, ()), compared, config, counts)
    before = matching.longer_share(units)
    kept = matching.length_matched(units, config.length_share)
    counts["length"] = len(units) - len(kept)
    if not kept:
        left_out = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        raise errors.DataError(
            "JI-PREFER-005", f"of {len(given)} judgements nothing is left to train on ({left_out})"
        )
    shares = {"longer_before": before, "longer_after": matching.longer_share(kept)}
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
            # The second answers follow upon different first ones: they have no prompt in common.
            counts["turns"] += 1
        elif not all(item.answers[model][0].strip() for model in (judgement.left, judgement.right)):
            counts["blank"] += 1
        else:
            yield judgement


def _groups(item, compared, config: ExportConfig, counts) -> Iterator[matching.Unit]:
    """One ranking for each connected part of the answers; those of one text are one answer."""
    for number, table in enumerate(margins_lib.scores(compared)):
        found = margins_lib.ranks(table, config.margin)
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
        yield matching.unit([row], preferred)


def _pairs(item, compared, config: ExportConfig, counts) -> Iterator[matching.Unit]:
    for number, (pair, (value, _)) in enumerate(compared.items()):
        texts = [item.answers[name][0] for name in pair]
        if abs(value) <= config.margin + margins_lib.TINY or texts[0] == texts[1]:
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
        yield matching.unit([row], [(chosen, rejected)])


def _labels(item, given, compared, config: ExportConfig, counts) -> Iterator[matching.Unit]:
    """All answers of a prompt that are good or bad enough to have a label."""
    if config.labels_from == margins_lib.VERDICT:
        value_of = {
            name: score for table in margins_lib.scores(compared) for name, score in table.items()
        }
        # Of two answers, the scores are half of the margin and its negative.
        low, high = -config.margin / 2 - margins_lib.TINY, config.margin / 2 + margins_lib.TINY
    else:
        value_of = margins_lib.mean_scores(
            given,
            margins_lib.axes(config.axis_weights),
            margins_lib.weights(config.rater_weights, ""),
        )
        low, high = config.undesired + margins_lib.TINY, config.desired - margins_lib.TINY
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
        yield matching.unit(rows, list(itertools.product(good, bad)))


def _blind(*parts: str) -> str:
    """An order that tells nothing of the models."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
