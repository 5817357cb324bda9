"""`jinstr prepare` from file to prepared set against bare SentencePiece `encode` of the same text on the same cores.

    python tests/benchmarks/prepare_speed.py CORPUS.jsonl TOKENIZER.model [TIMES [REPEAT]]

prepare: from the file to the finished set, process starts included. Bare: the texts lie in memory already, and the
tokenizer encodes them with one thread per core; nothing is read, written or started. Prints seconds of each run,
alternating, and the ratio of the medians (goal: at least 0.8). The text is repeated REPEAT times under new ids.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np
import sentencepiece

from jinstr.data import prepare, sources


def bare(texts: list[str], tokenizer: str, workers: int) -> float:
    model = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
    before = time.perf_counter()
    tokens = sum(map(len, model.encode(texts, num_threads=workers)))
    seconds = time.perf_counter() - before
    print(f"bare encode: {seconds:.2f} s, {tokens:,} tokens")
    return seconds


def whole(corpus: str, tokenizer: str, workers: int) -> float:
    folder = tempfile.mkdtemp()
    before = time.perf_counter()
    prepare.ensure_prepared(
        sources.parse(corpus),
        tokenizer_path=tokenizer,
        template="",
        config=prepare.PrepareConfig(cache_dir=folder, workers=workers),
    )
    seconds = time.perf_counter() - before
    shutil.rmtree(folder)
    print(f"prepare:     {seconds:.2f} s")
    return seconds


def repeated(corpus: str, times: int, folder: str) -> str:
    """The path of a file with every document of the corpus so many times, each under an id of its own."""
    path = pathlib.Path(folder) / "repeated.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(times):
            for example in sources.read(sources.SourceConfig(path=corpus)):
                row = {"id": f"{number}-{example['id']}", "text": example["text"]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return str(path)


def main() -> None:
    corpus, tokenizer = sys.argv[1:3]
    times = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    repeat = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    workers = os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        corpus = repeated(corpus, repeat, folder)
        texts = [e["text"] for e in sources.read(sources.SourceConfig(path=corpus))]
        size = sum(len(text.encode()) for text in texts)
        print(f"{len(texts):,} documents, {size / 1e6:.1f} MB, {workers} cores")
        pairs = [
            (bare(texts, tokenizer, workers), whole(corpus, tokenizer, workers))
            for _ in range(times)
        ]
    ratio = np.median([one for one, _ in pairs]) / np.median([two for _, two in pairs])
    print(f"prepare runs at {ratio:.2f} of the speed of bare encode")


if __name__ == "__main__":
    main()
