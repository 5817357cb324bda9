"""What a run is trained on, as a record that its checkpoints keep, and how two such records differ.

A record is JSON: {"fingerprint", "batches": settings that make rows to batches, "sources": [{"name", "rate", "path" and
"set" (digest of its records) of the prepared set, "packing", "files": {name: [digest, bytes]}, "made_from"}]}. What
explains a difference but makes none by itself (path, made_from) is not in the fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import xxhash

from jinstr import errors, redact

SHOWN_FILES = 5  # of the changed files of a source, in a message


def of_set(name: str, rate: float, path: str, manifest: Mapping, packing: str) -> dict:
    """The entry of one source. manifest: of its prepared set; packing: digest of its rows."""
    made_from = dict(manifest.get("made_from", {}))
    source = dict(made_from.pop("source", {}))
    files = {name: [digest, size] for name, digest, size in source.pop("files", [])}
    return {
        "name": name,
        "rate": rate,
        "path": path,
        "set": manifest["fingerprint"],
        "packing": packing,
        "files": files,
        "made_from": made_from | {f"source's {key}": value for key, value in source.items()},
    }


def record(sources: Sequence[Mapping], batches: Mapping) -> dict:
    """The record of a run. batches: seq_len, batch_rows and so on."""
    counted = [
        {key: entry[key] for key in ("name", "rate", "set", "packing", "files")}
        for entry in sources
    ]
    text = json.dumps([counted, dict(batches)], sort_keys=True, ensure_ascii=False)
    return {
        "fingerprint": xxhash.xxh3_64_hexdigest(text.encode()),
        "batches": dict(batches),
        # Goes into run.json; paths and settings may hold what nobody should read there.
        "sources": redact.tree(list(sources)),
    }


def _file(facts: Sequence) -> str:
    digest, size = facts
    return f"{size:,} bytes, {digest[:8]}"


def _file_changes(saved: Mapping, now: Mapping) -> list[str]:
    changes = []
    for name in sorted({*saved, *now}):
        if name not in now:
            changes.append(f"{name} is gone ({_file(saved[name])})")
        elif name not in saved:
            changes.append(f"{name} is new ({_file(now[name])})")
        elif list(saved[name]) != list(now[name]):
            changes.append(f"{name} changed ({_file(saved[name])} → {_file(now[name])})")
    more = len(changes) - SHOWN_FILES
    return changes[:SHOWN_FILES] + ([f"and {more:,} more files"] if more > 0 else [])


def _source_changes(saved: Mapping, now: Mapping) -> list[str]:
    """What differs between two states of a source: its files, else what its prepared set was made from."""
    changes = _file_changes(saved["files"], now["files"])
    if changes or saved["set"] == now["set"]:
        return changes
    before, after = saved["made_from"], now["made_from"]
    changes = [
        f"{key} changed"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and key != "code"
    ]
    if not changes and before.get("code") != after.get("code"):
        changes = ["the code of jinstr that prepares data changed"]
    return [
        f"its prepared set {now['path']} changed ({saved['set'][:8]} → {now['set'][:8]})"
    ] + changes


def data_changes(saved: Mapping, now: Mapping) -> list[str]:
    """What differs in the data of two records, a phrase for each source and file."""
    before = {entry["name"]: entry for entry in saved["sources"]}
    after = {entry["name"]: entry for entry in now["sources"]}
    changes = [f"source {name} is no longer there" for name in before if name not in after]
    changes += [f"source {name} was not there" for name in after if name not in before]
    for name in before:
        if name in after and (found := _source_changes(before[name], after[name])):
            changes.append(f"source {name}: {', '.join(found)}")
    if not changes and list(before) != list(after):
        changes.append(f"the order of the sources was {', '.join(before)}")
    return changes


def setting_changes(saved: Mapping, now: Mapping) -> list[str]:
    """What differs in how the same data become batches."""
    before, after = saved["batches"], now["batches"]
    changes = [
        f"{key} was {before.get(key)} and is {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    rates = {entry["name"]: entry["rate"] for entry in saved["sources"]}
    for entry in now["sources"]:
        was = rates.get(entry["name"], entry["rate"])
        if was != entry["rate"]:
            changes.append(f"the rate of {entry['name']} was {was:g} and is {entry['rate']:g}")
    packings = {entry["name"]: entry["packing"] for entry in saved["sources"]}
    repacked = [e["name"] for e in now["sources"] if packings.get(e["name"]) != e["packing"]]
    if not changes and repacked:
        changes.append(f"rows of {', '.join(repacked)} are packed in another way")
    return changes


def difference(saved: Mapping, now: Mapping) -> str:
    """What differs between two records, "" when the batches of every step are the same."""
    if saved["fingerprint"] == now["fingerprint"]:
        return ""
    if "sources" not in saved:
        return "its data had another fingerprint (the checkpoint is too old to say more)"
    changes = data_changes(saved, now)
    return "; ".join(changes or setting_changes(saved, now))


def check(saved: Mapping, now: Mapping, where: str) -> None:
    """Compare what a checkpoint was trained on with what the run would go on with. where: "RUN_DIR: step 30".

    Errors: DataError naming the source and file that changed; ConfigError when the data are the same and settings of
    the batches differ.
    """
    if not (changes := difference(saved, now)):
        return
    only_settings = "sources" in saved and not data_changes(saved, now)
    kind, what = (
        (errors.ConfigError, "in other batches")
        if only_settings
        else (errors.DataError, "on other data")
    )
    raise kind(
        "JI-RESUME-001",
        f"{where} was trained {what}: {changes}; going on would repeat or skip examples; restore what was there, or "
        "start a new RUN_DIR with INIT set to this one",
    )
