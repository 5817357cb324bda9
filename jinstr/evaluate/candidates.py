"""Answers of several models to one set of prompts, out of files, as the items of a study.

Answers are what jinstr generate wrote (responses, models), FastChat's model answers (question_id, model_id, choices),
or one answer a line (output, response or answer: a text, or a list with a text for each turn).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jinstr import errors
from jinstr.decode import requests
from jinstr.evaluate import prompt_sets
from jinstr.human import study


def read(
    answers: str, prompts: str, *, every: bool, least: int = 2
) -> tuple[list[study.Item], list[str], list[str]]:
    """(items, models, notes).

    answers: FILE or "name=FILE,name=FILE". prompts: a prompt set, whose ids the answers have; "" = the answers' lines
    hold their prompts. every: keep all answers of a model to a prompt, as name#1, name#2, …; else the first. least:
    models that there must be.
    Errors: ConfigError, DataError.
    """
    items = {item.id: item for item in prompt_sets.read(prompts)} if prompts else {}
    found: dict[str, dict[str, list[tuple[str, ...]]]] = {}  # model → id → answers
    notes = []
    for name, path in _files(answers):
        outside = 0
        for number, row in requests.read_rows(path):
            where = f"{path}:{number}"
            key = prompt_sets.id_of(row, number)
            if prompts:
                outside += key not in items
                if key in items:
                    _check_prompt(row, items[key], where)
            elif key not in items:
                items[key] = prompt_sets.item_of(row, key, where)
            else:
                _check_prompt(row, items[key], where)
            for model, texts in _answers_of(row, name, where):
                found.setdefault(model, {}).setdefault(key, []).append(texts)
        if outside:
            notes.append(f"{path}: {outside} lines answer prompts that {prompts} does not hold")
    given = {key: {} for key in items}
    for model, by_prompt in found.items():
        several = max((len(texts) for key, texts in by_prompt.items() if key in items), default=0)
        missing = [key for key in items if key not in by_prompt]
        if len(missing) == len(items):
            raise errors.DataError(
                "JI-CANDIDATES-004", f"{model} answers none of the prompts of {prompts}"
            )
        if missing:
            notes.append(
                f"{model} has no answer to {len(missing)} prompts: {', '.join(missing[:10])}"
            )
        if several > 1 and not every:
            notes.append(f"{model} has up to {several} answers to a prompt; the first is compared")
        for key in items:
            for n, texts in enumerate(by_prompt.get(key, ())[: None if every else 1], 1):
                given[key][f"{model}#{n}" if several > 1 and every else model] = texts
    models = list(dict.fromkeys(name for names in given.values() for name in names))
    if len(models) < least:
        raise errors.DataError(
            "JI-CANDIDATES-005",
            f"ANSWERS={answers} holds answers of {', '.join(models) or 'no model'}; two are compared",
        )
    return [_with(item, given[item.id]) for item in items.values()], sorted(models), notes


def _with(item: study.Item, answers: Mapping[str, tuple[str, ...]]) -> study.Item:
    turns = (
        item.roles.count("user") if item.roles[0] == "user" and "assistant" not in item.roles else 1
    )
    for model, texts in answers.items():
        if len(texts) != turns:
            raise errors.DataError(
                "JI-CANDIDATES-006",
                f"prompt {item.id}: {turns} turns, and {len(texts)} answers of {model}",
            )
    return dataclasses.replace(item, answers=dict(answers))


def _files(answers: str) -> list[tuple[str, str]]:
    """ "name=FILE,…" or FILE → [(name or "", FILE)]."""
    pairs = []
    for part in filter(None, (part.strip() for part in answers.split(","))):
        name, equals, path = part.partition("=")
        pairs.append((name, path) if equals else ("", part))
    names = [name for name, _ in pairs if name]
    if not pairs or len(set(names)) < len(names):
        raise errors.ConfigError(
            "JI-CANDIDATES-007",
            f"ANSWERS={answers!r}: FILE, or name=FILE,name=FILE with distinct names",
        )
    return pairs


def _check_prompt(row: dict, item: study.Item, where: str) -> None:
    """Errors: DataError where a line of answers holds another prompt under the same id."""
    if not {"messages", "roles", "prompt", "instruction", "turns", "input_text"} & row.keys():
        return
    own = prompt_sets.item_of(row, item.id, where)
    if own.contents != item.contents:
        raise errors.DataError(
            "JI-CANDIDATES-008",
            f"{where}: id {item.id!r} stands for another prompt than in the file before",
        )


def _answers_of(row: dict, name: str, where: str) -> list[tuple[str, tuple[str, ...]]]:
    """(model, a text for each turn) of the answers of a line. Errors: DataError."""
    if isinstance(row.get("responses"), list) and isinstance(row.get("models"), list):
        pairs = [(m, text) for text, who in zip(row["responses"], row["models"]) for m in who]
        if name and len({model for model, _ in pairs}) > 1:
            raise errors.DataError(
                "JI-CANDIDATES-009",
                f"{where}: answers of several models; give the file without {name}=",
            )
        pairs = [(name or model, texts) for model, texts in pairs]
    elif isinstance(row.get("choices"), list) and row["choices"]:
        first = row["choices"][0]
        texts = first.get("turns") if isinstance(first, dict) else None
        pairs = [(name or str(row.get("model_id") or ""), texts)]
    else:
        texts = next((row[key] for key in ("output", "response", "answer") if key in row), None)
        pairs = [(name or str(row.get("model") or row.get("model_id") or ""), texts)]
    found = []
    for model, texts in pairs:
        texts = [texts] if isinstance(texts, str) else texts
        is_text = (
            isinstance(texts, list | tuple) and texts and all(isinstance(t, str) for t in texts)
        )
        if not is_text or not model:
            what = (
                "no answer found"
                if not is_text
                else "whose answer it is, is not said; write name=FILE"
            )
            raise errors.DataError(
                "JI-CANDIDATES-010",
                f"{where}: {what}; a line needs responses and models, choices, or output (it has {', '.join(row)})",
            )
        found.append((model, tuple(texts)))
    return found
