"""The child process that makes one prepared set: read, encode in worker processes, sort by hash, write shards.

`python -m jinstr.data.prepare_worker REQUEST.json` is how prepare.py starts it, so that TensorFlow, which some sources
import, lives and dies with this process. Encoded records are spilled to one file per (worker, shard) and each shard is
then sorted by the record's hash: the bytes of the set do not depend on how many workers there were or who was first.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import dataclasses
import itertools
import json
import multiprocessing
import pathlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator

import msgpack
import numpy as np
import tqdm
import xxhash
from array_record.python import array_record_module

from jinstr import errors, redact
from jinstr.data import audit, bad_rows, building, comparisons, encoding, marks, prepared, records
from jinstr.data import sources as sources_lib
from jinstr.testing import faults

BATCH_BYTES = (
    1 << 18
)  # text sent to a worker at once: large enough to hide the hand-over, small enough to balance
BATCH_EXAMPLES = 512
AHEAD = 4  # batches in flight per worker: bounds memory when reading is faster than encoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What an encoding process needs to know. JSON types only: it travels through files and pipes."""

    kind: str
    source: str
    tokenizer_path: str
    template: str
    seed: int
    shards: int
    audit: str
    folder: str
    faults: str  # those that are armed
    asked_by: int  # process that waits for the set


class _Encoder:
    """State of one encoding process: the tokenizer and its open spill files."""

    def __init__(self, job: Job):
        from jinstr.text import templates, tokenizer

        self.job = job
        self.tokenizer = tokenizer.load(job.tokenizer_path)
        self.template = None
        if job.kind != "lm":
            self.template = templates.load(job.template, self.tokenizer)
        self.dtype = records.token_dtype(self.tokenizer.vocab_size)
        self.marks = threading.local()  # a mark for each thread
        self.numbers = itertools.count(1)  # of examples, in this process

    def _spill(self, shard: int):
        return open(f"{self.job.folder}/spill-{shard:05d}-{threading.get_native_id()}", "ab")

    def run(self, examples: list[dict]) -> collections.Counter:
        """Encode a batch, append its records to the spill files, return counts."""
        counts: collections.Counter = collections.Counter()
        by_shard: dict[int, list[bytes]] = {}
        if not hasattr(self.marks, "own"):
            self.marks.own = marks.Mark(pathlib.Path(self.job.folder) / building.WORK)
        for example in examples:
            encoded = self._encode(example)
            self._count(counts, example, encoded)
            bytes_left = encoded.text_bytes  # the first record of an example carries its bytes
            for record in encoded.records:
                key = records.order_key(self.job.seed, record.src, record.id, record.part)
                entry = (key, records.pack(record, self.dtype), records.length(record), bytes_left)
                by_shard.setdefault(key * self.job.shards >> 64, []).append(msgpack.packb(entry))
                bytes_left = 0.0
        self.marks.own.at("")
        for shard, entries in by_shard.items():
            with self._spill(shard) as file:
                file.write(b"".join(entries))
        return counts

    def _encode(self, example: dict) -> encoding.Encoded:
        """Errors: DataError naming the example, whatever goes wrong with it."""
        self.marks.own.at(example["id"])
        try:
            faults.point("encode", next(self.numbers))
            return encoding.encode(
                self.job.kind, self.job.source, example, self.tokenizer, self.template
            )
        except errors.JinstrError:
            raise
        except Exception as error:
            raise errors.DataError(
                "JI-PREPARE-014",
                f"{self.job.source}, example {example['id']}: encoding it failed ({type(error).__name__}: {error}); "
                "correct the example, or leave it out by its id: EXCLUDE=FILE",
            ) from error

    def _count(self, counts: collections.Counter, example: dict, encoded: encoding.Encoded) -> None:
        counts["read"] += 1
        for problem in encoded.problems:
            if self.job.audit == "stop":
                who = f"{self.job.source}, example {example['id']}: {problem}"
                for tokens, mask in encoding.trained_parts(encoded.records[0]):
                    audit.show(who, tokens.tolist(), mask.tolist(), self.tokenizer)
                raise errors.DataError(
                    "JI-AUDIT-003",
                    f"{who}; correct the example or template, "
                    "or count and drop such examples with AUDIT=drop",
                )
            counts[f"audit/{problem}"] += 1
        if encoded.problems:
            encoded.records.clear()
            counts["drop/audit"] += 1
            return
        if encoded.drop:
            counts[f"drop/{encoded.drop}"] += 1
            return
        counts["examples"] += 1
        if self.job.kind in comparisons.ALL_KINDS:
            counts[f"answers/{len(encoded.records[0].ranks)}"] += 1
        counts["straddles"] += encoded.straddles
        counts["utf8_bytes"] += sources_lib.size(example)


_encoder: _Encoder | None = None


def _start(job: Job) -> None:
    global _encoder
    marks.end_with_parent(multiprocessing.parent_process().pid)
    if job.faults != faults.armed():
        faults.enable(job.faults)
    _encoder = _Encoder(job)


def _run(examples: list[dict]) -> collections.Counter:
    return _encoder.run(examples)


def _batches(examples: Iterable[dict]) -> Iterator[list[dict]]:
    """Examples in groups of about BATCH_BYTES of text."""
    batch, size = [], 0
    for example in examples:
        batch.append(example)
        size += sources_lib.size(example)
        if size >= BATCH_BYTES or len(batch) >= BATCH_EXAMPLES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_all(
    examples: Iterable[dict], job: Job, workers: int, start: str
) -> collections.Counter:
    """Encode every example, in this process or in `workers` threads or processes, with a progress bar."""
    tqdm.tqdm.monitor_interval = 0  # no thread of its own: this process may fork
    total: collections.Counter = collections.Counter()
    bar = tqdm.tqdm(desc=f"prepare {job.source}", unit="B", unit_scale=True, mininterval=0.5)

    def done(counts: collections.Counter) -> None:
        total.update(counts)
        bar.update(counts["utf8_bytes"])

    with bar:
        # Also where processes are forked: what it imports is then in every child.
        encoder = _Encoder(job)
        if workers == 1 or job.kind == "lm":
            marks.end_with_parent(job.asked_by)  # a thread: not where processes are forked
        if workers == 1:
            for batch in _batches(examples):
                done(encoder.run(batch))
            return total
        if job.kind == "lm":
            # SentencePiece lets other threads run, and little else is done to a text.
            pool, run = concurrent.futures.ThreadPoolExecutor(workers), encoder.run
        else:  # rendering and its audit are Python
            context = multiprocessing.get_context(start)
            pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (job,))
            run = _run
        children: set = set()
        with pool:
            waiting: set[concurrent.futures.Future] = set()
            try:
                for batch in _batches(examples):
                    waiting.add(pool.submit(run, batch))
                    if job.kind != "lm":
                        _note_children(job, children)
                    if len(waiting) >= AHEAD * workers:
                        ready, waiting = concurrent.futures.wait(
                            waiting, return_when=concurrent.futures.FIRST_COMPLETED
                        )
                        for future in ready:
                            done(future.result())
                for future in concurrent.futures.as_completed(waiting):
                    done(future.result())
            except concurrent.futures.process.BrokenProcessPool:
                pool.shutdown()  # how a process ended is settled only when the pool's thread has joined them all
                raise _killed(job, children) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return total


def _note_children(job: Job, children: set) -> None:
    """Add the pool's processes: how they ended is known only of those that were seen alive."""
    if not children:
        marks.end_with_parent(job.asked_by)  # a thread: the pool has forked by now
    children.update(multiprocessing.active_children())


def _killed(job: Job, children: Iterable) -> errors.DataError:
    """The error of a pool of which a process ended; the pool then ends the others by SIGTERM."""
    dead = [p for p in children if p.exitcode not in (None, 0, -signal.SIGTERM)]
    ids = marks.left(pathlib.Path(job.folder) / building.WORK, [p.pid for p in dead])
    return marks.killed(job.source, dead[0].exitcode if dead else -signal.SIGTERM, ids)


def _write_shard(folder: str, shard: int, shards: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Sort a shard's spilled records by hash and write them; identical ones are written once."""
    faults.point("write_shard", shard)
    entries = []
    for spill in sorted(pathlib.Path(folder).glob(f"spill-{shard:05d}-*")):
        with open(spill, "rb") as file:
            entries += msgpack.Unpacker(file, use_list=False, max_buffer_size=0)
        spill.unlink()
    entries.sort()
    kept = [entry for n, entry in enumerate(entries) if n == 0 or entry[1] != entries[n - 1][1]]
    path = pathlib.Path(folder) / f"shard-{shard:05d}-of-{shards:05d}"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for entry in kept:
        writer.write(entry[1])
    writer.close()
    facts = {"file": path.name, "records": len(kept), "duplicates": len(entries) - len(kept)}
    lengths = np.array([entry[2] for entry in kept], "<i4")
    return facts, lengths, np.array([entry[3] for entry in kept], "<f8")


def build(job: Job, examples: Iterable[dict], workers: int, start: str = "spawn") -> dict:
    """Encode `examples` into the shards and length files of `job.folder`; return what the manifest needs to know.

    start: how encoding processes begin. "fork" takes no time, but needs a process without threads, hence without
    TensorFlow, which "spawn" does not.
    """
    counts = _encode_all(examples, job, workers, start)
    written = [_write_shard(job.folder, shard, job.shards) for shard in range(job.shards)]
    lengths = np.concatenate([lengths for _, lengths, _ in written])
    folder = pathlib.Path(job.folder)
    np.save(folder / "lengths.npy", lengths)
    np.save(folder / "text_bytes.npy", np.concatenate([text_bytes for _, _, text_bytes in written]))
    drops = {name[5:]: count for name, count in sorted(counts.items()) if name.startswith("drop/")}
    duplicates = sum(facts.pop("duplicates") for facts, _, _ in written)
    if duplicates:
        drops["identical record"] = duplicates
    answers = {
        name[8:]: count for name, count in sorted(counts.items()) if name.startswith("answers/")
    }
    return ({"answers": answers} if answers else {}) | {
        "kind": job.kind,
        "counts": {
            "read": counts["read"],
            "examples": counts["examples"],
            "records": len(lengths),
            "targets": int(lengths.sum()),
            "utf8_bytes": counts["utf8_bytes"],
            "straddles": counts["straddles"],
        },
        "drops": drops,
        "audit": {
            name[6:]: count for name, count in sorted(counts.items()) if name.startswith("audit/")
        },
        "shards": [facts for facts, _, _ in written],
    }


def _manifest(request: dict, facts: dict, report: bad_rows.Report, folder) -> dict:
    """All that the set says about itself."""
    from jinstr.text import tokenizer as tokenizer_lib

    tokenizer = tokenizer_lib.load(request["tokenizer_path"])
    files = {
        path.name: {"bytes": path.stat().st_size, "xxh3": prepared.file_digest(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    digests = json.dumps({name: file["xxh3"] for name, file in files.items()})
    return facts | {
        "format": prepared.FORMAT,
        "source": request["source"],
        "template": request["template"],
        "made_from": request["made_from"],
        "drops": facts["drops"] | dict(report.dropped),
        "notes": dict(report.notes) | report.drift(),
        "rows": report.rows,  # of the files, before any was left out
        "bad_rows": report.bad,
        "quarantine": report.kept_as if report.bad_rows else "",
        "files": files,
        "tokens": {
            "dtype": records.token_dtype(tokenizer.vocab_size),
            "tokenizer": tokenizer.fingerprint,
            "pad_id": tokenizer.pad_id,
            "vocab_size": tokenizer.vocab_size,
        },
        "fingerprint": xxhash.xxh3_64_hexdigest(digests.encode()),
    }


def main(request_path: str) -> int:
    """Build the set that DIR/work/request.json asks for in DIR. What goes wrong is left in DIR/work/error.json."""
    work = pathlib.Path(request_path).parent
    folder = work.parent
    request = json.loads(pathlib.Path(request_path).read_text("utf-8"))
    source = sources_lib.SourceConfig(**request["source"])
    if request["faults"]:
        faults.enable(request["faults"])
    try:
        kind = sources_lib.kind(source)
        if kind != "lm" and not request["template"]:
            raise errors.ConfigError(
                "JI-PREPARE-007",
                f"{source.name} holds conversations ({kind}); say how they are written: TEMPLATE=chatml",
            )
        job = Job(
            kind=kind,
            source=source.name,
            tokenizer_path=request["tokenizer_path"],
            template=request["template"],
            seed=0,
            shards=request["shards"],
            audit=request["audit"],
            folder=str(folder),
            faults=request["faults"],
            asked_by=request["asked_by"],
        )
        report = bad_rows.Report(
            quarantine=work / prepared.QUARANTINE, kept_as=request["quarantine"]
        )
        start = "fork" if source.path and sys.platform == "linux" else "spawn"
        facts = build(job, sources_lib.read(source, report), request["workers"], start)
        if not facts["counts"]["records"]:
            drops = facts["drops"] | dict(report.dropped)
            raise errors.DataError(
                "JI-PREPARE-008", f"{source.name}: no examples are left ({drops})"
            )
        manifest = _manifest(request, facts, report, folder)
        manifest["digest"] = prepared.manifest_digest(manifest)
        faults.point("before_manifest")
        # Last, so that a folder with a manifest is a whole set.
        text = json.dumps(manifest, ensure_ascii=False, indent=1)
        (folder / prepared.MANIFEST).write_text(text, "utf-8")
    except errors.JinstrError as error:
        facts = {"type": type(error).__name__, "code": error.code, "message": error.message}
        (work / "error.json").write_text(json.dumps(facts, ensure_ascii=False), "utf-8")
        return error.exit_code
    return 0


if __name__ == "__main__":
    path = sys.argv[1]  # before the guard, which takes secrets out of the arguments too
    sys.exit(redact.guard(lambda: main(path)))
