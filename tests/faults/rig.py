"""What the rows of the fault table share: a small world to train on, runs in processes of their own, and digests.

The run of reference: a model of two layers and width 64, 60 steps, a save every 5. Every run is a real process, started
with the command line that people use; nothing is simulated inside one. A compile cache is shared, which keeps the bits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp

from jinstr.data import sources
from jinstr.samples import build
from jinstr.testing import faults as fault_points
from jinstr.text import normalise, train_tokenizer

logging.getLogger("absl").setLevel(logging.ERROR)  # of metadata files that items do not have
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STEPS, SAVE_EVERY = 60, 5
ENTRY = "import sys; from jinstr import run; sys.exit(run.console())"
MODEL = """
from __gin__ import dynamic_registration
from jinstr.models import config
config.DecoderConfig.hidden_size = 64
config.DecoderConfig.num_layers = 2
config.DecoderConfig.num_heads = 2
config.DecoderConfig.num_kv_heads = 1
config.DecoderConfig.head_dim = 32
config.DecoderConfig.mlp_size = 128
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table. measure(rig, full) → (what was seen, did it keep the promise); full: with all repeats."""

    number: str  # of the fault matrix
    injected: str
    promised: str
    measure: Callable[[Rig, bool], tuple[str, bool]]
    in_ci: bool = False  # part of the short table


def row(number: str, injected: str, promised: str, measure: Callable, in_ci: bool = False) -> Row:
    """A row in one line."""
    return Row(number=number, injected=injected, promised=promised, measure=measure, in_ci=in_ci)


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that ended: exit status (negative: by that signal), its output, its run directory."""

    status: int
    text: str
    folder: pathlib.Path


class Process:
    """A run that was started: its pid, its output so far, a way to wait for its exit status."""

    def __init__(self, pid: int, output: pathlib.Path, wait: Callable[[], int]):
        self.pid, self.output, self._wait = pid, output, wait
        self.returncode: int | None = None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = self._wait()
        return self.returncode

    def communicate(self) -> tuple[str, None]:
        """As subprocess.Popen's: wait, then all of its output (there is one stream)."""
        self.wait()
        return self.text(), None

    def poll(self) -> int | None:
        """None while it runs."""
        return None if self.running() else self.wait()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def text(self) -> str:
        return self.output.read_text("utf-8", "replace") if self.output.exists() else ""

    def until(self, words: str, seconds: float = 120.0) -> None:
        """Wait until its output holds these words."""
        limit = time.monotonic() + seconds
        while words not in self.text():
            assert time.monotonic() < limit, f"{words!r} did not come: {self.text()[-2000:]}"
            time.sleep(0.02)

    def running(self) -> bool:
        """Is there still a process of this number? (One that ended but was not waited for counts as gone.)"""
        try:
            return (
                pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
                != "Z"
            )
        except OSError:
            return False

    def end(self, folder: pathlib.Path) -> Ended:
        status = self.wait()
        return Ended(status, self.text(), folder)


class Rig:
    """A folder with data, tokenizer and model, and runs in it."""

    def __init__(self, place: pathlib.Path):
        self.place = place
        if (place / "model.gin").exists():
            return
        build.write(place, num_bytes=60_000)
        config = train_tokenizer.TokenizerTrainingConfig(vocab_size=2200, threads=1)
        corpus = sources.SourceConfig(path=f"{place}/corpus.jsonl")
        texts = [example["text"] for example in sources.read(corpus)]
        texts += [row["text"] for row in build.hand_written()]
        train_tokenizer.train({"a": texts}, str(place / "t"), config, normalise.NormaliseConfig())
        (place / "model.gin").write_text(MODEL, "utf-8")

    def words(self, name: str, *more: str) -> list[str]:
        """The command line of a pretraining run called `name`; later words win."""
        place = self.place
        settings = dict(
            NUM_STEPS=STEPS, SAVE_EVERY=SAVE_EVERY, EVAL_EVERY=0, BATCH_TOKENS=256, SEQ_LEN=128,
            LOG_EXAMPLES=True, LOG_EVERY=1, TENSORBOARD=False, WORKERS=1, SAMPLES=0,
            CACHE_DIR=f"{place}/cache", RUN_DIR=f"{place}/{name}", TOKENIZER=f"{place}/t.model",
            DATA=f"{place}/corpus.jsonl",
        )  # fmt: skip
        settings |= dict(word.split("=", 1) for word in more if not word.endswith(".gin"))
        files = [word for word in more if word.endswith(".gin")]
        words = [f"{name}={value}" for name, value in settings.items()]
        return ["pretrain", "model.gin", *files, *words]

    def environment(self, faults: str, more: dict[str, str]) -> dict[str, str]:
        variables = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "NPROC": "",
            "JAX_COMPILATION_CACHE_DIR": str(self.place / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return variables | ({fault_points.VARIABLE: faults} if faults else {}) | more

    def start(
        self, words: list[str], *, faults: str = "", prefix=(), **environment: str
    ) -> Process:
        """Start `jinstr words…`. Under `prefix` (such as strace), or with variables that JAX reads when it is imported,
        by executing Python anew; else by fork from a process that has imported jinstr."""
        variables = self.environment(faults, environment)
        if faults:
            words = [*words, "--allow_faults"]
        self._count = getattr(self, "_count", 0) + 1
        output = self.place / f"output-{self._count}.txt"
        if prefix or any(name.startswith("JAX_") or name == "PYTHONPATH" for name in environment):
            with output.open("wb") as file:
                popen = subprocess.Popen(
                    [*prefix, sys.executable, "-c", ENTRY, *words],
                    stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    env=variables, cwd=self.place, start_new_session=True,
                )  # fmt: skip
            return Process(popen.pid, output, popen.wait)
        request = {
            "words": words,
            "environment": variables,
            "folder": str(self.place),
            "output": str(output),
        }
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        while not self._started:
            self._read()
        pid = self._started.pop()

        def wait() -> int:
            while pid not in self._ended:
                self._read()
            return self._ended.pop(pid)

        return Process(pid, output, wait)

    @functools.cached_property
    def _zygote(self) -> subprocess.Popen:
        self._started, self._ended = [], {}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=self.environment("", {}), cwd=REPOSITORY,
        )  # fmt: skip

    def _read(self) -> None:
        """Take one message of the zygote."""
        facts = json.loads(self._zygote.stdout.readline())
        if "status" in facts:
            self._ended[facts["pid"]] = facts["status"]
        else:
            self._started.append(facts["pid"])

    def train(self, name: str, *more: str, faults: str = "", prefix=(), **environment) -> Ended:
        """Run a pretraining command to its end."""
        process = self.start(self.words(name, *more), faults=faults, prefix=prefix, **environment)
        return process.end(self.place / name)

    def fresh(self, name: str) -> str:
        """The name of a run directory that is not there (any more)."""
        shutil.rmtree(self.place / name, ignore_errors=True)
        return name

    def copy(self, name: str, of: pathlib.Path | None = None) -> pathlib.Path:
        """A run directory like that of a finished run (by default the undisturbed one), to damage."""
        folder = self.place / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(of or self.reference.folder, folder)
        return folder

    @functools.cached_property
    def reference(self) -> Ended:
        """The undisturbed run that others are held against."""
        ended = self.train("reference")
        assert ended.status == 0, ended.text[-3000:]
        return ended

    @functools.cached_property
    def reference_facts(self) -> dict:
        return facts(self.reference.folder)

    def is_reference(self, folder: pathlib.Path) -> bool:
        """Does a finished run hold the bits, losses and example log of the undisturbed one?"""
        return facts(folder) == self.reference_facts


def steps_of(folder: pathlib.Path) -> list[int]:
    """Steps with a manifest, ascending."""
    found = (folder / "checkpoints").glob("*/manifest.json")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def logged(folder: pathlib.Path) -> list[dict]:
    """The whole lines of metrics.jsonl; the last may be cut off by a kill."""
    path = folder / "metrics.jsonl"
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def tree_digest(folder: pathlib.Path) -> str:
    """sha256 over names and bytes of all files below a folder."""
    state = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        state.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return state.hexdigest()


def array_digests(folder: pathlib.Path, step: int) -> dict[str, str]:
    """sha256 of every array of a checkpoint, as Orbax restores it without a target."""
    state = folder / "checkpoints" / str(step) / "state"
    found = {}
    for item in sorted(path.name for path in state.iterdir() if path.is_dir()):
        reader = ocp.PyTreeCheckpointer()
        # As numpy arrays: the checkpoint may come from devices that this process does not have.
        arguments = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            reader.metadata(state / item).item_metadata.tree,
        )
        tree = reader.restore(state / item, restore_args=arguments)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            value = np.ascontiguousarray(np.asarray(leaf))
            found[f"{item}{jax.tree_util.keystr(path)}"] = hashlib.sha256(
                f"{value.dtype} {value.shape}".encode() + value.tobytes()
            ).hexdigest()
    return found


def facts(folder: pathlib.Path) -> dict:
    """All that must be equal: the last arrays, the loss of every step, the ids of every batch."""
    losses = {
        line["step"]: line["train/loss"]
        for line in lines(folder / "metrics.jsonl")
        if "train/loss" in line
    }
    return {
        "arrays": array_digests(folder, STEPS),
        "losses": losses,
        "examples": lines(folder / "examples.jsonl"),
    }
