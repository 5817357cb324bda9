"""`jinstr prepare` beyond one machine: parts of a set, made anywhere with a shared folder, then merged.

CACHE_DIR/<source name>-<key>.parts/00002-of-00008/    part 3 of 8; whole if it has a part.json (part_worker.py)

One function makes a part, and three ways call it: array jobs (PART=3/8 in each, then MERGE=True once), Apache Beam
(RUNNER=…, one element for each part), and by hand. A part is built aside and renamed, so that one that was killed is
not there, and one that is there is not made again. The key is that of the set: parts of other bytes, settings,
tokenizer or code lie in another folder, and a merge names them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator

from jinstr import errors
from jinstr.data import beam_runner, building, part_worker, prepare, prepared, state

MOST_PARTS = 4096
PART_BYTES = 1 << 26  # of files, in a part of Beam's where PARTS says nothing
_NAME = re.compile(r"(\d{5})-of-(\d{5})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """Which part of the work is done here, or who does all parts."""

    part: str = ""  # "3/8": make the third of eight parts, and nothing else
    merge: bool = False  # make the sets from their parts
    runner: str = ""  # Beam's: direct | dataflow | flink | spark; "" = this machine, without Beam
    parts: int = 0  # of Beam, or that are merged; 0 = by bytes, or all that are there
    beam_options: str = ""  # "--project=… --region=…": options of Beam's pipelines

    def __post_init__(self):
        asked = [name for name in ("part", "merge", "runner") if getattr(self, name)]
        if len(asked) > 1:
            raise errors.ConfigError(
                "JI-PARTS-001",
                f"{' and '.join(map(str.upper, asked))} do not go together; give one",
            )
        found = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if self.part and not (found and 1 <= int(found[1]) <= int(found[2]) <= 99_999):
            raise errors.ConfigError(
                "JI-PARTS-002", f"PART={self.part}: not i/N with i from 1 to N, such as 1/8 or 8/8"
            )
        if self.beam_options and not self.runner:
            raise errors.ConfigError(
                "JI-PARTS-003", "BEAM_OPTIONS is for Beam; say which runner: RUNNER=direct"
            )
        if self.parts and not (self.runner or self.merge):
            raise errors.ConfigError(
                "JI-PARTS-004", "PARTS is for RUNNER and MERGE; to make one part here: PART=1/8"
            )


def maker(config: PartsConfig) -> prepare.Maker:
    """What makes sets, or parts of them, as the settings say."""
    if config.part:
        part, parts = map(int, config.part.split("/"))
        return functools.partial(_make_one, part - 1, parts)
    if config.merge:
        return functools.partial(_make_merged, config.parts)
    return functools.partial(_make_by_beam, config) if config.runner else prepare.make


def parts_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where the parts of the set in `folder` lie."""
    return folder.with_name(f"{folder.name}.parts")


def _place(folder: pathlib.Path, part: int, parts: int) -> pathlib.Path:
    return parts_folder(folder) / f"{part:05d}-of-{parts:05d}"


def _request(base: dict, folder: pathlib.Path, part: int, parts: int) -> dict:
    place = _place(folder, part, parts)
    return base | {
        "place": str(place),
        "key": folder.name,
        "part": part,
        "parts": parts,
        "quarantine": f"{place}.{prepared.QUARANTINE}",
    }


def _put(aside: pathlib.Path, place: pathlib.Path) -> None:
    """Move a finished part to its place; where another process was first, that one's stays."""
    shutil.rmtree(aside / building.WORK)
    try:
        os.rename(aside, place)
    except OSError:
        if not (place / part_worker.FACTS).is_file():
            raise


def make_part(request: dict) -> bool:
    """Make the part of a request, in a child process; False where it was there. Errors: those of preparing."""
    place = pathlib.Path(request["place"])
    if (place / part_worker.FACTS).is_file():
        if not (problem := _damage(place)):
            return False
        print(f"jinstr: {place}: {problem}; it is made again", file=sys.stderr)
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True)
    prepare.build(place, request, "jinstr.data.part_worker", _put)
    return True


def _make_one(part: int, parts: int, source, folder: pathlib.Path, *settings) -> None:
    base = prepare.request_of(source, folder, *settings)
    is_new = make_part(_request(base, folder, part, parts))
    place = _place(folder, part, parts)
    counts = json.loads((place / part_worker.FACTS).read_text("utf-8"))["counts"]
    told = "made" if is_new else "was there already"
    print(
        f"{source.name}: part {part + 1}/{parts} {told}: {counts.get('examples', 0):,} examples, "
        f"{counts.get('utf8_bytes', 0):,} bytes, {place}"
    )


def _make_merged(parts: int, source, folder: pathlib.Path, *settings) -> None:
    """Make a set from its parts, which are then removed. Errors: ConfigError, StorageError naming parts."""
    base = prepare.request_of(source, folder, *settings)
    places = _found(source.name, folder, parts, base["made_from"])
    request = base | {"from": list(map(str, places))}
    try:
        prepare.build(folder, request, "jinstr.data.part_worker")
    except errors.DataError as error:
        if error.code != prepare.NOTHING_LEFT:  # then there is no set to wait for
            raise
        building.remove(parts_folder(folder))
        raise
    building.remove(parts_folder(folder))


def _make_by_beam(config: PartsConfig, source, folder: pathlib.Path, *settings) -> None:
    """Make all parts of a set in a Beam pipeline, then merge them here."""
    base = prepare.request_of(source, folder, *settings)
    _, size = state.source_state(source, folder.parent, False)
    parts = config.parts or max(1, min(MOST_PARTS, math.ceil(size / PART_BYTES)))
    requests = [_request(base, folder, part, parts) | {"workers": 1} for part in range(parts)]
    parts_folder(folder).mkdir(exist_ok=True)
    for path in parts_folder(folder).glob("*.error.json"):
        path.unlink()
    beam_runner.each(
        attempt, requests, config.runner, workers=base["workers"], options=config.beam_options
    )
    for path in sorted(parts_folder(folder).glob("*.error.json")):
        facts = json.loads(path.read_text("utf-8"))
        raise getattr(errors, facts["type"])(facts["code"], facts["message"])
    _make_merged(parts, source, folder, *settings)


def attempt(request: dict) -> None:
    """make_part in a Beam worker. An error of the data or settings, which no retry heals, is left beside the part."""
    place = pathlib.Path(request["place"])
    if not place.parent.is_dir():
        raise errors.StorageError(
            "JI-PARTS-005",
            f"{place.parent} is not there on this machine; CACHE_DIR, the data and the tokenizer have to lie in a "
            "folder that every worker has under the same name",
        )
    try:
        make_part(request | {"asked_by": os.getpid()})
    except (errors.ConfigError, errors.DataError) as error:
        facts = {"type": type(error).__name__, "code": error.code, "message": error.message}
        aside = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        aside.write_text(json.dumps(facts, ensure_ascii=False), "utf-8")
        os.replace(aside, place.with_name(f"{place.name}.error.json"))


def _named(path: pathlib.Path) -> tuple[int, int] | None:
    """(part, parts) that the name of a folder says, from 0."""
    found = _NAME.fullmatch(path.name)
    return (int(found[1]), int(found[2])) if found else None


def _found(name: str, folder: pathlib.Path, parts: int, made_from: dict) -> list[pathlib.Path]:
    """The folders of all parts of a set, in order. Errors: ConfigError, StorageError naming those that are wrong."""
    inside = parts_folder(folder)
    there = sorted(path for path in inside.glob("*") if path.is_dir() and _named(path))
    counts = sorted({_named(path)[1] for path in there})
    if parts:
        there = [path for path in there if _named(path)[1] == parts]
    elif len(counts) > 1:
        shown = " and ".join(f"of {count} parts" for count in counts)
        raise errors.ConfigError(
            "JI-PARTS-006", f"{inside} holds parts {shown}; say which to merge: PARTS={counts[-1]}"
        )
    if not there:
        raise errors.ConfigError(
            "JI-PARTS-007",
            f"{name}: no part of it is in {inside}; make them with the same settings: PART=1/N to PART=N/N"
            + "".join(_others(folder, made_from)),
        )
    parts = parts or counts[0]
    missing = sorted(set(range(parts)) - {_named(path)[0] for path in there})
    if missing:
        shown = ", ".join(f"{part + 1}/{parts}" for part in missing[:20])
        more = f" and {len(missing) - 20} more" if missing[20:] else ""
        raise errors.ConfigError(
            "JI-PARTS-008",
            f"{name}: {len(missing)} of {parts} parts are not in {inside}: {shown}{more}; make them: the same command "
            f"with PART={missing[0] + 1}/{parts} in place of MERGE"
            + "".join(_others(folder, made_from)),
        )
    libraries = None
    problems = []
    for path in there:
        problem = _damage(path) or _foreign(path, folder.name, made_from)
        if not problem:
            facts = _facts(path)
            libraries = libraries or facts["libraries"]
            problem = _differs("it was made with", facts["libraries"], libraries)
        if problem:
            problems.append(f"{path}: {problem}")
    if problems:
        raise errors.StorageError(
            "JI-PARTS-009", f"{'; '.join(problems)}; remove these folders and make the parts again"
        )
    return there


def _facts(path: pathlib.Path) -> dict:
    return json.loads((path / part_worker.FACTS).read_text("utf-8"))


def _damage(path: pathlib.Path) -> str:
    """What is wrong with the bytes of a part; "" when nothing is."""
    try:
        facts = _facts(path)
        if (
            facts["digest"] != prepared.manifest_digest(facts)
            or facts["format"] != part_worker.FORMAT
        ):
            return f"{part_worker.FACTS} is not what was written"
        for name, file in facts["files"].items():
            if not (path / name).is_file() or (path / name).stat().st_size != file["bytes"]:
                return f"{name} is missing or has another size than was written"
            if prepared.file_digest(path / name) != file["xxh3"]:
                return f"the bytes of {name} changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{part_worker.FACTS} cannot be read ({error!r})"
    return ""


def _foreign(path: pathlib.Path, key: str, made_from: dict) -> str:
    """Is a part another one than its place says? "" where it is not."""
    facts = _facts(path)
    if (facts["part"], facts["parts"]) != _named(path):
        return f"it is part {facts['part'] + 1}/{facts['parts']}"
    if facts["key"] != key or facts["made_from"] != json.loads(json.dumps(made_from)):
        return f"it belongs to {facts['key']}"
    return ""


def _differs(words: str, one: dict, other: dict) -> str:
    """The entries in which a dict differs from another; "" where it does not."""
    names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    pairs = (f"{name} {one.get(name)}, not {other.get(name)}" for name in names)
    return f"{words} {', '.join(pairs)}" if names else ""


def _others(folder: pathlib.Path, made_from: dict) -> Iterator[str]:
    """Parts of the same source that were made from something else, and in what."""
    stem = folder.name.rpartition("-")[0]
    now = json.loads(json.dumps(made_from))
    for other in sorted(folder.parent.glob(f"{stem}-*.parts")):
        facts = [_facts(path) for path in sorted(other.glob("*")) if not _damage(path)]
        if other == parts_folder(folder) or not facts:
            continue
        before = facts[0]["made_from"]
        names = [name for name in now if now[name] != before.get(name)]
        if "source" in names:
            names = [n for n in now["source"] if now["source"][n] != before["source"].get(n)]
        yield (
            f"; {len(facts)} parts in {other} were made from something else and are not used: "
            f"{', '.join(names) or 'settings'} changed since"
        )
