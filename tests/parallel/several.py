"""Runs of several real processes on this machine, with a small world to train on: CPU devices, gloo between them."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from jinstr.samples import build
from jinstr.text import normalise, train_tokenizer
from jinstr.train import checkpoint

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LONGEST = 900.0  # seconds that anything here may take, on a machine that is busy with much else
MODEL = """
from __gin__ import dynamic_registration
from jinstr.models import config
config.DecoderConfig.hidden_size = 32
config.DecoderConfig.num_layers = 1
config.DecoderConfig.num_heads = 2
config.DecoderConfig.num_kv_heads = 1
config.DecoderConfig.head_dim = 16
config.DecoderConfig.mlp_size = 64
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class World:
    """A folder with data and a tokenizer, and runs in it: each a process of its own, forked from one that has imported
    jinstr and started nothing."""

    def __init__(self, folder: pathlib.Path):
        self.folder = make(folder)
        self.ended: dict[int, int] = {}
        self._begun: list[int] = []
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment(), cwd=REPOSITORY,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def environment(self, devices: int = 1) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": f"{REPOSITORY}:{self.folder}",
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "1",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true",
            "NPROC": "",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def _read(self) -> None:
        for line in self._zygote.stdout:
            facts = json.loads(line)
            if "status" in facts:
                self.ended[facts["pid"]] = facts["status"]
            else:
                self._begun.append(facts["pid"])

    def fork(self, words, environment, output) -> int:
        """Number of a process that runs this command line."""
        request = {"words": words, "environment": environment}
        request |= {"folder": str(self.folder), "output": str(output)}
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        while not self._begun:
            time.sleep(0.01)
        return self._begun.pop()

    def close(self) -> None:
        self._zygote.stdin.close()
        self._zygote.wait(60)


class Run:
    """Processes of one run: their output in files, their exit statuses."""

    def __init__(self, world: World, words, count, devices=1, faults=None):
        """faults: {process: JINSTR_FAULTS}."""
        self._world, self.count = world, count
        port = free_port()
        self.pids, self.files = [], []
        words = [*words, "--allow_faults"] if faults else words
        for index in range(count):
            own = world.environment(devices) | {"JINSTR_FAULTS": (faults or {}).get(index, "")}
            if count > 1:
                own |= {
                    "JINSTR_COORDINATOR": f"127.0.0.1:{port}",
                    "JINSTR_PROCESSES": str(count),
                    "JINSTR_PROCESS": str(index),
                }
            self.files.append(world.folder / f"{port}.{index}.log")
            self.pids.append(world.fork(words, own, self.files[-1]))

    def text(self, index: int = 0) -> str:
        return self.files[index].read_text("utf-8", "replace")

    def status(self, index: int) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._world.ended.get(self.pids[index])

    def _wait(self, condition, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > limit:
                texts = "\n".join(self.text(index)[-2000:] for index in range(self.count))
                self.kill()
                raise AssertionError(f"not within {seconds} s:\n{texts}")
            time.sleep(0.02)

    def until(self, words: str, index: int = 0) -> None:
        """Wait until the output of a process holds these words."""
        ended = self._world.ended
        self._wait(lambda: words in self.text(index) or self.pids[index] in ended, LONGEST)
        assert words in self.text(index), self.text(index)[-3000:]

    def wait(self, index: int) -> int:
        """The exit status of one process, once it has ended."""
        self._wait(lambda: self.status(index) is not None, LONGEST)
        return self.status(index)

    def end(self) -> list[int]:
        """Exit statuses, in order."""
        return [self.wait(index) for index in range(self.count)]

    def tell(self, index: int, number: signal.Signals) -> None:
        os.kill(self.pids[index], number)

    def kill(self) -> None:
        for index, pid in enumerate(self.pids):
            if self.status(index) is None:
                os.kill(pid, signal.SIGKILL)

    def done(self) -> None:
        statuses = self.end()
        texts = "\n".join(self.text(index)[-3000:] for index in range(self.count))
        assert statuses == [0] * self.count, texts


def make(folder: pathlib.Path) -> pathlib.Path:
    """corpus.jsonl, instructions.jsonl, t.model, model.gin and a module of rewards."""
    build.write(folder, num_bytes=30_000)
    texts = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").open("rb")]
    texts += [row["text"] for row in build.hand_written()]
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=1600, threads=1)
    train_tokenizer.train({"a": texts}, str(folder / "t"), config, normalise.NormaliseConfig())
    (folder / "model.gin").write_text(MODEL, "utf-8")
    (folder / "some_rewards.py").write_text(
        "def short(prompt, answer, row):\n    return -float(len(answer))\n", "utf-8"
    )
    rows = [{"id": str(n), "prompt": f"{n}の次の数は何ですか。"} for n in range(24)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "questions.jsonl").write_text(text, "utf-8")
    return folder


def words(place: pathlib.Path, command: str, name: str, **settings) -> list[str]:
    """The words of a command in this world; settings override."""
    fixed = dict(
        RUN_DIR=place / name, CACHE_DIR=place / "cache", TENSORBOARD=False, WORKERS=1, SAVE_EVERY=2, EVAL_EVERY=0,
        SEQ_LEN=64, BATCH_TOKENS=256, LOG_EVERY=1, LOG_EXAMPLES=True, NUM_STEPS=4, SAMPLES=0, WARMUP_STEPS=1,
    )  # fmt: skip
    if command == "pretrain":
        fixed |= dict(TOKENIZER=place / "t.model", DATA=place / "corpus.jsonl")
    else:
        fixed |= dict(INIT=place / "base", DATA=place / "instructions.jsonl")
    if command in ("ppo", "grpo"):
        for gone in ("SEQ_LEN", "BATCH_TOKENS", "LOG_EVERY", "LOG_EXAMPLES", "NUM_STEPS", "SAMPLES", "DATA",
                     "CACHE_DIR", "WORKERS"):  # fmt: skip
            del fixed[gone]
        fixed |= dict(
            PROMPTS=place / "questions.jsonl", ITERATIONS=2, PROMPTS_PER_ITERATION=8, MAX_NEW_TOKENS=8,
            PROMPT_LENGTH=64, ROLLOUT_ROWS=16, EVAL_PROMPTS=4, SAVE_EVERY=1, SCAN_LAYERS=False, REWARD_WORKERS=1,
            REWARD="some_rewards:short", LEARNING_RATE=1e-3,
        )  # fmt: skip
    if command == "reward":
        del fixed["SAMPLES"]
    files = ["model.gin"] if command == "pretrain" else []
    return [command, *files, *(f"{key}={value}" for key, value in (fixed | settings).items())]


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def losses(folder: pathlib.Path) -> dict[int, float]:
    found = lines(folder / "metrics.jsonl")
    return {line["step"]: line["train/loss"] for line in found if "train/loss" in line}


def digests(folder: pathlib.Path) -> list[str]:
    return [line["digest"] for line in lines(folder / "examples.jsonl")]


def states(folder: pathlib.Path, step: int) -> dict[str, str]:
    """Digest of the values of each part of a checkpoint, whoever wrote how much of it."""
    found = {}
    for item in sorted((folder / "checkpoints" / str(step) / "state").iterdir()):
        if item.is_dir():
            reader = ocp.PyTreeCheckpointer()
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                reader.metadata(item).item_metadata.tree,
            )
            found[item.name] = checkpoint.tree_digest(reader.restore(item, restore_args=as_numpy))
    return found
