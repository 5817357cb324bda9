"""jinstr doctor: runs that were stopped, killed, damaged or stand still are told apart, and stay as they are."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jinstr import errors
from jinstr.commands import doctor
from jinstr.train import machine_state, manifests, run_state, vitals

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODEL = """
from __gin__ import dynamic_registration
from jinstr.models import config
config.DecoderConfig.hidden_size = 16
config.DecoderConfig.num_layers = 1
config.DecoderConfig.num_heads = 2
config.DecoderConfig.num_kv_heads = 1
config.DecoderConfig.head_dim = 8
config.DecoderConfig.mlp_size = 16
"""


def python(code, *words, **variables):
    """A Python process of this package."""
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": fast} | variables
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(condition, process, seconds=90.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < limit
        time.sleep(0.05)


def tree(folder):
    """Every file: its bytes and when it changed."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def look(run_dir, **settings):
    before = tree(run_dir)
    usual = {"devices": False, "verify": True, "stacks": False}
    found = doctor.doctor(run_dir=str(run_dir), **usual | settings)
    if not settings.get("stacks"):
        assert tree(run_dir) == before
    return found


@pytest.fixture(scope="module")
def place(world, tokenizer_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "model.gin").write_text(MODEL, "utf-8")
    return folder


@pytest.fixture(scope="module")
def train(place, world, tokenizer_path):
    """A function that starts `jinstr pretrain` of 12 steps in a folder, with faults."""

    def start(*words, faults="", name="run"):
        data = [f"DATA={world}/corpus.jsonl", f"TOKENIZER={tokenizer_path}"]
        size = ["NUM_STEPS=12", "SAVE_EVERY=4", "SEQ_LEN=32", "BATCH_TOKENS=64", "LOG_EVERY=1"]
        where = [f"RUN_DIR={place}/{name}", f"CACHE_DIR={place}/cache", "WORKERS=1"]
        return python(
            "import sys; from jinstr import run; sys.exit(run.main())",
            *("pretrain", f"{place}/model.gin", *data, *size, *where, "--allow_faults", *words),
            JINSTR_FAULTS=faults,
            JAX_COMPILATION_CACHE_DIR=f"{place}/compiled",
        )

    return start


@pytest.fixture(scope="module")
def killed(train, place):
    """(what was seen while a run stood still after step 9, its folder after it was killed)."""
    process = train(faults="step@10=hang")
    run_dir = place / "run"
    until(lambda: (run_dir / "checkpoints" / "8").exists(), process)
    told = run_dir / "processes" / "0.json"
    until(lambda: b"hang" in os.read(process.stdout.fileno(), 1 << 16), process)
    until(lambda: json.loads(told.read_text())["step"] == 9, process)
    alive = look(run_dir, stacks=True)
    assert process.poll() is None  # the signal did not end it
    process.kill()
    process.communicate()
    assert json.loads(told.read_text())["ended"] is None
    return alive, run_dir


@pytest.fixture(scope="module")
def finished(train, place, killed, tmp_path_factory):
    """The folder of the same run, which went on to its end. The killed one lies beside it."""
    _, run_dir = killed
    before = tmp_path_factory.mktemp("before") / "run"
    shutil.copytree(run_dir, before)
    process = train()
    assert process.wait() == 0, process.communicate()[0][-3000:]
    return before, run_dir


def test_a_live_run_that_stands_still(killed):
    alive, _ = killed
    state, words = alive["processes"][0]
    assert state == "running" and "step 9, phase step" in words
    assert "alive" in alive["held"] and alive["findings"] == []
    assert "in point" in alive["stacks"][0] and "faults.py" in alive["stacks"][0]


def test_a_killed_run(finished, capsys):
    before, _ = finished
    found = look(before)
    out = capsys.readouterr().out
    (finding,) = found["findings"]
    assert found["processes"][0][0] == "gone" and "process 0 is gone without a word" in finding
    assert "goes on from the newest checkpoint" in finding and f"! {finding}" in out
    assert "which is gone; the next start takes over" in found["held"]
    assert found["checkpoints"]["verified"] == 8 and found["cursor"]["rows"] == 16
    assert found["progress"]["step"] == 8 and 0 < found["cursor"]["epochs"]["corpus"] < 1
    assert "log            step 8 of 12" in out


def test_a_finished_run(finished, capsys):
    found = look(finished[1])
    assert found["findings"] == [] and found["held"] == ""
    assert found["processes"][0][0] == "ended" and "ended with 0" in found["processes"][0][1]
    assert found["checkpoints"]["steps"] == [8, 12] and found["cursor"]["step"] == 12
    assert "nothing is wrong" in capsys.readouterr().out


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_config(run_dir):
    path = run_dir / "config.json"
    path.write_text(path.read_text("utf-8").replace('"num_steps": 12', '"num_steps": 13'), "utf-8")


def array_file(run_dir, step):
    folder = run_dir / "checkpoints" / str(step) / "state"
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "config.json was changed": change_config,
    "config.json is not there": lambda run: (run / "config.json").unlink(),
    "config.json cannot be read": lambda run: os.truncate(run / "config.json", 50),
    "12 does not verify: .*another digest.*goes on from step 8": lambda run: flip(
        array_file(run, 12)
    ),
    "12 does not verify: .*bytes": lambda run: os.truncate(array_file(run, 12), 1),
    "8 does not verify.*none is left": lambda run: [flip(array_file(run, n)) for n in (8, 12)],
    "manifest.json is missing": lambda run: (run / "checkpoints/12/manifest.json").unlink(),
    "16.saving of a kill": lambda run: (run / "checkpoints/16.saving").mkdir(),
    "4.corrupt, set aside": lambda run: (run / "checkpoints/4.corrupt").mkdir(),
    "process 0: .*0.json cannot be read": lambda run: os.truncate(run / "processes/0.json", 30),
    "0.json is not what was written": lambda run: (run / "processes/0.json").write_text("{}"),
    "run.lock is not what was written": lambda run: (run / "run.lock").write_text("me"),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_damage_is_named(finished, words, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[1], run_dir)
    DAMAGE[words](run_dir)
    assert any(re.search(words, finding) for finding in look(run_dir)["findings"])


def test_sizes_alone_do_not_see_a_flipped_bit(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    flip(array_file(tmp_path / "run", 12))
    assert look(tmp_path / "run", verify=False)["checkpoints"]["verified"] == 12
    assert look(tmp_path / "run")["checkpoints"]["verified"] == 8
    assert manifests.problem(tmp_path / "run" / "checkpoints", 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, faults, status, words",
    [
        ("stopped", "step@10=term", 75, "SIGTERM: saved step 10; the same command goes on there"),
        ("stalled", "step@10=hang", 124, "JI-STALL-001: no progress for"),
        ("unread", "data_read@9=error", 74, "data of step 10, of corpus"),
    ],
)
def test_real_runs_that_end_early(train, place, name, faults, status, words):
    process = train("STALL_SECONDS=20", faults=faults, name=name)
    out, _ = process.communicate()
    assert process.returncode == status, out[-2000:]
    found = look(place / name)
    state, told = found["processes"][0]
    assert state == "ended" and told.startswith(f"ended with {status} ") and words in told
    assert ("in point" in found["stacks"].get(0, "")) == (status == 124)
    process = train(name=name)
    process.communicate()
    assert process.returncode == 0 and look(place / name)["findings"] == []


def test_it_imports_no_jax(finished):
    code = (
        "import sys; from jinstr import run\n"
        "status = run.main()\n"
        "print(status, sorted({'jax', 'jaxlib', 'tensorflow', 'orbax'} & {*sys.modules}))"
    )
    out = python(code, "doctor", str(finished[1])).communicate()[0]
    assert out.splitlines()[-1] == "0 []"
    # Negative control: other commands do.
    out = python(code, "config", "SEARCH=num_steps").communicate()[0]
    assert "'jax'" in out.splitlines()[-1]


def test_no_run_is_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match="JI-DOCTOR-001"):
        look(tmp_path)


TOLD = """
import os, pathlib, signal, sys, time
from jinstr import errors
from jinstr.train import stopping, vitals, watchdog
with vitals.telling(pathlib.Path(sys.argv[1]), int(sys.argv[2]), "sft"):
    print("begun", flush=True)
"""


def told(tmp_path, rank, code):
    """A process that tells of itself and does something; its process, which ended, and what is seen of it."""
    process = python(TOLD + code, str(tmp_path), str(rank))
    out = process.communicate(timeout=60)[0]
    found = {p.rank: p for p in run_state.processes(tmp_path)}
    return process.returncode, found[rank], out


def test_how_processes_end(tmp_path):
    """Each by a real process."""
    status, one, _ = told(
        tmp_path, 0, "    raise errors.DataError('JI-X-001', 'row 7: API_KEY=abcdefgh12')\n"
    )
    assert status == 1 and "ended with 65" in one.words and "JI-X-001: row 7" in one.words
    assert "abcdefgh12" not in (tmp_path / "processes" / "0.json").read_text()
    stall = (
        "    def waiting_for_a_peer():\n        time.sleep(30)\n"
        "    with watchdog.Watchdog(0.5) as watch:\n        watch.beat('step', 41)\n"
        "        waiting_for_a_peer()\n"
    )
    status, one, _ = told(tmp_path, 1, stall)
    assert status == 124 and one.state == "ended" and "ended with 124" in one.words
    assert one.facts["step"] == 41 and "waiting_for_a_peer" in run_state.stacks(
        tmp_path, one, False
    )
    status, one, _ = told(tmp_path, 2, "    1 / 0\n")
    assert "ended with 1 " in one.words and "ZeroDivisionError" in one.words
    status, one, _ = told(tmp_path, 3, "    os.kill(os.getpid(), 9)\n")
    assert status == -9 and one.state == "gone"
    status, one, _ = told(tmp_path, 4, "    pass\n")
    assert status == 0 and "ended with 0" in one.words


def test_processes_that_live(tmp_path):
    process = python(TOLD + "    time.sleep(60)\n", str(tmp_path), "0")
    process.stdout.readline()
    path = tmp_path / "processes" / "0.json"
    facts = json.loads(path.read_text())

    def state(now=None, **changes):
        path.write_text(json.dumps(facts | changes))
        (found,) = run_state.processes(tmp_path, now)
        return found.state

    assert state() == "running"
    assert state(allowed=120.0, waited=121.0) == "stalled"
    assert state(allowed=120.0, waited=119.0 - vitals.BEAT) == "running"
    assert state(began=facts["began"] + 1) == "gone"  # another process has its number now
    other = {"host": "b", "boot": "elsewhere"}
    assert state(**other) == "running" and state(time.time() + 61, **other) == "silent"
    os.kill(process.pid, signal.SIGSTOP)
    until(lambda: state() == "stopped", process, 5.0)
    os.kill(process.pid, signal.SIGCONT)
    until(lambda: state() == "running", process, 5.0)
    (tmp_path / "run.lock").touch()
    assert "do not start another" in run_state.holder(tmp_path, run_state.processes(tmp_path))[1]
    process.kill()
    process.wait()
    assert state() == "gone"
    # Of a start long before: more processes had a part in it.
    path.with_name("1.json").write_text(json.dumps(facts | {"started": facts["started"] - 1e4}))
    assert [p.rank for p in run_state.processes(tmp_path)] == [0]


def test_a_process_without_a_handler_gets_no_signal(tmp_path):
    process = python("import sys; print('here', flush=True); sys.stdin.read()")
    process.stdout.readline()
    facts = vitals.machine() | {"pid": process.pid, "began": vitals.began(process.pid)}
    it = run_state.Process(rank=0, state="running", words="", facts=facts | {"stacks": True})
    assert run_state.stacks(tmp_path, it, ask=True, patience=0.2) == ""
    assert process.poll() is None
    process.kill()
    process.wait()


def test_what_cannot_be_written_fails_no_run(tmp_path):
    (tmp_path / "processes").write_text("a file where the folder should be")
    process = python(TOLD + "    print('done')\n", str(tmp_path), "0")
    out = process.communicate()[0]
    assert process.returncode == 0 and out.split() == ["begun", "done"]


def test_a_machine(monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JINSTR_DEBUG", "1")
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("TPU_NAME", "https://me:canary@here")
    monkeypatch.setattr(machine_state, "tensorflow", lambda: "")
    found = doctor.doctor(run_dir="", devices=True, verify=True, stacks=False)
    out = capsys.readouterr().out
    assert [device["platform"] for device in found["devices"]] == ["cpu", "cpu"]
    findings = "\n".join(found["findings"])
    assert "splits the CPU into 2 devices" in findings and "JINSTR_DEBUG is set" in findings
    assert "canary" not in out and "HF_TOKEN=[redacted]" in out
    assert f"jax {found['versions']['jax']}" in out


def test_a_gpu_that_jax_does_not_see(monkeypatch):
    cpu = [{"platform": "cpu", "kind": "cpu", "bytes": 0}]
    gpu = [{"platform": "gpu", "kind": "H100", "bytes": 1}]
    libraries = {"jax": "0.10.2", "jaxlib": "0.10.2"}
    monkeypatch.setattr(
        machine_state, "nvidia", lambda: (["NVIDIA H100, 550, 81559 MiB, 0 MiB"], "")
    )
    monkeypatch.setattr(machine_state, "tpu_chips", lambda: 0)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (finding,) = machine_state.about_devices(cpu, "", libraries)
    assert finding.endswith("sees only the CPU: JAX_PLATFORMS=cpu; unset it")
    monkeypatch.delenv("JAX_PLATFORMS")
    (finding,) = machine_state.about_devices(cpu, "", libraries)
    assert finding.endswith('pip install "jax[cuda12]==0.10.2"')
    (finding,) = machine_state.about_devices(cpu, "", libraries | {"jax-cuda12-plugin": "0.10.2"})
    assert "although jax-cuda12-plugin is installed" in finding
    (finding,) = machine_state.about_devices([], "RuntimeError: busy", libraries)
    assert "JAX does not start: RuntimeError: busy (another process may hold" in finding
    assert machine_state.about_devices(gpu, "", libraries) == []
    assert machine_state.about_libraries(libraries) == []
    (finding,) = machine_state.about_libraries(libraries | {"jax-cuda12-plugin": "0.9.0"})
    assert 'pip install "jax[cuda12]==0.10.2"' in finding


def test_children_that_do_not_answer():
    assert machine_state._ask("import time; time.sleep(9)", 0.3) == ({}, "no answer within 0 s")
    assert machine_state._ask("raise RuntimeError('no device')", 20)[1] == "RuntimeError: no device"
    assert "status -6" in machine_state._ask("import os; os.abort()", 20)[1]


def test_room_and_handles(monkeypatch):
    space = {"prepared sets": ("/x", 3.0), "temporary files": ("/y", 30.0)}
    monkeypatch.setattr(machine_state.resource, "getrlimit", lambda _: (1024, 1 << 20))
    one, two, three = machine_state.about_limits(space, {"free": 0.5})
    assert "may open 1024 files" in one and "/x has 3.0 GB left" in two and "0.5 GiB" in three
    monkeypatch.setattr(machine_state.resource, "getrlimit", lambda _: (8192, 8192))
    assert machine_state.about_limits({"this folder": ("/y", 30.0)}, {"free": 5.0}) == []
