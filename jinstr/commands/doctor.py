"""`jinstr doctor`: what a machine offers a run, or how a run is: facts, then findings with the way out.

Of a run nothing is changed, and no device is touched: JAX is not imported. It may be alive, on this machine or another.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import time

from jinstr import errors, record, redact
from jinstr.train import machine_state, run_state, vitals


def doctor(*, run_dir: str, devices: bool, verify: bool, stacks: bool) -> dict:
    """Print facts and findings of this machine, or of the run in `run_dir`; returns them.

    devices: ask JAX for its devices, in a child process. verify: read every byte of the newest checkpoint. stacks:
    ask the live processes of the run on this machine where their threads stand, by SIGUSR1.
    Returns {"findings": lines, …}. Errors: ConfigError where run_dir is no run.
    """
    if run_dir:
        found = _of_run(pathlib.Path(run_dir), verify, stacks)
    else:
        found = _of_machine(devices)
    print()
    for finding in found["findings"]:
        print(f"! {finding}")
    if not found["findings"]:
        print("nothing is wrong, as far as can be seen from here")
    return found


def _line(name: str, text: str) -> None:
    print(f"{name:<14} {redact.text(text)}")


def _of_machine(devices: bool) -> dict:
    libraries = machine_state.versions()
    memory = machine_state.memory()
    space = machine_state.room(machine_state.places())
    _line("machine", f"{platform.node()}, {platform.platform()}, {os.cpu_count()} cores")
    _line("memory", ", ".join(f"{name} {size:.1f} GiB" for name, size in memory.items()))
    _line("versions", ", ".join(f"{name} {version}" for name, version in libraries.items()))
    gpus, _ = machine_state.nvidia()
    for gpu in gpus:
        _line("nvidia-smi", gpu)
    if chips := machine_state.tpu_chips():
        _line("TPU chips", str(chips))
    findings = machine_state.about_libraries(libraries)
    seen: list[dict] = []
    if devices:
        seen, problem = machine_state.jax_devices()
        for device in seen:
            size = f", {device['bytes'] / 2**30:.1f} GiB" if device["bytes"] else ""
            _line("JAX sees", f"{device['platform']}: {device['kind']}{size}")
        findings += machine_state.about_devices(seen, problem, libraries)
    why_not = machine_state.tensorflow()
    _line("TensorFlow", why_not or "can be imported, with seqio")
    for name, (place, free) in space.items():
        _line("room", f"{name}: {free:,.1f} GB free at {place}")
    for name, value in machine_state.variables().items():
        _line("variable", f"{name}={value}")
    findings += machine_state.about_variables() + machine_state.about_limits(space, memory)
    if why_not and {"tensorflow", "seqio"} & {*libraries}:
        findings.append(
            f"TensorFlow or seqio is installed but cannot be imported ({why_not}): pip install 'jinstr[data]'; only "
            "seqio tasks and TFDS sets need them"
        )
    return {"findings": findings, "versions": libraries, "devices": seen, "memory": memory}


def _of_run(run_dir: pathlib.Path, verify: bool, stacks: bool) -> dict:
    """Errors: ConfigError where there is no run."""
    marks = ("config.json", "checkpoints", "metrics.jsonl", vitals.FOLDER)
    if not any((run_dir / name).exists() for name in marks):
        raise errors.ConfigError(
            "JI-DOCTOR-001",
            f"{run_dir} is not the directory of a run: none of {', '.join(marks)} is in it",
        )
    now = time.time()
    settings, findings = _config(run_dir)
    found = run_state.processes(run_dir, now)
    is_alive = any(process.is_alive or process.state == "silent" for process in found)
    held, problem = run_state.holder(run_dir, found)
    findings += [problem] if problem else []
    _line("held by", held or "nobody")
    for process in found:
        facts = process.facts
        who = f"{facts.get('pid', '?')} on {facts.get('host', '?')}"
        _line("process", f"{process.rank} ({who}): {process.state}: {process.words}")
    if not found:
        _line("process", "no process has told of itself")
    findings += _of_processes(found)
    progress = run_state.progress(run_dir)
    if progress:
        asked = settings.get("loop_config", {}).get("num_steps") or settings.get("iterations")
        told = f"step {progress['step']}" + (f" of {asked}" if asked else "")
        told += f", written {run_state.seconds(now - progress['at'])} ago"
        told += f", loss {progress['train/loss']:.4f}" if "train/loss" in progress else ""
        _line("log", told)
    saved, more = run_state.checkpoints(run_dir, verify, is_alive)
    findings += more
    cursor = _checkpoint(run_dir, saved, verify, findings)
    events = run_state.incidents(run_dir)
    for kind, (count, last) in events.items():
        message = " ".join(str(last.get("message", "")).split())[:160]
        _line("incidents", f"{kind}: {count}, the last at step {last.get('step')}: {message}")
    shown = {}
    for process in found:
        text = run_state.stacks(run_dir, process, ask=stacks)
        stalled = (
            process.state == "stalled"
            or process.facts.get("ended", {})
            and "JI-STALL" in process.words
        )
        if text and (stacks or stalled):
            shown[process.rank] = text
            print(f"\nstacks of process {process.rank}:\n{text.strip()}")
    return {
        "findings": findings,
        "held": held,
        "processes": {process.rank: (process.state, process.words) for process in found},
        "progress": progress,
        "checkpoints": saved,
        "cursor": cursor,
        "incidents": {kind: count for kind, (count, _) in events.items()},
        "stacks": shown,
    }


def _config(run_dir: pathlib.Path) -> tuple[dict, list[str]]:
    """(settings, findings) of config.json, printed."""
    found, problem = run_state.read_json(run_dir / "config.json")
    again = "start the run's command again, which writes it anew"
    settings = found.get("settings", {})
    if problem:
        return {}, [f"{problem}; {again}"]
    if not isinstance(settings, dict) or record.digest(settings) != found.get("digest"):
        return {}, [f"{run_dir / 'config.json'} was changed since it was written; {again}"]
    _line(
        "run", f"jinstr {found.get('command')} {found.get('version')}, in {found.get('place', '?')}"
    )
    flat = record.flat(settings)
    mesh = {name[5:]: value for name, value in flat.items() if name.startswith("mesh.")}
    _line("mesh", json.dumps(mesh))
    _line("config.json", f"{len(flat)} settings, digest {found['digest']}")
    return settings, []


def _of_processes(found: list[run_state.Process]) -> list[str]:
    """Findings on processes that are not as they should be."""
    findings = []
    again = "the same command goes on from the newest checkpoint"
    for process in found:
        who = f"process {process.rank}"
        if process.state == "gone":
            findings.append(
                f"{who} is {process.words}: it was killed (by hand, or because memory ran out: dmesg | grep -i kill; "
                f"its peak was {process.facts.get('peak_gib', '?')} GiB), or JAX ended it for a peer that was lost, or "
                f"the machine went down; {again}"
            )
        elif process.state == "silent":
            findings.append(
                f"{who} on {process.facts.get('host')} gives {process.words}: look whether that machine is up and the "
                f"process {process.facts.get('pid')} there; if not, {again}"
            )
        elif process.state == "stalled":
            findings.append(
                f"{who} is alive, but {process.words}: STACKS=True shows where it stands, if that is this machine; the "
                "watchdog ends it with 124"
            )
        elif process.state in ("stopped", "unknown"):
            findings.append(f"{who}: {process.words}")
        elif process.state == "ended" and process.facts["ended"]["exit"]:
            findings.append(f"{who} {process.words}")
    alive = {process.is_alive for process in found}
    ended = [p.rank for p in found if p.state in ("ended", "gone")]
    if len(alive) > 1 and ended:
        findings.append(
            f"processes {ended} have ended and others go on; those wait for them: stop them all, then {again}"
        )
    return findings


def _checkpoint(run_dir: pathlib.Path, saved: dict, verify: bool, findings: list[str]) -> dict:
    """Print the newest sound checkpoint and where in its data it stands; returns that."""
    step = saved["verified"]
    if step is None:
        _line("checkpoint", "none that can be gone on from" if saved["steps"] else "none yet")
        return {}
    how = "every byte verified" if verify else "sizes agree; VERIFY=True reads every byte"
    _line("checkpoint", f"step {step} of {saved['steps']} ({how})")
    cursor, problem = run_state.cursor(run_dir, step)
    findings += [problem] if problem else []
    words = [f"step {cursor.get('step')}"]
    words += [f"{cursor['rows']:,} rows"] if "rows" in cursor else []
    words += [f"{cursor['tokens']:,.0f} tokens"] if "tokens" in cursor else []
    words += [f"{name}: {value:.2f} epochs" for name, value in cursor.get("epochs", {}).items()]
    _line("data", ", ".join(words))
    if place := cursor.get("place"):
        _line("trained on", ", ".join(f"{name} {value}" for name, value in place.items()))
    return cursor
