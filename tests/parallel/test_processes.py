"""Runs of two real processes: the results of one process, and no process that waits for another one for ever."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jinstr.data import batching, loader, prepare, sources
from tests.parallel import several

# Sums over a batch are added up in another order: rounding of float32, over a handful of steps.
RELATIVE = 1e-5
SECONDS = 60.0  # until the others have ended, where one is gone


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world whose text is prepared."""
    world = several.World(tmp_path_factory.mktemp("processes"))
    sets(world.folder, "corpus", "")
    yield world
    world.close()


def sets(place, name, template):
    return prepare.ensure_prepared(
        sources.parse(f"{place}/{name}.jsonl"),
        tokenizer_path=str(place / "t.model"),
        template=template,
        config=prepare.PrepareConfig(cache_dir=str(place / "cache"), workers=1),
    )


def differences(found: dict, wanted: dict) -> np.ndarray:
    assert found.keys() == wanted.keys() and found
    return np.abs(np.array([found[step] / wanted[step] - 1 for step in wanted]))


def test_two_processes_are_one_run(world):
    place = world.folder
    both = [
        several.Run(world, several.words(place, "pretrain", name, NUM_STEPS=3), count)
        for name, count in (("one", 1), ("two", 2))
    ]
    for run in both:
        run.done()
    one, two = several.losses(place / "one"), several.losses(place / "two")
    assert differences(two, one).max() <= RELATIVE and len(two) == 3
    digests = {}
    for seed in (0, 1):
        config = loader.LoaderConfig(seq_len=64, batch_rows=4, seed=seed, rate_unit="passes")
        data = loader.Loader(sets(place, "corpus", ""), config)
        digests[seed] = [batching.batch_digest(data.read(step)) for step in range(3)]
    assert several.digests(place / "two") == several.digests(place / "one") == digests[0]
    # Negative controls: batches of another seed, and the losses of another step.
    assert not set(digests[0]) & set(digests[1])
    assert differences({1: two[2], 2: two[1]}, {1: one[1], 2: one[2]}).min() > 100 * RELATIVE
    assert (
        both[1].text(1).count("step ") == 0 < both[1].text(0).count("step ")
    )  # one of them speaks


@pytest.mark.slow
def test_two_processes_as_two_slices(world):
    """Replicas in two groups of two devices, kernels split within each."""
    place, settings = world.folder, dict(NUM_STEPS=3, MESH_FSDP=2)
    words = [
        several.words(place, "pretrain", "whole", **settings),
        several.words(place, "pretrain", "slices", MESH_SLICES=2, **settings),
    ]
    runs = [several.Run(world, words[0], 1, 4), several.Run(world, words[1], 2, 2)]
    for run in runs:
        run.done()
    found, wanted = several.losses(place / "slices"), several.losses(place / "whole")
    assert differences(found, wanted).max() <= RELATIVE and len(found) == 3
    assert several.digests(place / "slices") == several.digests(place / "whole")
    # One process is no two slices.
    alone = several.Run(world, [*words[1], f"RUN_DIR={place}/alone"], 1, 4)
    assert alone.end() == [78] and "JI-MESH-004" in alone.text()


@pytest.fixture(scope="module")
def base(world):
    """The world with a model of one step, to tune."""
    several.Run(world, several.words(world.folder, "pretrain", "base", NUM_STEPS=1), 1).done()
    return world


def compare(world, command, **settings):
    """Runs of a command by one process, which prepares its data, and by two; their folders."""
    for name, count in (("1", 1), ("2", 2)):
        words = several.words(world.folder, command, command + name, **settings)
        several.Run(world, words, count).done()
    return world.folder / f"{command}1", world.folder / f"{command}2"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "reward", "dpo"])
def test_tuning(base, command):
    settings = {"EVAL_EVERY": 2, "HOLDOUT": 0.03, "SEQ_LEN": 128}
    if command != "sft":
        settings |= {"DATA": base.folder / "rankings.jsonl", "SEQ_LEN": 512, "BATCH_TOKENS": 1024}
    if command != "reward":
        settings |= {"SAMPLES": 2, "MAX_NEW_TOKENS": 8}
    one, two = compare(base, command, **settings)
    assert differences(several.losses(two), several.losses(one)).max() <= RELATIVE
    assert several.digests(two) == several.digests(one)
    asked = [several.lines(folder / "samples.jsonl") for folder in (one, two)]
    assert asked[0] == asked[1] and (asked[0] or command == "reward")
    seen = [
        {(line["step"], n): v for line in several.lines(f / "metrics.jsonl") for n, v in line.items()
         if n.startswith("eval/") and v}
        for f in (one, two)
    ]  # fmt: skip
    assert differences(seen[1], seen[0]).max() <= RELATIVE


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["FSDP=2", "TENSOR=2", "CONTEXT=2", "FSDP=4", "TENSOR=4"])
def test_every_axis_may_go_over_processes(two, axes):
    """Also those along which two processes hold the same rows, or parts of them; two devices each, or one."""
    name, size = axes.split("=")
    settings = {"MESH_DATA": 1, f"MESH_{name}": size, "NUM_STEPS": 6}
    words = several.words(two.place, "pretrain", axes, **settings)
    several.Run(two.world, words, 2, devices=int(size) // 2).done()
    assert several.digests(two.place / axes) == several.digests(two.place / "undisturbed")
    found = differences(several.losses(two.place / axes), two.losses)
    told(axes, relative=float(found.max()))
    assert found.max() <= RELATIVE and len(found) == 6


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ppo", "grpo"])
def test_practice(base, command):
    """Answers and scores are equal; what sums of floats say of them, the losses among it, within rounding."""
    settings = {"MINIBATCHES": 2, "ANSWERS": 2, "EVAL_EVERY": 1, "KL_REWARD": 0.05}
    one, two = compare(base, command, **settings)
    samples = several.lines(one / "samples.jsonl")
    assert several.lines(two / "samples.jsonl") == samples and len(samples) >= 6
    compare_practice(command, one, two, EXACT)


@pytest.mark.slow
def test_a_reward_model_is_asked_by_all_processes(base):
    """It lies in parts on their devices, so scores agree within rounding; the first one asks the function beside it."""
    settings = {
        "DATA": base.folder / "rankings.jsonl",
        "SEQ_LEN": 512,
        "BATCH_TOKENS": 1024,
        "NUM_STEPS": 4,
        "LEARNING_RATE": 0.01,
    }
    several.Run(base, several.words(base.folder, "reward", "judge", **settings), 1).done()
    reward = f"{base.folder}/judge,some_rewards:short*0.1"
    settings = {
        "MINIBATCHES": 2,
        "ANSWERS": 2,
        "KL_REWARD": 0.05,
        "REWARD": reward,
        "MESH_FSDP": 2,
        "MESH_DATA": 1,
    }
    words = [several.words(base.folder, "ppo", f"judged{n}", **settings) for n in (1, 2)]
    several.Run(base, words[0], 1, 2).done()
    several.Run(base, words[1], 2, 1).done()
    one, two = (base.folder / f"judged{n}" for n in (1, 2))
    lines = compare_practice(
        "model", one, two, tuple(n for n in EXACT if "score" not in n and "reward" not in n)
    )
    judged = [line["rl/reward/judge/mean"] for line in lines if "rl/reward/judge/mean" in line]
    assert min(map(abs, judged)) > 0.01  # the model has an opinion


def compare_practice(told_as, one, two, exact):
    """The lines of two runs that are to be equal: those named `exact` to the bit, all others within rounding."""
    lines = [several.lines(folder / "metrics.jsonl") for folder in (one, two)]
    worst, compared = 0.0, 0
    for first, second in zip(*lines, strict=True):
        assert first.keys() == second.keys()
        for name in first.keys() - TIMES:
            if name.startswith(exact):
                assert second[name] == first[name], name
            elif name in ROUNDING:  # themselves what rounding makes of two equal things
                assert max(first[name], second[name]) < RELATIVE, name
            elif not name.startswith("rl/time"):
                # Advantages are shifted to mean 0, and so is the loss: relative to 1 at least.
                worst = max(worst, abs(second[name] - first[name]) / max(1.0, abs(first[name])))
                compared += 1
    told(told_as, worst=worst, compared=compared)
    assert worst <= RELATIVE and compared > 20
    # Negative control: another iteration has other losses.
    losses = [line["rl/policy/loss"] for line in lines[1] if "rl/policy/loss" in line]
    assert abs(losses[0] - losses[1]) > 100 * RELATIVE
    return lines[1]


EXACT = (
    "step",
    "eval/",
    "rl/gen/length",
    "rl/gen/ended",
    "rl/gen/distinct",
    "rl/objective/score",
    "rl/reward/",
)
ROUNDING = {"rl/policy/mismatch_mean", "rl/policy/mismatch_max", "rl/policy/ratio_change_first"}
TIMES = {"rl/gen/tokens_per_second"}


def told(name, **facts):
    """A line of measurements, shown by pytest -s."""
    print(json.dumps({"measured": name} | facts), flush=True)


class Two:
    """The run of two processes that faults are held against: six steps, a save after each, so that one is committed
    when a fault comes."""

    def __init__(self, world):
        self.world, self.place = world, world.folder
        place = world.folder
        self.words("undisturbed").done()
        self.states = several.states(place / "undisturbed", 6)
        self.losses = several.losses(place / "undisturbed")

    def words(self, name, count=2, **options):
        words = several.words(self.place, "pretrain", name, NUM_STEPS=6, SAVE_EVERY=1)
        return several.Run(self.world, words, count, **options)

    def restart_is_exact(self, name):
        run = self.words(name)
        run.done()
        assert "going on from step" in run.text()
        assert several.states(self.place / name, 6) == self.states
        assert several.losses(self.place / name) == self.losses


@pytest.fixture(scope="module")
def two(world):
    return Two(world)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_is_killed(two, killed):
    name = f"killed{killed}"
    run = two.words(name, faults={killed: "step@4=kill", 1 - killed: ""})
    run.wait(killed)
    began = time.monotonic()
    statuses = run.end()
    seconds = time.monotonic() - began
    told(name, statuses=statuses, seconds=round(seconds, 1))
    assert statuses[killed] == -signal.SIGKILL and seconds < SECONDS
    assert statuses[1 - killed] in (76, -signal.SIGABRT)
    two.restart_is_exact(name)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_is_stopped(two, stopped):
    name = f"stopped{stopped}"
    run = two.words(name, faults={stopped: "step@4=hang", 1 - stopped: ""})
    run.until("fault: step@4=hang", stopped)
    run.tell(stopped, signal.SIGSTOP)
    began = time.monotonic()
    status = run.wait(1 - stopped)
    seconds = time.monotonic() - began
    run.tell(stopped, signal.SIGKILL)
    run.end()
    told(name, status=status, seconds=round(seconds, 1))
    assert status in (124, 76, -signal.SIGABRT) and seconds < SECONDS
    two.restart_is_exact(name)


@pytest.mark.slow
def test_a_process_sleeps_while_its_heart_beats(two):
    words = several.words(
        two.place, "pretrain", "asleep", NUM_STEPS=6, SAVE_EVERY=1, STALL_SECONDS=40
    )
    run = several.Run(two.world, words, 2, faults={0: "", 1: "step@4=hang"})
    run.until("fault: step@4=hang", 1)
    began = time.monotonic()
    statuses = run.end()
    told("asleep", statuses=statuses, seconds=round(time.monotonic() - began, 1))
    assert statuses == [76, 124], run.text(0)[-2000:] + run.text(1)[-2000:]
    assert "where every thread stands" in run.text(1) and "faults.py" in run.text(1)
    two.restart_is_exact("asleep")


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_one_process_gets_a_signal(two, asked):
    name = f"asked{asked}"
    run = two.words(name, faults={asked: "step@3=term", 1 - asked: ""})
    statuses = run.end()
    steps = sorted(int(p.name) for p in (two.place / name / "checkpoints").iterdir())
    told(name, statuses=statuses, steps=steps)
    assert statuses == [75, 75], run.text(0)[-2000:] + run.text(1)[-2000:]
    assert steps[-1] in (3, 4, 5)
    assert f"saved step {steps[-1]}" in run.text(0) and f"saved step {steps[-1]}" in run.text(1)
    two.restart_is_exact(name)


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(two):
    run = two.words("broken", faults={0: "", 1: "data_read@3=error"})
    began = time.monotonic()
    statuses = run.end()
    told("broken", statuses=statuses, seconds=round(time.monotonic() - began, 1))
    assert statuses == [74, 74] and "JI-LOAD-006" in run.text(1) and "JI-PEER-002" in run.text(0)
    two.restart_is_exact("broken")


@pytest.mark.slow
def test_a_save_that_fails_in_one_process_ends_all(two):
    run = two.words("unsaved", faults={0: "", 1: "save_written@4=error"})
    statuses = run.end()
    assert statuses == [74, 74], run.text(0)[-2000:] + run.text(1)[-2000:]
    assert not (two.place / "unsaved" / "checkpoints" / "4").exists()
    two.restart_is_exact("unsaved")


@pytest.mark.slow
def test_another_number_of_processes_goes_on(two):
    """Two, then one, then two processes: the arrays are the same bits, the losses those of one within rounding."""
    for count, step in ((2, 2), (1, 5)):  # the first step of a start is a phase of its own
        run = two.words(
            "changing", count=count, faults=dict.fromkeys(range(count), f"step@{step}=term")
        )
        assert set(run.end()) == {75}, run.text()
    two.words("changing").done()
    assert several.digests(two.place / "changing") == several.digests(two.place / "undisturbed")
    found = differences(several.losses(two.place / "changing"), two.losses)
    told("changing", relative=float(found.max()))
    assert found.max() <= RELATIVE and len(found) == 6


@pytest.mark.slow
def test_unprepared_data_is_refused(world):
    place = world.folder
    words = several.words(place, "pretrain", "unprepared", CACHE_DIR=place / "empty")
    run = several.Run(world, words, 2)
    assert run.end() == [78, 78], run.text()
    command = f"jinstr prepare DATA={place}/corpus.jsonl TOKENIZER={place}/t.model"
    assert any("JI-PREPARE-004" in run.text(i) and command in run.text(i) for i in (0, 1))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun: apt-get install openmpi-bin")
def test_mpirun_needs_no_variables(world):
    place = world.folder
    own = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    words = several.words(place, "pretrain", "mpirun", NUM_STEPS=3)
    entry = "import sys; from jinstr import run; sys.exit(run.console())"
    command = ["mpirun", "--oversubscribe", "-np", "2", sys.executable, "-c", entry, *words]
    done = subprocess.run(
        command,
        env=world.environment() | own,
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "process 0 of 2, met at" in done.stdout, done.stderr[-3000:]
    about = json.loads((place / "mpirun/checkpoints/3/run.json").read_text("utf-8"))
    assert about["place"]["processes"] == 2


# What a busy machine does: the thread that listens comes back from the service when Python is about to end.
LATE = """
import time
from jinstr.parallel import processes

processes.start(print)
client = processes.client()

class Late:
    def __getattr__(self, name):
        return getattr(client, name)

    def key_value_try_get(self, key):
        return client.blocking_key_value_get("what nobody sets", 1500)

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(3.0)

processes._client = Late()
kept = Slow()  # Python takes it away in the midst of its end
time.sleep(2 * processes.LOOK_SECONDS)
processes.finish()
"""


@pytest.mark.slow
def test_a_process_that_is_done_ends_with_0_on_a_busy_machine(world):
    port, running = several.free_port(), []
    for index in range(2):
        own = {"JINSTR_COORDINATOR": f"127.0.0.1:{port}", "JINSTR_PROCESSES": "2"}
        own |= world.environment() | {"JINSTR_PROCESS": str(index)}
        running.append(subprocess.Popen([sys.executable, "-c", LATE], env=own))
    assert [process.wait(300) for process in running] == [0, 0]
