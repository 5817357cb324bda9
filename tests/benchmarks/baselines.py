"""Baselines for bits per byte on held-out text: character n-grams (order 1 to 5) and xz.

    python tests/benchmarks/baselines.py "DATA=a.jsonl+b.jsonl" HOLDOUT=0.02 HOLDOUT_RULE=greedy GROUP_BY=author \
        OUT=runs/aozora/baselines.json

The same split as `jinstr pretrain` with these settings. n-grams: absolute discounting with interpolation (Ney, Essen
and Kneser 1994), discount by order from counts of counts; every document ends with its own sign, whose bits count
while its bytes do not, as for the models. xz: 8 · (len xz(train + heldout) − len xz(train)) / bytes of heldout, with a
dictionary that holds everything.
"""

import dataclasses
import json
import lzma
import math
import pathlib
import sys
import time

import numpy as np

from jinstr.data import sources

ORDERS = (1, 2, 3, 4, 5)
END = 0x10FFFF  # ends a document; stands before the first character too


def code_points(texts: list[str]) -> np.ndarray:
    """All texts as one array of code points, each ended by END."""
    parts = []
    for text in texts:
        parts += [np.frombuffer(text.encode("utf-32-le"), np.uint32), np.array([END], np.uint32)]
    return np.concatenate(parts).astype(np.int64)


def keys(ids: np.ndarray, order: int, base: int) -> np.ndarray:
    """One hashed 64-bit key of each place and the order - 1 characters before it; collisions are too rare to matter."""
    key = np.zeros(len(ids), np.uint64)
    for back in range(order - 1, -1, -1):
        moved = np.concatenate([np.full(back, base - 1), ids[: len(ids) - back]])
        key = key * np.uint64(0x9E3779B97F4A7C15) + moved.astype(np.uint64) + np.uint64(1)
        key ^= key >> np.uint64(29)
    return key


def count_of(wanted: np.ndarray, known: np.ndarray, counts: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, counts[at], 0)


def ngram_bits(train: list[str], heldout: list[str]) -> dict[str, float]:
    """Bits per byte of the held-out texts for each order."""
    train_points, test_points = code_points(train), code_points(heldout)
    alphabet = np.unique(train_points)
    base = len(alphabet) + 2
    ids, test = (
        np.where(
            alphabet[np.minimum(np.searchsorted(alphabet, points), len(alphabet) - 1)] == points,
            np.searchsorted(alphabet, points),
            len(alphabet),
        )
        for points in (train_points, test_points)
    )
    num_bytes = sum(len(text.encode("utf-8")) for text in heldout)
    # An unseen character costs one of all code points.
    probability = np.full(len(test), 1 / (len(alphabet) + 1))
    unseen = (test == len(alphabet)) * math.log2(0x110000)
    found = {}
    for order in ORDERS:
        grams, gram_counts = np.unique(keys(ids, order, base), return_counts=True)
        once, twice = (gram_counts == 1).sum(), (gram_counts == 2).sum()
        discount = once / (once + 2 * twice)
        # Contexts of the places: the keys of the order below, one place earlier.
        if order == 1:
            contexts = np.zeros(len(ids), np.uint64)
            test_contexts = np.zeros(len(test), np.uint64)
        else:
            before = np.concatenate([[base - 1], ids[:-1]])
            contexts = keys(before, order - 1, base)
            before = np.concatenate([[base - 1], test[:-1]])
            test_contexts = keys(before, order - 1, base)
        context_keys, totals = np.unique(contexts, return_counts=True)
        # Different continuations of each context.
        pairs = np.unique(np.stack([contexts, keys(ids, order, base)], 1), axis=0)
        types = np.unique(pairs[:, 0], return_counts=True)[1]
        hits = count_of(keys(test, order, base), grams, gram_counts)
        total = count_of(test_contexts, context_keys, totals)
        different = count_of(test_contexts, context_keys, types)
        seen = np.maximum(total, 1)
        probability = np.where(
            total > 0,
            np.maximum(hits - discount, 0) / seen + discount * different / seen * probability,
            probability,
        )
        bits = -np.log2(probability).sum() + unseen.sum()
        found[f"character {order}-gram"] = float(bits / num_bytes)
    return found


def xz_bits(train: list[str], heldout: list[str]) -> float:
    """Bits per byte that the held-out texts add to the compressed training texts."""
    first = "".join(train).encode("utf-8")
    last = "".join(heldout).encode("utf-8")
    size = max(64 << 20, 1 << (len(first) + len(last) - 1).bit_length())
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": size}]

    def compressed(data: bytes) -> int:
        return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters))

    return 8 * (compressed(first + last) - compressed(first)) / len(last)


def main() -> None:
    settings = dict(word.split("=", 1) for word in sys.argv[1:])
    (source,) = sources.parse(
        settings["DATA"],
        holdout=float(settings["HOLDOUT"]),
        holdout_rule=settings.get("HOLDOUT_RULE", "hash"),
        group_by=settings.get("GROUP_BY", ""),
    )
    parts = {
        part: [e["text"] for e in sources.read(dataclasses.replace(source, part=part))]
        for part in ("train", "heldout")
    }
    started = time.time()
    found = ngram_bits(parts["train"], parts["heldout"])
    print(f"n-grams: {time.time() - started:.0f} s")
    found["xz"] = xz_bits(parts["train"], parts["heldout"])
    for name, value in found.items():
        print(f"{name:<18} {value:.4f} bits per byte")
    if "OUT" in settings:
        pathlib.Path(settings["OUT"]).write_text(json.dumps(found, indent=1), "utf-8")


if __name__ == "__main__":
    main()
