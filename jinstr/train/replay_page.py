"""replay.html: a replayed step as a page, Japanese with an English switch; every number on it is in replay.json."""

from __future__ import annotations

import math
import pathlib
import re

import jinja2

from jinstr.train import report


def pieces(text: str) -> list[tuple[str, bool]]:
    """(text, is it trained) of an excerpt in which what is trained stands in ⟦ ⟧."""
    found = re.findall(r"⟦([^⟧]*)⟧?|([^⟦]+)", text)
    return [(trained or plain, bool(trained)) for trained, plain in found if trained or plain]


def page(found: dict, shown: int) -> str:
    """The page of what `replay` found, with the first `shown` examples of each ranking."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = report.number
    finite = [value for value in found["by_layer"].values() if math.isfinite(value)]
    return environment.get_template("replay.html.j2").render(
        found=found, shown=shown, pieces=pieces, largest=max(finite, default=0.0) or 1.0
    )
