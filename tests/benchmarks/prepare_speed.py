"""`jinstr prepare` from file to prepared set against bare SentencePiece `encode` of the same text on the same cores.

    python tests/benchmarks/prepare_speed.py CORPUS TOKENIZER.model [TIMES]

Both read the text from the file. Bare: the file is parsed in one process and encoded in one process per core. Prints
seconds of each run, alternating, and the ratio of the medians (goal: at least 0.8).
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
import time

import numpy as np
import sentencepiece

from jinstr.data import prepare, sources

_model = None


def _load(path: str) -> None:
    global _model
    _model = sentencepiece.SentencePieceProcessor(model_file=path)


def _encode(texts: list[str]) -> int:
    return sum(len(ids) for ids in _model.encode(texts))


def bare(corpus: str, tokenizer: str, workers: int) -> float:
    before = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(workers, _load, (tokenizer,)) as pool:
        texts = (example["text"] for example in sources.read(sources.SourceConfig(path=corpus)))
        batch, sent = [], []
        for text in texts:
            batch.append(text)
            if sum(map(len, batch)) > 80_000:
                sent.append(pool.apply_async(_encode, (batch,)))
                batch = []
        sent.append(pool.apply_async(_encode, (batch,)))
        tokens = sum(result.get() for result in sent)
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


def main() -> None:
    corpus, tokenizer = sys.argv[1:3]
    times = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    workers = os.cpu_count()
    pairs = [
        (bare(corpus, tokenizer, workers), whole(corpus, tokenizer, workers)) for _ in range(times)
    ]
    ratio = np.median([one for one, _ in pairs]) / np.median([two for _, two in pairs])
    print(f"prepare runs at {ratio:.2f} of the speed of bare encode")


if __name__ == "__main__":
    main()
