"""Prompt sets: Rakuda, ja-vicuna-qa and Japanese MT-bench (question_id, category, turns), ELYZA-tasks-100 (input_text,
output_text, eval_aspect), and whatever jinstr generate reads."""

from __future__ import annotations

from jinstr import errors
from jinstr.decode import requests
from jinstr.human import study

_IDS = ("id", "ID", "question_id")


def read(path) -> list[study.Item]:
    """The prompts of a file, without answers. Errors: DataError with the line."""
    items: dict[str, study.Item] = {}
    for number, row in requests.read_rows(path):
        where = f"{path}:{number}"
        item = item_of(row, id_of(row, number), where)
        if item.id in items:
            raise errors.DataError("JI-CANDIDATES-001", f"{where}: the id {item.id!r} comes twice")
        items[item.id] = item
    if not items:
        raise errors.DataError("JI-CANDIDATES-002", f"{path} holds no prompts")
    return list(items.values())


def id_of(row: dict, number: int) -> str:
    return next((str(row[name]) for name in _IDS if row.get(name) not in (None, "")), str(number))


def item_of(row: dict, name: str, where: str) -> study.Item:
    """The prompt of a line."""
    reference = ""
    if "turns" in row:
        contents = row["turns"]
        reference = row.get("reference") or ""
        roles = ["user"] * len(contents) if isinstance(contents, list) else []
    elif "input_text" in row:
        roles, contents = ["user"], [row["input_text"]]
        reference = row.get("output_text") or ""
    else:
        roles, contents = requests.prompt_of(row, where)
    if isinstance(reference, list):
        reference = "\n\n".join(map(str, reference))
    if not roles or not all(isinstance(text, str) for text in [*contents, reference]):
        raise errors.DataError(
            "JI-CANDIDATES-003",
            f"{where}: turns and input_text are texts; so are reference and output_text",
        )
    return study.Item(
        id=name,
        roles=tuple(roles),
        contents=tuple(contents),
        answers={},
        category=str(row.get("category") or ""),
        reference=reference,
        aspect=str(row.get("eval_aspect") or ""),
    )
