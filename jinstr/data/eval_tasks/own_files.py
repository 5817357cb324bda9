"""Files of one's own as benchmarks: JSON Lines (or JSON, CSV, xlsx, parquet) of inputs and targets.

    {"input": "…", "target": "…"}                                  written answers; several right ones: "targets": […]
    {"input": "…", "target": "二", "choices": ["一", "二", "三"]}    choices; the target is one of them, or "label": 1

`id` and `group` may stand beside them. A question that is a whole conversation is a case for questions.py.
"""

from __future__ import annotations

from jinstr import errors
from jinstr.data.eval_tasks import benchmark, file_checks


def _bad(where: str, why: str) -> errors.DataError:
    return errors.DataError("JI-EVAL-018", f"{where}: {why}; correct the row or take it out")


def _texts(row: dict, name: str, where: str) -> tuple[str, ...]:
    found = row[name]
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list | tuple) or not found:
        raise _bad(where, f"{name} is {found!r}, neither text nor a list of texts")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise _bad(where, f"{name} has {text!r}, which is not text")
    return tuple(found)


def _common(where: str, row: dict) -> dict:
    place = where.rpartition("/")[
        2
    ]  # without folders, so that an id does not change when all moves elsewhere
    return {
        "id": file_checks.id_of(row, "id", where) if "id" in row else place,
        "fields": {"input": file_checks.text_of(row, "input", where)},
        "group": file_checks.text_of(row, "group", where) if "group" in row else "",
    }


def written(where: str, row: dict) -> benchmark.Example:
    """A row with `input` and `target` (or `targets`)."""
    names = [name for name in ("target", "targets") if name in row]
    if len(names) != 1:
        fields = ", ".join(row)
        raise _bad(where, f"one of target and targets must be there (fields: {fields})")
    if "choices" in row:
        raise _bad(where, "it has choices; such files are for the benchmark choices")
    return benchmark.Example(**_common(where, row), targets=_texts(row, names[0], where))


def choices(where: str, row: dict) -> benchmark.Example:
    """A row with `input`, `choices` and `target` (one of them) or `label` (its number from 0)."""
    if "choices" not in row:
        raise _bad(where, f"no field choices (fields: {', '.join(row)})")
    texts = _texts(row, "choices", where)
    if len(texts) < 2:
        raise _bad(where, "one choice is none")
    if ("label" in row) == ("target" in row):
        raise _bad(where, "one of label and target must be there")
    if "label" in row:
        right = file_checks.number_of(row, "label", where, len(texts))
    else:
        target = file_checks.text_of(row, "target", where)
        if texts.count(target) != 1:
            raise _bad(where, f"the target {target!r} is {texts.count(target)} of the choices")
        right = texts.index(target)
    return benchmark.Example(
        **_common(where, row), targets=(texts[right],), choices=texts, right=right
    )
