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
from collections.abc import Callable, Iterable, Iterator

import msgpack
import tqdm

from jinstr import errors, redact
from jinstr.data import (
    audit,
    bad_rows,
    building,
    comparisons,
    encoding,
    marks,
    prepared,
    records,
    set_writing,
)
from jinstr.data import sources as sources_lib
from jinstr.testing import faults

BATCH_BYTES = (
    1 << 18
)  # text sent to a worker at once: large enough to hide the hand-over, small enough to balance
BATCH_EXAMPLES = 512
OUTCOMES = "outcomes"  # spill files of parts: what was counted for each example
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

    def _spill(self, name: str):
        return open(f"{self.job.folder}/{name}-{threading.get_native_id()}", "ab")

    def run(self, examples: list[dict]) -> collections.Counter:
        """Encode a batch, append its records to the spill files, return counts."""
        counts: collections.Counter = collections.Counter()
        by_shard: dict[int, list[bytes]] = {}
        outcomes: list[bytes] = []
        if not hasattr(self.marks, "own"):
            self.marks.own = marks.Mark(pathlib.Path(self.job.folder) / building.WORK)
        for example in examples:
            encoded = self._encode(example)
            own: collections.Counter = collections.Counter()
            self._count(own, example, encoded)
            counts.update(own)
            bytes_left = encoded.text_bytes  # the first record of an example carries its bytes
            number = ()
            if "number" in example:  # in a part: another part may have its id (prepare_parts.py)
                number = (example["number"],)
                outcomes.append(msgpack.packb((*number, own)))
            for record in encoded.records:
                key = records.order_key(self.job.seed, record.src, record.id, record.part)
                packed = records.pack(record, self.dtype)
                entry = (key, packed, records.length(record), bytes_left, *number)
                by_shard.setdefault(key * self.job.shards >> 64, []).append(msgpack.packb(entry))
                bytes_left = 0.0
        self.marks.own.at("")
        for shard, entries in by_shard.items():
            with self._spill(f"spill-{shard:05d}") as file:
                file.write(b"".join(entries))
        if outcomes:
            with self._spill(OUTCOMES) as file:
                file.write(b"".join(outcomes))
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


def encode_all(examples: Iterable[dict], job: Job, workers: int, start: str) -> collections.Counter:
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


def _spilled_shard(folder: str, shard: int) -> list[tuple]:
    """The entries of a shard, whose spill files are removed."""
    entries = []
    for spill in pathlib.Path(folder).glob(f"spill-{shard:05d}-*"):
        entries += set_writing.spilled(spill)
        spill.unlink()
    return entries


def build(job: Job, examples: Iterable[dict], workers: int, start: str = "spawn") -> dict:
    """Encode `examples` into the shards and length files of `job.folder`; return what the manifest needs to know.

    start: how encoding processes begin. "fork" takes no time, but needs a process without threads, hence without
    TensorFlow, which "spawn" does not.
    """
    counts = encode_all(examples, job, workers, start)
    written = [
        set_writing.write_shard(job.folder, shard, job.shards, _spilled_shard(job.folder, shard))
        for shard in range(job.shards)
    ]
    return set_writing.summed(pathlib.Path(job.folder), job.kind, counts, written)


def job_of(request: dict, folder: pathlib.Path) -> Job:
    """The job that a request describes. Errors: ConfigError where conversations have no template."""
    source = sources_lib.SourceConfig(**request["source"])
    kind = sources_lib.kind(source)
    if kind != "lm" and not request["template"]:
        raise errors.ConfigError(
            "JI-PREPARE-007",
            f"{source.name} holds conversations ({kind}); say how they are written: TEMPLATE=chatml",
        )
    return Job(
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


def start_method(source: sources_lib.SourceConfig) -> str:
    """How encoding processes may begin, for `build`."""
    return "fork" if source.path and sys.platform == "linux" else "spawn"


def whole(request: dict, folder: pathlib.Path) -> None:
    """Build the set of a request in one go."""
    source = sources_lib.SourceConfig(**request["source"])
    job = job_of(request, folder)
    quarantine = folder / building.WORK / prepared.QUARANTINE
    report = bad_rows.Report(quarantine=quarantine, kept_as=request["quarantine"])
    examples = sources_lib.read(source, report)
    facts = build(job, examples, request["workers"], start_method(source))
    set_writing.finish(request, facts, report, folder)


def main(request_path: str, do: Callable[[dict, pathlib.Path], None] = whole) -> int:
    """Do in DIR what DIR/work/request.json asks for. What goes wrong is left in DIR/work/error.json."""
    work = pathlib.Path(request_path).parent
    request = json.loads(pathlib.Path(request_path).read_text("utf-8"))
    if request["faults"]:
        faults.enable(request["faults"])
    try:
        do(request, work.parent)
    except errors.JinstrError as error:
        facts = {"type": type(error).__name__, "code": error.code, "message": error.message}
        (work / "error.json").write_text(json.dumps(facts, ensure_ascii=False), "utf-8")
        return error.exit_code
    return 0


if __name__ == "__main__":
    path = sys.argv[1]  # before the guard, which takes secrets out of the arguments too
    sys.exit(redact.guard(lambda: main(path)))
