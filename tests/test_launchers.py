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
            words, cwd=place, env=environment(place), stderr=subprocess.DEVNULL
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
