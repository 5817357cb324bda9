"""The scripts in launch/: what they hand to sbatch, qsub and gcloud, and when a run is started again. Nothing leaves
the machine: PATH begins with stand-ins that write down how they were called.
"""

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
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "bin").mkdir()
    return tmp_path


def executable(place, name, text):
    path = place / "bin" / name
    path.write_text("#!/usr/bin/env bash\n" + text, "utf-8")
    path.chmod(0o755)
    return path


def environment(place, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return kept | {"PATH": path, "PLACE": str(place), "JINSTR_PAUSE": "0"} | variables


def bash(place, script, *words, **variables):
    return subprocess.run(
        ["bash", str(script), *map(str, words)],
        cwd=place,
        env=environment(place, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


# Ends with the next status of $PLACE/statuses and, where the line has a second word, leaves a checkpoint of that step.
RUN = """
echo "$*" >> "$PLACE/calls"
read -r status step < <(sed -n "$(wc -l < "$PLACE/calls")p" "$PLACE/statuses")
if [ -n "$step" ]; then
  mkdir -p "$PLACE/run/checkpoints/$step" && touch "$PLACE/run/checkpoints/$step/manifest.json"
fi
exit "$status"
"""


def again(place, statuses, **variables):
    (place / "calls").unlink(missing_ok=True)
    (place / "statuses").write_text("\n".join(statuses) + "\n", "utf-8")
    executable(place, "jinstr", RUN)
    ended = bash(place, LAUNCH / "again.sh", "jinstr", "sft", "RUN_DIR=run", **variables)
    calls = (place / "calls").read_text("utf-8").splitlines()
    assert set(calls) == {"sft RUN_DIR=run"}
    return ended, len(calls)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not on PATH")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path):
    words = ["shellcheck", "-x", f"launch/{path.name}"]
    ended = subprocess.run(words, cwd=LAUNCH.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it_and_it_stops_at_errors(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    lines = path.read_text("utf-8").splitlines()
    assert ("set -euo pipefail" in lines) == lines[0].startswith("#!")  # the others are sourced


def test_twenty_preemptions_and_the_run_ends(place):
    chance = random.Random(7)
    statuses, step = [], 0
    for _ in range(20):
        step += chance.randrange(1, 50)
        statuses.append(f"{chance.choice([75, 76, 124, 134, 137, 1])} {step}")
    ended, calls = again(place, [*statuses, "0"])
    assert (ended.returncode, calls) == (0, 21), ended.stderr
    assert not (place / "run.again").exists()


def test_without_progress_it_stops_at_the_limit(place):
    ended, calls = again(place, ["137 10", *["137"] * 9])
    assert (ended.returncode, calls) == (137, 4)
    assert "3 times without a step after 10: stopped" in ended.stderr
    ended, calls = again(place, ["75"] * 9, JINSTR_TRIES="5")  # the step is found as it was
    assert (ended.returncode, calls) == (1, 5)  # 75 would have a scheduler start it anew


def test_progress_sets_the_count_back(place):
    ended, calls = again(place, ["1", "1", "1 5", "1", "1", "1 6", "0"])
    assert (ended.returncode, calls) == (0, 7)
    ended, calls = again(place, ["1", "1", "1", "0"])  # negative control: the same without steps
    assert (ended.returncode, calls) == (1, 3)


@pytest.mark.parametrize("status", [2, 64, 65, 70, 73, 74, 77, 78, 127])
def test_mistakes_are_not_tried_again(place, status):
    ended, calls = again(place, [str(status), "0"])
    assert (ended.returncode, calls) == (status, 1)
    assert f"exit status {status}" in ended.stderr


def test_the_log_counts_as_progress_and_what_was_counted_outlives_the_process(place):
    (place / "run").mkdir()
    log = place / "run" / "metrics.jsonl"
    log.write_text(json.dumps({"step": 31, "loss": 1.0}) + "\n", "utf-8")
    (place / "run.again").write_text("30 2\n", "utf-8")
    assert again(place, ["1", "0"])[1] == 2
    (place / "run.again").write_text("31 2\n", "utf-8")  # negative control: 31 was known
    assert again(place, ["1", "0"])[1] == 1


def test_a_signal_is_passed_on_once_and_nothing_starts_again(place):
    executable(
        place,
        "jinstr",
        'trap "echo told >> $PLACE/told; exit 75" TERM\ntouch "$PLACE/up"\nfor i in {1..400}; do sleep 0.02; done\n',
    )
    words = ["bash", str(LAUNCH / "again.sh"), "jinstr", "sft", "RUN_DIR=run"]
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        process = subprocess.Popen(
            words,
            cwd=place,
            env=environment(place),
            stderr=subprocess.DEVNULL,
            # Bash cannot trap what was ignored when it began, as SIGINT is for whatever a shell starts behind itself.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not (place / "up").exists():
            time.sleep(0.01)
        process.send_signal(name)
        assert process.wait(20) == 75
        (place / "up").unlink()
    assert (place / "told").read_text("utf-8").split() == ["told"] * 3


def flags(place, words, **variables):
    dump = "import json, os; print(json.dumps(dict(os.environ)))"
    script = (
        f"set -euo pipefail; source {LAUNCH}/flags.sh; chip_flags {words}; exec python3 -c '{dump}'"
    )
    variables = {"XLA_FLAGS": "", "LIBTPU_INIT_ARGS": ""} | variables
    ended = subprocess.run(
        ["bash", "-c", script], env=environment(place, **variables), capture_output=True, text=True
    )
    return json.loads(ended.stdout) if ended.returncode == 0 else ended.returncode


def test_flags_of_each_chip(place):
    gathers = "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
    assert flags(place, "v4")["LIBTPU_INIT_ARGS"] == ""
    assert gathers in flags(place, "v5e")["LIBTPU_INIT_ARGS"]
    for chip in ("v5p", "v6e"):  # refused by libtpu 0.0.52
        assert gathers in flags(place, chip, JINSTR_LIBTPU="0.0.42.1")["LIBTPU_INIT_ARGS"]
        assert gathers not in flags(place, chip, JINSTR_LIBTPU="0.0.52")["LIBTPU_INIT_ARGS"]
        assert gathers not in flags(place, chip, JINSTR_LIBTPU="")["LIBTPU_INIT_ARGS"]
    assert flags(place, "h100")["XLA_FLAGS"] == ""
    assert "--xla_gpu_enable_pipelined_all_gather=true" in flags(place, "h200 8")["XLA_FLAGS"]
    assert flags(place, "h900") == 64


def test_what_the_user_set_wins(place):
    mine = "--xla_gpu_enable_latency_hiding_scheduler=false"
    found = flags(place, "h100 8", XLA_FLAGS=mine, XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
    assert found["XLA_FLAGS"].split().count(mine) == 1
    assert found["XLA_FLAGS"].count("latency_hiding_scheduler") == 1
    assert found["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    assert "--xla_disable_hlo_passes=rematerialization" in found["XLA_FLAGS"]


def test_jax_knows_the_flags(place):
    """JAX ends where it meets a flag that it does not know, also one that is not for its device."""
    found = flags(place, "h200 8")
    found |= {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": ""}
    script = "import jax; jax.jit(lambda x: x + 1)(1)"

    def status(**changes):
        words = [sys.executable, "-c", script]
        return subprocess.run(words, env=found | changes, capture_output=True).returncode

    assert status() == 0
    assert status(XLA_FLAGS=found["XLA_FLAGS"] + " --xla_gpu_no_such_flag=true") != 0
    assert status(JAX_OPTIMIZATION_LEVEL=flags(place, "h100")["JAX_OPTIMIZATION_LEVEL"]) == 0
    assert status(JAX_OPTIMIZATION_LEVEL="O9") != 0


def test_a_gpu_node_has_the_flags_of_its_gpus(place):
    submitted(place)
    (place / "launch" / "environment.sh").write_text("add_accelerator() { :; }\n", "utf-8")
    executable(place, "jinstr", 'echo "$XLA_FLAGS $JAX_OPTIMIZATION_LEVEL" > "$PLACE/flags"\n')
    executable(place, "nvidia-smi", 'for n in {1..8}; do echo "$NAME"; done\n')

    def told(**variables):
        variables = {"XLA_FLAGS": "", "JAX_OPTIMIZATION_LEVEL": ""} | variables
        assert bash(place, place / "launch" / "local_gpu.sh", "sft", **variables).returncode == 0
        return (place / "flags").read_text("utf-8").strip()

    assert "pipelined_all_gather" in told(NAME="NVIDIA H200")
    assert told(NAME="NVIDIA H100 80GB HBM3", CUDA_VISIBLE_DEVICES="3") == "O1"
    one = {"NAME": "NVIDIA H100 80GB HBM3", "CUDA_VISIBLE_DEVICES": "3"}
    assert "pipelined" in told(**one, JINSTR_PROCESSES="2")  # each of two hosts has one
    assert "pipelined" in told(NAME="NVIDIA H100 80GB HBM3", CUDA_VISIBLE_DEVICES="3,5")
    assert told(NAME="NVIDIA GeForce RTX 4090") == ""
    script = place / "launch" / "local_gpu.sh"
    shown = bash(place, script, "--print", "sft", NAME="NVIDIA H200", XLA_FLAGS="").stdout
    assert "pipelined" in shown and (place / "flags").read_text("utf-8").strip() == ""  # not run


SBATCH = """
job=$(cat)
printf '%s\\n' "$@" > "$PLACE/sbatch.words"
cd "$PLACE"
export SLURM_JOB_ID=7
while :; do
  asked=$(cat requeued 2>/dev/null | wc -l) status=0
  bash -c 'echo $$ > batch; eval "$0"' "$job" || status=$?
  [ "$(cat requeued 2>/dev/null | wc -l)" -gt "$asked" ] || exit "$status"
done
"""

# At 75 the time of the job is over: Slurm tells the shell of the job, and jinstr ends when it has heard of it. A TERM
# would have srun kill it.
SRUN = """
trap 'touch "$PLACE/killed"; exit 137' TERM
rm -f "$PLACE/told"
while [[ $1 == --* ]]; do shift; done
status=0
"$@" || status=$?
[ "$status" != 75 ] || kill -USR2 "$(cat batch)"
until [ "$status" != 75 ] || [ -e "$PLACE/told" ]; do sleep 0.01; done
exit "$status"
"""


def submitted(place):
    """A copy of launch/ in which .venv/bin/jinstr ends as $PLACE/statuses says."""
    shutil.copytree(LAUNCH, place / "launch")
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "jinstr").symlink_to(executable(place, "jinstr", RUN))
    (place / "calls").touch()


def preemptions(seed, count, codes):
    """Lines of `statuses`: so many ends before the last, each a few steps on."""
    chance, step, lines = random.Random(seed), 0, []
    for _ in range(count):
        step += chance.randrange(1, 50)
        lines.append(f"{chance.choice(codes)} {step}")
    return "\n".join([*lines, "0"]) + "\n"


def test_slurm_goes_on_through_twenty_requeues(place):
    submitted(place)
    executable(place, "sbatch", SBATCH)
    executable(place, "srun", SRUN)
    executable(place, "scontrol", 'echo "$*" >> "$PLACE/requeued"\n')
    executable(place, "scancel", '[ "$*" = "--signal=TERM 7" ] && touch "$PLACE/told"\n')
    (place / "statuses").write_text(preemptions(3, 20, [75, 76, 134, 137]), "utf-8")
    words = ["--nodes=2", "--gpus=8", "-p", "gpu", "--", "sft", "a b.gin", "RUN_DIR=run"]
    ended = bash(place, place / "launch" / "slurm.sh", *words)
    calls = (place / "calls").read_text("utf-8").splitlines()
    assert ended.returncode == 0 and calls == ["sft a b.gin RUN_DIR=run"] * 21, ended.stderr
    assert not (place / "killed").exists()
    requeued = (place / "requeued").read_text("utf-8").splitlines()
    assert requeued == ["requeue 7"] * (place / "statuses").read_text("utf-8").count("75 ")
    asked = (place / "sbatch.words").read_text("utf-8").splitlines()
    assert {
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "-p",
        "gpu",
        "--cpus-per-task=8",
    } <= {*asked}
    (place / "calls").write_text("", "utf-8")
    (place / "statuses").write_text("65\n0\n", "utf-8")
    assert bash(place, place / "launch" / "slurm.sh", *words).returncode == 65
    assert len((place / "calls").read_text("utf-8").splitlines()) == 1


def test_print_submits_nothing(place):
    for name in ("sbatch", "qsub", "gcloud"):
        executable(place, name, 'touch "$PLACE/called"\n')
    words = ["--", "sft", "RUN_DIR=run"]
    tpu = ["--type=v6e-16", "--zone=z"]
    for script, options, shown in (
        ("slurm.sh", ["--nodes=2"], "--nodes=2"),
        ("pbs.sh", ["--group=gaa50000", "--nodes=2"], "qsub -P gaa50000 -q rt_HF -l select=2"),
        ("tpu.sh", [*tpu, "--spot"], "--accelerator-type=v6e-16"),
    ):
        ended = bash(place, LAUNCH / script, "--print", *options, *words)
        assert ended.returncode == 0 and shown in ended.stdout and "RUN_DIR=run" in ended.stdout
        assert not (place / "called").exists(), script
        assert bash(place, LAUNCH / script, "--print", *options).returncode == 64  # no command
    bash(place, LAUNCH / "slurm.sh", *words)  # negative control
    assert (place / "called").exists()


QSUB = """
number=$(($(ls "$PLACE" | grep -c '^job\\.') + 1))
printf '%s\\n' "$@" > "$PLACE/words.$number"
cat > "$PLACE/job.$number"
echo "$number.pbs1"
"""


def test_pbs_jobs_follow_each_other_and_hand_the_signal_to_every_process(place):
    submitted(place)
    executable(place, "qsub", QSUB)
    # As Open MPI: signals but USR2 end the processes at once, and mpirun's status is the first that is not 0.
    mpirun = """
while [ "$1" != .venv/bin/jinstr ]; do shift; done
"$@" & a=$!
"$@" & b=$!
trap 'kill -USR2 $a $b' USR2
trap 'kill -KILL $a $b; exit 143' TERM
wait $a; wait $b; wait $a; wait $b
exit $?
"""
    executable(place, "mpirun", mpirun)
    executable(
        place,
        "jinstr",
        'trap "echo told >> $PLACE/told; exit 75" USR2\nfor i in {1..400}; do sleep 0.02; done\n',
    )
    words = ["--group=gaa50000", "--nodes=2", "--jobs=3", "--time=0:00:03", "--seconds=2"]
    ended = bash(place, place / "launch" / "pbs.sh", *words, "--", "sft", "RUN_DIR=run")
    assert ended.stdout.split() == ["1.pbs1", "2.pbs1", "3.pbs1"], ended.stderr
    asked = [(place / f"words.{n}").read_text("utf-8").split() for n in (1, 2, 3)]
    assert asked[0][:8] == "-P gaa50000 -q rt_HF -l select=2 -l walltime=0:00:03".split()
    assert "depend=afternotok:2.pbs1" in asked[2] and "-W" not in asked[0]
    job = bash(place, place / "job.1", PBS_NODEFILE="/dev/null")
    assert job.returncode == 75, job.stderr
    assert (place / "told").read_text("utf-8").split() == ["told"] * 2


# A cloud whose slice is taken away at random (seeded) while a command runs on it; 255 is what ssh then says.
GCLOUD = """
printf '%q ' "$@" >> "$PLACE/gcloud.words"
echo >> "$PLACE/gcloud.words"
state=$PLACE/state
case "$4" in
  describe) [ -e "$state" ] && cat "$state" ;;
  create) [ ! -e "$state" ] && echo ACTIVE > "$state" ;;
  delete) rm -f "$state" ;;
  scp) [ "$(cat "$state")" = ACTIVE ] ;;
  ssh)
    status=0
    jinstr || status=$?
    [ "$status" != 255 ] || [ $((RANDOM % 2)) = 0 ] || echo SUSPENDED > "$state"
    exit "$status"
    ;;
esac
"""


def slice_calls(place, *verbs):
    lines = (place / "gcloud.words").read_text("utf-8").splitlines()
    return [sum(line.split()[3] == verb for line in lines) for verb in verbs]


def test_a_tpu_slice_is_asked_for_again_after_each_preemption(place):
    submitted(place)
    subprocess.run(["git", "init", "-q", place], check=True)
    executable(place, "gcloud", "RANDOM=$(wc -c < $PLACE/calls)\n" + GCLOUD)
    (place / "statuses").write_text(preemptions(5, 20, [255]), "utf-8")
    tpu = ["--type=v5litepod-16", "--zone=z", "--spot", "--delete", f"--see={place}/run"]
    words = [place / "launch" / "tpu.sh", *tpu, "--", "sft", "RUN_DIR=/mnt/run"]
    ended = bash(place, *words, JINSTR_POLL="0")
    created, removed, started = slice_calls(place, "create", "delete", "ssh")
    assert ended.returncode == 0, ended.stderr
    assert started == 21 and created == removed and 5 < created < 21
    (place / "gcloud.words").unlink()  # negative controls: no progress; a mistake
    (place / "calls").write_text("", "utf-8")
    (place / "statuses").write_text("255\n" * 9, "utf-8")
    assert bash(place, *words, JINSTR_POLL="0").returncode == 255
    assert slice_calls(place, "ssh") == [3]
    (place / "gcloud.words").unlink()
    (place / "calls").write_text("", "utf-8")
    (place / "statuses").write_text("64\n0\n", "utf-8")
    assert bash(place, *words, JINSTR_POLL="0").returncode == 64
    assert slice_calls(place, "ssh", "delete") == [1, 1]
