"""Rows about checkpoints: killed at any moment, damaged on disk, no room, two jobs in one directory."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time

from tests.faults import rig as rig_lib


def _goes_on(rig, name, *more, **settings) -> bool:
    """Does the same command, started again, end like the undisturbed run?"""
    ended = rig.train(name, *more, **settings)
    return ended.status == 0 and rig.is_reference(ended.folder)


def _killed_at_random(rig, full):
    assert rig.reference.status == 0  # its programs are compiled now
    before = time.monotonic()
    assert rig.train(rig.fresh("timed")).status == 0
    whole = time.monotonic() - before
    seeds = range(50 if full else 3)
    exact, lost = 0, []
    for seed in seeds:
        name = rig.fresh("killed")
        process = rig.start(rig.words(name))
        time.sleep(random.Random(seed).uniform(0, whole))
        with contextlib.suppress(ProcessLookupError):  # it was faster this time
            os.kill(process.pid, signal.SIGKILL)
        ended = process.end(rig.place / name)
        saved = max(rig_lib.steps_of(ended.folder), default=0)
        reached = max((line["step"] for line in rig_lib.logged(ended.folder)), default=0)
        lost.append(reached - saved)
        exact += _goes_on(rig, name)
    text = f"{exact}/{len(seeds)} exact, at most {max(lost)} steps lost"
    # One save may still be in flight when the next interval is over.
    return text, exact == len(seeds) and max(lost) <= 2 * rig_lib.SAVE_EVERY


def _places_of_a_save(rig):
    files = len([p for p in (rig.reference.folder / "checkpoints/60").rglob("*") if p.is_file()])
    places = ["save_start", "save_copied", "save_written"]
    places += [f"save_file_{number}" for number in range(files - 1)]  # all but the manifest
    return [*places, "save_manifest", "save_rename", "save_committed", "retain_renamed"]


def _killed_in_a_save(rig, full):
    places = _places_of_a_save(rig)
    last_files = places[-8:-4]
    chosen = places if full else [places[1], places[9], "save_rename"]
    exact, wrong, absent = 0, [], []
    for place in chosen:
        name = rig.fresh("mid-save")
        ended = rig.train(name, faults=f"{place}@30=kill")
        died = ended.status == -signal.SIGKILL
        steps = rig_lib.steps_of(ended.folder)
        exact += died and bool(steps) and _goes_on(rig, name)
        if not died:
            # Orbax cuts its arrays into files by what is ready: a save of the same state may have a few fewer.
            fewer = ended.status == 0 and place in last_files
            (absent if fewer else wrong).append(place)
    reached = len(chosen) - len(absent)
    text = f"{exact}/{reached} fault points exact" + (f"; not reached: {wrong}" if wrong else "")
    kept = exact == reached and not wrong
    if full:
        numbers = range(40, 400, 24)
        sound = 0
        for number in numbers:
            name = rig.fresh("strace")
            trace = ["strace", "-f", "-qq", "-e", "trace=fsync", "-o", os.devnull]
            trace += ["-e", f"inject=fsync:signal=KILL:when={number}"]
            rig.train(name, prefix=trace)
            sound += _goes_on(rig, name)
        text += f"; {sound}/{len(numbers)} exact after SIGKILL at the k-th fsync (strace)"
        kept = kept and sound == len(numbers)
    return text, kept


def _killed_before_retention(rig, full):
    seen = []
    for place in ("save_committed", "retain_renamed"):
        name = rig.fresh("retention")
        ended = rig.train(name, faults=f"{place}@30=kill")
        before = rig_lib.steps_of(ended.folder)
        exact = _goes_on(rig, name)
        left = [p.name for p in (ended.folder / "checkpoints").iterdir() if not p.name.isdigit()]
        seen.append((len(before), exact, left))
    text = "; ".join(f"{n} steps left, exact: {exact}, orphans: {left}" for n, exact, left in seen)
    return text, all(n >= 2 and exact and not left for n, exact, left in seen)


def _largest(folder):
    return max(
        (p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"),
        key=lambda p: p.stat().st_size,
    )


def _falls_back(rig, name, damage):
    """(exact, told, step gone on from) after `damage(folder of step 60)` of a finished run."""
    folder = rig.copy(name)
    damage(folder / "checkpoints/60")
    ended = rig.train(name)
    exact = ended.status == 0 and rig.is_reference(folder)
    return exact and "going on from step 55" in ended.text and "damaged checkpoint" in ended.text


def _cut_files(rig, full):
    def cut(size):
        def damage(step):
            path = _largest(step)
            os.truncate(path, path.stat().st_size + size if size else 0)

        return damage

    def cut_random(seed):
        def damage(step):
            paths = sorted(p for p in step.rglob("*") if p.is_file() and p.stat().st_size)
            path = random.Random(seed).choice(paths)
            os.truncate(path, random.Random(seed).randrange(path.stat().st_size))

        return damage

    damages = [cut(-1), cut(0), *[cut_random(seed) for seed in range(4 if full else 1)]]
    kept = sum(_falls_back(rig, f"cut-{n}", damage) for n, damage in enumerate(damages))
    return f"{kept}/{len(damages)} seen, step 55 taken, exact", kept == len(damages)


def _flipped_bits(rig, full):
    """Detection by a process of its own for every position, so that nothing is remembered from the one before."""
    count = 100 if full else 3
    folder = rig.copy("flipped")
    files = sorted(p for p in (folder / "checkpoints/60").rglob("*") if p.is_file())
    files = [path for path in files if path.stat().st_size]
    sizes = [path.stat().st_size for path in files]
    random_source = random.Random(0)
    seen = 0
    for _ in range(count):
        (path,) = random_source.choices(files, sizes)  # every byte alike
        data = bytearray(path.read_bytes())
        place, bit = random_source.randrange(len(data)), random_source.randrange(8)
        data[place] ^= 1 << bit
        before = path.read_bytes()
        path.write_bytes(data)
        # NUM_STEPS=60 is done: a start that trusts step 60 trains nothing.
        ended = rig.train("flipped", "RESUME=must")
        taken = "going on from step 55" in ended.text and "damaged checkpoint" in ended.text
        seen += taken and ended.status == 0
        shutil.rmtree(folder)
        rig.copy("flipped")
        assert path.read_bytes() == before
    exact = rig.train("flipped").status == 0 and rig.is_reference(folder)
    return (
        f"{seen}/{count} flips seen; without one, step 60 is taken: {exact}",
        seen == count and exact,
    )


def _missing(rig, full):
    def remove(name):
        return lambda step: (step / name).unlink()

    names = ["manifest.json", "run.json", str(_largest(rig.reference.folder / "checkpoints/60"))]
    names[2] = names[2].partition("/checkpoints/60/")[2]
    kept = sum(_falls_back(rig, f"missing-{n}", remove(name)) for n, name in enumerate(names))
    return f"{kept}/{len(names)} (marker, run.json, array file): step 55 taken, exact", kept == 3


def _damaged_records(rig, full):
    def write(name, text):
        return lambda step: (step / name).write_text(text, "utf-8")

    def edit(step):
        path = step / "manifest.json"
        path.write_text(path.read_text("utf-8").replace('"bytes": ', '"bytes": 1', 1), "utf-8")

    damages = [edit, write("manifest.json", ""), write("manifest.json", "NaN")]
    damages += [write("manifest.json", "[1]"), write("run.json", "{}")]
    kept = sum(_falls_back(rig, f"records-{n}", damage) for n, damage in enumerate(damages))
    return f"{kept}/{len(damages)} (edited, empty, NaN, list, run.json): exact", kept == len(
        damages
    )


def _all_damaged(rig, full):
    folder = rig.copy("all")
    for step in (55, 60):
        os.truncate(_largest(folder / f"checkpoints/{step}"), 10)
    before = rig_lib.tree_digest(folder / "checkpoints")
    ended = rig.train("all")
    same = rig_lib.tree_digest(folder / "checkpoints") == before
    text = f"exit {ended.status}; checkpoints untouched: {same}; from step 0: {'step 1/' in ended.text}"
    return text, ended.status == 74 and same and "step 1/" not in ended.text


def _disk_full(rig, full):
    size = sum(p.stat().st_size for p in (rig.reference.folder / "checkpoints").rglob("*"))
    name = "full-disk/run"
    place = rig.place / "full-disk"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    out = rig.place / "full-disk-out"
    shutil.rmtree(out, ignore_errors=True)
    # Room for two steps and a half: the third save finds none.
    script = (
        f'mount -t tmpfs -o size={int(size * 1.25)} none {place} && "$@"; echo EXIT $?; '
        f"ls {place}/run/checkpoints; mount -o remount,size={size * 8} {place}; "
        f'"$@"; echo EXIT $?; cp -r {place}/run {out}'
    )
    prefix = ["unshare", "-m", "sh", "-c", script, "sh"]
    ended = rig.train(name, prefix=prefix)
    exits = [int(line.split()[1]) for line in ended.text.splitlines() if line.startswith("EXIT")]
    exact = exits[-1:] == [0] and rig.is_reference(out)
    told = "No space left" in ended.text
    text = f"exits {exits}, names the reason: {told}; with room again exact: {exact}"
    return text, exits == [74, 0] and exact and told


def _file_size_limit(rig, full):
    size = _largest(rig.reference.folder / "checkpoints/60").stat().st_size
    name = rig.fresh("file-size")
    ended = rig.train(name, prefix=["prlimit", f"--fsize={size // 2}"])
    exact = _goes_on(rig, name)
    text = (
        f"exit {ended.status}, steps there: {rig_lib.steps_of(ended.folder)}; then exact: {exact}"
    )
    return text, ended.status == 74 and exact


def _read_only(rig, full):
    place = rig.place / "read-only"
    place.mkdir(exist_ok=True)
    start = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o ro none {place} && "$@"', "sh"]
    at_start = rig.train("read-only/run", prefix=start)
    told = "Read-only file system" in at_start.text
    # Unwritable on the way. A kernel refuses to make a mount read-only while files on it are open for writing, so the
    # folder of the checkpoints becomes immutable, which holds for root too.
    folder = rig.place / rig.fresh("immutable") / "checkpoints"
    process = rig.start(rig.words("immutable"), faults="step@*=slow")
    while not (folder / "20").exists():
        assert process.running(), process.text()[-2000:]
        time.sleep(0.02)
    subprocess.run(["chattr", "+i", folder], check=True)
    lost = process.end(folder.parent)
    subprocess.run(["chattr", "-i", folder], check=True)
    exact = _goes_on(rig, "immutable")
    text = (
        f"at start: exit {at_start.status}, names the reason: {told}; on the way: exit {lost.status}, then exact: "
        f"{exact}"
    )
    return text, at_start.status == 74 and told and lost.status == 74 and exact


def _slow_storage(rig, full):
    name = rig.fresh("slow")
    trace = ["strace", "-f", "-qq", "-e", "trace=fsync", "-o", os.devnull]
    trace += ["-e", "inject=fsync:delay_enter=40000"]
    process = rig.start(rig.words(name), prefix=trace)
    most = 0
    while process.running():
        most = max(most, len(list((rig.place / name / "checkpoints").glob("*.saving"))))
        time.sleep(0.02)
    ended = process.end(rig.place / name)
    exact = ended.status == 0 and rig.is_reference(ended.folder)
    warned = "slow storage" in ended.text
    return f"exact: {exact}, told: {warned}, saves at once: {most}", exact and warned and most <= 1


def _failed_save(rig, full):
    name = rig.fresh("failed-save")
    stopped = rig.train(name, faults="save_manifest@30=error")
    # Steps told of after the failure: the one that was under way, and the one whose metrics were still to be read.
    later = stopped.text.partition("fault: save_manifest@30=error")[2].count("\nstep ")
    steps = rig_lib.steps_of(stopped.folder)
    exact = _goes_on(rig, name)
    name = rig.fresh("failed-save-2")
    went_on = rig.train(name, "ON_SAVE_ERROR=continue", faults="save_manifest@30=error")
    told = (went_on.folder / "incidents.jsonl").exists()
    same = went_on.status == 0 and rig.is_reference(went_on.folder)
    text = (
        f"stop: exit {stopped.status}, {later} steps told after the failure, kept {steps}, then exact: {exact}; "
        f"continue: exit {went_on.status}, exact: {same}, told: {told}"
    )
    kept = stopped.status == 74 and later <= 2 and steps == [20, 25] and exact and same and told
    return text, kept


def _two_jobs(rig, full):
    count = 20 if full else 2
    second, exact = 0, 0
    for number in range(count):
        name = rig.fresh("two-jobs")
        first = rig.start(rig.words(name))
        time.sleep(2.0 * number / max(1, count - 1))
        other = rig.train(name)
        ended = first.end(rig.place / name)
        # Within the time of a start either may be the first; exactly one trains.
        statuses = sorted([ended.status, other.status])
        second += statuses == [0, 73]
        exact += rig.is_reference(ended.folder)
    text = f"{second}/{count} times one of the two ended with 73, {exact}/{count} exact"
    return text, second == exact == count


def _stale_lock(rig, full):
    name = rig.fresh("stale")
    process = rig.start(rig.words(name), faults="step@*=slow")
    process.until("step 20/")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    lock = rig.place / name / "run.lock"
    lock.write_text("process 1 on another-host, 0123456789abcdef\n", "utf-8")
    before = time.monotonic()
    ended = rig.train(name)
    told = "which is gone; taking over" in ended.text
    exact = ended.status == 0 and rig.is_reference(ended.folder)
    # Negative control: a lock that somebody removes under a running job is noticed before the next commit.
    name = rig.fresh("removed-lock")
    process = rig.start(rig.words(name, "NUM_STEPS=2000"))
    process.until("step 20/")
    (rig.place / name / "run.lock").unlink()
    removed = process.end(rig.place / name)
    seconds = time.monotonic() - before
    text = f"taken over and told: {told}, exact: {exact}; removed while held: exit {removed.status} ({seconds:.0f} s)"
    return text, told and exact and removed.status == 73


# Now and then the clock is set to another day, and stays there.
CLOCK = """
import random, time
real, choose, now = time.time, random.Random(0), [0.0]
def jumping():
    if choose.random() < 0.01:
        now[0] = choose.choice((-86400.0, 0.0, 86400.0))
    return real() + now[0]
time.time = jumping
"""


def _clock(rig, full):
    folder = rig.place / "clock"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(CLOCK, "utf-8")
    name = rig.fresh("clocked")
    path = f"{folder}:{rig_lib.REPOSITORY}"
    ended = rig.train(name, faults="step@33=kill", PYTHONPATH=path)
    steps = sorted(
        (ended.folder / "checkpoints").iterdir(), key=lambda p: int(p.name.split(".")[0])
    )
    for age, step in enumerate(steps):  # the newest step looks oldest
        os.utime(step, (1e9 - age * 1e6,) * 2)
    newest = max(int(p.name) for p in steps if p.name.isdigit())
    statuses = []
    while len(statuses) < 8 and 0 not in statuses:
        again = rig.train(name, PYTHONPATH=path)
        if not statuses:
            taken = f"going on from step {newest}" in again.text
        statuses.append(again.status)
    exact = again.status == 0 and rig.is_reference(again.folder)
    # Orbax waits by the wall clock: a jump within a save ends the run, loudly, and the next start goes on.
    text = f"newest step taken: {taken}; exits until done: {statuses}, then exact: {exact}"
    return text, taken and exact and statuses == [0]


def _other_shapes(rig, full):
    rig.copy("shapes")
    (rig.place / "wider.gin").write_text(
        (rig.place / "model.gin").read_text("utf-8").replace("mlp_size = 128", "mlp_size = 160"),
        "utf-8",
    )
    seen = []
    for words in (["wider.gin"], ["OPTIMIZER=adafactor"], ["EMA_DECAY=0.9"]):
        ended = rig.train("shapes", *words)
        seen.append((ended.status, "arrays differ" in ended.text and "saved" in ended.text))
    unharmed = rig.train("shapes").status == 0 and rig.is_reference(rig.place / "shapes")
    text = f"width, optimizer, average: {seen}; run unharmed: {unharmed}"
    return text, all(status == 78 and named for status, named in seen) and unharmed


ROWS = [
    rig_lib.row("1", "kill -9 at a random time", "exact; lost: an interval, a save in flight", _killed_at_random, True),
    rig_lib.row("2", "kill -9 at every point of a save", "never a half checkpoint; exact", _killed_in_a_save, True),
    rig_lib.row("3", "kill -9 between commit and retention", "≥ 2 left, orphans cleaned", _killed_before_retention),
    rig_lib.row("13", "truncated files", "seen before use, fallback told, exact", _cut_files, True),
    rig_lib.row("14", "one flipped bit in a checkpoint", "seen every time", _flipped_bits, True),
    rig_lib.row("15", "missing file, missing commit marker", "not chosen", _missing),
    rig_lib.row("16", "damaged manifest.json, run.json", "as 13", _damaged_records),
    rig_lib.row("17", "all checkpoints damaged", "exit 74, never step 0, untouched", _all_damaged, True),
    rig_lib.row("18", "disk full during a save", "exit 74, last good kept, works when there is room", _disk_full),
    rig_lib.row("19", "file-size limit", "as 18", _file_size_limit),
    rig_lib.row("20", "read-only or lost mount", "exit 74 with the reason", _read_only),
    rig_lib.row("21", "storage slower than the save interval", "back-pressure, told, one save at once", _slow_storage),
    rig_lib.row("23", "a background save fails", "exit 74 within a step, or told and tried again; exact", _failed_save),
    rig_lib.row("24", "two jobs in one run directory", "the second ends with 73, the first unharmed", _two_jobs),
    rig_lib.row("25", "a lock left by a crash", "taken over and told; a removed lock is noticed", _stale_lock),
    rig_lib.row("26", "clock jumps by a day, file times reversed", "order by step; exact", _clock),
    rig_lib.row("29", "other shape, optimizer, average on restore", "exit 78 naming arrays", _other_shapes),
]  # fmt: skip
