"""What judges wrote, read as verdicts and grades: the formats of the Japanese benchmarks that ask for them.

A text without a clear verdict has none: the fault says why, and nothing is guessed from the words around it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jinstr import errors
from jinstr.human import judgements

# Faults of a text: nothing in it; no verdict; several that differ; a number outside its range; JSON without its fields.
FAULTS = ("empty", "none", "several", "range", "fields")
OVERALL = "overall"
# Names of axes as judges of W&B, llm-jp-judge and ichikara-eval write them; 情報量 is what ichikara calls 詳細性.
AXES = {japanese: name for name, japanese in judgements.AXES.items()} | {
    "情報量": "detail",
    "総合評価": OVERALL,
}
REASONS = ("理由", "reason")
OPPOSITE = {"left": "right", "right": "left", "tie": "tie"}


class Reading(NamedTuple):
    """What a judge's text says: a value, or why there is none."""

    value: str | float | None  # left | right | tie; a grade; None with a fault
    fault: str = ""
    axes: Mapping[str, int] = {}  # fluency, accuracy, detail, relevance, overall → grade
    reason: str = ""


def _one(found: list) -> Reading:
    """The value that all of `found` agree on."""
    if not found:
        return Reading(None, "none")
    if any(value != found[0] for value in found):
        return Reading(None, "several")
    return Reading(found[0])


def _bounded(reading: Reading, lowest: float, highest: float) -> Reading:
    if reading.value is not None and not lowest <= reading.value <= highest:
        return Reading(None, "range")
    return reading


def rakuda(text: str) -> Reading:
    """Rakuda: the last line is 1 (the first answer), 2 (the second) or 3 (neither), in digits of either width."""
    lines = [line for line in unicodedata.normalize("NFKC", text).splitlines() if line.strip()]
    if not lines:
        return Reading(None, "empty")
    found = re.fullmatch(r"[\W_]*(\d+)[\W_]*", lines[-1])
    if not found:
        return Reading(None, "none")
    verdict = {1: "left", 2: "right", 3: "tie"}.get(int(found[1]))
    reason = "\n".join(lines[:-1]).strip()
    return Reading(verdict, reason=reason) if verdict else Reading(None, "range")


def vicuna(text: str) -> Reading:
    """ja-vicuna-qa: [[A]], [[B]] or, for a tie, [[C]], anywhere in the text; a text with two of them has none."""
    if not text.strip():
        return Reading(None, "empty")
    found = re.findall(r"\[\[\s*([ABC])\s*\]\]", unicodedata.normalize("NFKC", text))
    verdicts = {"A": "left", "B": "right", "C": "tie"}
    return _one([verdicts[letter] for letter in found])._replace(reason=text.strip())


def mt_bench(text: str) -> Reading:
    """Japanese MT-bench: [[n]] with n from 1 to 10, fractions allowed."""
    if not text.strip():
        return Reading(None, "empty")
    found = re.findall(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]", unicodedata.normalize("NFKC", text))
    return _bounded(_one([float(n) for n in found])._replace(reason=text.strip()), 1, 10)


def _objects(text: str) -> list[dict]:
    """The JSON objects in a text, between whatever words or fences."""
    decoder, found, at = json.JSONDecoder(strict=False), [], text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found.append(value)
        at = text.find("{", end)
    return found


def _grade(value: Any) -> int | None:
    """A whole number, also in digits of a string; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,3}\s*", value):
        value = int(unicodedata.normalize("NFKC", value))
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value)


def elyza(text: str) -> Reading:
    """ELYZA-tasks-100: JSON {"reason", "grade"}, a whole grade from 1 to 5."""
    if not text.strip():
        return Reading(None, "empty")
    objects = [found for found in _objects(text) if "grade" in found]
    if not objects:
        return Reading(None, "none")
    grades = [_grade(found["grade"]) for found in objects]
    if None in grades:
        return Reading(None, "fields")
    reason = str(objects[0].get("reason", "")).strip()
    return _bounded(_one(grades)._replace(reason=reason), 1, 5)


def axes(text: str) -> Reading:
    """Five axes as W&B and ichikara ask: JSON with 総合評価, 流暢性, 正確性, 情報量 or 詳細性, 関連性, 1 to 5 each.

    The value is 総合評価. All of them must be there.
    """
    if not text.strip():
        return Reading(None, "empty")
    objects = [found for found in _objects(text) if AXES.keys() & found.keys()]
    if not objects:
        return Reading(None, "none")
    if any(found != objects[0] for found in objects):
        return Reading(None, "several")
    found = {AXES[name]: _grade(value) for name, value in objects[0].items() if name in AXES}
    if None in found.values() or found.keys() != set(AXES.values()):
        return Reading(None, "fields")
    if not all(1 <= grade <= 5 for grade in found.values()):
        return Reading(None, "range")
    reason = next((str(objects[0][name]) for name in REASONS if name in objects[0]), "")
    return Reading(found[OVERALL], axes=found, reason=reason.strip())


READERS: dict[str, Callable[[str], Reading]] = {
    "rakuda": rakuda,
    "vicuna": vicuna,
    "mt-bench": mt_bench,
    "elyza": elyza,
    "axes": axes,
}
PAIRWISE = ("rakuda", "vicuna")  # the others grade single answers


def read(text: str, form: str) -> Reading:
    """What a judge's text says in the format `form` of READERS. Errors: ConfigError for another name."""
    if form not in READERS:
        raise errors.ConfigError("JI-JUDGE-001", f"format {form!r}; there are {', '.join(READERS)}")
    return READERS[form](text)


def of_both_orders(straight: str | None, swapped: str | None) -> str | None:
    """The verdict on a pair that was shown in both orders, by the side of each model when it was shown straight.

    As in ja-vicuna-qa: a tie where either order says so or the two disagree. None where either has no verdict.
    """
    if straight is None or swapped is None:
        return None
    return straight if straight == OPPOSITE[swapped] else "tie"
