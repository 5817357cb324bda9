"""Verifiable constraints on Japanese text, as plain data: annotators' checks, evaluation and GRPO share this one home.

    constraint = parse({"id": "characters_at_most", "n": 120})
    instruction(constraint)         "120字以内で書いてください。"
    check(answer, constraint)       False
    explain(answer, constraint)     "120字以内：実際は134字"

Every constraint is one row of `definitions.DEFINITIONS`. What counts as 字, 文, 段落, list item or quotation is said
in `measures`; as 敬体, 常体 or a question in `endings`; as kanji, digit, 句読点 or emoji in `scripts`; the rest in
`findings`.
A text without a letter or a digit satisfies nothing, so that an empty answer earns no reward.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

from jinstr import errors, settings
from jinstr.human import definitions, findings, measures

Value = int | str


@dataclasses.dataclass(frozen=True)
class Constraint:
    """One constraint with its parameters, checked when made. Errors: DataError, see `parse`."""

    id: str
    parameters: Mapping[str, Value] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        _validate(self.id, self.parameters)


def _validate(id: str, parameters: Mapping[str, Value]) -> None:
    if id not in definitions.DEFINITIONS:
        near = settings.did_you_mean(str(id), definitions.DEFINITIONS)
        raise errors.DataError("JI-CONSTRAINT-001", f"unknown constraint {id!r}{near}")
    wanted = definitions.DEFINITIONS[id].parameters
    for name in parameters:
        if name not in wanted:
            near = settings.did_you_mean(name, wanted)
            takes = ", ".join(wanted) or "no parameters"
            raise errors.DataError(
                "JI-CONSTRAINT-002", f"{id}: no parameter {name!r}{near or '; it takes ' + takes}"
            )
    for name, kind in wanted.items():
        if name not in parameters:
            raise errors.DataError("JI-CONSTRAINT-003", f"{id}: the parameter {name!r} is missing")
        value = parameters[name]
        if kind is int and (type(value) is not int or value < 1):
            raise errors.DataError(
                "JI-CONSTRAINT-004", f"{id}: {name} is {value!r}; give a whole number from 1 on"
            )
        if kind is str and not (isinstance(value, str) and value.strip()):
            raise errors.DataError(
                "JI-CONSTRAINT-004", f"{id}: {name} is {value!r}; give a text that is not blank"
            )
    if "low" in wanted and parameters["low"] > parameters["high"]:
        raise errors.DataError(
            "JI-CONSTRAINT-005", f"{id}: low {parameters['low']} is above high {parameters['high']}"
        )


def parse(data: Mapping[str, Value] | str) -> Constraint:
    """The constraint of a JSON object such as {"id": "characters_at_most", "n": 120}, or of such an object as text.

    Errors: DataError with the code JI-CONSTRAINT-001 (unknown id), -002 (unknown parameter), -003 (missing parameter),
    -004 (wrong value), -005 (low above high), -006 (no JSON object with an id).
    """
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except ValueError as error:
            raise errors.DataError(
                "JI-CONSTRAINT-006", f"{data[:60]!r} is no JSON: {error}"
            ) from None
    if not isinstance(data, Mapping) or not isinstance(data.get("id"), str):
        raise errors.DataError("JI-CONSTRAINT-006", f'{str(data)[:60]!r} is no object with an "id"')
    return Constraint(data["id"], {name: value for name, value in data.items() if name != "id"})


def to_json(constraint: Constraint) -> dict[str, Value]:
    """The inverse of `parse`: an object for `json.dumps`, the id first."""
    return {"id": constraint.id, **constraint.parameters}


def _filled(template: str, constraint: Constraint, quote: Callable[[str], str]) -> str:
    values = constraint.parameters.items()
    return template.format(**{k: quote(v) if isinstance(v, str) else v for k, v in values})


def _japanese_quote(word: str) -> str:
    return f"『{word}』" if "「" in word or "」" in word else f"「{word}」"


def instruction(constraint: Constraint, phrasing: int = 0) -> str:
    """The Japanese sentence that asks for it. `phrasing` is taken modulo the number of ways, so any seed will do."""
    ways = definitions.DEFINITIONS[constraint.id].japanese
    return _filled(ways[phrasing % len(ways)], constraint, _japanese_quote)


def english(constraint: Constraint) -> str:
    """The English sentence that asks for it."""
    return _filled(
        definitions.DEFINITIONS[constraint.id].english, constraint, lambda word: f'"{word}"'
    )


def describe(constraint: Constraint) -> str:
    """A few words of Japanese: 120字以内."""
    return _filled(definitions.DEFINITIONS[constraint.id].label, constraint, _japanese_quote)


def _finding(text: str, constraint: Constraint) -> findings.Finding:
    text = measures.prepared(text)
    if not measures.has_letters(text):
        return False, "文字がない"
    return definitions.DEFINITIONS[constraint.id].measure(text, **constraint.parameters)


def check(text: str, constraint: Constraint) -> bool:
    """Whether `text` satisfies it. False for every text without a letter or digit."""
    return _finding(text, constraint)[0]


def explain(text: str, constraint: Constraint) -> str:
    """What was asked and what was found, in Japanese: 120字以内：実際は134字."""
    return f"{describe(constraint)}：実際は{_finding(text, constraint)[1]}"


def share(text: str, constraints: Sequence[Constraint]) -> float:
    """Share of the constraints that `text` satisfies, 0 to 1. Errors: DataError when there are none."""
    if not constraints:
        raise errors.DataError("JI-CONSTRAINT-007", "no constraints, so there is no share of them")
    return sum(check(text, constraint) for constraint in constraints) / len(constraints)
