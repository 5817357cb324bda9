"""The page of a comparison and the JSON beside it: report.html, one self-contained file, and report.json.

Every figure on the page is written by `figure`, from report.json alone, and carries its place there (a JSON pointer,
RFC 6901) with the name of its format: a test reads the page and holds each against the file.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe

from jinstr.evaluate import comparison_plots, comparison_words
from jinstr.human import judgements


def pointer(path: Sequence[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def at(facts: Any, path: Sequence[str | int]) -> Any:
    return functools.reduce(lambda value, part: value[part], path, facts)


def figure(facts: Mapping[str, Any], path: Sequence[str | int], form: str) -> markupsafe.Markup:
    """The figure at a path, as text in the format `form` (comparison_words.FORMATS)."""
    text = comparison_words.FORMATS[form](at(facts, path))
    return markupsafe.Markup('<span class="n" data-key="{}" data-form="{}">{}</span>').format(
        pointer(path), form, text
    )


def interval(
    facts: Mapping[str, Any], path: Sequence[str | int], form: str = "bare"
) -> markupsafe.Markup:
    """(low–high) of the pair at a path; nothing where there is none."""
    found = at(facts, path)
    if found is None or None in found:
        return markupsafe.Markup("")
    low, high = (figure(facts, [*path, end], form) for end in (0, 1))
    between = "–" if form == "bare" else " to "  # a dash would stand before a minus
    return markupsafe.Markup("<small>({}{}{})</small>").format(low, between, high)


def plots(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The SVG of every figure; those of a judge in a list beside those of people."""
    people = facts["people"]
    beside = people["pairs"] if people else []
    return {
        "people": _of(people) if people else {},
        "judges": [
            (_of(judge["summary"], beside) if judge["summary"] else {})
            | {"safety": comparison_plots.safety(judge["safety"]) if judge["safety"] else ""}
            for judge in facts["judges"]
        ],
    }


def _of(found: Mapping[str, Any], beside: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    pairs, sizes = found["pairs"], found["lengths"]
    kinds = sizes["correlation"] if sizes else ()
    return {
        "outcomes": comparison_plots.outcomes(pairs),
        "adjusted": comparison_plots.adjusted(pairs, beside),
        "course": comparison_plots.course(pairs),
        "power": comparison_plots.power(pairs),
        "strengths": comparison_plots.strengths(found["strengths"]),
        "axes": comparison_plots.axes_of(found["axes"], found["models"]) if found["axes"] else "",
        "sides": comparison_plots.sides(found["raters"]) if found["position"] else "",
        "alphas": comparison_plots.alphas(found["agreement"]),
        "of_models": [comparison_plots.length_of_models(sizes, of) for of in kinds],
        "of_answers": comparison_plots.length_of_answers(pairs),
        "estimates": comparison_plots.length_estimates(pairs),
    }


def page(facts: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("comparison_report.html.j2").render(
        facts=facts,
        plots=plots(facts),
        axes=judgements.AXES,
        n=functools.partial(figure, facts),
        i=functools.partial(interval, facts),
    )


def write(folder: pathlib.Path, facts: Mapping[str, Any]) -> pathlib.Path:
    """Both files, each whole or not at all; the page, which shows the JSON, comes last."""
    text = json.dumps(facts, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    shown = page(json.loads(text))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("report.json", text), ("report.html", shown)):
        part = folder / (name + ".part")
        part.write_text(content, "utf-8")
        part.replace(folder / name)
    return folder / "report.html"
