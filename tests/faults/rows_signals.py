"""Rows about signals and stalls."""

import os
import random
import signal
import time

from tests.faults import rig as rig_lib


def _term_in_a_step(rig, full):
    count, kept, seconds = 10 if full else 2, 0, []
    for seed in range(count):
        name = rig.fresh("term")
        process = rig.start(rig.words(name), faults="step@*=slow")
        process.until("step 10/")
        time.sleep(random.Random(seed).uniform(0, 0.5))
        before = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        ended = process.end(rig.place / name)
        seconds.append(time.monotonic() - before)
        reached = max(line["step"] for line in rig_lib.logged(ended.folder))
        saved = max(rig_lib.steps_of(ended.folder))
        again = rig.train(name)
        exact = again.status == 0 and rig.is_reference(ended.folder)
        # A run that was just done has nothing to stop.
        kept += ended.status in (75, 0) and saved == reached and exact
    text = f"{kept}/{count}: exit 75, 0 steps lost, then exact; at most {max(seconds):.1f} s"
    return text, kept == count


LOOKED_AT = ("HOLDOUT=0.05", "EVAL_EVERY=10")


def _term_in_phases(rig, full):
    """Evaluations hold documents back, so this row has an undisturbed run of its own."""
    if not (rig.place / "looked-at").exists():
        assert rig.train("looked-at", *LOOKED_AT).status == 0
    wanted = rig_lib.facts(rig.place / "looked-at")
    evaluations = _evaluations(rig.place / "looked-at")
    seen = {}
    steps = range(5, 55, 5) if full else (30,)
    for phase, place in (("evaluation", "evaluate"), ("save", "save_written"), ("step", "step")):
        seen[phase] = 0
        for step in steps:
            at = -(-step // 10) * 10 if phase == "evaluation" else step
            name = rig.fresh("phase")
            ended = rig.train(name, *LOOKED_AT, faults=f"{place}@{at}=term")
            again = rig.train(name, *LOOKED_AT)
            exact = again.status == 0 and rig_lib.facts(again.folder) == wanted
            seen[phase] += (
                ended.status == 75 and exact and _evaluations(again.folder) == evaluations
            )
    seen["compile"] = 0
    for number in range(len(steps)):
        # Without a compile cache, so that there is something to wait for; the signal comes from outside.
        name = rig.fresh("phase")
        cache = rig.place / f"no-cache-{number}"
        process = rig.start(rig.words(name, *LOOKED_AT), JAX_COMPILATION_CACHE_DIR=str(cache))
        _until_compiling(rig, name, process)
        before = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        ended = process.end(rig.place / name)
        soon = time.monotonic() - before < 10
        again = rig.train(name, *LOOKED_AT)
        exact = again.status == 0 and rig_lib.facts(again.folder) == wanted
        seen["compile"] += ended.status == 75 and soon and exact
    text = ", ".join(f"{phase} {count}/{len(steps)}" for phase, count in seen.items())
    return f"exit 75, then exact with every evaluation: {text}", set(seen.values()) == {len(steps)}


def _until_compiling(rig, name, process):
    """Wait until the run has written its model's files, which is just before it compiles its step."""
    limit = time.monotonic() + 120
    while not (rig.place / name / "examples.jsonl").exists():
        assert time.monotonic() < limit and process.running(), process.text()[-2000:]
        time.sleep(0.02)


def _evaluations(folder):
    return {
        line["step"]: {k: v for k, v in line.items() if k.startswith("eval/")}
        for line in rig_lib.lines(folder / "metrics.jsonl")
        if any(key.startswith("eval/") for key in line)
    }


def _two_signals(rig, full):
    name = rig.fresh("twice")
    # The save hangs, as on a lost file system, so that the first signal cannot be obeyed.
    process = rig.start(rig.words(name), faults="save_written@30=hang")
    process.until("fault: save_written@30=hang")
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(1.0)
    waits = process.running()
    before = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    ended = process.end(rig.place / name)
    seconds = time.monotonic() - before
    again = rig.train(name)
    exact = again.status == 0 and rig.is_reference(again.folder)
    others = []
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        name = rig.fresh("other-signal")
        process = rig.start(rig.words(name), faults="step@*=slow")
        process.until("step 20/")
        os.kill(process.pid, number)
        first = process.end(rig.place / name)
        again = rig.train(name)
        others.append((first.status, again.status == 0 and rig.is_reference(again.folder)))
    text = (
        f"second SIGTERM: exit {ended.status} after {seconds:.1f} s, checkpoint valid, exact: {exact}; "
        f"SIGINT, SIGHUP, SIGUSR2: {others}"
    )
    kept = waits and ended.status == 75 and seconds < 2 and exact
    return text, kept and others == [(75, True)] * 3


def _stall(rig, full):
    name = rig.fresh("stall")
    before = time.monotonic()
    ended = rig.train(name, "STALL_SECONDS=5", faults="step@30=hang")
    seconds = time.monotonic() - before
    stacks = "in fit" in ended.text and "JI-STALL-001" in ended.text
    again = rig.train(name)
    exact = again.status == 0 and rig.is_reference(again.folder)
    text = (
        f"exit {ended.status} after {seconds:.0f} s of run, stacks: {stacks}; then exact: {exact}"
    )
    return text, ended.status == 124 and stacks and exact


def _killed_in_evaluation(rig, full):
    if not (rig.place / "looked-at").exists():
        assert rig.train("looked-at", *LOOKED_AT).status == 0
    name = rig.fresh("hook")
    ended = rig.train(name, *LOOKED_AT, faults="evaluate@20=kill")
    again = rig.train(name, *LOOKED_AT)
    made_up = _evaluations(again.folder) == _evaluations(rig.place / "looked-at")
    text = f"exit {ended.status}; every evaluation is there after the resume: {made_up}"
    return text, ended.status == -signal.SIGKILL and made_up


ROWS = [
    rig_lib.row("4", "SIGTERM in a step", "saved, exit 75, no step lost", _term_in_a_step, True),
    rig_lib.row(
        "5", "SIGTERM in compile, evaluation, save, step", "exit 75, exact", _term_in_phases
    ),
    rig_lib.row(
        "6",
        "two SIGTERMs; SIGINT; SIGHUP; SIGUSR2",
        "second: within 2 s, checkpoint valid",
        _two_signals,
    ),
    rig_lib.row(
        "9a", "a step that hangs (one process)", "exit 124 with stacks, then exact", _stall
    ),
    rig_lib.row("49", "kill -9 in an evaluation", "made up on resume", _killed_in_evaluation),
]
