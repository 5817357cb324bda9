"""Functions in processes: what they may return, and that hanging, dying and failing cost one answer each."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jinstr import errors, redact
from jinstr.rlhf import rewards, rewards_pool, rewards_worker
from tests.rlhf import asking

pytestmark = pytest.mark.usefixtures("on_path")


def is_running(pid):
    """Is it there, and more than an ended process that nobody waited for? Its threads end one after another."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            is_ended = file.read().rpartition(")")[2].split()[0] == "Z"
        return not is_ended or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid, seconds=10.0):
    limit = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < limit:
        time.sleep(0.05)
    return not is_running(pid)


def test_results_come_in_the_order_of_the_answers(opened):
    found = opened("user_rewards:number_of_row")
    # The first ones take longest, so that they are finished last.
    rows = [asking.asked(number=n, seconds=0.2 if n < 2 else 0.0) for n in range(12)]
    scores = rewards.score(found, rows)
    assert scores.total.dtype == np.float32 and scores.total.tolist() == list(range(12))
    backwards = rewards.score(found, rows[::-1]).total
    assert backwards.tolist() == list(range(11, -1, -1)) != scores.total.tolist()
    assert scores.notes == () and scores.faults == {"user_rewards:number_of_row": {}}


def test_what_a_function_may_return(opened):
    found = opened("user_rewards:acts")
    fine = {"zero": 0.0, "true": 1.0, "false": 0.0, "f32": 0.5, "most": 3e38}
    none = ["none", "nan"]
    infinite = ["inf", "huge", "large"]
    wrong = ["text", "list", "array", "complex", "raise", "exit"]
    acts = [*fine, *none, *infinite, *wrong]
    scores = rewards.score(found, [asking.asked(act=act, id=f"q-{act}") for act in acts])
    np.testing.assert_array_equal(scores.total[: len(fine)], np.array([*fine.values()], np.float32))
    assert np.isnan(scores.total[len(fine) :]).all()
    assert scores.faults["user_rewards:acts"] == {"infinite": 3, "error": 6}
    infinite_note, error_note = scores.notes
    assert "infinite, 3 of 16 answers, the first at row q-inf" in infinite_note
    assert (
        "error, 6 of 16 answers, the first at row q-text: TypeError: '3' is no number" in error_note
    )
    found = rewards.metrics(scores)
    assert found["reward/user_rewards:acts/infinite_rate"] == 3 / 16
    assert found["reward/user_rewards:acts/error_rate"] == 6 / 16
    assert found["reward/user_rewards:acts/timeout_rate"] == 0
    assert found["reward/nan_rate"] == 11 / 16 and found["reward/constant"] == 0


def test_an_error_is_told_in_one_line_with_its_place_and_without_secrets(opened):
    scores = rewards.score(opened("user_rewards:acts"), [asking.asked(act="raise", id="q1")])
    (note,) = scores.notes
    assert f"row q1: ValueError: two lines of {redact.MARK} (user_rewards.py:" in note
    assert "aaaa" not in note and "\n" not in note


def test_a_call_that_hangs_or_dies_costs_its_answer_alone(opened):
    found = opened("user_rewards:acts", timeout=1.0)
    acts = ["zero", "sleep", "f32", "regex", "true", "die", "f32", "kill", "zero"]
    began = time.monotonic()
    scores = rewards.score(found, [asking.asked(act=act) for act in acts])
    assert time.monotonic() - began < 15
    nan = np.nan
    np.testing.assert_array_equal(scores.total, [0, nan, 0.5, nan, 1, nan, 0.5, nan, 0])
    assert scores.faults["user_rewards:acts"] == {"timeout": 4}
    assert rewards.metrics(scores)["reward/user_rewards:acts/timeout_rate"] == 4 / 9
    assert "the first at row 1: no score after 1 seconds" in scores.notes[0]
    # Many that die are no reason to give up: none of them did so without a call.
    scores = rewards.score(found, [asking.asked(act=act) for act in ["die"] * 5 + ["f32"]])
    np.testing.assert_array_equal(scores.total, [*[nan] * 5, 0.5])
    assert "5 of 6 answers, the first at row 0: its process ended with status 3" in scores.notes[0]
    scores = rewards.score(found, [asking.asked(act="kill")])
    assert np.isnan(scores.total[0]) and "its process was killed by signal 9" in scores.notes[0]


def test_the_time_limit_is_of_one_call_not_of_the_queue(opened):
    found = opened("user_rewards:number_of_row", timeout=1.0, workers=1)
    began = time.monotonic()
    scores = rewards.score(found, [asking.asked(number=n, seconds=0.3) for n in range(5)])
    assert time.monotonic() - began > 1.0 and scores.total.tolist() == [0, 1, 2, 3, 4]


def test_what_a_hung_call_started_ends_with_it(opened, tmp_path):
    found = opened("user_rewards:acts", timeout=1.5, workers=1)
    file = tmp_path / "pid"
    scores = rewards.score(found, [asking.asked(act="child", file=str(file))])
    assert np.isnan(scores.total[0]) and ends(int(file.read_text()))


def test_stop_names_function_row_and_error_and_leaves_nothing_behind(opened):
    found = opened("user_rewards:number_of_row", on_error="stop")
    rows = [
        asking.asked(number=7, seconds=0.5),
        asking.asked(id="q2"),
        *[asking.asked(number=1)] * 20,
    ]
    with pytest.raises(errors.DataError, match="user_rewards:number_of_row, row q2: KeyError: 'n"):
        rewards.score(found, rows)
    # The slow call of the run before may not be taken for an answer of this one.
    scores = rewards.score(found, [asking.asked(number=n, seconds=0.1) for n in range(6)])
    assert scores.total.tolist() == [0, 1, 2, 3, 4, 5]
    lenient = rewards.score(opened("user_rewards:number_of_row"), rows)  # negative control
    assert np.isnan(lenient.total).tolist() == [False, True, *[False] * 20]


def processes(found, workers):
    """Ids of the processes that call a function, when all of them have."""
    seen = set()
    for _ in range(50):
        scores = rewards.score(found, [asking.asked()] * 4)
        assert scores.notes == () and not np.isnan(scores.total).any()
        seen |= {int(pid) for pid in scores.by_name["user_rewards:process"]}
        if len(seen) >= workers:
            return seen
    raise AssertionError(seen)


def test_processes_are_kept_shared_and_ended(opened):
    found = opened("user_rewards:process,user_rewards:length*2", workers=2)
    pids = processes(found, 2)
    assert processes(found, 2) == pids  # no third in 8 calls or more
    assert os.getpid() not in pids and all(map(is_running, pids))
    rewards.close(found)
    assert not any(map(is_running, pids))
    rewards.close(found)  # again: nothing happens
    with pytest.raises(RuntimeError, match="were closed"):
        rewards.score(found, [asking.asked()])


def test_waiting_for_work_is_no_call_and_ending_then_costs_no_answer(opened):
    found = opened("user_rewards:process", timeout=1.0, workers=4)
    first = processes(found, 4)
    time.sleep(1.2)  # more than a call may take
    alone = rewards.score(found, [asking.asked()])  # three go on waiting
    assert alone.total[0] in first
    assert processes(found, 4) == first
    for pid in first:
        os.kill(pid, signal.SIGKILL)
        assert ends(pid)
    assert not processes(found, 4) & first


def test_a_process_whose_caller_does_not_listen_ends_without_a_word(capfd):
    worker = rewards_pool._Worker(["user_rewards:length"])
    assert worker.link.poll(20)  # it is ready; that is never read
    assert worker.end(20.0) == "ended with status 0"
    assert capfd.readouterr().err == ""


def test_closing_ends_a_run_of_another_thread(opened):
    found = opened("user_rewards:acts")
    caught = []

    def run():
        try:
            rewards.score(found, [asking.asked(act="sleep")] * 4)
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    rewards.close(found)
    thread.join(5)
    assert caught and "were closed" in caught[0]


def test_processes_have_no_jax_print_no_secrets_and_change_nothing(opened, monkeypatch, capfd):
    monkeypatch.setenv("JINSTR_REWARD_TOKEN", "sesame-open-4711")
    found = opened("user_rewards:modules,user_rewards:noisy", workers=1)
    row = asking.asked(number=1)
    scores = rewards.score(found, [row])
    assert "jax" in sys.modules  # negative control: here it is
    assert {name: values.tolist() for name, values in scores.by_name.items()} == {
        "user_rewards:modules": [0.0],
        "user_rewards:noisy": [1.0],
    }
    assert row == asking.asked(number=1)
    rewards.close(found)
    printed = capfd.readouterr().out
    assert redact.MARK in printed and "sesame" not in printed


def test_functions_that_cannot_be_imported(opened):
    with pytest.raises(errors.ConfigError, match="no_such_rewards:f: ModuleNotFoundError: No mod"):
        opened("user_rewards:length,no_such_rewards:f")
    for name, kind, words in (
        ("user_rewards:no_such", AttributeError, "no_such"),
        ("user_rewards:re", TypeError, "is a module, no function"),
        ("broken_rewards:f", SyntaxError, "invalid syntax"),
    ):
        with pytest.raises(kind, match=words):
            rewards_worker.load(name)
    assert rewards_worker.load("user_rewards:length")([], "あい", {}) == 2


def test_a_module_that_ends_its_process(opened):
    with pytest.raises(errors.MachineError, match="the last ended with status 7"):
        opened("ending_rewards:f")


SCRIPT = """
from jinstr.rlhf import rewards_pool
pool = rewards_pool.Pool(["user_rewards:process", "user_rewards:acts"], 1, 60.0)
ask = lambda name, **row: pool.run([(name, [], "", row)], print)
print(int(ask("user_rewards:process")[0].score), flush=True)
ask("user_rewards:acts", act="sleep")
"""


def test_processes_end_with_a_caller_that_is_killed(functions, tmp_path):
    """A script that has no `if __name__ == "__main__"`, too: it is not run again."""
    (tmp_path / "script.py").write_text(SCRIPT, "utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(functions), *sys.path])}
    script = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE, env=environment
    )
    pid = int(script.stdout.readline())
    time.sleep(0.2)
    assert is_running(pid)
    script.send_signal(signal.SIGKILL)
    script.wait()
    assert ends(pid) and script.stdout.read() == b""
