"""The job of launch/pbs.sh under the real mpirun of Open MPI, on two nodes that are both this machine (ssh is a
stand-in that runs its command here). Before its time is over every process is told, and all have the time to save.
"""

import os
import pathlib
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun: apt-get install openmpi-bin"),
]

SSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
shift
exec bash -c "$*"
"""
QSUB = '#!/usr/bin/env bash\ncat > "$PLACE/job"\necho 1.pbs\n'
# Ends with $STATUS, or, told to save, with 75.
JINSTR = """#!/usr/bin/env bash
note() { echo "$OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE: $*" >> "$PLACE/notes"; }
trap 'note told; sleep 1; note saved; exit 75' USR2
note "$NCCL_DEBUG" "$(nproc)" "$*"
[ -z "${STATUS:-}" ] || exit "$STATUS"
for n in {1..600}; do sleep 0.1; done
"""


@pytest.fixture
def place(tmp_path):
    shutil.copytree(LAUNCH, tmp_path / "launch")
    for name, text in (("bin/ssh", SSH), ("bin/qsub", QSUB), (".venv/bin/jinstr", JINSTR)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "nodes").write_text(f"{os.uname().nodename}\nnode2\n", "utf-8")
    return tmp_path


def run(place, seconds, **variables):
    """(exit status, what the processes noted) of a job that has so many seconds before it is told to save."""
    environment = os.environ | {
        "PATH": f"{place}/bin:{os.environ['PATH']}",
        "PLACE": str(place),
        "PBS_NODEFILE": f"{place}/nodes",
        "PBS_JOBID": "1.pbs",
        "NCCL_DEBUG": "WARN",
        "JINSTR_PAUSE": "0",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    script = ["bash", place / "launch" / "pbs.sh", "--group=g", "--nodes=2"]
    script += [f"--time=0:10:{seconds:02}", "--seconds=600", "--", "sft", "RUN_DIR=run"]
    subprocess.run(script, env=environment, check=True, capture_output=True)
    job = subprocess.run(
        ["bash", place / "job"], env=environment | variables, capture_output=True, timeout=60
    )
    return job.returncode, sorted((place / "notes").read_text("utf-8").splitlines())


def test_every_process_is_told_and_saves(place):
    status, notes = run(place, seconds=5)
    assert status == 75
    cores = len(os.sched_getaffinity(0))  # a process has all of them
    own = (f"WARN {cores} sft RUN_DIR=run", "told", "saved")
    assert notes == sorted(f"{rank} of 2: {note}" for rank in (0, 1) for note in own)


def test_a_mistake_ends_the_job(place):
    status, notes = run(place, seconds=50, STATUS="78")
    assert status == 78 and len(notes) <= 2  # mpirun may end the second before it has begun
    (place / "notes").unlink()
    status, notes = run(place, seconds=50, STATUS="137")  # negative control: tried again
    assert status == 137 and sum(note.startswith("0 of 2") for note in notes) >= 2
