"""A study: prompts, the answers of models to them, and who judges what in which order. What raters do not get.

The folder of a study:
    key/study.json       texts, models, and for every row of every sheet which model stands where
    key/assignments.csv  the same rows as a table for people
    sheets/RATER.xlsx    what a rater gets
    judgements.jsonl, rankings.jsonl, problems.csv   what came back (human/judgements.py)
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from jinstr import errors
from jinstr.human import cells

FORMAT = 1
MODES = ("ab", "rank")
LETTERS = "ABCDEFGHI"  # names of the answers on a sheet; InstructGPT ranked 4 to 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt and its answers."""

    id: str
    roles: tuple[str, ...]  # system | user | input | assistant, as in jinstr.data
    contents: tuple[str, ...]
    answers: Mapping[str, tuple[str, ...]]  # by name of the model: a text for each turn it answered
    category: str = ""
    reference: str = ""  # a model answer, for raters
    aspect: str = ""  # what raters should look at

    @property
    def turns(self) -> int:
        """How many turns of the prompt were answered."""
        return max(map(len, self.answers.values()), default=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a rater's sheet."""

    id: str
    rater: str
    number: int  # from 1, in the order of the sheet
    item: str
    shown: tuple[str, ...]  # models, A first
    repeat: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    mode: str
    seed: int
    models: tuple[str, ...]
    raters: tuple[str, ...]
    items: tuple[Item, ...]
    rows: tuple[Row, ...]
    source: str = (
        "design"  # "sheets": made from sheets in which models always stand on the same side
    )
    identical: int = 0  # pairs (rank: answers) that nobody sees, as their texts are the same

    @property
    def item_of(self) -> dict[str, Item]:
        return {item.id: item for item in self.items}


def prompt_text(item: Item) -> str:
    """The prompt as a sheet shows it."""
    names = {"system": "【前提】", "user": "【質問】", "input": "【資料】", "assistant": "【応答】"}
    if len(item.roles) == 1:
        return item.contents[0]
    numbered = item.turns > 1
    texts, count = [], 0
    for role, content in zip(item.roles, item.contents):
        count += role == "user"
        name = f"【質問{count}】" if numbered and role == "user" else names[role]
        texts.append(f"{name}\n{content}")
    return "\n\n".join(texts)


def prompt_fields(item: Item) -> dict:
    """The prompt as files of comparisons have it (jinstr.data.formats)."""
    if item.roles == ("user",):
        return {"prompt": item.contents[0]}
    if item.roles == ("user", "input"):
        return {"prompt": item.contents[0], "input": item.contents[1]}
    turns: list[dict[str, str]] = []
    for role, content in zip(item.roles, item.contents):
        if role == "input" and turns:  # material below the question of its turn
            turns[-1]["content"] += f"\n\n{content}"
        else:
            turns.append({"role": role, "content": content})
    return {"prompt": turns}


def answer_text(item: Item, model: str) -> str:
    """A model's answer as a sheet shows it: without empty lines around it, which would tell models apart."""
    texts = [_trimmed(text) or "（回答なし）" for text in item.answers[model]]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"【回答{n}】\n{text}" for n, text in enumerate(texts, 1))


def _trimmed(text: str) -> str:
    """The text without empty lines in front and white space at its end; an indent (U+3000) stays."""
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", cells.lines(text)).rstrip()


def aid_text(item: Item) -> str:
    """What helps to judge: the points to look at and a model answer; "" without any."""
    parts = [("【採点の観点】", item.aspect), ("【参考となる回答】", item.reference)]
    return "\n\n".join(f"{name}\n{text.strip()}" for name, text in parts if text.strip())


def row_texts(study_items: Mapping[str, Item], row: Row) -> list[str]:
    """The texts of a row that its digest is made of: the prompt and the answers in the order shown."""
    item = study_items[row.item]
    return [prompt_text(item), *(answer_text(item, model) for model in row.shown)]


def row_digest(study_items: Mapping[str, Item], row: Row) -> str:
    """What the hidden column of a row holds beside its id."""
    return cells.digest([row.id, *row_texts(study_items, row)])


def write(folder, study: Study) -> None:
    """The key of a study; the file study.json comes last and says that the rest is whole."""
    key = pathlib.Path(folder) / "key"
    key.mkdir(parents=True, exist_ok=True)
    _replace(key / "assignments.csv", _assignments(study).encode("utf-8-sig"))
    fields = {"format": FORMAT} | dataclasses.asdict(study)
    _replace(key / "study.json", json.dumps(fields, ensure_ascii=False, indent=1).encode())


def _assignments(study: Study) -> str:
    """Who judges which prompt, and what stands where."""
    most = max(len(row.shown) for row in study.rows)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["rater", "number", "prompt", *LETTERS[:most], "repeat", "row_id"])
    for row in study.rows:
        shown = [*row.shown, *[""] * (most - len(row.shown))]
        writer.writerow([row.rater, row.number, row.item, *shown, row.repeat, row.id])
    return table.getvalue()


def _replace(path: pathlib.Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def read(folder) -> Study:
    """The study of a folder. Errors: DataError where there is none, or one of another format."""
    path = pathlib.Path(folder) / "key" / "study.json"
    try:
        fields = json.loads(path.read_text("utf-8"))
        if fields.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        items = tuple(_item(item) for item in fields.pop("items"))
        rows = tuple(Row(**row | {"shown": tuple(row["shown"])}) for row in fields.pop("rows"))
        names = {name: tuple(fields.pop(name)) for name in ("models", "raters")}
        return Study(items=items, rows=rows, **names, **fields)
    except FileNotFoundError as error:
        raise errors.DataError(
            "JI-STUDY-001", f"{path} is not there; jinstr compare make writes it"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise errors.DataError("JI-STUDY-002", f"{path} is no study: {error}") from error


def _item(fields: dict) -> Item:
    answers = {model: tuple(texts) for model, texts in fields["answers"].items()}
    lists = {name: tuple(fields[name]) for name in ("roles", "contents")}
    return Item(**fields | lists | {"answers": answers})


def naming(items: Sequence[Item], models: Sequence[str]) -> list[str]:
    """Prompts with an answer that holds the name of a model: such an answer is not blind."""
    names = [name.casefold() for name in models if len(name) > 2]
    return [
        item.id
        for item in items
        if any(name in text.casefold() for texts in item.answers.values() for text in texts for name in names)
    ]  # fmt: skip
