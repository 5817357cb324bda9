"""All that the report of a comparison shows, as one dict for JSON: people's judgements, judges beside them, progress.

study      what was asked for: rows, prompts, raters of each comparison, pairs left out as both answers are one text
progress   rater → rows, done, to go, late
people     human/summary.py; None without judgements of people
judges     for each judge the same of its pairs in both orders, its agreement with people, grades, rates of safety
problems   cells that could not be read; disputed: prompts on which people said opposite things
reading    what it comes to, in words
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jinstr.evaluate import comparison_words, judge_agreement, judge_files, judge_grades, judges
from jinstr.human import bootstrap, judgements, lengths, summary
from jinstr.human import study as study_lib

LATE = 0.75  # who has done less than this share of what the median rater has is late
DISPUTED = 12  # prompts shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting:
    """How figures are made."""

    seed: int
    samples: int  # of bootstrap intervals
    tokenize: Callable[[str], Sequence] | None  # None: lengths in characters alone


def texts_of(items: Sequence[study_lib.Item]) -> dict[tuple[str, str], str]:
    """(prompt, model) → answer; several turns one after the other."""
    return {(item.id, m): "\n".join(texts) for item in items for m, texts in item.answers.items()}


def facts(
    name: str,
    study: study_lib.Study | None,
    people: Sequence[judgements.Judgement],
    given: Sequence[judge_files.Given],
    texts: lengths.Texts,
    problems: Sequence[Mapping[str, str]],
    counting: Counting,
) -> dict[str, Any]:
    """The dict. study: None where judges judged answers that no study holds. texts: of all answers that are known."""
    asked = _asked(study, people) if study else None
    planned = {"planned": asked["prompts"], "overlap": asked["overlap"]} if asked else {}
    found = {
        "name": name,
        "study": asked,
        "progress": progress(study, people) if study else {},
        "people": _summary(people, texts, counting, **planned) if people else None,
        "judges": [_judge(g, people, {**texts, **g.texts}, counting) for g in given],
        "problems": list(problems),
        "disputed": _disputed(people, study.item_of) if study else [],
    }
    return found | {"reading": comparison_words.reading(found)}


def _asked(study: study_lib.Study, people) -> dict[str, Any]:
    first = [row for row in study.rows if not row.repeat]
    raters = collections.Counter((row.item, frozenset(row.shown)) for row in first)
    return {
        "mode": study.mode,
        "source": study.source,
        "models": list(study.models),
        "raters": len(study.raters),
        "rows": len(study.rows),
        "repeats": len(study.rows) - len(first),
        "done": len(_done(study, people)),
        "prompts": len({row.item for row in first}),
        "overlap": collections.Counter(raters.values()).most_common(1)[0][0],
        "identical": study.identical,
    }


def _done(study: study_lib.Study, people) -> list[study_lib.Row]:
    """Rows with a judgement; one row of a ranking gives several."""
    judged = {(j.rater, j.prompt, j.repeat, m) for j in people for m in (j.left, j.right)}
    pairs = {(j.rater, j.prompt, j.repeat, frozenset((j.left, j.right))) for j in people}

    def is_done(row):
        key = row.rater, row.item, row.repeat
        if study.mode == "rank":
            return all((*key, model) in judged for model in row.shown)
        return (*key, frozenset(row.shown)) in pairs

    return [row for row in study.rows if is_done(row)]


def progress(study: study_lib.Study, people) -> dict[str, dict[str, Any]]:
    """Whoever has most left comes first."""
    rows = collections.Counter(row.rater for row in study.rows)
    done = collections.Counter(row.rater for row in _done(study, people))
    share = {rater: done[rater] / rows[rater] for rater in study.raters if rows[rater]}
    middle = statistics.median(share.values())
    return {
        rater: {
            "rows": rows[rater],
            "done": done[rater],
            "to_go": rows[rater] - done[rater],
            "late": share[rater] < min(1.0, LATE * middle),
        }
        for rater in sorted(share, key=lambda r: (done[r] - rows[r], r))
    }


def _summary(judged, texts, counting: Counting, **rest) -> dict[str, Any]:
    found = summary.summary(
        judged,
        texts,
        seed=counting.seed,
        samples=counting.samples,
        tokenize=counting.tokenize,
        **rest,
    )
    for pair in found["pairs"]:
        pair["told"] = comparison_words.decision(pair)
    return found


def _judge(given: judge_files.Given, people, texts, counting: Counting) -> dict[str, Any]:
    """A judge's pairs count once, a tie where its two orders disagree; what hangs on the side is of every look."""
    whole = judge_agreement.whole_pairs(given.judged)
    looks = [j for j in given.judged if not j.repeat]
    shared = [j for j in people if not j.repeat]
    found = {
        "name": given.name,
        "source": given.source,
        "mode": given.mode,
        "faults": dict(given.faults),
        "looks": len(looks),
        "summary": _summary(whole, texts, counting, overlap=1, looks=looks) if whole else None,
        "orders": judge_agreement.table(looks) if looks else [],
        "agreement": judge_agreement.agreement(looks, shared) if looks and shared else None,
        "grades": _grades(given.grades, counting),
        "agreement_of_grades": (
            judge_grades.agreement(given.grades, shared) if given.grades and shared else None
        ),
        "safety": judge_grades.safety(given.grades) if given.mode == "safety" else [],
    }
    for pair in found["summary"]["pairs"] if whole else ():
        models = {pair["model"], pair["other"]}
        own, others = ([j for j in rows if {j.left, j.right} == models] for rows in (looks, shared))
        pair["agreement"] = judge_agreement.agreement(own, others) if others else None
    return summary.finite(found)


def _grades(grades: Sequence[judges.Grade], counting: Counting) -> list[dict[str, Any]]:
    """judge_grades.table with intervals of the means."""
    rows = judge_grades.table(grades)
    for row in rows:
        own = [g for g in grades if g.model == row["model"]]
        drawn = bootstrap.means(
            [g.grade for g in own], [g.prompt for g in own],
            samples=counting.samples, seed=counting.seed,
        )  # fmt: skip
        row["interval"] = bootstrap.interval(drawn)
    return rows


def _disputed(people, items: Mapping[str, study_lib.Item]) -> list[dict[str, Any]]:
    """Comparisons in which one rater preferred the one answer and another the other: those most evenly split first."""
    by_pair = collections.defaultdict(list)
    for j in people:
        if not j.repeat:
            by_pair[judge_agreement.pair_of(j)].append(j)
    found = []
    for (prompt, first, second), rows in by_pair.items():
        for_first = sum(j.winner == first for j in rows)
        for_second = sum(j.winner == second for j in rows)
        if for_first and for_second:
            found.append((abs(for_first - for_second), prompt, first, second, rows))
    order = np.argsort([f[0] for f in found], kind="stable")[:DISPUTED]
    return [_dispute(*found[n][1:], items[found[n][1]]) for n in order]


def _dispute(prompt: str, first: str, second: str, rows, item: study_lib.Item) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": study_lib.prompt_text(item),
        "answers": {model: study_lib.answer_text(item, model) for model in (first, second)},
        "verdicts": [
            {
                "rater": j.rater,
                "winner": j.winner,
                "comments": {
                    about: text
                    for about, text in (
                        (j.left, j.comment_left), (j.right, j.comment_right), ("", j.comment)
                    )
                    if text
                },
            }
            for j in rows
        ],
    }  # fmt: skip
