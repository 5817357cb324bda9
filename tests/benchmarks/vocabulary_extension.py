"""Japanese pieces for an English model: `python tests/benchmarks/vocabulary_extension.py DATA_FOLDER OUT`.

A tokenizer and a small model of English (the originals of instruction_ja, and the documentation in Python's own
library), the tokenizer extended on Aozora text, and the loss of the first step on English that it has not seen, before
and after: the ids are the same, the new rows only widen the softmax. Goal: at most 1 % more. Characters per token on
Aozora text before and after.
"""

from __future__ import annotations

import argparse
import ast
import json
import pathlib
import sysconfig

from jinstr import run
from jinstr.train import metrics

STEPS = 300


def english(data: pathlib.Path) -> list[str]:
    """The English conversations behind instruction_ja, and docstrings of the standard library."""
    texts = []
    for line in (data / "sft/instruction_ja.jsonl").open(encoding="utf-8"):
        turns = json.loads(line)["original_info"]["utterances"]["en"]
        texts.append("\n\n".join(turn["text"] for turn in turns))
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.parts):
            continue
        try:
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        except (SyntaxError, ValueError):  # some are there to be refused
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
        texts += [text for text in found if len(text) > 100 and text.isascii()]
    return texts


def jinstr(*words: str) -> None:
    if status := run.main(list(words)):
        raise SystemExit(status)


def first_loss(out: pathlib.Path, name: str, *words: str) -> float:
    place = out / f"first_{name}"
    common = [
        "NUM_STEPS=1",
        "LOG_EVERY=1",
        "BATCH_TOKENS=16384",
        "SEQ_LEN=512",
        "SAMPLES=0",
        "TENSORBOARD=False",
    ]
    jinstr(
        "pretrain",
        f"INIT={out}/english",
        f"DATA={out}/unseen.jsonl",
        f"RUN_DIR={place}",
        *common,
        *words,
    )
    (loss,) = [
        line["train/loss"]
        for line in metrics.read_lines(place / "metrics.jsonl")
        if "train/loss" in line
    ]
    return loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--type", default="bpe", choices=["bpe", "unigram"])
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True)
    rows = [
        json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in english(arguments.data)
    ]
    (out / "english.jsonl").write_text(
        "".join(row for n, row in enumerate(rows) if n % 20), "utf-8"
    )
    (out / "unseen.jsonl").write_text("".join(rows[::20]), "utf-8")
    aozora = arguments.data / "corpus/aozora.jsonl"

    new = ["MAX_PIECE_LENGTH=12", "CONTROL_TOKENS=()"]
    jinstr(
        "tokenizer",
        f"INPUT={out}/english.jsonl",
        f"OUT={out}/base",
        "VOCAB_SIZE=3000",
        f"MODEL_TYPE={arguments.type}",
        *new,
    )
    jinstr(
        "pretrain",
        "gin_configs/model/tiny.gin",
        f"DATA={out}/english.jsonl",
        f"TOKENIZER={out}/base.model",
        f"RUN_DIR={out}/english",
        f"NUM_STEPS={STEPS}",
        "BATCH_TOKENS=4096",
        "SEQ_LEN=512",
        "SAMPLES=0",
        "TENSORBOARD=False",
        "OPTIMIZER=muon",
        "LEARNING_RATE=3e-3",
        "config.DecoderConfig.scan_layers=False",
    )
    jinstr(
        "tokenizer",
        f"INPUT={aozora}",
        f"BASE={out}/base.model",
        f"OUT={out}/longer",
        "VOCAB_SIZE=8000",
        "CONTROL_TOKENS=()",
    )
    before = first_loss(out, "before")
    after = first_loss(out, "after", f"TOKENIZER={out}/longer.model")
    print(
        f"first step on English: {before:.4f} nats before, {after:.4f} after, {after / before - 1:+.2%}"
    )


if __name__ == "__main__":
    main()
