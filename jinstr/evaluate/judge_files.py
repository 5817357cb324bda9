"""What judges left behind, as a report takes it: folders of `jinstr judge`, their files, and games as FastChat writes
them (model_1, model_2, answer_1, answer_2, g1_judgment, g2_judgment: the published judgements of ja-vicuna-qa)."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jinstr import errors
from jinstr.decode import requests
from jinstr.evaluate import judges, verdicts
from jinstr.human import judgements, lengths


class Given(NamedTuple):
    """One judge's words on one set of answers."""

    name: str
    source: str  # the path that was given
    judged: Sequence[judgements.Judgement] = ()
    grades: Sequence[judges.Grade] = ()
    mode: str = ""  # of jinstr judge; "" = not known
    faults: Mapping[str, int] = {}  # questions without a verdict
    texts: lengths.Texts = {}  # answers, where the file holds them


def read(paths: str) -> list[Given]:
    """What lies at the paths, comma separated. Errors: ConfigError for a path that is none, DataError."""
    return [given for path in filter(None, map(str.strip, paths.split(","))) for given in _at(path)]


def _at(path: str) -> list[Given]:
    place = pathlib.Path(path)
    if place.is_dir():
        names = ("judgements.jsonl", "grades.jsonl")
        files = [place / name for name in names if (place / name).is_file()]
    else:
        files = [place] if place.is_file() else []
    if not files:
        raise errors.ConfigError(
            "JI-COMPARE-012",
            f"JUDGE: {path} is no folder of jinstr judge (judgements.jsonl, grades.jsonl) and no file of one",
        )
    told = place / "summary.json"
    summary = json.loads(told.read_text("utf-8")) if place.is_dir() and told.is_file() else {}
    found = []
    for file in files:
        _, first = next(requests.read_rows(file), (0, {}))
        if "g1_judgment" in first:
            found += _games(file)
        elif "grade" in first:
            found += _split(path, (), judges.read_grades(file), summary)
        else:
            found += _split(path, judgements.read(file), (), summary)
    if not found:
        raise errors.DataError("JI-COMPARE-013", f"JUDGE: {path} holds no verdict and no grade")
    return found


def _split(path, judged, grades, summary) -> list[Given]:
    """By name of the judge. A person's judgements in such a file are no judge's."""
    raters = sorted({row.rater for row in (*judged, *grades) if row.rater.startswith("judge:")})
    return [
        Given(
            rater.removeprefix("judge:"),
            path,
            [j for j in judged if j.rater == rater],
            [g for g in grades if g.rater == rater],
            summary.get("mode", ""),
            summary.get("faults", {}),
        )
        for rater in raters
    ]


def _games(file: pathlib.Path) -> list[Given]:
    """Errors: DataError for a line without the fields of a game."""
    judged, texts, faults, names = [], {}, {}, set()
    for number, row in requests.read_rows(file):
        try:
            prompt, models = str(row["question_id"]), (row["model_1"], row["model_2"])
            texts |= {(prompt, m): row[f"answer_{n}"] for n, m in enumerate(models, 1)}
            names.add(str(row.get("judge_model") or "judge"))
            replies = row["g1_judgment"], row["g2_judgment"]
        except KeyError as error:
            raise errors.DataError(
                "JI-COMPARE-014", f"{file}:{number}: a game without {error}"
            ) from None
        for reply, (left, right) in zip(replies, (models, models[::-1])):
            reading = verdicts.vicuna(reply)
            if reading.value is None:
                faults[reading.fault] = faults.get(reading.fault, 0) + 1
                continue
            judged.append(
                judgements.Judgement(
                    prompt=prompt, rater="judge:" + ",".join(sorted(names)), left=left, right=right,
                    verdict=reading.value, comment=reading.reason, where=f"{file.name}:{number}",
                )
            )  # fmt: skip
    return [Given(",".join(sorted(names)), str(file), judged, faults=faults, texts=texts)]
