"""What the files of a run say of it: its processes, who holds it, how far it is, what can be gone on from. No JAX.

Reads only, and nothing here fails: what is missing or damaged is a finding, one line of what is wrong and the way out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import time

import tqdm

from jinstr import errors
from jinstr.train import manifests, vitals

SILENT = 60.0  # seconds without a sign of life
EARLIER = 600.0  # seconds by which the processes of one start may begin apart
TAIL = 1 << 18  # bytes at the end of a log that are looked at
EXITS = {
    0: "done",
    1: "an error that jinstr does not know; its words stand here and in the log",
    65: "bad data; correct the row that is named, then start the same command",
    70: "loss or gradient was not finite; lower LEARNING_RATE, or leave the batch out with SKIP_STEPS",
    71: "the machine ran out of memory or file handles",
    73: "another process held the directory",
    74: "storage failed; make room or look at the disk, then start the same command",
    75: "stopped by a signal after a save; the same command goes on",
    76: "a device or peer was lost; the same command goes on",
    78: "a setting was refused; correct it, then start the same command",
    124: "it stood still; look at the stacks, then start the same command, which goes on from the newest checkpoint",
    130: "interrupted before training began",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """One process of a run."""

    rank: int
    # running | stalled: alive, no progress | stopped: by a signal | silent: no sign of life | gone: without a word |
    # ended: by itself | unknown: its file cannot be read
    state: str
    words: str
    facts: dict

    @property
    def is_alive(self) -> bool:
        return self.state in ("running", "stalled", "stopped")


def read_json(path: pathlib.Path) -> tuple[dict, str]:
    """(object in a file, "") or ({}, what is wrong)."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}, f"{path} is not there"
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path} cannot be read ({error})"
    return (found, "") if isinstance(found, dict) else ({}, f"{path} is not a JSON object")


def last_lines(path: pathlib.Path) -> list[dict]:
    """The whole lines at the end of a log; one that a kill cut off is left out."""
    found = []
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        for line in file.read().split(b"\n"):
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                found += [value] if isinstance(value, dict) else []
    return found


def seconds(value: float) -> str:
    """90 → "90 s", 7200 → "2.0 h"."""
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _letter(pid: int) -> str:
    """The state of a process as the kernel names it: R, S, D, T (stopped), Z (ended, not yet waited for)."""
    with contextlib.suppress(OSError, IndexError):
        text = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        return text.rpartition(")")[2].split()[0]
    return ""


def is_here(facts: dict) -> bool:
    """Does the number of a process mean the same here as where its file was written?"""
    here = vitals.machine()
    return bool(here["boot"]) and all(facts.get(name) == here[name] for name in here)


def _gone(facts: dict) -> bool:
    """Has a process of this machine ended?"""
    began = vitals.began(facts["pid"])
    return not began or began != facts["began"] or _letter(facts["pid"]) in ("Z", "X")


def _seen(facts: dict, now: float) -> tuple[str, str]:
    """(state, words) of a process by its file."""
    if end := facts["ended"]:
        what = EXITS.get(end["exit"], "see its log")
        said = f": {end['error']}" if end["error"] else ""
        return "ended", f"ended with {end['exit']} {seconds(now - end['at'])} ago ({what}){said}"
    age = now - facts["beat"]
    waited = facts["waited"] + max(0.0, age)
    where = f"step {facts['step']}, phase {facts['phase']}"
    if is_here(facts):
        if _gone(facts):
            return "gone", f"gone without a word, last sign {seconds(age)} ago at {where}"
        if _letter(facts["pid"]) == "T":
            return (
                "stopped",
                f"stopped by a signal at {where}; kill -CONT {facts['pid']} lets it go on",
            )
    if age > SILENT:
        return "silent", f"no sign of life for {seconds(age)}, last at {where}"
    if facts["allowed"] is not None and waited > facts["allowed"]:
        return "stalled", f"no progress for {seconds(waited)} at {where}"
    return "running", f"{where}, last progress {seconds(waited)} ago"


def processes(run_dir: pathlib.Path, now: float | None = None) -> list[Process]:
    """The processes of the last start, by rank."""
    now = time.time() if now is None else now
    found = []
    for path in (run_dir / vitals.FOLDER).glob("*.json"):
        if not path.stem.isdigit():
            continue
        facts, problem = read_json(path)
        try:
            state, words = ("unknown", problem) if problem else _seen(facts, now)
        except (KeyError, TypeError) as error:
            state, words = "unknown", f"{path} is not what was written ({error!r})"
        found.append(Process(rank=int(path.stem), state=state, words=words, facts=facts))
    found.sort(key=lambda process: process.rank)
    # More processes may have had a part in an earlier start.
    latest = max((p.facts.get("started", 0.0) for p in found), default=0.0)
    return [p for p in found if p.facts.get("started", latest) > latest - EARLIER]


def holder(run_dir: pathlib.Path, found: list[Process]) -> tuple[str, str]:
    """(who holds the directory, what is wrong with that), "" where nobody or nothing."""
    path = run_dir / "run.lock"
    try:
        words = path.read_text("utf-8", "replace").strip()
    except OSError:
        words = ""
    first = next((p for p in found if p.rank == 0), None)
    if first and first.is_alive and not words:
        return "", (
            f"{path} is gone or empty, but process {first.facts['pid']} trains here: it will refuse to save; "
            "do not start another, stop it"
        )
    if not words:
        return "", ""
    match = re.match(r"process (\d+) on (.*), [0-9a-f]+$", words)
    if not match:
        return (
            words,
            f"{path} is not what was written; where no run is alive, the next start takes over",
        )
    pid, host = int(match[1]), match[2]
    known = first if first and first.facts.get("pid") == pid else None
    if known and known.state in ("gone", "ended"):
        return f"process {pid} on {host}, which is gone; the next start takes over", ""
    if not known and host == vitals.machine()["host"] and _letter(pid) in ("", "Z", "X"):
        return f"process {pid} on {host}, which is gone; the next start takes over", ""
    if known and known.is_alive:
        return f"process {pid} on {host}, alive", ""
    return f"process {pid} on {host}, which cannot be seen from here", ""


def checkpoints(run_dir: pathlib.Path, every_byte: bool, is_alive: bool) -> tuple[dict, list[str]]:
    """({"steps", "verified": newest that verifies or None, "damaged": {step: why}}, findings)."""
    folder = run_dir / "checkpoints"
    steps, damaged, verified, findings = manifests.steps(folder), {}, None, []
    for step in reversed(steps):
        bar = tqdm.tqdm(
            desc=f"verify step {step}",
            total=manifests.size(folder, step),
            unit="B",
            unit_scale=True,
            disable=None if every_byte else True,  # None: not on a terminal
            leave=False,
        )
        try:
            with bar:
                problem = manifests.problem(folder, step, every_byte, bar.update)
        except errors.StorageError as error:
            problem = error.message
        if problem is None:
            verified = step
            break
        # A run that goes on removes old steps meanwhile.
        if (folder / str(step)).exists():
            damaged[step] = problem
    for step, problem in damaged.items():
        findings.append(f"checkpoint {folder / str(step)} does not verify: {problem}")
    if damaged and verified is not None:
        rule = "" if len(damaged) == 1 else " with ALLOW_ROLLBACK=True, after a look at the disk"
        findings[-1] += f"; the next start goes on from step {verified}{rule}"
    elif damaged:
        findings[-1] += "; none is left to go on from: restore a backup or choose another RUN_DIR"
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    left = [p.name for p in inside if p.suffix in (".saving", ".deleting")]
    if left and not is_alive:
        findings.append(f"{folder} holds {', '.join(left)} of a kill; the next start removes that")
    corrupt = [path.name for path in inside if ".corrupt" in path.name]
    if corrupt:
        findings.append(
            f"{folder} holds {', '.join(corrupt)}, set aside because they did not verify; look at the disk, then "
            "remove them"
        )
    return {"steps": steps, "verified": verified, "damaged": damaged}, findings


def cursor(run_dir: pathlib.Path, step: int) -> tuple[dict, str]:
    """(where in its data a checkpoint stands, what is wrong): step, rows, tokens, epochs of each source if known."""
    about, problem = read_json(run_dir / "checkpoints" / str(step) / "run.json")
    if problem:
        return {}, problem
    found: dict = {"step": about.get("step", step), "place": about.get("place", {})}
    with contextlib.suppress(KeyError, TypeError):
        found["tokens"] = about["meter"]["tokens"]
    with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        batches, sources = about["data"]["batches"], about["data"]["sources"]
        found["rows"] = found["step"] * batches["batch_rows"]
        found["sources"] = [source["name"] for source in sources]
        if len(sources) == 1:
            pack, _ = read_json(
                pathlib.Path(sources[0]["path"]) / f"pack-{batches['seq_len']}" / "pack.json"
            )
            found["epochs"] = {sources[0]["name"]: found["rows"] / pack["rows"]}
    for line in last_lines(run_dir / "metrics.jsonl"):
        if line.get("step", 0) <= step:
            shares = {n[5:-7]: v for n, v in line.items() if re.fullmatch("data/.*/epochs", n)}
            found |= {"epochs": shares} if shares else {}
    return found, ""


def progress(run_dir: pathlib.Path) -> dict:
    """Last step in the log, when it was written, and its loss."""
    path = run_dir / "metrics.jsonl"
    lines = [line for line in last_lines(path) if isinstance(line.get("step"), int)]
    if not lines:
        return {}
    found = {"step": lines[-1]["step"], "at": path.stat().st_mtime}
    for line in lines:
        found |= {n: line[n] for n in ("train/loss", "train/tokens_per_second") if n in line}
    return found


def incidents(run_dir: pathlib.Path) -> dict[str, tuple[int, dict]]:
    """{kind: (how many, the last)} of what stands at the end of incidents.jsonl."""
    found: dict[str, tuple[int, dict]] = {}
    for line in last_lines(run_dir / "incidents.jsonl"):
        kind = str(line.get("kind"))
        found[kind] = found.get(kind, (0, {}))[0] + 1, line
    return found


def _listens(pid: int) -> bool:
    """Does a process handle SIGUSR1? Without a handler the signal would end it."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = pathlib.Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
        mask = next(line for line in lines if line.startswith("SigCgt:"))
        return bool(int(mask.split()[1], 16) >> (vitals.STACKS_SIGNAL - 1) & 1)
    return False


def stacks(run_dir: pathlib.Path, process: Process, ask: bool, patience: float = 5.0) -> str:
    """Where the threads of a process stood when it was asked, now or before; "" where that is not known.

    ask: ask it now, by a signal, if it is alive on this machine and has a handler for that; it goes on undisturbed.
    """
    path = run_dir / vitals.FOLDER / f"{process.rank}.stacks"

    def text() -> str:
        with contextlib.suppress(OSError):
            return path.read_text("utf-8", "replace")
        return ""

    before = text()
    facts = process.facts
    if (
        ask
        and process.state in ("running", "stalled")
        and is_here(facts)
        and facts.get("stacks")
        and not _gone(facts)
    ):
        if _listens(facts["pid"]):
            try:
                os.kill(facts["pid"], vitals.STACKS_SIGNAL)
            except (PermissionError, ProcessLookupError):
                return before
            limit, now = time.monotonic() + patience, before
            while time.monotonic() < limit and (now == before or now != text()):
                now = text()
                time.sleep(0.1)
            return now[len(before) :] if now.startswith(before) else now
    return before
