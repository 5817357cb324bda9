"""Two real processes of one run under launch/hosts.sh (ssh is a stand-in that runs its command here) and as jobs of
launch/pbs.sh under the real mpirun of Open MPI (qsub is a stand-in): preempted, they end with the bits of a run that
was left alone.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jinstr import run as run_lib
from tests.parallel import several

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
STEPS = 200
JINSTR = f"""#!/bin/sh
exec {sys.executable} -c "import sys; from jinstr import run; sys.exit(run.console())" "$@"
"""
SSH = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [ "$1" = -o ] && shift; shift; done\nshift\nexec bash -c "$*"\n'
QSUB = '#!/bin/bash\nnumber=$(($(ls "$PLACE" | grep -c "^job\\.") + 1))\ncat > "$PLACE/job.$number"\necho $number\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = several.make(tmp_path_factory.mktemp("launched"))
    shutil.copytree(REPOSITORY / "launch", folder / "launch")
    (folder / "launch" / "environment.sh").write_text("", "utf-8")  # installs nothing
    for name, text in (("bin/ssh", SSH), ("bin/qsub", QSUB), (".venv/bin/jinstr", JINSTR)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
        (folder / name).chmod(0o755)
    (folder / "nodes").write_text(f"{os.uname().nodename}\nnode2\n", "utf-8")
    fixed = {name: folder / file for name, file in
             (("TOKENIZER", "t.model"), ("DATA", "corpus.jsonl"), ("CACHE_DIR", "cache"))}  # fmt: skip
    prepare = ["prepare", *(f"{name}={value}" for name, value in fixed.items()), "WORKERS=1"]
    assert run_lib.main(prepare) == 0  # of several processes none prepares
    return folder


def words(place, name):
    return several.words(place, "pretrain", name, NUM_STEPS=STEPS, SAVE_EVERY=1000)


def start(place, *command):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "SLURM_"))}
    environment = kept | {
        "PLACE": str(place),
        "PATH": f"{place}/bin:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}:{place}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": f"{place}/compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "NPROC": "",
        "HOSTS": "127.0.0.1 localhost",
        "PBS_NODEFILE": f"{place}/nodes",
        "PBS_JOBID": "1.pbs",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    log = open(place / "log", "ab")
    return subprocess.Popen(
        ["bash", *command], cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )  # fmt: skip


def hosts(place, name):
    port = f"--port={several.free_port()}"
    script = place / "launch" / "hosts.sh"
    return start(place, script, "--script=local_cpu.sh", port, "--", *words(place, name))


def log(place):
    return (place / "log").read_text("utf-8", "replace")[-5000:]


def until_step(place, name, wanted, process):
    limit = time.monotonic() + several.LONGEST
    path = place / name / "metrics.jsonl"
    while not path.exists() or max(several.losses(place / name), default=0) < wanted:
        assert process.poll() is None and time.monotonic() < limit, log(place)
        time.sleep(0.05)


def same(place, name, other):
    one, two = place / name, place / other
    return several.states(one, STEPS) == several.states(two, STEPS) and (
        several.losses(one) == several.losses(two)
    )


def kill_process(place, index):
    """SIGKILL to a process of the run, found by its environment."""
    wanted = {f"JINSTR_PROCESS={index}".encode(), f"PLACE={place}".encode()}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            is_jinstr = b"run.console" in (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if is_jinstr and wanted <= {*environment}:
            os.kill(int(folder.name), signal.SIGKILL)
            return
    raise AssertionError(f"process {index} was not found")


@pytest.fixture(scope="module")
def left_alone(place):
    assert hosts(place, "alone").wait(several.LONGEST) == 0, log(place)
    assert [*several.losses(place / "alone")] == [*range(1, STEPS + 1)]
    return "alone"


def test_hosts_lose_a_process_are_told_to_save_and_go_on(place, left_alone):
    process = hosts(place, "cut")
    until_step(place, "cut", 20, process)
    kill_process(place, 1)  # before the first save: all of it is done again
    until_step(place, "cut", 60, process)
    process.terminate()
    assert process.wait(several.LONGEST) == 75, log(place)
    (saved,) = (int(folder.name) for folder in (place / "cut" / "checkpoints").iterdir())
    assert 60 <= saved < STEPS
    assert hosts(place, "cut").wait(several.LONGEST) == 0, log(place)
    assert same(place, "cut", left_alone)


@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun: apt-get install openmpi-bin")
def test_pbs_jobs_run_out_of_time_and_the_next_goes_on(place, left_alone):
    options = ["--nodes=2", "--jobs=3", "--chip=other", "--time=1:00:00"]
    script = place / "launch" / "pbs.sh"
    assert start(place, script, *options, "--", *words(place, "jobs")).wait(60) == 0, log(place)
    for number in (1, 2):
        job = start(place, place / f"job.{number}")
        until_step(place, "jobs", 50 * number, job)
        job.send_signal(signal.SIGALRM)  # the clock of timeout(1), which the job is: time is over
        assert job.wait(several.LONGEST) == 75, log(place)
        saved = max(int(folder.name) for folder in (place / "jobs" / "checkpoints").iterdir())
        assert 50 * number <= saved < STEPS
    assert start(place, place / "job.3").wait(several.LONGEST) == 0, log(place)
    assert same(place, "jobs", left_alone)


def test_another_seed_ends_with_other_bits(place, left_alone):  # negative control
    script = place / "launch" / "hosts.sh"
    port = f"--port={several.free_port()}"
    other = [*words(place, "other"), "SEED=1"]
    process = start(place, script, "--script=local_cpu.sh", port, "--", *other)
    assert process.wait(several.LONGEST) == 0, log(place)
    assert not same(place, "other", left_alone)
