"""launch/slurm.sh on a real Slurm of one node, which one_node_slurm.sh starts on this machine: a run that Slurm tells
to save, takes from its node and signals ends with the bits of one that was left alone. pytest -m slurm; some minutes.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jinstr import run as run_lib
from jinstr.data import sources
from jinstr.samples import build
from jinstr.text import normalise, train_tokenizer
from jinstr.train import checkpoint

pytestmark = pytest.mark.slurm

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CLUSTER = pathlib.Path(__file__).with_name("one_node_slurm.sh")
LIMIT = 900.0  # seconds that anything here may take
STEPS = 800
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
SETTINGS = dict(
    TOKENIZER="t.model", DATA="corpus.jsonl", BATCH_TOKENS=1024, SEQ_LEN=128, LOG_EVERY=1, LOG_EXAMPLES=True,
    SAVE_EVERY=1000, EVAL_EVERY=0, SAMPLES=0, TENSORBOARD=False, WORKERS=1, CACHE_DIR="cache",
)  # fmt: skip


@pytest.fixture(scope="module")
def slurm():
    """Runs Slurm's commands; returns what they print."""
    found = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [
        n for n in ("munged", "slurmctld", "slurmd", "srun") if not shutil.which(n, path=found)
    ]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    # Not pytest's own folder: the paths of sockets may not be long.
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        subprocess.run(["bash", CLUSTER, "start", folder], check=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        environment |= {
            "SLURM_CONF": f"{folder}/slurm.conf",
            "PYTHONPATH": str(REPOSITORY),
            "JAX_PLATFORMS": "cpu",
            "NPROC": "",
            "JINSTR_PAUSE": "0",
        }

        def run(*words, cwd=None):
            words = [str(word) for word in words]
            return subprocess.run(
                words, env=environment, cwd=cwd, check=True, capture_output=True, text=True
            ).stdout

        yield run
        subprocess.run(["bash", CLUSTER, "stop", folder], check=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkout as the launcher sees it, with data and tokenizer."""
    folder = tmp_path_factory.mktemp("slurm")
    shutil.copytree(REPOSITORY / "launch", folder / "launch")
    jinstr = folder / ".venv" / "bin" / "jinstr"
    jinstr.parent.mkdir(parents=True)
    # The flags of GPUs, which the launcher has set, say nothing to this machine.
    jinstr.write_text(
        f"#!/bin/sh\nunset XLA_FLAGS\nexec {sys.executable} -c "
        '"import sys; from jinstr import run; sys.exit(run.console())" "$@"\n',
        "utf-8",
    )
    jinstr.chmod(0o755)
    build.write(folder, num_bytes=60_000)
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=2200, threads=1)
    texts = [e["text"] for e in sources.read(sources.SourceConfig(path=f"{folder}/corpus.jsonl"))]
    texts += [row["text"] for row in build.hand_written()]
    train_tokenizer.train({"a": texts}, str(folder / "t"), config, normalise.NormaliseConfig())
    (folder / "model.gin").write_text(MODEL, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # of several processes none prepares
        words = [f"{name}={SETTINGS[name]}" for name in ("TOKENIZER", "DATA", "CACHE_DIR")]
        assert run_lib.main(["prepare", *words, "WORKERS=1"]) == 0
    return folder


class Job:
    """A submitted run."""

    def __init__(self, slurm, place, tasks, **settings):
        words = [f"{name}={value}" for name, value in (SETTINGS | settings).items()]
        self.slurm, self.folder = slurm, place / settings["RUN_DIR"]
        told = slurm(
            "bash", place / "launch" / "slurm.sh", f"--gpus={tasks}", "--cpus=2", "--time=1:00:00",
            "--", "pretrain", "model.gin", *words, cwd=place,
        )  # fmt: skip
        self.number = re.search(r"\d+", told)[0]
        self.log = place / f"jinstr-{self.number}.log"

    def facts(self):
        text = self.slurm("scontrol", "show", "job", self.number, "--oneliner")
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def said(self):
        """Its log without the lines of steps."""
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return re.sub(r"(?m)^step .*\n", "", text)[-5000:]

    def until(self, condition, what):
        limit = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < limit, f"{what}: not so\n{self.facts()}\n{self.said()}"
            time.sleep(0.1)

    def step(self):
        """The newest step in the log of the run."""
        path = self.folder / "metrics.jsonl"
        found = re.findall(r'"step": (\d+)', path.read_text("utf-8") if path.exists() else "")
        return int(found[-1]) if found else 0

    def after(self, count):
        """Waits until it has done `count` steps from now on."""
        wanted = self.step() + count
        self.until(lambda: self.step() >= wanted, f"step {wanted}")

    def ended(self):
        """(state, exit status) of the job, once it is over."""
        states = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "REQUEUE_HOLD")
        self.until(lambda: self.facts()["JobState"] in states, "the end")
        facts = self.facts()
        return facts["JobState"], int(facts["ExitCode"].partition(":")[0])


def arrays(folder, step):
    """Digests of parameters, moments and random keys in a checkpoint."""
    reader, found = ocp.PyTreeCheckpointer(), {}
    for item in (folder / "checkpoints" / str(step) / "state").iterdir():
        if item.is_dir():
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                reader.metadata(item).item_metadata.tree,
            )
            found[item.name] = checkpoint.tree_digest(reader.restore(item, restore_args=as_numpy))
    return found


def logged(folder, name):
    lines = [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
    return [line for line in lines if "train/loss" in line or "digest" in line]


def losses(folder):
    return [(line["step"], line["train/loss"]) for line in logged(folder, "metrics.jsonl")]


@pytest.mark.parametrize("tasks", [1, 2])
def test_what_slurm_interrupts_ends_with_the_same_bits(slurm, place, tasks):
    whole = Job(slurm, place, tasks, RUN_DIR=f"whole{tasks}", NUM_STEPS=STEPS)
    assert whole.ended() == ("COMPLETED", 0), whole.said()
    assert whole.facts()["Restarts"] == "0"

    cut = Job(slurm, place, tasks, RUN_DIR=f"cut{tasks}", NUM_STEPS=STEPS)
    cut.after(30)
    slurm("scancel", "--batch", "--signal=USR2", cut.number)  # what comes before the time is over
    cut.until(lambda: cut.facts()["Restarts"] == "1", "queued again")
    cut.after(30)
    slurm("scontrol", "requeue", cut.number)  # what a preemption is: TERM to all, KILL later
    cut.until(lambda: cut.facts()["Restarts"] == "2", "taken from its node")
    cut.after(30)
    slurm("scancel", "--signal=TERM", cut.number)  # to the processes of srun alone
    assert cut.ended() == ("COMPLETED", 0), cut.said()
    assert cut.said().count("going on from step") == 3, cut.said()  # the first process speaks
    assert cut.said().count(f"process 0 of {tasks}") == (4 if tasks > 1 else 0), cut.said()

    assert arrays(cut.folder, STEPS) == arrays(whole.folder, STEPS)
    assert {*arrays(whole.folder, STEPS)} >= {"params", "opt_state", "rng"}
    assert losses(cut.folder) == losses(whole.folder) and len(losses(whole.folder)) == STEPS
    assert logged(cut.folder, "examples.jsonl") == logged(whole.folder, "examples.jsonl")
    # Negative control.
    other = Job(slurm, place, tasks, RUN_DIR=f"other{tasks}", NUM_STEPS=STEPS, SEED=1)
    assert other.ended() == ("COMPLETED", 0)
    assert arrays(other.folder, STEPS)["params"] != arrays(whole.folder, STEPS)["params"]


def test_a_mistake_ends_the_job_at_once(slurm, place):
    job = Job(slurm, place, 1, RUN_DIR="mistake", NUM_STEPS=STEPS, LERNING_RATE=1)
    assert job.ended() == ("FAILED", 78) and job.facts()["Restarts"] == "0"
    assert "LEARNING_RATE" in job.said() and job.said().count("exit status 78") == 1


def test_a_cancelled_job_saves_and_stays_cancelled(slurm, place):
    job = Job(slurm, place, 1, RUN_DIR="cancelled", NUM_STEPS=100_000)
    job.after(5)
    slurm("scancel", job.number)
    assert job.ended()[0] == "CANCELLED"
    job.until(lambda: "saved step" in job.said(), "saved")
    time.sleep(8)  # longer than Slurm waits before a job that was queued again begins
    assert job.facts()["JobState"] == "CANCELLED" and job.facts()["Restarts"] == "0", job.said()
    print(job.said())
