"""Sheets that jinstr did not make: one file or sheet a rater, one model always A, the other always B.

    prompt | A | Aコメント | B | Bコメント | Fluency (A, B) | Accuracy (A, B) | Detailed (A, B) | … | 優劣

Rows have no ids: a prompt is known by its text, a rater by the name of the file (and of the sheet, where a file has
several).
"""

from __future__ import annotations

import hashlib
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence

from jinstr import errors
from jinstr.human import cells, sheet_reading
from jinstr.human import sheet_columns as columns_lib
from jinstr.human import sheet_entries as entries
from jinstr.human import study as study_lib


def sides(models: str) -> tuple[str, ...]:
    """ "A=name,B=name" → names in the order of the letters. Errors: ConfigError."""
    named = dict(part.strip().partition("=")[::2] for part in models.split(",") if part.strip())
    named = {cells.plain(letter).upper(): name.strip() for letter, name in named.items()}
    letters = study_lib.LETTERS[: len(named)]
    if (
        len(named) < 2
        or set(named) != set(letters)
        or len(set(named.values())) < len(named)
        or "" in named.values()
    ):
        raise errors.ConfigError(
            "JI-SHEET-010", f"MODELS={models!r}: say A=name,B=name with two names"
        )
    return tuple(named[letter] for letter in letters)


def read(
    paths: Sequence[pathlib.Path], models: Sequence[str], prompts: Sequence[study_lib.Item]
) -> tuple[study_lib.Study, entries.Reading]:
    """The study that the sheets amount to, and what raters filled in.

    prompts: a prompt set whose ids are taken where a text is the same; others are named by a digest of their text.
    """
    reading = entries.Reading()
    known = {_same(study_lib.prompt_text(item)): item for item in prompts}
    items: dict[str, study_lib.Item] = {}
    rows: dict[str, study_lib.Row] = {}
    mode = "ab"
    tables = list(sheet_reading.rating_tables(paths, reading))
    per_file = [table.file for table, _ in tables]
    for table, heading in tables:
        rater = pathlib.Path(table.file).stem
        rater += f"/{table.sheet}" if per_file.count(table.file) > 1 else ""
        mode = "ab" if "verdict" in heading.keys else "rank"
        count = 0
        for number in range(heading.rows[-1] + 1, len(table.rows)):
            texts = _texts(table, heading, number, models, reading)
            if texts is None:
                continue
            count += 1
            item = _item(known, items, models, texts)
            if item is None:
                reading.problems.append(entries.problem(
                    table, number, heading.keys["prompt"], "JI-SHEET-011",
                    "the answers to this prompt are other texts in an earlier row; the row is not read",
                    "同じ質問なのに、回答の文面が前の行（または別のファイル）と違います。",
                ))  # fmt: skip
                continue
            name = hashlib.sha256(f"{rater}/{item.id}".encode()).hexdigest()[:12]
            if name in rows:
                reading.problems.append(entries.problem(
                    table, number, heading.keys["prompt"], "JI-SHEET-012",
                    f"{rater} has this prompt in an earlier row; only the first is read",
                    "同じ質問の行が前にもあります。はじめの行だけを読みました。",
                ))  # fmt: skip
                continue
            rows[name] = study_lib.Row(
                id=name, rater=rater, number=count, item=item.id, shown=tuple(models)
            )
            entry = entries.entry(table, heading, number, len(models), reading)
            if entry is None:
                reading.refused.add(name)
            else:
                reading.entries[name] = entry
    study = study_lib.Study(
        mode=mode,
        seed=0,
        models=tuple(models),
        raters=tuple(dict.fromkeys(row.rater for row in rows.values())),
        items=tuple(items.values()),
        rows=tuple(rows.values()),
        source="sheets",
    )
    if rows:
        reading.notes.append(
            f"{models[0]} is always A: its wins and a liking for what stands first cannot be told apart"
        )
    return study, reading


def _same(text: str) -> str:
    """A text as a person would say it is the same: spaces at ends, width and line ends do not count."""
    return unicodedata.normalize("NFKC", cells.lines(text)).strip()


def _texts(table, heading: columns_lib.Heading, number: int, models, reading) -> list[str] | None:
    """Prompt and answers of a row; None for an empty row, and with a problem for one without a prompt or answer."""
    row = table.rows[number]
    if all(value is None or not str(value).strip() for value in row):
        return None
    keys = ["prompt", *(f"answer_{letter}" for letter in study_lib.LETTERS[: len(models)].lower())]
    texts = []
    for key in keys:
        column = heading.keys.get(key)
        value = row[column] if column is not None and column < len(row) else None
        if value is None or not str(value).strip():
            reading.problems.append(entries.problem(
                table, number, column or 0, "JI-SHEET-013", "the row has no prompt or no answer here; it is not read",
                "質問または回答が空欄のため、この行は読みませんでした。",
            ))  # fmt: skip
            return None
        texts.append(entries.text(value))
    return texts


def _item(
    known: Mapping[str, study_lib.Item],
    items: dict[str, study_lib.Item],
    models: Sequence[str],
    texts: Sequence[str],
) -> study_lib.Item | None:
    """The item of a row, a new one where its prompt is new; None where it has other answers already."""
    prompt, *answers = texts
    key = _same(prompt)
    found = items.get(key)
    if found is None:
        answered = {model: (answer,) for model, answer in zip(models, answers)}
        found = known.get(key)
        name = found.id if found else hashlib.sha256(key.encode()).hexdigest()[:12]
        items[key] = study_lib.Item(
            id=name,
            roles=("user",),
            contents=(prompt,),
            answers=answered,
            category=found.category if found else "",
        )
        return items[key]
    same = all(_same(found.answers[m][0]) == _same(a) for m, a in zip(models, answers))
    return found if same else None
