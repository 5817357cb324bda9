"""Instruction data as people bring it: a sheet trains like JSON Lines, and README's own module works as printed."""

import json
import os
import pathlib
import re
import subprocess
import sys

import openpyxl
import pytest

from jinstr.samples import build
from jinstr.train import metrics

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def jinstr(folder, *words):
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # and one device
        "NPROC": "",
    }
    code = "import sys; from jinstr import run; sys.exit(run.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def sheet(path, rows, columns):
    book = openpyxl.Workbook()
    book.active.append(list(columns.values()))
    for row in rows:
        book.active.append([row[name] for name in columns])
    book.save(path)


@pytest.fixture(scope="module")
def place(world, tokenizer_path, tmp_path_factory):
    """A folder with a model trained for a step, runs/base, and 60 of the built-in pairs."""
    folder = tmp_path_factory.mktemp("people")
    words = ["pretrain", "gin_configs/model/tiny.gin", f"DATA={world}/corpus.jsonl", "NUM_STEPS=1"]
    words += [f"TOKENIZER={tokenizer_path}", "RUN_DIR=runs/base", "TENSORBOARD=False", "SAMPLES=0"]
    jinstr(folder, *words, "BATCH_TOKENS=512", "CACHE_DIR=cache", "WORKERS=1")
    rows = [row for row in build.hand_written() if isinstance(row["output"], str)][:60]
    for name in ("jsonl", "xlsx", "shifted"):
        (folder / name).mkdir()
    # One file name for all: it names the source, which is part of what orders the rows.
    (folder / "jsonl/rows.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
    )
    columns = {"ID": "ID", "text": "質問", "output": "回答"}
    sheet(folder / "answers.xlsx", rows, columns)
    sheet(folder / "xlsx/rows.xlsx", rows, columns)
    shifted = [row | {"output": rows[n - 1]["output"]} for n, row in enumerate(rows)]
    sheet(folder / "shifted/rows.xlsx", shifted, columns)
    return folder


def losses(folder, data, *more):
    words = ["sft", "INIT=runs/base", f"DATA={data}", f"RUN_DIR=runs/{data}", "NUM_STEPS=4"]
    words += ["LOG_EVERY=1", "SAMPLES=0", "CACHE_DIR=cache", "WORKERS=1", "TENSORBOARD=False"]
    jinstr(folder, *words, "SEQ_LEN=512", "BATCH_TOKENS=1024", *more)
    lines = metrics.read_lines(folder / f"runs/{data}/metrics.jsonl")
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.slow
def test_a_sheet_with_japanese_columns_trains_to_the_same_loss(place):
    columns = "FIELDS=instruction=質問,output=回答,id=ID"
    written = losses(place, "jsonl/rows.jsonl", "FORMAT=ichikara")
    assert len(written) == 4
    assert losses(place, "xlsx/rows.xlsx", columns, "FORMAT=alpaca") == written
    # Negative control: the same sheet with the answers moved down by one.
    assert losses(place, "shifted/rows.xlsx", columns, "FORMAT=alpaca") != written


def test_the_module_in_readme_works_as_printed(place):
    text = (REPOSITORY / "README.md").read_text("utf-8")
    module = next(b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "tasks.add" in b)
    commands = next(
        b for b in re.findall(r"```bash\n(.*?)```", text, re.S) if "MODULE=my_data" in b
    )
    assert len(module.splitlines()) <= 16
    (place / "my_data.py").write_text(module, "utf-8")
    (place / "conversations.jsonl").write_text(
        (build.FOLDER / "conversations.jsonl").read_text("utf-8"), "utf-8"
    )
    small = ["CACHE_DIR=cache", "WORKERS=1"]
    for line in commands.strip().splitlines():
        words = line.split()
        assert words[0] == "jinstr"
        more = ["SAMPLES=0", "MAX_NEW_TOKENS=8", "EPOCHS=0", "NUM_STEPS=2", "TENSORBOARD=False"]
        more += ["SEQ_LEN=512", "BATCH_TOKENS=1024"]
        jinstr(place, *words[1:], *small, *(more if words[1] == "sft" else []))
    lines = metrics.read_lines(place / "runs/mine/metrics.jsonl")
    found = [line["eval/qa/mentions"] for line in lines if "eval/qa/mentions" in line]
    assert len(found) == 2 and all(0 <= value <= 1 for value in found)
