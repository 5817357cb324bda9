"""The files of a prepared set: spilled records to sorted shards, arrays over all records, the manifest."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Iterator, Sequence

import msgpack
import numpy as np
import xxhash
from array_record.python import array_record_module

from jinstr import errors
from jinstr.data import bad_rows, prepared, records
from jinstr.testing import faults


def spilled(path: pathlib.Path) -> Iterator[tuple]:
    """What was appended to a spill file."""
    with open(path, "rb") as file:
        yield from msgpack.Unpacker(file, use_list=False, max_buffer_size=0)


def write_shard(
    folder: str, shard: int, shards: int, entries: list[tuple]
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Sort a shard's records by hash and write them; identical ones are written once.

    entries: (hash, packed record, length, text bytes) in any order."""
    faults.point("write_shard", shard)
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


def summed(
    folder: pathlib.Path, kind: str, counts: collections.Counter, written: Sequence[tuple]
) -> dict:
    """Write the arrays over all shards; return what the manifest needs to know.

    written: what write_shard returned, in the order of the shards."""
    lengths = np.concatenate([lengths for _, lengths, _ in written])
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
        "kind": kind,
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
        "drops": facts["drops"] | dict(sorted(report.dropped.items())),
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


def finish(request: dict, facts: dict, report: bad_rows.Report, folder: pathlib.Path) -> None:
    """Write the manifest, last, so that a folder with one is a whole set. Errors: DataError when nothing is in it."""
    if not facts["counts"]["records"]:
        drops = facts["drops"] | dict(report.dropped)
        raise errors.DataError(
            "JI-PREPARE-008", f"{request['source']['name']}: no examples are left ({drops})"
        )
    manifest = _manifest(request, facts, report, folder)
    manifest["digest"] = prepared.manifest_digest(manifest)
    faults.point("before_manifest")
    text = json.dumps(manifest, ensure_ascii=False, indent=1)
    (folder / prepared.MANIFEST).write_text(text, "utf-8")
