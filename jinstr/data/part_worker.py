"""The child process that makes a part of a prepared set, or the set from all its parts.

`python -m jinstr.data.part_worker REQUEST.json` is how prepare_parts.py starts it. How a source divides:

text in files       Part i reads the i-th N-th of all bytes: files, and stretches of files of JSON Lines. A text whose
                    id came before, in another part, is found when parts are merged: each part keeps the ids of all
                    that it read, and what it counted for each, so that such texts and their counts are taken out again.
everything else     Every part reads the whole source, which numbers, weights and splits its examples by all of them,
                    and encodes each N-th example. Reading takes a small share of rendering and its audit.

A part keeps its records as they were encoded; only the merge sorts them. So the bytes of the set are those of one
process that reads and encodes everything (prepare_worker.py).
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import multiprocessing
import pathlib
import sys

import msgpack
import numpy as np

from jinstr import redact
from jinstr.data import bad_rows, building, prepare_worker, prepared, readers, set_writing
from jinstr.data import sources as sources_lib
from jinstr.testing import faults

FORMAT = 1
FACTS = "part.json"
IDS = "ids.npy"
READER = (
    "reader/"  # in outcomes: what the reader left out, to tell it from what was counted in encoding
)
_LIBRARIES = ("sentencepiece", "tokenizers", "jinja2", "numpy", "pyarrow")  # that bytes depend on


def libraries() -> dict[str, str]:
    """Versions that parts of one set must agree on."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return versions | {"python": ".".join(map(str, sys.version_info[:2]))}


def by_files(source: sources_lib.SourceConfig, kind: str) -> bool:
    """Can parts of the source be read without the rest? Not where examples are chosen by looking at all of them."""
    is_greedy = source.holdout and source.holdout_rule == "greedy"
    return bool(source.path) and kind == "lm" and not source.limit and not is_greedy


def make_part(request: dict, folder: pathlib.Path) -> None:
    """Read and encode part request["part"] of request["parts"] into the folder; part.json is written last."""
    source = sources_lib.SourceConfig(**request["source"])
    job = prepare_worker.job_of(request, folder)
    part, parts = request["part"], request["parts"]
    quarantine = folder / building.WORK / prepared.QUARANTINE
    report = bad_rows.Report(
        quarantine=quarantine,
        kept_as=request["quarantine"],
        in_parts=by_files(source, job.kind),
    )
    if report.in_parts:
        pieces = readers.pieces(readers.files_of(source.path), part, parts)
        examples = sources_lib.read(source, report, pieces)
    else:
        examples = itertools.islice(sources_lib.read(source, report), part, None, parts)
    start = prepare_worker.start_method(source)
    counts = prepare_worker.encode_all(examples, job, request["workers"], start)
    if quarantine.is_file():
        quarantine.rename(folder / prepared.QUARANTINE)
    np.save(folder / IDS, np.array(report.ids, np.uint64))
    with open(folder / f"{prepare_worker.OUTCOMES}-reader", "wb") as file:
        for number, reason in report.left_out:
            file.write(msgpack.packb((number, {READER + reason: 1})))
    facts = {name: request[name] for name in ("key", "part", "parts", "made_from")}
    facts |= {
        "format": FORMAT,
        "kind": job.kind,
        "by_files": report.in_parts,
        "libraries": libraries(),
        "counts": dict(sorted(counts.items())),
        "report": _report_facts(report),
        "files": {
            path.name: {"bytes": path.stat().st_size, "xxh3": prepared.file_digest(path)}
            for path in sorted(folder.iterdir())
            if path.is_file()
        },
    }
    facts["digest"] = prepared.manifest_digest(facts)
    faults.point("before_manifest")
    (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1), "utf-8")


def _report_facts(report: bad_rows.Report) -> dict:
    facts = {name: getattr(report, name) for name in ("rows", "bad_rows", "bad", "bad_at")}
    return facts | {
        "dropped": dict(report.dropped),
        "notes": dict(report.notes),
        "fields": [[sorted(names), count] for names, count in report.fields.items()],
    }


def _report(facts: dict) -> bad_rows.Report:
    fields = collections.Counter({frozenset(names): count for names, count in facts["fields"]})
    counters = {name: collections.Counter(facts[name]) for name in ("dropped", "notes")}
    return bad_rows.Report(**facts | counters | {"fields": fields})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """A part that is merged."""

    folder: pathlib.Path
    facts: dict
    repeated: frozenset[int]  # numbers of its examples whose ids are in an earlier part

    def outcomes(self) -> collections.Counter:
        """What was counted for the repeated examples."""
        total: collections.Counter = collections.Counter()
        if self.repeated:
            for path in self.folder.glob(f"{prepare_worker.OUTCOMES}-*"):
                for number, counts in set_writing.spilled(path):
                    if number in self.repeated:
                        total.update(counts)
        return total

    def entries(self, shard: int) -> list[tuple]:
        """Its records of a shard, without those of repeated examples."""
        return [
            entry[:4]
            for path in self.folder.glob(f"spill-{shard:05d}-*")
            for entry in set_writing.spilled(path)
            if not (self.repeated and entry[4] in self.repeated)
        ]


def _opened(folders: list[pathlib.Path]) -> list[_Part]:
    """The parts in order, with what the earlier ones hold too."""
    ids = [np.load(folder / IDS, allow_pickle=False) for folder in folders]
    everything = np.concatenate(ids)
    is_first = np.zeros(len(everything), bool)
    is_first[np.unique(everything, return_index=True)[1]] = True  # the first of equal ones
    ends = np.cumsum([len(one) for one in ids])
    repeated = [np.flatnonzero(~one).tolist() for one in np.split(is_first, ends[:-1])]
    return [
        _Part(
            folder=folder,
            facts=json.loads((folder / FACTS).read_text("utf-8")),
            repeated=frozenset(numbers),
        )
        for folder, numbers in zip(folders, repeated)
    ]


def _write_shard(parts: list[_Part], folder: str, shards: int, shard: int) -> tuple:
    entries = [entry for part in parts for entry in part.entries(shard)]
    return set_writing.write_shard(folder, shard, shards, entries)


def merge(request: dict, folder: pathlib.Path) -> None:
    """Make the set from the parts in the folders request["from"], which prepare_parts.py has checked."""
    parts = _opened([pathlib.Path(place) for place in request["from"]])
    source = sources_lib.SourceConfig(**request["source"])
    first = parts[0].facts
    quarantine = folder / building.WORK / prepared.QUARANTINE
    for part in parts if first["by_files"] else parts[:1]:
        if (part.folder / prepared.QUARANTINE).is_file():
            with quarantine.open("ab") as file:
                file.write((part.folder / prepared.QUARANTINE).read_bytes())
    counts = sum(
        (collections.Counter(part.facts["counts"]) for part in parts), start=collections.Counter()
    )
    report = _report(first["report"])
    if first["by_files"]:
        report = bad_rows.Report(kept_as=request["quarantine"])
        bad_rows.joined(source, [_report(part.facts["report"]) for part in parts], report)
        for part in parts:
            for name, count in part.outcomes().items():
                of_reader = name.startswith(READER)
                (report.dropped if of_reader else counts)[name.removeprefix(READER)] -= count
            report.dropped["same id"] += len(part.repeated)
        counts, report.dropped = +counts, +report.dropped
    report.kept_as = request["quarantine"]
    shards = request["shards"]
    write = functools.partial(_write_shard, parts, str(folder), shards)
    if min(request["workers"], shards) == 1:
        written = [write(shard) for shard in range(shards)]
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            min(request["workers"], shards), context
        ) as pool:
            written = list(pool.map(write, range(shards)))
    facts = set_writing.summed(folder, first["kind"], counts, written)
    set_writing.finish(request, facts, report, folder)


def main(request_path: str) -> int:
    """Make a part, or merge parts, as the request says."""
    request = json.loads(pathlib.Path(request_path).read_text("utf-8"))
    return prepare_worker.main(request_path, merge if "from" in request else make_part)


if __name__ == "__main__":
    path = sys.argv[1]  # before the guard, which takes secrets out of the arguments too
    sys.exit(redact.guard(lambda: main(path)))
