"""A model as a judge: what it is asked about the answers of a study, and what came of it.

    OUT/replies.jsonl      the log: every text that the judge wrote, appended as it comes; what stands there is not
                           asked again, unless no verdict could be read from it
    OUT/judgements.jsonl   pairs: one judgement for each order that was shown (human/judgements.py), rater judge:NAME
    OUT/grades.jsonl       single answers: one grade each
    OUT/faults.jsonl       what has no verdict, and why

Every pair is shown in both orders: judges prefer a place (Zheng 2023, arXiv 2306.05685, section 3.3).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import tqdm

from jinstr.decode import requests
from jinstr.evaluate import judge_http, judge_prompts, verdicts
from jinstr.human import judgements, study


class Ask(NamedTuple):
    """One question to the judge."""

    key: str  # digest of the judge and of all that it reads
    item: str
    shown: tuple[str, ...]  # models whose answers it reads: A and B, or one
    form: str  # how its verdict is read
    messages: list[dict[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grade:
    """What a judge makes of one answer."""

    prompt: str
    model: str
    rater: str  # judge:NAME
    grade: float
    axes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    reason: str = ""
    where: str = ""


class Fault(NamedTuple):
    """A question without a verdict."""

    prompt: str
    shown: tuple[str, ...]
    fault: str  # of verdicts.FAULTS, or of judge_http.Reply
    text: str  # what the judge wrote, or what is told of the failure


class Judge(Protocol):
    """Whoever is asked: judge_http.Chat, judge_local.Local."""

    def ask_each(self, asked: Sequence[list[dict]]) -> Iterator[tuple[int, judge_http.Reply]]: ...


def pairs(items: Sequence[study.Item], models: Sequence[str], baseline: str) -> list[tuple]:
    """(item, first model, second model) of every two different answers; with a baseline only those with it, second."""
    found = []
    for item in items:
        present = [model for model in models if model in item.answers]
        for one, other in itertools.combinations(present, 2):
            if baseline == one:
                one, other = other, one
            if baseline in ("", other) and item.answers[one] != item.answers[other]:
                found.append((item, one, other))
    return found


def asks_of(
    items: Sequence[study.Item],
    models: Sequence[str],
    mode: str,
    prompts: Sequence[judge_prompts.Prompt],
    identity: Sequence,
    baseline: str = "",
) -> list[Ask]:
    """All questions to the judge: pairs in both orders, one behind the other; or each answer alone.

    identity: what tells this judge from others. Errors: DataError for an item that lacks what the prompt shows.
    """

    def ask(item, shown, letters):
        prompt = judge_prompts.choose(prompts, item)
        messages = judge_prompts.messages(prompt, item, dict(zip(letters, shown)))
        key = requests.digest([*identity, prompt.name, messages])
        return Ask(key, item.id, shown, prompt.form, messages)

    if mode == "pairwise":
        return [
            ask(item, shown, "ab")
            for item, one, other in pairs(items, models, baseline)
            for shown in ((one, other), (other, one))
        ]
    return [
        ask(item, (model,), ("",)) for item in items for model in models if model in item.answers
    ]


def ask(judge: Judge, asks: Sequence[Ask], log: requests.AnswerLog) -> dict[str, judge_http.Reply]:
    """Ask what the log has no verdict of; its new texts go to the log. Returns the failures by key."""
    wanted = {a.key: a for a in asks if not _is_done(a, log)}  # equal questions are asked once
    todo = list(wanted.values())
    failures = {}
    done = len({a.key for a in asks}) - len(todo)
    with tqdm.tqdm(total=done + len(todo), initial=done, desc="judge", disable=None) as bar:
        for number, reply in judge.ask_each([a.messages for a in todo]):
            asked = todo[number]
            if reply.fault:
                failures[asked.key] = reply
            else:
                facts = {"key": asked.key, "prompt": asked.item, "shown": asked.shown}
                log.add(
                    facts | {"text": reply.text, "finish": reply.finish, "tokens": reply.tokens}
                )
            bar.update()
    return failures


def _is_done(asked: Ask, log: requests.AnswerLog) -> bool:
    found = log.answers.get(asked.key)
    return found is not None and verdicts.read(found["text"], asked.form).value is not None


def results(
    asks: Sequence[Ask],
    log: requests.AnswerLog,
    failures: Mapping[str, judge_http.Reply],
    rater: str,
) -> tuple[list[judgements.Judgement], list[Grade], list[Fault]]:
    """What the replies say, in the order of the questions."""
    judged, grades, faults = [], [], []
    for asked in asks:
        found = log.answers.get(asked.key)
        if asked.key in failures or found is None:
            reply = failures.get(asked.key, judge_http.Reply("", fault="skipped"))
            faults.append(Fault(asked.item, asked.shown, reply.fault, reply.why))
            continue
        reading = verdicts.read(found["text"], asked.form)
        where = f"{pathlib.Path(log.path).name}: {asked.key}"
        if reading.value is None:
            faults.append(Fault(asked.item, asked.shown, reading.fault, found["text"]))
        elif len(asked.shown) == 2:
            left, right = asked.shown
            judged.append(
                judgements.Judgement(
                    prompt=asked.item, rater=rater, left=left, right=right, verdict=reading.value,
                    comment=reading.reason, where=where,
                )
            )  # fmt: skip
        else:
            grades.append(
                Grade(
                    prompt=asked.item, model=asked.shown[0], rater=rater, grade=float(reading.value),
                    axes=dict(reading.axes), reason=reading.reason, where=where,
                )
            )  # fmt: skip
    return judged, grades, faults


def read_grades(path) -> list[Grade]:
    """The grades of a grades.jsonl. Errors: DataError with the line that is none."""
    found = []
    for number, row in requests.read_rows(path):
        found.append(Grade(**(row | {"where": row.get("where") or f"{path}:{number}"})))
    return found


def write(
    folder: pathlib.Path,
    judged: Sequence[judgements.Judgement],
    grades: Sequence[Grade],
    faults: Sequence[Fault],
    summary: Mapping,
) -> None:
    """The files beside the log, each whole or not at all."""
    if judged:
        judgements.write(folder / "judgements.jsonl", judged)
    if grades:
        requests.write_jsonl(folder / "grades.jsonl", map(dataclasses.asdict, grades))
    requests.write_jsonl(folder / "faults.jsonl", [fault._asdict() for fault in faults])
    part = folder / "summary.json.part"
    part.write_text(json.dumps(summary, ensure_ascii=False, indent=1) + "\n", "utf-8")
    part.replace(folder / "summary.json")


def counted(faults: Sequence[Fault]) -> dict[str, int]:
    """Questions without a verdict by fault."""
    return dict(sorted(collections.Counter(fault.fault for fault in faults).items()))
