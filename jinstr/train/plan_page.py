"""What `jinstr plan` shows: lines for the terminal, and a picture of memory and time."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

GIB = 2**30
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb")


def settings(result: dict) -> str:
    """A setting as it would be written behind a command."""
    mesh = " ".join(f"MESH_{axis.upper()}={size}" for axis, size in result["mesh"].items())
    batch = (
        f"BATCH_TOKENS={result['rows'] * result['seq_len']} MICROBATCHES={result['microbatches']}"
    )
    if result["slices"] > 1:
        mesh += " MESH_SLICES=-1"
    return f"{mesh} {batch} config.DecoderConfig.remat='{result['remat']}'"


def lines(result: dict) -> Iterator[str]:
    """The whole of one plan."""
    mesh = " · ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    rows = (
        result["rows"]
        // result["microbatches"]
        // (result["mesh"]["data"] * result["mesh"]["fsdp"])
    )
    yield (
        f"mesh {mesh}; {result['rows']:,} rows of {result['seq_len']:,} places a step, {rows} at a time on each chip; "
        f"remat {result['remat']}, attention {result['attention']}"
    )
    yield from _memory(result)
    if "collectives" in result or result.get("time"):
        yield from _wires(result)
    if result.get("time"):
        yield from _time(result)


def _memory(result: dict) -> Iterator[str]:
    there = result["memory_there"]
    if not result["fits"] and "arguments" not in result and "time" not in result:
        wants = (
            f"{result['peak'] / GIB:.2f} GiB of {there / GIB:.2f}"
            if there == there
            else "more than there is"
        )
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in result["memory"].items())
        yield f"does not fit: the compiler wants {wants} on each chip; by formula, GiB: {parts}"
        return
    yield "memory of one chip, GiB"
    for name, size in result["memory"].items():
        yield f"    {name:<34}{size / GIB:9.3f}"
    if guess := result.get("temporaries_by_formula"):
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in guess.items())
        yield f"    {'(while it runs, by formula: ' + parts + ')'}"
    verdict = ""
    if there:
        share = result["peak"] / there
        word = "fits" if result["fits"] else "does not fit"
        verdict = f" of {there / GIB:.1f}: {share:.0%}, {word} (at most {result['most']:.0%})"
    yield f"    {'together, at the peak':<34}{result['peak'] / GIB:9.3f}{verdict}"
    if "arguments" in result:
        off = result["arguments_by_formula"] / result["arguments"] - 1
        yield f"    arguments {result['arguments'] / GIB:.3f} by the compiler, {off:+.2%} by formula"


def _wires(result: dict) -> Iterator[str]:
    yield "over the wires of one chip in a step, GiB"
    for kind, moved in result.get("collectives", {}).items():
        yield (
            f"    {kind:<22}{moved['count']:8,.0f} ×  payload {moved['payload'] / GIB:8.3f}  wire "
            f"{moved['wire'] / GIB:8.3f}  of it beside computation {moved['hidden'] / GIB:8.3f}"
        )
    formula = sum(result["wires_by_formula"].values())
    parts = ", ".join(
        f"{name} {size / GIB:.3f}" for name, size in result["wires_by_formula"].items()
    )
    together = f"{result['wire'] / GIB:.3f}, " if "wire" in result else ""
    yield f"    together {together}by formula {formula / GIB:.3f}{f' ({parts})' if parts else ''}"
    if result.get("loops_not_counted"):
        yield f"    {result['loops_not_counted']} loops whose passes are not known are counted once"


def _time(result: dict) -> Iterator[str]:
    time = result["time"]
    low, high = time["utilisation"]
    slow, fast = result["tokens_per_second"]
    yield "one step: an estimate, not measured"
    yield (
        f"    matrix products {_ms(time['products'])} ms and attention {_ms(time['attention'])} ms at the peak; wires "
        f"{_ms(time['waiting'])} ms alone, {_ms(time['hidden'])} ms beside computation"
        + (f"; to the host and back {_ms(time['host'])} ms" if time["host"] else "")
    )
    yield (
        f"    between {_ms(time['lowest'])} and {_ms(time['highest'])} ms, bound by {time['bound_by']}; "
        f"MFU {low:.0%} to {high:.0%}; {slow:,.0f} to {fast:,.0f} tokens/s"
    )
    if "days" in result:
        yield (
            f"    {result['tokens'] / 1e9:,.3g} G tokens: {result['days'][0]:,.1f} to {result['days'][1]:,.1f} days, "
            f"{result['chip_hours'][0]:,.0f} to {result['chip_hours'][1]:,.0f} chip-hours"
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def table(found: Sequence[dict]) -> Iterator[str]:
    """What a search found, best first."""
    yield f"{'peak GiB':>9} {'ms':>15} {'MFU':>10} {'tokens/s':>22}  settings"
    for one in found:
        if "time" in one:
            time = one["time"]
            low, high = time["utilisation"]
            slow, fast = one["tokens_per_second"]
            span = f"{_ms(time['lowest'])}–{_ms(time['highest'])}"
            speed = f"{span:>15} {f'{low:.0%}–{high:.0%}':>10} {f'{slow:,.0f}–{fast:,.0f}':>22}"
        else:
            speed = " " * 49
        yield f"{one['peak'] / GIB:9.2f} {speed}  {settings(one)}"


def practice_lines(result: dict) -> Iterator[str]:
    """The whole of a plan of PPO or GRPO."""
    mesh = " · ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    shape = result["shape"]
    yield (
        f"mesh {mesh}; {shape['prompts'] * shape['answers']:,} answers of {shape['max_new_tokens']:,} tokens to "
        f"prompts of {shape['prompt_length']:,}, {shape['rollout_rows']:,} at a time; remat {result['remat']}"
    )
    titles = {"kept": "all the time", "lent": "while answers are written"}
    for name, title in titles.items():
        yield f"memory of one chip, {title}, GiB"
        for part, size in result[name].items():
            yield f"    {part:<34}{size / GIB:9.3f}"
        yield f"    {'together':<34}{sum(result[name].values()) / GIB:9.3f}"
    yield "each function, GiB of one chip: what it takes while it runs, with all that is there; what it sends"
    for one in result["programs"]:
        if one["refused"]:
            yield f"    {one['name']:<52} refused by the compiler: it wants {one['together'] / GIB:.2f}"
            continue
        sent = ", ".join(
            f"{kind} {moved['wire'] / GIB:.3g} in {moved['count']:,.0f}"
            for kind, moved in one["collectives"].items()
        )
        yield (
            f"    {one['name']:<52}{one['running'] / GIB:9.3f}{one['together'] / GIB:9.3f}{one['wire'] / GIB:9.3f}"
            + (f"  ({sent})" if sent else "")
        )
    largest = max(result["programs"], key=lambda one: one["together"])
    there = result["memory_there"]
    verdict = ""
    if there:
        word = "fits" if result["fits"] else "does not fit"
        verdict = f" of {there / GIB:.1f}: {result['peak'] / there:.0%}, {word} (at most {result['most']:.0%})"
    yield f"at the most {result['peak'] / GIB:.3f}{verdict}; {largest['name']}"


def practice_bars(result: dict) -> list[dict]:
    """A bar for each function: all that is there while it runs."""
    sizes = result["kept"] | result["lent"]
    common = {key: result[key] for key in ("topology", "memory_there", "most")}
    return [
        common
        | {
            "label": one["name"],
            "memory": {name: sizes[name] for name in (*result["kept"], *one["lent"])}
            | {"while it runs": max(0.0, one.get("running", 0.0))},
        }
        for one in result["programs"]
    ]


def draw(found: Sequence[dict], path: pathlib.Path) -> None:
    """Memory by part against what there is, and time by part, a bar for every setting."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 2.2 + 0.7 * len(found)), layout="constrained"
    )
    labels = [_label(one) for one in found]
    _bars(left, labels, [{k: v / GIB for k, v in one["memory"].items()} for one in found])
    if there := found[0]["memory_there"]:
        left.axvline(there / GIB, color="black", label="of the chip")
        left.axvline(
            found[0]["most"] * there / GIB, color="black", linestyle=":", label="fits up to here"
        )
    left.set(xlabel="GiB of one chip", title=f"{found[0]['topology']}: memory")
    timed = [one for one in found if "time" in one]
    names = {
        "products": "matrix products",
        "attention": "attention",
        "waiting": "wires",
        "hidden": "wires, beside",
        "host": "to the host",
    }
    parts = [
        {name: one["time"][key] * 1e3 for key, name in names.items() if one["time"][key]}
        for one in timed
    ]
    _bars(right, [_label(one) for one in timed], parts)
    for place, one in enumerate(timed):
        low, high = one["time"]["lowest"] * 1e3, one["time"]["highest"] * 1e3
        right.errorbar(
            (low + high) / 2, place, xerr=(high - low) / 2, color="black", capsize=4,
            label="" if place else "one step, from … to",
        )  # fmt: skip
    right.set(
        xlabel="ms, parts at the chip's peak", title="time of a step (estimate, not measured)"
    )
    for axes, side in ((left, "left"), (right, "right")):
        axes.invert_yaxis()
        handles, names = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, fontsize=8, loc=f"outside lower {side}", ncols=3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _label(one: dict) -> str:
    if "label" in one:
        return one["label"]
    mesh = "×".join(str(size) for size in one["mesh"].values())
    return f"{mesh}, {one['remat']}, {one['microbatches']} parts"


def _bars(axes, labels: Sequence[str], rows: Sequence[dict[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    start = [0.0] * len(rows)
    for name, colour in zip(names, COLOURS * 3):
        widths = [row.get(name, 0.0) for row in rows]
        axes.barh(range(len(rows)), widths, left=start, color=colour, label=name, height=0.6)
        start = [a + b for a, b in zip(start, widths)]
    axes.set_yticks(range(len(rows)), labels)
