"""Rows about data: damaged files, rows that are not what they should be."""

from __future__ import annotations

import json
import pathlib
import shutil
import time

from jinstr.data import prepared
from tests.faults import rig as rig_lib

NUM_ROWS = 8000  # 0.1 % of them are 8


def prepare(rig: rig_lib.Rig, data, cache: str, *more: str, faults: str = "") -> rig_lib.Ended:
    """`jinstr prepare` on a file, in a cache of its own."""
    folder = rig.place / cache
    settings = [f"DATA={data}", f"TOKENIZER={rig.place}/t.model", f"CACHE_DIR={folder}"]
    process = rig.start(
        ["prepare", *settings, "WORKERS=1", "SEQ_LEN=128", "BATCH_TOKENS=256", *more], faults=faults
    )
    return process.end(folder)


def sets_of(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.parent for path in folder.glob(f"*/{prepared.MANIFEST}"))


def ids_of(folder: pathlib.Path) -> set[str]:
    """Ids of all records of the one set in a cache."""
    (place,) = sets_of(folder)
    opened = prepared.PreparedSet(place, verify=True)
    return {record.id for record in opened.read(range(len(opened)))}


def quarantined(folder: pathlib.Path) -> list[dict]:
    return [row for path in folder.glob(f"*.{prepared.QUARANTINE}") for row in rig_lib.lines(path)]


def _texts(count: int) -> list[bytes]:
    rows = ({"id": f"d{n}", "text": f"{n}番目の短い文です。"} for n in range(count))
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def _damaged() -> dict[str, tuple[str, list[bytes], bytes]]:
    """By kind: (rule that tells it, "" where the file is sound; lines; end of the file)."""
    lines, at = _texts(NUM_ROWS), 4999

    def with_line(line: bytes) -> list[bytes]:
        return [*lines[:at], line, *lines[at + 1 :]]

    return {
        "bad JSON": ("not JSON", with_line(lines[at][:-2]), b"\n"),
        "invalid UTF-8": ("not UTF-8", with_line(lines[at].replace(b"\xe7", b"\xff")), b"\n"),
        "NUL bytes": ("NUL character", with_line(b"\0" * 40), b"\n"),
        "truncated last line": ("truncated last line", [*lines[:-1], lines[-1][:30]], b""),
        "BOM": ("", [b"\xef\xbb\xbf" + lines[0], *lines[1:]], b"\n"),
        "CRLF": ("", [line + b"\r" for line in lines], b"\n"),
    }


def _corrupt_lines(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    kinds = _damaged()
    good, seen = [], []
    for number, (kind, (rule, lines, end)) in enumerate(kinds.items()):
        path = rig.place / f"damaged{number}.jsonl"
        path.write_bytes(b"\n".join(lines) + end)
        lost = {"truncated last line": NUM_ROWS - 1}.get(kind, 4999) if rule else None
        if full or kind in ("invalid UTF-8", "truncated last line"):
            ended = prepare(rig, path, f"stop{number}", "ON_BAD=stop")
            where = f"{path.name}:{lost + 1}:" if rule else ""
            good.append((ended.status, where in ended.text) == (65 if rule else 0, True))
        if full or kind in ("bad JSON", "BOM"):
            ended = prepare(rig, path, f"skip{number}", "ON_BAD=skip")
            kept = quarantined(ended.folder)
            wanted = {f"d{n}" for n in range(NUM_ROWS) if n != lost}
            found = [(row["rule"], row["line"]) for row in kept]
            right = ids_of(ended.folder) == wanted and ended.status == 0
            good.append(right and found == ([(rule, lost + 1)] if rule else []))
            seen.append(f"{kind}: {len(wanted)} of {NUM_ROWS} ids")
    # The cap: 9 of 8,000 are too many, 8 are not.
    lines = _texts(NUM_ROWS)
    for count, status in ((8, 0), (9, 65)) if full else ((9, 65),):
        found = [b"{" if n % 800 == 7 and n // 800 < count else x for n, x in enumerate(lines)]
        path = rig.place / f"cap{count}.jsonl"
        path.write_bytes(b"\n".join(found) + b"\n")
        ended = prepare(rig, path, f"cap{count}", "ON_BAD=skip")
        good.append(ended.status == status and len(quarantined(ended.folder)) == count)
        seen.append(f"{count} bad rows: exit {ended.status}")
    return f"{sum(good)} of {len(good)} as promised; {', '.join(seen)}", all(good)


# What is wrong, the rule that must tell it, the row. Each comes as often as its place in the list, from 1.
WRONG_ROWS = [
    ("bad row: missing field", {"instruction": "問", "answer": "答"}),
    ("bad row: wrong type", {"instruction": "問", "input": "", "output": 7}),
    ("empty answer", {"instruction": "問", "input": "", "output": ""}),
    ("empty answer", {"instruction": "問", "input": "", "output": "　\n　"}),
    ("empty question", {"instruction": "　", "input": "", "output": "答"}),
    ("longer than a row", {"instruction": "問", "input": "", "output": "長い答えです。" * 60}),
    ("longer than a record", {"instruction": "問", "input": "", "output": "長い" * 30_000}),
    ("same id as an earlier row", {"id": "r1", "instruction": "問", "input": "", "output": "答"}),
]


def _wrong_rows(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    del full
    rows = [
        {"id": f"r{n}", "instruction": f"問い{n}", "input": "", "output": f"答え{n}"}
        for n in range(NUM_ROWS)
    ]
    wanted: dict[str, int] = {}
    for number, (rule, wrong) in enumerate(WRONG_ROWS, 1):
        wanted[rule] = wanted.get(rule, 0) + number
        for time_ in range(number):
            place = 500 * number + time_
            rows[place] = {"id": f"r{place}"} | wrong
    for name, found in (("one", rows), ("two", rows[:1000])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (rig.place / f"{name}.jsonl").write_text(text, "utf-8")
    data = f"{rig.place}/one.jsonl,{rig.place}/two.jsonl"
    stopped = prepare(rig, data, "wrong", "TEMPLATE=chatml")
    named = "one.jsonl:501: no output or response" in stopped.text
    before = time.monotonic()
    ended = prepare(rig, data, "wrong", "TEMPLATE=chatml", "ON_BAD=skip")
    seconds = time.monotonic() - before
    sections = ended.text.split("\ntwo: ")
    told = all(f": {rule}: {count}\n" in sections[0] for rule, count in wanted.items()
               if rule != "longer than a row")  # fmt: skip
    told &= f"without {wanted['longer than a row']} longer examples" in sections[-1]
    by_source = "bad row: missing field: 1\n" in sections[1] and "wrong type" not in sections[1]
    left = sum(count for rule, count in wanted.items() if rule.startswith(("bad", "empty")))
    left += wanted["longer than a record"]
    kept = f"one: chat, {NUM_ROWS - left:,} examples of" in ended.text
    return (
        f"stop: exit {stopped.status} naming file, line and fields: {named}; skip: exit {ended.status} in "
        f"{seconds:.0f} s, counts by rule as planted ({wanted}): {told}, by source: {by_source}, "
        f"{NUM_ROWS - left} of {NUM_ROWS} kept whole: {kept}",
        (stopped.status, ended.status) == (65, 0) and named and told and by_source and kept,
    )


def _changed_data(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    """A run of 10 steps that would go on to 20, after its data changed."""
    del full
    own, other = rig.place / "own.jsonl", rig.place / "other"
    lines = (rig.place / "corpus.jsonl").read_bytes().splitlines(keepends=True)
    own.write_bytes(b"".join(lines))
    first = rig.train("changed", f"DATA={own}", "NUM_STEPS=10")
    shutil.copytree(rig.place / "changed", rig.place / "unchanged")
    (set_before,) = (path for path in sets_of(rig.place / "cache") if path.name.startswith("own-"))
    shutil.copytree(set_before, other)
    given = rig.train("given", f"DATA={other}", "NUM_STEPS=10")
    extra = json.dumps({"id": "new", "text": "後から足した文です。"}).encode() + b"\n"
    seen, good = [], [first.status == 0, given.status == 0]
    for kind, changed in (("append", [*lines, extra]), ("reorder", lines[::-1])):
        own.write_bytes(b"".join(changed))
        ended = rig.train("changed", f"DATA={own}", "NUM_STEPS=20")
        named = "source own: own.jsonl changed (" in ended.text
        good.append(ended.status == 65 and named)
        seen.append(f"{kind}: exit {ended.status}, names source and file: {named}")
    set_after = max(sets_of(rig.place / "cache"), key=lambda path: path.stat().st_mtime)
    shutil.rmtree(other)
    shutil.copytree(set_after, other)
    ended = rig.train("given", f"DATA={other}", "NUM_STEPS=20")
    named = "source other: " in ended.text
    good.append(ended.status == 65 and named)
    seen.append(f"another set in its folder: exit {ended.status}, names it: {named}")
    # Negative control: the same data go on.
    own.write_bytes(b"".join(lines))
    ended = rig.train("unchanged", f"DATA={own}", "NUM_STEPS=20")
    good.append(ended.status == 0 and rig_lib.steps_of(ended.folder)[-1] == 20)
    seen.append(f"unchanged: exit {ended.status}")
    return "; ".join(seen), all(good)


ROWS = [
    rig_lib.Row(
        number="35",
        injected="corrupt JSONL: bad JSON, truncated last line, BOM, CRLF, invalid UTF-8, NUL bytes",
        promised="stop: 65 with file:line; skip: the other rows, quarantine, cap of 0.1 %; BOM, CRLF: read as clean",
        measure=_corrupt_lines,
        in_ci=True,
    ),
    rig_lib.Row(
        number="36",
        injected="other fields, wrong type, empty, only spaces, too long, the same id twice",
        promised="counted by rule and source before training; nothing trimmed",
        measure=_wrong_rows,
        in_ci=True,
    ),
    rig_lib.Row(
        number="37",
        injected="a line appended to a data file, its lines in another order, another prepared set, after a checkpoint",
        promised="exit 65 naming source and file; unchanged data go on",
        measure=_changed_data,
    ),
]
