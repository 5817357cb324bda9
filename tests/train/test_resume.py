"""A run that ends by os._exit while a checkpoint is being written, and a new process that goes on: the same bits.

Every run is a process of its own and prints the digests of what its last checkpoint holds.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from jinstr.data import sources
from jinstr.samples import build
from jinstr.text import normalise, train_tokenizer
from jinstr.train import storage

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = """
import json, os, sys
sys.modules |= dict.fromkeys(("tensorflow", "seqio", "tensorflow_datasets"))  # cannot be imported
from jinstr import run
from jinstr.train import checkpoint, metrics

dies, stops = sys.argv[1] == "dies", sys.argv[1] == "stops"
save = checkpoint.Checkpointer.save

def watched(self, step, arrays, run_json):
    if step == 60:
        digests = {name: checkpoint.tree_digest(tree) for name, tree in arrays.items()}
        print("DIGESTS", json.dumps(digests), flush=True)
    save(self, step, arrays, run_json)
    if dies and step == 30:
        os._exit(9)  # the save of step 30 is in flight

checkpoint.Checkpointer.save = watched
write = metrics.MetricsWriter.write

def stopped(self, step, values):
    write(self, step, values)
    if stops and step == 17:
        os.kill(os.getpid(), 15)

metrics.MetricsWriter.write = stopped
sys.exit(run.main(sys.argv[2:]))
"""
MODEL = """
from __gin__ import dynamic_registration
from jinstr.models import config
config.DecoderConfig.hidden_size = 32
config.DecoderConfig.num_layers = 2
config.DecoderConfig.num_heads = 2
config.DecoderConfig.num_kv_heads = 1
config.DecoderConfig.head_dim = 16
config.DecoderConfig.mlp_size = 64
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    build.write(folder, num_bytes=60_000)
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=2200, threads=1)
    texts = [e["text"] for e in sources.read(sources.SourceConfig(path=f"{folder}/corpus.jsonl"))]
    texts += [row["text"] for row in build.hand_written()]
    train_tokenizer.train({"a": texts}, str(folder / "t"), config, normalise.NormaliseConfig())
    (folder / "model.gin").write_text(MODEL, "utf-8")
    (folder / "script.py").write_text(SCRIPT, "utf-8")
    return folder


EXITS = {"dies": 9, "stops": 75, "lives": 0, "refused": 73}


def start(place, how, *words):
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "XLA_FLAGS": "",
        "NPROC": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
    }
    command = [sys.executable, str(place / "script.py"), how, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=place, check=False
    )
    assert done.returncode == EXITS[how], done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("DIGESTS")]
    return json.loads(lines[0].partition(" ")[2]) if lines else None, done.stdout + done.stderr


def train(place, command, scan, run_dir, how="lives", seed=0):
    words = ["NUM_STEPS=60", "SAVE_EVERY=10", "EVAL_EVERY=0", "BATCH_TOKENS=256", "SEQ_LEN=128"]
    words += ["LOG_EXAMPLES=True", "LOG_EVERY=1", f"CACHE_DIR={place}/cache", "TENSORBOARD=False"]
    words += [f"RUN_DIR={place}/{run_dir}", f"SEED={seed}", "EMA_DECAY=0.9", "WORKERS=1"]
    if command == "pretrain":
        words += ["model.gin", f"TOKENIZER={place}/t.model", f"DATA={place}/corpus.jsonl"]
        words += [f"config.DecoderConfig.scan_layers={scan}"]
    else:
        words += [f"INIT={place}/base", f"DATA={place}/instructions.jsonl", "SAMPLES=0"]
        words += [f"SCAN_LAYERS={scan}"]
    if command == "lora":
        command, words = "sft", [*words, "LORA_RANK=4", "LEARNING_RATE=1e-2"]
    digests, text = start(place, how, command, *words)
    return digests, text, place / run_dir


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def losses(folder):
    found = {}
    for line in lines(folder / "metrics.jsonl"):
        if "train/loss" in line:
            found[line["step"]] = line["train/loss"]
    return found


def check(place, command, scan):
    if command != "pretrain" and not (place / "base").exists():
        train(place, "pretrain", True, "base")
    name = f"{command}-{scan}"
    whole, _, undisturbed = train(place, command, scan, f"{name}-whole")
    nothing, _, folder = train(place, command, scan, f"{name}-cut", how="dies")
    assert nothing is None and not (folder / "checkpoints" / "60").exists()
    again, text, _ = train(place, command, scan, f"{name}-cut")
    assert "going on from step" in text
    assert set(whole) == {"params", "opt_state", "rng", "ema"} and again == whole
    assert lines(folder / "examples.jsonl") == lines(undisturbed / "examples.jsonl")
    assert [line["step"] for line in lines(folder / "examples.jsonl")] == list(range(1, 61))
    assert losses(folder) == losses(undisturbed) and len(losses(folder)) == 60


def test_pretraining_goes_on_bit_for_bit(place):
    check(place, "pretrain", True)
    # Negative control: another seed gives another end.
    other, _, _ = train(place, "pretrain", True, "other", seed=1)
    whole, _, _ = train(place, "pretrain", True, "pretrain-True-again")
    assert other["params"] != whole["params"]


def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(place):
    whole, _, undisturbed = train(place, "pretrain", True, "signal-whole")
    nothing, text, folder = train(place, "pretrain", True, "signal-cut", how="stops")
    assert nothing is None and "SIGTERM: saving and ending" in text
    kept = {int(path.name) for path in (folder / "checkpoints").iterdir()}
    assert max(kept) % 10 and max(kept) < 25, kept  # a save of its own, between those of SAVE_EVERY
    again, text, _ = train(place, "pretrain", True, "signal-cut")
    assert f"going on from step {max(kept)}" in text
    assert again == whole and losses(folder) == losses(undisturbed)


def test_a_second_process_is_refused(place):
    folder = place / "held"
    with storage.lease(folder):
        words = ["pretrain", "model.gin", f"TOKENIZER={place}/t.model", "NUM_STEPS=2"]
        words += [f"DATA={place}/corpus.jsonl", f"RUN_DIR={folder}"]
        _, text = start(place, "refused", *words)
    assert f"JI-RUN-002: {folder} is in use by process {os.getpid()}" in text
    assert not (folder / "config.json").exists()
    with storage.lease(folder):  # negative control: free again
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, scan", [("pretrain", False), ("sft", True), ("sft", False), ("lora", True)]
)
def test_every_kind_of_run_goes_on_bit_for_bit(place, command, scan):
    check(place, command, scan)
