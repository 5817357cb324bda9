"""The figures of a comparison's report, as SVG whose text stays text: the reader's fonts know Japanese.

Every function takes a part of the report's dict (evaluate/comparison.py) and draws what stands there, nothing else.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jinstr.evaluate import comparison_words as words
from jinstr.human import judgements

WIDE = 5.6  # inches
WON, TIED, LOST, INK = "#2563eb", "#cbd5e1", "#ea580c", "#475467"
COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#ca8a04", "#0891b2", "#be185d", "#4d7c0f")
MARKS = "osD^vP*X"
PANELS = 6  # pairs in a figure with a panel each


def draw(height: float, drawing: Callable, panels: int = 1, wide: float = WIDE) -> str:
    """SVG of a figure that `drawing(axes)` fills; with several panels `axes` is a list."""
    import matplotlib
    from matplotlib import figure

    settings = {
        "svg.fonttype": "none", "svg.hashsalt": "jinstr", "font.size": 9,
        "text.parse_math": False,  # a model's name may hold $
        "font.family": "sans-serif", "axes.unicode_minus": False,
    }  # fmt: skip
    target = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that matplotlib's own font lacks
        canvas = figure.Figure(figsize=(wide, height), layout="constrained")
        columns = min(panels, 3)
        grid = canvas.subplots(-(-panels // columns), columns, squeeze=False).ravel()
        for number, axes in enumerate(grid):
            axes.grid(alpha=0.25)
            axes.set_axisbelow(True)
            axes.set_visible(number < panels)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        drawing(grid[0] if panels == 1 else list(grid[:panels]))
        canvas.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    svg = target.getvalue()
    return svg[svg.index("<svg") :]


def _short(name: str, most: int = 30) -> str:
    """Both ends of a long name: versions stand at the end."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _percents(axis) -> None:
    axis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")


def _rows(axes, count: int, space: float = 0.75) -> None:
    axes.set_ylim(count - 0.45, -space)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)


def _middle(axes, at: float, count: int) -> None:
    """A dashed line beside the marks of every row, and not through its name."""
    for place in range(count):
        axes.plot([at, at], [place - 0.12, place + 0.4], color=INK, linewidth=1, linestyle="--")


def colours(models: Sequence[str]) -> dict[str, str]:
    return {model: COLOURS[n % len(COLOURS)] for n, model in enumerate(models)}


def outcomes(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Wins, ties and losses of every pair, with Wilson's intervals of wins (from the left) and losses (right)."""

    def drawing(axes):
        for place, pair in enumerate(pairs):
            shares, start = pair["shares"], 0.0
            for name, colour in (("wins", WON), ("ties", TIED), ("losses", LOST)):
                share = shares[name]["share"]
                axes.barh(place, share, left=start, height=0.36, color=colour)
                if share > 0.07:
                    ink = INK if name == "ties" else "white"
                    axes.text(
                        start + share / 2, place, words.bare(share), ha="center", va="center",
                        color=ink, fontsize=8.5,
                    )  # fmt: skip
                start += share
            low, high = shares["wins"]["interval"]
            axes.plot([low, high], [place + 0.27] * 2, color=WON, linewidth=2)
            low, high = shares["losses"]["interval"]
            axes.plot([1 - high, 1 - low], [place + 0.33] * 2, color=LOST, linewidth=2)
            axes.text(0, place - 0.24, _short(pair["model"]), color=WON, fontsize=9)
            axes.text(1, place - 0.24, _short(pair["other"]), color=LOST, ha="right", fontsize=9)
        _rows(axes, len(pairs))
        axes.set_xlim(0, 1)
        _percents(axes.xaxis)

    return draw(0.55 + 0.66 * len(pairs), drawing)


def adjusted(pairs: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]] = ()) -> str:
    """Adjusted win rates: thick lines by prompts, thin ones by prompts and raters; hollow: the same pair `beside`."""
    other = {(pair["model"], pair["other"]): pair for pair in beside}

    def drawing(axes):
        _middle(axes, 0.5, len(pairs))
        for place, pair in enumerate(pairs):
            rate = pair["adjusted"]
            axes.plot(rate["by_both"], [place] * 2, color=WON, linewidth=1.2)
            axes.plot(rate["by_prompts"], [place] * 2, color=WON, linewidth=4, alpha=0.4)
            axes.plot(rate["rate"], place, "o", color=WON, markersize=7)
            if found := other.get((pair["model"], pair["other"])):
                low_high = found["adjusted"]["by_both"]
                axes.plot(low_high, [place + 0.2] * 2, color=LOST, linewidth=1.2)
                axes.plot(
                    found["adjusted"]["rate"],
                    place + 0.2,
                    "o",
                    color=LOST,
                    mfc="white",
                    markersize=6,
                )
            told = f"{_short(pair['model'])} against {_short(pair['other'])}"
            axes.text(0, place - 0.2, told, fontsize=9)
        _rows(axes, len(pairs))
        axes.set_xlim(0, 1)
        _percents(axes.xaxis)

    return draw(0.55 + 0.66 * len(pairs), drawing)


def course(pairs: Sequence[Mapping[str, Any]]) -> str:
    """e after every prompt; 20 decides."""

    def drawing(axes):
        for number, pair in enumerate(pairs):
            path = np.clip([1.0, *pair["sequential"]["path"]], 1e-3, 1e6)
            told = f"{_short(pair['model'], 18)} – {_short(pair['other'], 18)}"
            axes.plot(range(len(path)), path, label=told, **_stroke(number))
        axes.axhline(words.DECIDES, color=INK, linestyle="--", linewidth=1)
        axes.text(0, words.DECIDES * 1.1, "20: decided", color=INK, fontsize=8)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.1), max(high, 60))
        axes.yaxis.set_major_formatter(lambda e, _: f"{e:,.0f}" if e >= 1 else f"{e:g}")
        axes.minorticks_off()
        axes.set_xlabel("prompts judged")
        axes.set_ylabel("e")
        _legend(axes, len(pairs))

    return draw(3.1 + 0.16 * len(pairs), drawing)


def _stroke(number: int) -> dict[str, str]:
    """Colour and kind of the line of a pair; colours come again in other kinds."""
    kinds = ("-", "--", ":", "-.")
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": kinds[number // len(COLOURS) % len(kinds)],
    }


def _legend(axes, count: int) -> None:
    """Below the axes, where it hides nothing."""
    if count > 1:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2 if count > 2 else count,
            fontsize=8, frameon=False,
        )  # fmt: skip


def power(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Power by prompts if the shares seen are the true ones; a dot at this study's size."""

    def drawing(axes):
        for number, pair in enumerate(pairs):
            curve = pair["power"]["curve"]
            if not curve:
                continue
            told = f"{_short(pair['model'], 18)} – {_short(pair['other'], 18)}"
            axes.plot(*zip(*curve), label=told, **_stroke(number))
            axes.plot(
                sum(pair["prompts"].values()),
                pair["power"]["of_this_size"],
                "o",
                color=COLOURS[number % len(COLOURS)],
            )
        axes.axhline(0.8, color=INK, linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(_ticks())
        axes.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
        axes.minorticks_off()
        axes.set_ylim(0, 1.03)
        _percents(axes.yaxis)
        axes.set_xlabel("prompts")
        axes.set_ylabel("power")
        _legend(axes, len(pairs))

    return draw(3.1 + 0.16 * len(pairs), drawing)


def _ticks():
    from matplotlib import ticker

    return ticker.LogLocator(subs=(1, 2, 5), numticks=12)


def strengths(found: Mapping[str, Any]) -> str:
    order = sorted(found["log_odds"].items(), key=lambda pair: -pair[1]["value"])
    tints = colours(sorted(found["log_odds"]))

    def drawing(axes):
        _middle(axes, 0, len(order))
        for place, (model, fact) in enumerate(order):
            axes.plot(fact["interval"], [place] * 2, color=tints[model], linewidth=2, alpha=0.6)
            axes.plot(fact["value"], place, "o", color=tints[model], markersize=7)
            axes.annotate(
                _short(model, 40), (0, place - 0.25), xycoords=("axes fraction", "data"), fontsize=9
            )
        _rows(axes, len(order), 0.8)
        axes.set_xlabel("log odds")

    return draw(0.75 + 0.5 * len(order), drawing)


def axes_of(found: Mapping[str, Any], models: Sequence[str]) -> str:
    """Mean scores of every model, with intervals."""
    tints = colours(models)

    def drawing(axes):
        for place, axis in enumerate(found):
            for number, model in enumerate(models):
                fact = found[axis].get(model)
                if fact is None:
                    continue
                x = place + (number - (len(models) - 1) / 2) * min(0.16, 0.7 / len(models))
                axes.plot([x, x], fact["interval"], color=tints[model], linewidth=2, alpha=0.55)
                label = _short(model, 24) if place == 0 else None
                axes.plot(
                    x, fact["mean"], MARKS[number % len(MARKS)], color=tints[model], label=label, markersize=6
                )  # fmt: skip
        names = [f"{judgements.AXES[axis]}\n{axis}" for axis in found]
        axes.set_xticks(range(len(found)), names)
        axes.set_xlim(-0.5, len(found) - 0.5)
        axes.set_ylabel("mean score (1–5)")
        _legend(axes, len(models))

    return draw(3.2 + 0.16 * len(models), drawing)


def _dots(
    rows: Sequence[tuple[str, float, Sequence[float]]], lines, limits, tint=WON, percents=False
) -> str:
    """A line with a dot for each (name, value, interval)."""

    def drawing(axes):
        for at, style in lines:
            axes.axvline(at, color=INK, linewidth=1, linestyle=style)
        for place, (_, value, low_high) in enumerate(rows):
            if None not in low_high:
                axes.plot(low_high, [place] * 2, color=tint, linewidth=2, alpha=0.5)
            axes.plot(value, place, "o", color=tint, markersize=6)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(*limits)
        axes.grid(axis="y", visible=False)
        if percents:
            _percents(axes.xaxis)

    return draw(0.55 + 0.34 * len(rows), drawing)


def sides(raters: Mapping[str, Any]) -> str:
    """Each rater's share of A among decided verdicts."""
    rows = [
        (_short(name, 20), fact["left"]["share"], fact["left"]["interval"])
        for name, fact in raters.items()
        if fact["left"]["of"]
    ]
    return _dots(rows, [(0.5, "--")], (0, 1), percents=True) if rows else ""


def alphas(found: Mapping[str, Any]) -> str:
    """Krippendorff's alpha; dotted: his marks of .667 and .800."""
    rows = [
        (f"{judgements.AXES.get(name, '優劣')} {name}", fact["alpha"], fact["interval"])
        for name, fact in found.items()
        if name != "with_oneself" and fact["alpha"] is not None
    ]
    if not rows:
        return ""
    lowest = min(0.0, *(low for _, _, (low, _) in rows if low is not None))
    return _dots(rows, [(0.0, "--"), (0.667, ":"), (0.8, ":")], (lowest - 0.05, 1.03), "#059669")


def length_of_models(found: Mapping[str, Any], of: str) -> str:
    """Every model: mean length of its answers, and its adjusted rate."""
    tints = colours(sorted(found["models"]))

    def drawing(axes):
        axes.axhline(0.5, color=INK, linewidth=1, linestyle="--")
        for number, (model, fact) in enumerate(found["models"].items()):
            mark = MARKS[number % len(MARKS)]
            axes.plot(
                fact[of], fact["adjusted"], mark, color=tints[model], label=_short(model, 24), markersize=8
            )  # fmt: skip
        axes.margins(0.2)
        axes.set_xlabel(f"mean {of.replace('_', ' ')} of an answer")
        axes.set_ylabel("adjusted win rate")
        _percents(axes.yaxis)
        _legend(axes, len(tints))

    return draw(2.9 + 0.16 * len(tints), drawing)


def length_of_answers(pairs: Sequence[Mapping[str, Any]]) -> str:
    """A panel for each pair: by prompt, how much longer the one answer is and how often it won, and the curve that was
    fitted; dots of one outcome are spread a little so that they can be counted."""
    shown = [pair for pair in pairs if pair["lengths"] and pair["lengths"]["points"]][:PANELS]
    if not shown:
        return ""

    def panel(axes, pair):
        x, y = np.array(pair["lengths"]["points"], float).T
        spread = ((np.arange(len(y)) * 0.618) % 1 - 0.5) * 0.09
        axes.plot(x, y + spread, "o", color=WON, alpha=0.45, markersize=4, markeredgewidth=0)
        axes.axvline(0, color=INK, linewidth=1, linestyle="--")
        if found := pair["lengths"]["controlled"]:
            at = np.linspace(x.min(), x.max(), 80)
            start = math.log(found["rate"] / (1 - found["rate"]))
            logit = start + found["slope"] * np.tanh(at / found["scale"])
            axes.plot(at, 1 / (1 + np.exp(-logit)), color=LOST, linewidth=1.8)
        axes.set_title(
            f"{_short(pair['model'], 24)}\nagainst {_short(pair['other'], 24)}", fontsize=9
        )
        axes.set_ylim(-0.1, 1.1)
        _percents(axes.yaxis)
        axes.set_xlabel("characters longer")

    def drawing(axes):
        for place, pair in zip([axes] if len(shown) == 1 else axes, shown):
            panel(place, pair)

    rows = -(-len(shown) // 3)
    return draw(2.9 * rows, drawing, len(shown), 2 * WIDE)


def length_estimates(pairs: Sequence[Mapping[str, Any]]) -> str:
    """For every pair: the adjusted rate (dot), at equal length (diamond), if the longer always won (cross)."""
    shown = [pair for pair in pairs if pair["lengths"]]

    def drawing(axes):
        _middle(axes, 0.5, len(shown))
        for place, pair in enumerate(shown):
            found = pair["lengths"]
            axes.plot(pair["adjusted"]["by_both"], [place] * 2, color=WON, linewidth=2, alpha=0.5)
            axes.plot(pair["adjusted"]["rate"], place, "o", color=WON, markersize=7)
            if control := found["controlled"]:
                low_high = [control["low"], control["high"]]
                axes.plot(low_high, [place + 0.2] * 2, color="#059669", linewidth=2, alpha=0.5)
                axes.plot(control["rate"], place + 0.2, "D", color="#059669", markersize=6)
            axes.plot(found["always_longer"], place, "x", color=LOST, markersize=8, mew=2)
            told = f"{_short(pair['model'])} against {_short(pair['other'])}"
            axes.text(0, place - 0.22, told, fontsize=9)
        _rows(axes, len(shown))
        axes.set_xlim(0, 1)
        _percents(axes.xaxis)

    return draw(0.55 + 0.7 * len(shown), drawing) if shown else ""


def safety(rows: Sequence[Mapping[str, Any]]) -> str:
    """許容回答率 and 違反回答率 of every model, with Wilson's intervals."""

    def drawing(axes):
        for place, row in enumerate(rows):
            for shift, key, colour in (
                (-0.02, "acceptable", "#059669"),
                (0.24, "violating", "#dc2626"),
            ):
                fact = row[key]
                axes.barh(place + shift, fact["share"], height=0.22, color=colour, alpha=0.75)
                axes.plot(
                    [fact["low"], fact["high"]], [place + shift] * 2, color=INK, linewidth=1.5
                )
            axes.text(0, place - 0.2, _short(row["model"], 40), fontsize=9)
        _rows(axes, len(rows))
        axes.set_xlim(0, 1)
        _percents(axes.xaxis)

    return draw(0.55 + 0.7 * len(rows), drawing)
