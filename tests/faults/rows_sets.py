"""Rows about prepared sets: processes that end while they are made, sets that are damaged afterwards."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import time
from collections.abc import Callable

from jinstr.data import prepared
from tests.faults import rig as rig_lib
from tests.faults.rows_data import prepare, sets_of

PROMPT = 10.0  # seconds within which an error is told
CHAT = ("TEMPLATE=chatml", "WORKERS=2")  # conversations are encoded in processes, texts in threads


def _bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
    (place,) = sets_of(folder)
    return {path.name: path.read_bytes() for path in sorted(place.iterdir()) if path.is_file()}


def _processes(word: str) -> dict[int, int]:
    """Process id → id of its parent, of those with a word in their command line, that still run."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            is_ours = word.encode() in (path / "cmdline").read_bytes()
            after = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if is_ours and after[0] != "Z":
            found[int(path.name)] = int(after[1])
    return found


def _until(condition: Callable[[], bool], limit: float = 120) -> float:
    """Seconds until a condition held. Errors: TimeoutError."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit:
            raise TimeoutError("it never came")
        time.sleep(0.05)
    return time.monotonic() - began


def _killed_from_outside(rig: rig_lib.Rig, name: str, who: str) -> tuple[bool, float]:
    """(was it told as promised, seconds) of a preparation in two processes of which one is killed -9.

    who: "worker" encodes, "child" reads and gives out work, "command" was started by people. All encoding processes
    hang at their ninth example, so nothing ends by itself.
    """
    folder = rig.place / name
    words = ["prepare", f"DATA={rig.place}/instructions.jsonl", f"TOKENIZER={rig.place}/t.model"]
    words += [f"CACHE_DIR={folder}", *CHAT, "SEQ_LEN=128", "BATCH_TOKENS=256"]
    process = rig.start(words, faults="encode@9=hang")
    mark = f"{folder}/."
    _until(lambda: any(path.read_bytes().strip() for path in folder.glob(".*/work/at-*")))
    time.sleep(1.0)
    found = _processes(mark)
    workers = [pid for pid, parent in found.items() if parent in found]
    (child,) = (pid for pid in found if pid not in workers)
    marked = [int(path.name.split("-")[1]) for path in folder.glob(".*/work/at-*")]
    victim = {"worker": next(pid for pid in workers if pid in marked), "child": child}
    os.kill(victim.get(who, process.pid), signal.SIGKILL)
    began = time.monotonic()
    ended = process.end(folder)
    _until(lambda: not _processes(mark), limit=30)
    seconds = time.monotonic() - began
    status = -9 if who == "command" else 65
    told = who == "command" or "killed by signal 9 (SIGKILL) at example" in ended.text
    return ended.status == status and told and seconds < PROMPT, seconds


def _workers_end(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    corpus, chat = rig.place / "corpus.jsonl", rig.place / "instructions.jsonl"
    sound = _bytes_of(prepare(rig, chat, "sound", *CHAT).folder)
    seen, good = [], []
    for who in ("worker", "child", "command") if full else ("worker",):
        kept, seconds = _killed_from_outside(rig, f"killed-{who}", who)
        again = prepare(rig, chat, f"killed-{who}", *CHAT)
        left = list(again.folder.glob(".*"))
        good.append(kept and again.status == 0 and _bytes_of(again.folder) == sound and not left)
        seen.append(f"{who} killed: told, all processes ended in {seconds:.1f} s: {good[-1]}")
    for fault, status, text in (
        ("encode@7=error", 65, "JI-PREPARE-014: instructions, example "),
        ("read_row@7=error", 74, "instructions.jsonl:7:"),
    ):
        name = fault.partition("@")[0]
        ended = prepare(rig, chat, name, *CHAT, faults=fault)
        named = text in ended.text and not sets_of(ended.folder)
        again = prepare(rig, chat, name, *CHAT)
        good.append(ended.status == status and named and _bytes_of(again.folder) == sound)
        seen.append(f"{fault}: exit {ended.status}, names it: {named}")
    process = rig.start(rig.words("reader", f"DATA={corpus}"), faults="data_read@20=error")
    process.until("fault: data_read@20")
    began = time.monotonic()
    ended = process.end(rig.place / "reader")
    seconds = time.monotonic() - began
    named = "data of step 21, of corpus" in ended.text
    same = rig.is_reference(rig.train("reader").folder)
    good.append(ended.status == 74 and named and seconds < PROMPT and same)
    seen.append(
        f"reader fails in step 21: exit {ended.status} after {seconds:.1f} s, named: {named}; the run that goes on "
        f"equals the reference (ids, losses, arrays): {same}"
    )
    return "; ".join(seen), all(good)


def _flip(path: pathlib.Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)


def _shard(place: pathlib.Path) -> pathlib.Path:
    return next(place.glob("shard-*"))


DAMAGE = {  # what, done to a set, and the settings under which it must be found
    "manifest removed": (lambda place: (place / prepared.MANIFEST).unlink(), ()),
    "shard cut": (lambda place: os.truncate(_shard(place), 5000), ()),
    "bit of the lengths": (lambda place: _flip(place / "lengths.npy", 0.6), ()),
    "bit of the packing": (lambda place: _flip(place / "pack-128/pieces.npy", 0.6), ()),
    "bit of a shard, VERIFY_DATA": (lambda place: _flip(_shard(place), 0.3), ("VERIFY_DATA=True",)),
}
KILLED = ("encode@9", "write_shard@0", "before_manifest@0", "before_move@0", "pack@0")


def _partial_sets(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    seen, good = [], []
    for place in KILLED if full else KILLED[2:3]:
        name = f"built-{place.partition('@')[0]}"
        cache = rig.place / f"cache-{name}"
        first = rig.train(name, f"CACHE_DIR={cache}", faults=f"{place}=kill")
        again = rig.train(name, f"CACHE_DIR={cache}")
        left = [path for path in cache.rglob(".*") if path.is_dir()]
        good.append(first.status != 0 and rig.is_reference(again.folder) and not left)
    seen.append(f"{sum(good)} of {len(good)} runs after a kill in the building equal the reference")
    cache = rig.place / "cache-damaged"
    shutil.copytree(rig.place / "cache", cache)
    for number, (kind, (damage, settings)) in enumerate(DAMAGE.items()):
        if not full and number != 1:
            continue
        (place,) = (path for path in sets_of(cache) if path.name.startswith("corpus-"))
        damage(place)
        ended = rig.train(f"damaged{number}", f"CACHE_DIR={cache}", *settings)
        good.append(" again" in ended.text and rig.is_reference(ended.folder))
        seen.append(f"{kind}: told, made again, run equal: {good[-1]}")
    (place,) = (path for path in sets_of(cache) if path.name.startswith("corpus-"))
    _flip(_shard(place), 0.3)
    ended = rig.train("unseen", f"CACHE_DIR={cache}")
    good.append(ended.status == 74 and "JI-PREP-007" in ended.text)
    seen.append(f"bit of a shard without VERIFY_DATA: exit {ended.status} when it is read")
    return "; ".join(seen), all(good)


ROWS = [
    rig_lib.Row(
        number="38",
        injected="an encoding process, its parent or the command killed -9; errors at one item of reading and encoding",
        promised="an error that names the item within 10 s, no process left; the same command again: no id missing",
        measure=_workers_end,
    ),
    rig_lib.Row(
        number="39",
        injected="kill -9 while a set is built; manifest removed, shard cut, bits flipped",
        promised="made again or refused, nothing left over, the run equal to the reference",
        measure=_partial_sets,
    ),
]
