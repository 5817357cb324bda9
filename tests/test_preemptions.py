"""Runs that are preempted twenty times, under launch/pbs.sh (qsub and mpirun are stand-ins) and launch/hosts.sh (so is
ssh): they end, and with the state of a run that was left alone. What runs is a stand-in for jinstr that computes a
digest step by step on one or two ranks in lock step, saves every fifth step, and asks to be preempted at given steps.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
STEPS = 180

JINSTR = """
import hashlib, json, os, pathlib, signal, sys, time
place = pathlib.Path(os.environ["PLACE"])
rank, size = (int(os.environ.get(a, os.environ.get(b, c))) for a, b, c in (
    ("OMPI_COMM_WORLD_RANK", "JINSTR_PROCESS", 0), ("OMPI_COMM_WORLD_SIZE", "JINSTR_PROCESSES", 1)))
checkpoints = place / "run" / "checkpoints"
told = []
for name in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(name, lambda *_: told.append(1))
with open(place / "starts", "a") as log:
    log.write(json.dumps([rank, sys.argv[1:]]) + "\\n")

def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.{rank}"
    part.write_text(text)
    os.replace(part, path)

def save(step, state):
    if rank == 0:
        put(checkpoints / str(step) / "manifest.json", state)

def count(path):
    return int(path.read_text()) if path.exists() else 0

step = max((int(p.parent.name) for p in checkpoints.glob("*/manifest.json")), default=0)
state = (checkpoints / str(step) / "manifest.json").read_text() if step else ""
plan = json.loads((place / "plan").read_text())
while step < STEPS:
    if told:
        save(step, state)
        sys.exit(75)
    number = count(place / "done")
    if number < len(plan) and plan[number][0] <= step and plan[number][1] % size == rank:
        put(place / "done", str(number + 1))
        kind = plan[number][2]
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind.isdigit():
            os._exit(int(kind))
        put(place / "asked", kind)
        for _ in range(3000):  # until the stand-in for PBS has seen it
            time.sleep(0.01)
            if told:
                save(step, state)
                sys.exit(75)
    put(place / "at" / str(rank), str(step))
    while not told and any(count(place / "at" / str(r)) < step for r in range(size)):
        time.sleep(0.003)
    if not told:
        state, step = hashlib.sha256((state + str(step)).encode()).hexdigest(), step + 1
        if step % 5 == 0:
            save(step, state)
if rank == 0:
    put(place / "result", state)
"""

QSUB = """
number=$(($(ls "$PLACE" | grep -c '^job\\.') + 1))
printf '%s\\n' "$@" > "$PLACE/words.$number"
cat > "$PLACE/job.$number"
echo "$number.pbs1"
"""

# As Open MPI: USR2 goes to every process; one that is killed or aborts ends the others, and its status is mpirun's.
MPIRUN = """
import os, signal, subprocess, sys, time
words = sys.argv[sys.argv.index(".venv/bin/jinstr"):]
ranks = [subprocess.Popen(words, env={**os.environ, "OMPI_COMM_WORLD_RANK": str(r), "OMPI_COMM_WORLD_SIZE": "2"})
         for r in range(2)]
signal.signal(signal.SIGUSR2, lambda number, _: [p.send_signal(number) for p in ranks])
first = 0
while any([p.poll() is None for p in ranks]) or not first:
    status = next((p.returncode for p in ranks if p.returncode), 0)
    first = first or (status if status >= 0 else 128 - status)
    if first not in (0, 75):
        [p.kill() for p in ranks]
    if first == 0 and all(p.returncode == 0 for p in ranks):
        break
    time.sleep(0.005)
sys.exit(first)
"""

# The host named on the command line is this machine.
SSH = """
while [[ $1 == -* ]]; do shift 2; done
echo "$1" >> "$PLACE/reached"
exec bash -c "$2"
"""


@pytest.fixture
def place(tmp_path):
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "launch" / "local_cpu.sh").write_text('exec .venv/bin/jinstr "$@"\n', "utf-8")
    python, shell = f"{sys.executable} -SE", "/usr/bin/env bash"
    for name, by, text in (
        (".venv/bin/jinstr", python, JINSTR.replace("STEPS", str(STEPS))),
        ("bin/mpirun", python, MPIRUN),
        ("bin/qsub", shell, QSUB),
        ("bin/ssh", shell, SSH),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!{by}\n{text}", "utf-8")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def environment(place, **variables):
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    given = {"PLACE": str(place), "PBS_NODEFILE": "/dev/null", "JINSTR_PAUSE": "0", "PATH": path}
    return os.environ | given | variables


def preemptions(place, seed, kinds, count=20):
    """Writes the plan: so many times (step, rank, kind), a checkpoint or more apart."""
    chance, step, plan = random.Random(seed), 0, []
    kinds = [kinds[number % len(kinds)] for number in range(count)]
    chance.shuffle(kinds)
    for kind in kinds:
        step += chance.randrange(6, 10)  # a checkpoint is passed in between
        plan.append((step, chance.randrange(2), kind))
    (place / "plan").write_text(json.dumps(plan), "utf-8")
    return kinds


def left_alone(steps=STEPS):
    state = ""
    for step in range(steps):
        state = hashlib.sha256((state + str(step)).encode()).hexdigest()
    return state


def result(place):
    return (place / "result").read_text("utf-8") if (place / "result").exists() else None


def of_session(number):
    """Process ids of a session; PBS kills by session, whatever process groups a job made."""
    words = ["ps", "-o", "pid=", "-s", str(number)]
    return [int(n) for n in subprocess.run(words, capture_output=True, text=True).stdout.split()]


def to_all(session, name):
    for number in of_session(session):
        try:
            os.kill(number, name)
        except ProcessLookupError:
            pass


def pbs_job(place, number):
    """Exit status of a job on PBS's node. What the run asks for is done to it: its time is over, it is taken from its
    node (TERM, then KILL, to all its processes), or the node is lost."""
    asked = place / "asked"
    job = subprocess.Popen(
        ["bash", place / f"job.{number}"],
        env=environment(place),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=open(place / "stderr", "ab"),
    )
    limit = time.monotonic() + 120
    try:
        while job.poll() is None:
            assert time.monotonic() < limit, (place / "stderr").read_text("utf-8")
            if asked.exists():
                kind = asked.read_text("utf-8")
                asked.unlink()
                if kind == "time":
                    job.send_signal(signal.SIGALRM)  # the clock of timeout(1), which the job is
                    continue
                if kind == "taken":
                    to_all(job.pid, signal.SIGTERM)
                    time.sleep(0.2)
                to_all(job.pid, signal.SIGKILL)
            time.sleep(0.005)
    finally:
        job.kill()
        while of_session(job.pid):
            to_all(job.pid, signal.SIGKILL)  # whatever is left on the node when a job is over
            job.poll()
    return job.returncode


def play_pbs(place, seed):
    """Numbers of the jobs that ran, in order: each only if the one before it failed; a lost node's job may run anew."""
    chance, ran, number = random.Random(seed), [], 1
    jobs = len(list(place.glob("job.*")))
    while number <= jobs:
        ran.append(number)
        status = pbs_job(place, number)
        if status == 0:
            break
        if not (status == -signal.SIGKILL and chance.random() < 0.5):
            number += 1
    return ran


def submit_pbs(place, nodes, jobs):
    words = ["--group=gaa50000", f"--nodes={nodes}", "--time=1:00:00", f"--jobs={jobs}"]
    subprocess.run(
        ["bash", place / "launch" / "pbs.sh", *words, "--", "sft", "a b.gin", "RUN_DIR=run"],
        env=environment(place), check=True, capture_output=True,
    )  # fmt: skip


@pytest.mark.parametrize("nodes", [1, 2])
def test_pbs_jobs_end_the_run_after_twenty_preemptions(place, nodes):
    job_ends = ["time", "taken", "lost"]
    kinds = preemptions(place, nodes, [*job_ends, "killed", "76", "124", "134"])
    submit_pbs(place, nodes, jobs=25)
    for number in range(1, 26):
        words = (place / f"words.{number}").read_text("utf-8").split()
        after = ["-W", f"depend=afternotok:{number - 1}.pbs1"] if number > 1 else []
        ssh = ["-v", "USE_SSH=1"] if nodes > 1 else []
        asked = f"-P gaa50000 -q rt_HF -l select={nodes} -l walltime=1:00:00 -N jinstr -j oe -k oed"
        assert words == [*asked.split(), *ssh, *after]
    ran = play_pbs(place, seed=nodes)
    assert result(place) == left_alone(), (place / "stderr").read_text("utf-8")
    assert (place / "done").read_text("utf-8") == "20"
    # Only what ends a job takes the next one (or the same anew); after the last nothing is left to do.
    assert len(ran) == 1 + sum(kind in job_ends for kind in kinds) and ran[-1] < 25
    starts = [json.loads(line) for line in (place / "starts").read_text("utf-8").splitlines()]
    assert all(words == ["sft", "a b.gin", "RUN_DIR=run"] for _, words in starts)
    assert {rank for rank, _ in starts} == {*range(nodes)}
    assert result(place) != left_alone(STEPS - 1)  # negative control


def test_a_row_of_pbs_jobs_that_is_too_short_does_not_end_the_run(place):
    preemptions(place, 1, ["lost"], count=6)
    submit_pbs(place, nodes=1, jobs=3)
    assert play_pbs(place, seed=0)[-1] == 3
    assert result(place) is None
    submit_pbs(place, nodes=1, jobs=7)  # and is taken up by another
    play_pbs(place, seed=0)
    assert result(place) == left_alone()


def hosts(place, *words, **variables):
    variables = {"HOSTS": "me@a b", "JINSTR_GRACE": "0"} | variables
    return subprocess.run(
        ["bash", place / "launch" / "hosts.sh", "--script=local_cpu.sh", f"--port={os.getpid()}", *words],
        env=environment(place, **variables), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


RUN = ("--", "sft", "a b.gin", "RUN_DIR=run")


def test_hosts_end_the_run_after_twenty_preemptions(place):
    preemptions(place, 5, ["killed", "76", "124", "134", "1"])
    ended = hosts(place, *RUN)
    assert ended.returncode == 0 and result(place) == left_alone(), ended.stderr
    assert (place / "done").read_text("utf-8") == "20"
    reached = (place / "reached").read_text("utf-8").split()
    assert sorted(reached) == ["b"] * 21 + ["me@a"] * 21
    starts = [json.loads(line) for line in (place / "starts").read_text("utf-8").splitlines()]
    assert all(words == ["sft", "a b.gin", "RUN_DIR=run"] for _, words in starts)


def test_hosts_stop_at_a_mistake_and_without_progress(place):
    (place / "plan").write_text(json.dumps([[3, 1, "78"]]), "utf-8")
    ended = hosts(place, *RUN)
    assert ended.returncode == 78 and "exit status 78 on b" in ended.stderr
    assert (place / "reached").read_text("utf-8").count("b") == 1
    (place / "reached").unlink()
    (place / "done").unlink()
    (place / "plan").write_text(json.dumps([[2, 0, "1"]] * 9), "utf-8")
    assert hosts(place, *RUN).returncode == 1
    assert (place / "reached").read_text("utf-8").count("b") == 3


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_hosts_are_told_to_save_also_when_the_script_is_killed(place, way):
    (place / "plan").write_text(json.dumps([[7, 0, "waits"]]), "utf-8")
    script = subprocess.Popen(
        ["bash", place / "launch" / "hosts.sh", "--script=local_cpu.sh", f"--port={os.getpid()}", *RUN],
        env=environment(place, HOSTS="a b"), start_new_session=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    limit = time.monotonic() + 60
    while not (place / "asked").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    if way == signal.SIGTERM:
        script.send_signal(way)
        assert script.wait(20) == 75, script.stderr.read()
    else:
        for number in of_session(script.pid):
            command = pathlib.Path(f"/proc/{number}/cmdline").read_bytes()
            if b"launch/again.sh" in command or b"launch/hosts.sh" in command:
                os.kill(number, way)
        script.wait(20)
        while of_session(script.pid):
            assert time.monotonic() < limit
            time.sleep(0.01)
    assert (place / "run" / "checkpoints" / "7" / "manifest.json").exists()


def test_hosts_print_starts_nothing_and_bad_words_are_told(place):
    (place / "plan").write_text("[]", "utf-8")
    variables = {"XLA_FLAGS": "--a=b c", "JINSTR_COORDINATOR": ""}
    ended = hosts(place, "--print", *RUN, **variables)
    assert ended.returncode == 0 and not (place / "starts").exists()
    expected = f"JINSTR_COORDINATOR=a:{os.getpid()} JINSTR_PROCESSES=2 JINSTR_PROCESS=1"
    assert expected in ended.stdout and r"XLA_FLAGS=--a=b\ c" in ended.stdout
    for words, names in ((("--print",), "a"), (RUN, ""), (("--nodes=2", *RUN), "a")):
        assert hosts(place, *words, HOSTS=names).returncode == 64
    assert not (place / "starts").exists()
    assert hosts(place, *RUN).returncode == 0 and (place / "starts").exists()  # negative control
