"""Peak memory of training a tokenizer on a long stream.

    python tests/benchmarks/tokenizer_memory.py CORPUS [BYTES] [SOURCE_BYTES]

The corpus is repeated until BYTES (default 1,000,000,000) of text have been read; every repeat gets a mark of its own
at the start of each line, so that the sample is drawn from all of it. Prints what was sampled, dropped and the peak.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator

from jinstr.data import sources
from jinstr.text import normalise, train_tokenizer


def stream(corpus: str, limit: int) -> Iterator[str]:
    done = number = 0
    while True:
        for example in sources.read(sources.SourceConfig(path=corpus)):
            text = example["text"].replace("\n", f"\n{number}　")
            yield text
            done += len(text.encode("utf-8"))
            if done >= limit:
                return
        number += 1


def main() -> None:
    corpus = sys.argv[1]
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000_000
    budget = int(sys.argv[3]) if len(sys.argv) > 3 else 32_000_000
    config = train_tokenizer.TokenizerTrainingConfig(source_bytes=budget)
    before = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = train_tokenizer.train(
            {"stream": stream(corpus, limit)},
            f"{folder}/t",
            config,
            normalise.NormaliseConfig(),
        )
    facts = report["sources"]["stream"]
    print(json.dumps(facts, indent=1))
    parts = ("bytes sampled", "bytes beyond the budget", "bytes of empty lines")
    rest = facts["bytes read"] - sum(facts[part] for part in parts)
    print(f"bytes not accounted for: {rest}")
    (measured,) = report["tokenizers"].values()
    print(f"characters per token {measured['characters_per_token']:.3f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"peak RSS {peak:.2f} GiB, {time.perf_counter() - before:.0f} s")


if __name__ == "__main__":
    main()
