"""The page of benchmark results: one self-contained file, Japanese with an English switch, beside the JSON it shows.

Numbers are written by `score` alone and carry the path of their value in OUT.summary.json: a test holds the page
against the file.
"""

from __future__ import annotations

import collections
import io
import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence

import jinja2

WIDE, HIGH = 5.4, 0.34  # inches of a figure: its width, and the height of one line in it


def score(value) -> str:
    """A figure as the page shows it."""
    if value is None:
        return "—"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def names_of(rows: Sequence[Mapping]) -> list[str]:
    """A model's name for every row; where two models of the table have one name, with the start of their digest."""
    digests = collections.defaultdict(set)
    for row in rows:
        digests[row["model"]].add(row["weights"])
    return [
        row["model"] + (f" {row['weights'][:6]}" if len(digests[row["model"]]) > 1 else "")
        for row in rows
    ]


def tasks_of(rows: Sequence[Mapping]) -> list[str]:
    """A task's name for every row; where one benchmark stands there with several files, with its file."""
    files = collections.defaultdict(set)
    for row in rows:
        files[row["task"]].add(row["file"])
    return [
        row["task"] + (f" {row['file']}" if len(files[row["task"]]) > 1 else "") for row in rows
    ]


def _settings(rows: Sequence[Mapping]) -> list[str]:
    """What tells rows of one model and task apart: format, worked examples, way."""
    return [
        f"{row['format']}, {row['shots']}-shot" + (", written" if _is_special(row) else "")
        for row in rows
    ]


def _is_special(row: Mapping) -> bool:
    """A task with choices whose answers were written."""
    return row["by"] == "writing" and row["chance"] is not None


def _svg(drawing) -> str:
    """The figure as SVG whose text stays text: the reader's fonts know Japanese."""
    import matplotlib

    target = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "jinstr"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that matplotlib's own font lacks
        drawing.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    svg = target.getvalue()
    return svg[svg.index("<svg") :]


def _axes(height: float):
    from matplotlib import figure

    drawing = figure.Figure(figsize=(WIDE, height), layout="constrained")
    axes = drawing.subplots()
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return drawing, axes


def _colours(names: Sequence[str]) -> dict[str, str]:
    return {name: f"C{number % 10}" for number, name in enumerate(dict.fromkeys(names))}


def _chances(axes, rows: Sequence[Mapping], line) -> None:
    """Dashed: by lot; dotted: always one place."""
    if rows[0]["chance"]:
        for name, style in (("by_lot", "--"), ("one_place", ":")):
            line(rows[0]["chance"][name], linestyle=style, linewidth=1.2, color="#c2410c")


def _means(rows: Sequence[Mapping], names: Sequence[str], colours: Mapping) -> str:
    """Mean over templates with its interval, a line for each row."""
    drawing, axes = _axes(0.9 + HIGH * len(rows))
    for place, (row, name) in enumerate(zip(rows, names)):
        low, high = row["interval"]
        axes.plot([low, high], [place, place], color=colours[name], linewidth=2, alpha=0.5)
        axes.plot(row["mean"], place, "o", color=colours[name], markersize=6)
    _chances(axes, rows, axes.axvline)
    labels = [f"{name} · {setting}" for name, setting in zip(names, _settings(rows))]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(rows[0]["main"], fontsize=9)
    return _svg(drawing)


def _spread(rows: Sequence[Mapping], names: Sequence[str], colours: Mapping) -> str:
    """The figure by each template, a line for each row."""
    drawing, axes = _axes(2.9)
    templates = list(dict.fromkeys(t["template"] for row in rows for t in row["templates"]))
    count = len(rows)
    for number, (row, name, setting) in enumerate(zip(rows, names, _settings(rows))):
        places = [
            templates.index(t["template"]) + (number - (count - 1) / 2) * 0.5 / max(count, 4)
            for t in row["templates"]
        ]
        values = [t["value"] for t in row["templates"]]
        style = ("-", "--", ":", "-.")[list(dict.fromkeys(_settings(rows))).index(setting) % 4]
        axes.plot(places, values, linestyle=style, linewidth=0.8, alpha=0.5, color=colours[name])
        for place, found in zip(places, row["templates"]):
            if found["interval"]:
                axes.plot([place] * 2, found["interval"], color=colours[name], alpha=0.35)
        axes.plot(places, values, "o", color=colours[name], markersize=4)
    _chances(axes, rows, axes.axhline)
    axes.set_xticks(range(len(templates)), templates, fontsize=9)
    axes.set_xlim(-0.5, len(templates) - 0.5)
    axes.set_ylabel(rows[0]["main"], fontsize=9)
    return _svg(drawing)


def _by_shots(rows: Sequence[Mapping], names: Sequence[str], colours: Mapping) -> str:
    """Mean over templates by worked examples, a line for each model and format; "" for one number of them."""
    shots = sorted({row["shots"] for row in rows})
    if len(shots) < 2:
        return ""
    lines: dict[tuple, list] = collections.defaultdict(list)
    for row, name in zip(rows, names):
        lines[name, row["format"], row["by"]].append(row)
    drawing, axes = _axes(2.9)
    for (name, *_), found in lines.items():
        found.sort(key=lambda row: row["shots"])
        places = [shots.index(row["shots"]) for row in found]
        axes.plot(places, [r["mean"] for r in found], "o-", color=colours[name], markersize=5)
        axes.fill_between(
            places,
            [r["interval"][0] for r in found],
            [r["interval"][1] for r in found],
            color=colours[name], alpha=0.12, linewidth=0,
        )  # fmt: skip
    _chances(axes, rows, axes.axhline)
    axes.set_xticks(range(len(shots)), [str(count) for count in shots], fontsize=9)
    axes.set_ylabel(rows[0]["main"], fontsize=9)
    return _svg(drawing)


def sections(rows: Sequence[Mapping]) -> list[dict]:
    """A section for each task: its rows with their numbers in the file, and its figures."""
    names, tasks = names_of(rows), tasks_of(rows)
    colours = _colours(names)
    found = []
    for task in dict.fromkeys(tasks):
        numbers = [number for number, name in enumerate(tasks) if name == task]
        mine = [rows[number] for number in numbers]
        called = [names[number] for number in numbers]
        found.append(
            {
                "task": task,
                "main": mine[0]["main"],
                "numbers": numbers,
                "names": called,
                "settings": _settings(mine),
                "legend": {name: _hex(colours[name]) for name in dict.fromkeys(called)},
                "means": _means(mine, called, colours),
                "spread": _spread(mine, called, colours),
                "by_shots": _by_shots(mine, called, colours),
            }
        )
    return found


def _hex(colour: str) -> str:
    from matplotlib import colors

    return colors.to_hex(colour)


def table(rows: Sequence[Mapping]) -> dict:
    """The overview: columns are tasks, lines are models with their setting; a cell is the number of its row."""
    names, tasks, told = names_of(rows), tasks_of(rows), _settings(rows)
    cells: dict[tuple[str, str], dict[str, int]] = collections.defaultdict(dict)
    for number, (name, task, setting) in enumerate(zip(names, tasks, told)):
        cells[name, setting].setdefault(task, number)
    return {
        "tasks": list(dict.fromkeys(tasks)),
        "first": {task: tasks.index(task) for task in dict.fromkeys(tasks)},
        "lines": [{"name": n, "setting": s, "cells": found} for (n, s), found in cells.items()],
    }


def write(path: pathlib.Path, found: dict) -> pathlib.Path:
    """Write the page of what a summary file holds."""
    rows = json.loads(json.dumps(found))["results"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = score
    page = environment.get_template("leaderboard.html.j2").render(
        rows=rows, table=table(rows), sections=sections(rows)
    )
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(page, "utf-8")
    aside.replace(path)
    return path
