"""`jinstr score`: what a reward makes of answers: ranks, the best of several, a filter, models compared."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jinstr import errors
from jinstr.decode import requests
from jinstr.rlhf import rewards

KEEPS = ("all", "best", "above")


class Answer(NamedTuple):
    """One answer of one line."""

    line: int
    text: str
    models: tuple[str, ...]  # that gave it, where the file says so


def score(
    *,
    reward: rewards.RewardConfig,
    module: str,
    input: str,
    output: str,
    keep: str,
    minimum: float | None,
) -> dict:
    """Score every answer of a file and write it again with scores, or only what is worth keeping.

    input: lines of `jinstr generate`, of rankings (responses), of pairs (chosen, rejected) or of any chat format with
    an answer. keep: "all" adds `scores` and `ranks` to each line; "best" writes each question with its best answer, as
    conversations to train on; "above" those answers that score at least `minimum`. What cannot be scored has no score
    (null) and is never kept. Returns the table of models that is printed.
    """
    if keep not in KEEPS or (keep == "above") != (minimum is not None):
        raise errors.ConfigError(
            "JI-SCORE-001",
            f"KEEP={keep!r} MINIMUM={minimum}: KEEP is all, best or above; above needs MINIMUM, alone",
        )
    rows = [(row, number) for number, row in requests.read_rows(input)]
    if not rows:
        raise errors.DataError("JI-SCORE-002", f"{input} holds no lines")
    prompts = [conversation(row, f"{input}:{number}") for row, number in rows]
    answers = [
        Answer(line, text, models)
        for line, (row, number) in enumerate(rows)
        for text, models in answers_of(row, f"{input}:{number}")
    ]
    asked = [
        rewards.Asked(tuple(prompts[answer.line]), answer.text, rows[answer.line][0], True)
        for answer in answers
    ]
    opened = rewards.open_rewards(reward, module)
    try:
        found = rewards.score(opened, asked)
    finally:
        rewards.close(opened)
    for note in found.notes:
        print(f"jinstr: {note}")
    scores = found.total
    written = list(_written(keep, minimum, rows, prompts, answers, scores))
    requests.write_jsonl(output, written)
    unscored = int(np.isnan(scores).sum())
    print(
        f"{output}: {len(written)} lines of {len(rows)}; {len(answers)} answers, {unscored} without a score"
    )
    table = by_model(answers, scores)
    for line in _told(table):
        print(line)
    return {"answers": len(answers), "unscored": unscored, "lines": len(written), "models": table}


def conversation(row: dict, where: str) -> list[dict[str, str]]:
    """The messages before the answers of a line. Errors: DataError."""
    roles, contents = requests.prompt_of(row, where)
    return [{"role": role, "content": content} for role, content in zip(roles, contents)]


def answers_of(row: dict, where: str) -> list[tuple[str, tuple[str, ...]]]:
    """(text, models that gave it) of the answers of a line. Errors: DataError when there is none."""
    if isinstance(row.get("responses"), list):
        texts = row["responses"]
    elif "chosen" in row and "rejected" in row:
        texts = [row["chosen"], row["rejected"]]
    elif isinstance(row.get("messages"), list) and row["messages"][-1].get("role") == "assistant":
        texts = [row["messages"][-1].get("content")]
    elif list(row.get("roles", ()))[-1:] == ["assistant"]:
        texts = [row["contents"][-1]]
    else:
        texts = row.get("output", row.get("response"))
        texts = texts if isinstance(texts, list) else [texts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise errors.DataError(
            "JI-SCORE-003",
            f"{where}: no answer found; a line needs responses, chosen and rejected, output, or messages that end with "
            f"an answer (it has {', '.join(row)})",
        )
    models = row.get("models") or [[] for _ in texts]
    return [(text, tuple(who)) for text, who in zip(texts, models)]


def ranks(scores: Sequence[float]) -> list[int | None]:
    """1 for the highest score, equal ones share a rank; None without a score."""
    finite = [s for s in scores if not math.isnan(s)]
    return [None if math.isnan(s) else 1 + sum(other > s for other in finite) for s in scores]


def by_model(answers: Sequence[Answer], scores: np.ndarray) -> dict[str, dict]:
    """For every model (or "" for all answers, where the file names none): answers, mean score and its standard error,
    mean characters, and the correlation of score and characters."""
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for number, answer in enumerate(answers):
        for name in answer.models or ("",):
            if not math.isnan(scores[number]):
                groups[name].append(number)
    table = {}
    for name, numbers in sorted(groups.items()):
        values = scores[numbers].astype(np.float64)
        characters = np.array([len(answers[n].text) for n in numbers], np.float64)
        varied = len(numbers) > 1 and values.std() > 0 and characters.std() > 0
        table[name] = {
            "answers": len(numbers),
            "score": float(values.mean()),
            "standard_error": float(values.std(ddof=1) / math.sqrt(len(numbers))) if len(numbers) > 1 else None,
            "characters": float(characters.mean()),
            "length_correlation": float(np.corrcoef(values, characters)[0, 1]) if varied else None,
        }  # fmt: skip
    return table


def _written(keep, minimum, rows, prompts, answers, scores):
    """The lines of the output."""
    of_line: dict[int, list[int]] = collections.defaultdict(list)
    for number, answer in enumerate(answers):
        of_line[answer.line].append(number)
    for line, (row, _) in enumerate(rows):
        numbers = of_line[line]
        values = [float(scores[n]) for n in numbers]
        if keep == "all":
            shown = [None if math.isnan(value) else round(value, 6) for value in values]
            # Ranks that people gave keep their name.
            name = "ranks_by_score" if "ranks" in row else "ranks"
            yield row | {"scores": shown, name: ranks(values)}
            continue
        kept = [n for n, value in zip(numbers, values) if not math.isnan(value)]
        if keep == "best":
            kept = sorted(kept, key=lambda n: -scores[n])[:1]
        else:
            # As written, so that who reads a limit off the scores finds the answers that have it.
            kept = [n for n in kept if round(float(scores[n]), 6) >= minimum]
        for n in kept:
            messages = [*prompts[line], {"role": "assistant", "content": answers[n].text}]
            facts = {"id": str(row.get("id", row.get("ID", line))), "messages": messages}
            yield facts | {"score": round(float(scores[n]), 6)}


def _told(table: dict[str, dict]) -> list[str]:
    """The table as lines, the model with the highest mean first."""
    lines = [f"{'model':<24} answers     score  ± s.e.  characters  r(score, characters)"]
    for name, facts in sorted(table.items(), key=lambda item: -item[1]["score"]):
        error = facts["standard_error"]
        correlation = facts["length_correlation"]
        lines.append(
            f"{name or 'all':<24} {facts['answers']:7d} {facts['score']:9.3f} "
            f"{'      –' if error is None else f'{error:7.3f}'} {facts['characters']:11.1f}  "
            f"{'–' if correlation is None else f'{correlation:.2f}'}"
        )
    return lines
