"""From entries of sheets to judgements and rankings, and who still has what to do."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping

from jinstr.human import judgements
from jinstr.human import sheet_entries as entries
from jinstr.human import study as study_lib


def judgements_of(study: study_lib.Study, reading: entries.Reading) -> list[judgements.Judgement]:
    """One judgement for every row that is done, in the order of the study; a ranking gives one for every two models."""
    items = study.item_of
    found = []
    for row, entry in done(study, reading):
        if study.mode == "ab":
            found.append(_judgement(row, entry))
        else:
            found += _pairs(row, entry, items[row.item])
    return found


def done(study, reading) -> Iterator[tuple[study_lib.Row, entries.Entry]]:
    """Rows that can be used."""
    for row in study.rows:
        entry = reading.entries.get(row.id)
        if entry is not None and entry.state == "done" and row.id not in reading.refused:
            yield row, entry


def _judgement(row: study_lib.Row, entry: entries.Entry) -> judgements.Judgement:
    def scores(letter: str) -> dict[str, int]:
        named = {axis: entry.scores.get(f"{axis}_{letter}") for axis in judgements.AXES}
        return {axis: score for axis, score in named.items() if score is not None}

    return judgements.Judgement(
        prompt=row.item,
        rater=row.rater,
        left=row.shown[0],
        right=row.shown[1],
        verdict=entry.verdict,
        scores_left=scores("a"),
        scores_right=scores("b"),
        comment_left=entry.comments.get("comment_a", ""),
        comment_right=entry.comments.get("comment_b", ""),
        comment=entry.comments.get("comment", ""),
        repeat=row.repeat,
        where=entry.where,
    )


def _pairs(row, entry, item: study_lib.Item) -> Iterator[judgements.Judgement]:
    """A ranking as verdicts on every two models; models that gave one text share its rank."""
    text_of = {model: study_lib.answer_text(item, model) for model in item.answers}
    rank_of = {text_of[model]: rank for model, rank in zip(row.shown, entry.ranks)}
    order = [*row.shown, *(model for model in item.answers if model not in row.shown)]
    ranks = {model: rank_of[text_of[model]] for model in order if text_of[model] in rank_of}
    for left, right in itertools.combinations(ranks, 2):
        if text_of[left] == text_of[right]:
            continue  # nobody compared a text with itself
        better = ranks[left] - ranks[right]
        yield judgements.Judgement(
            prompt=row.item,
            rater=row.rater,
            left=left,
            right=right,
            verdict="left" if better < 0 else "right" if better > 0 else "tie",
            comment=entry.comments.get("comment", ""),
            repeat=row.repeat,
            where=entry.where,
        )


def rankings_of(study: study_lib.Study, reading: entries.Reading) -> Iterator[dict]:
    """Rankings as jinstr reward reads them, one for each row that is done; repeats are left out."""
    items = study.item_of
    for row, entry in done(study, reading):
        item = items[row.item]
        if study.mode != "rank" or row.repeat or item.turns > 1:
            continue
        texts = [item.answers[model][0] for model in row.shown]
        shown = [study_lib.answer_text(item, model) for model in row.shown]
        names = [
            [m for m in item.answers if study_lib.answer_text(item, m) == text] for text in shown
        ]
        yield {
            "id": item.id,
            **study_lib.prompt_fields(item),
            "responses": texts,
            "ranks": list(entry.ranks),
            "models": names,
            "annotator": row.rater,
        }


def contradictions(study: study_lib.Study, reading: entries.Reading) -> Iterator[str]:
    """Rows whose verdict goes against all four scores: a slip, or sides mixed up. They are kept."""
    for row, entry in done(study, reading):
        pairs = [
            (entry.scores.get(f"{axis}_a"), entry.scores.get(f"{axis}_b"))
            for axis in judgements.AXES
        ]
        if study.mode != "ab" or any(None in pair for pair in pairs):
            continue
        signs = {(a > b) - (a < b) for a, b in pairs}
        if (
            len(signs) == 1
            and signs != {0}
            and signs != {{"left": 1, "right": -1, "tie": 0}[entry.verdict]}
        ):
            side = "A" if signs == {1} else "B"
            told = {"left": "A", "right": "B", "tie": "a tie"}[entry.verdict]
            yield f"{entry.where}: the verdict is {told}, all four scores are higher for {side} ({row.rater})"


def progress(study: study_lib.Study, reading: entries.Reading) -> dict[str, Mapping[str, int]]:
    """For each rater: rows, and how many are done, held, begun, empty, refused or in no file; `unscored` are done rows
    without all scores."""
    table = {rater: collections.Counter() for rater in study.raters}
    for row in study.rows:
        entry, count = reading.entries.get(row.id), table[row.rater]
        state = "refused" if row.id in reading.refused else entry.state if entry else "missing"
        count["rows"] += 1
        count[state] += 1
        if state == "done" and study.mode == "ab":
            count["unscored"] += len(entry.scores) < 2 * len(judgements.AXES)
    return table


def told(table: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The progress as lines, whoever has most left first."""
    names = ("rows", "done", "unscored", "held", "begun", "empty", "refused", "missing")
    wide = max(map(len, table), default=5) + 2
    lines = [f"{'rater':<{wide}}" + "".join(f"{name:>10}" for name in names)]
    for rater, count in sorted(
        table.items(), key=lambda pair: (pair[1]["done"] - pair[1]["rows"], pair[0])
    ):
        lines.append(f"{rater:<{wide}}" + "".join(f"{count[name]:>10}" for name in names))
    return lines
