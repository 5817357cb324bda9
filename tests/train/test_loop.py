"""What the loop does beside steps: refuse, tell of spikes, leave steps out, end early."""

import json
import types

import pytest

from jinstr import errors
from jinstr.train import checkpoint, loop, watchdog


class Silent:
    """Where metrics go; keeps the lines."""

    tokens_seen = 0.0

    def __init__(self):
        self.lines = []

    def add(self, values): ...
    def start(self): ...
    def read(self):
        return {"tokens_per_second": 1.0, "mfu": 0.0}

    def write(self, step, values):
        self.lines.append((step, values))

    def update(self, step, **values): ...

    def paused(self):
        import contextlib

        return contextlib.nullcontext()


def pending(folder, **settings):
    silent = Silent()
    config = loop.LoopConfig(num_steps=1, log_every=1, **settings)
    return loop._Pending(config, folder, 0, 1 << 30, silent, silent, silent), silent


def feed(steps, number, loss=1.0, norm=1.0):
    steps.add(number, {"loss": loss, "grad_norm": norm}, dict, lambda: [["corpus", f"id{number}"]])
    steps.drain()


def incidents(folder):
    path = folder / "incidents.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_skipped_steps():
    assert loop.skipped_steps("") == frozenset()
    assert loop.skipped_steps("7, 10:12") == {7, 10, 11, 12}
    for wrong in ("x", "5:3", "1:2:3"):
        with pytest.raises(errors.ConfigError, match="SKIP_STEPS"):
            loop.skipped_steps(wrong)


def test_three_in_a_row_and_not_three_in_all(tmp_path):
    steps, silent = pending(tmp_path)
    for number in range(1, 10):
        feed(steps, number, norm=float("nan") if number % 3 else 1.0)
    feed(steps, 10, loss=float("inf"))
    feed(steps, 11, norm=float("inf"))
    with pytest.raises(errors.NonFiniteError, match="step 12.*last of 3"):
        feed(steps, 12, norm=float("nan"))
    told = incidents(tmp_path)
    assert [line["step"] for line in told] == [1, 2, 4, 5, 7, 8, 10, 11, 12]
    assert told[0]["examples"] == [["corpus", "id1"]]
    # What is not a number has no place in metrics.jsonl.
    assert all("train/loss" not in values for step, values in silent.lines if step in (1, 10))


def test_spikes_are_told_and_do_not_move_the_usual(tmp_path):
    steps, _ = pending(tmp_path, spike_factor=10.0)
    for number in range(1, 31):
        feed(steps, number, norm=1.0 + number / 100)
    feed(steps, 31, norm=float("nan"))  # must not enter the median either
    feed(steps, 32, norm=11.0)  # 9.5 usual ones: no spike
    feed(steps, 33, norm=30.0)
    assert [(line["step"], line["kind"]) for line in incidents(tmp_path)] == [
        (31, "non-finite"),
        (33, "spike"),
    ]


def acts(folder, save_seconds, grace):
    keeper = checkpoint.Checkpointer(folder, checkpoint.CheckpointConfig(grace_seconds=grace))
    keeper.save_seconds = save_seconds
    saved = []
    keeper.save = lambda step, arrays, run_json: saved.append(step)
    steps, silent = pending(folder)
    found = loop._Acts(
        loop.LoopConfig(num_steps=9), 9, evaluate=None, check_replicas=lambda params, step: None,
        checkpointer=keeper, writer=silent, run_json=lambda step: {}, meter=silent, pending=steps,
        bar=silent, watch=watchdog.Watchdog(),
    )  # fmt: skip
    found._signals = types.SimpleNamespace(name="SIGTERM")
    return found, saved


def test_a_save_that_takes_longer_than_the_grace_is_left_out(tmp_path):
    found, saved = acts(tmp_path, save_seconds=31.0, grace=30.0)
    with pytest.raises(errors.PreemptedError, match="31.0 s, longer than GRACE_SECONDS=30"):
        found.end_early({"params": {}}, 5)
    assert saved == []
    # Negative control: enough time.
    found, saved = acts(tmp_path, save_seconds=29.0, grace=30.0)
    with pytest.raises(errors.PreemptedError, match="saved step 5"):
        found.end_early({"params": {}}, 5)
    assert saved == [5]
