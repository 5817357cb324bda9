"""Stretches of text by their hashes: which of many short texts stand in which of many documents, in part or whole.

contamination.py says by which rules, and why.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from jinstr.data.eval_tasks import benchmark

N = 8  # characters of an N-gram
SHORTEST = 6  # characters of a text that may stand between any borders
# A passage comes with its title in `context`; names alone say nothing.
NOT_LOOKED_AT = frozenset(("context", "title", "subject"))
BLOCK = 1 << 20  # characters that are looked at together
_BORDER = 0x110000  # between documents; no character
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2^64


def _kept() -> np.ndarray:
    """bool [characters]: letters and digits of any script."""
    codes = np.zeros(0x110000, bool)
    codes[[code for code in range(0x110000) if chr(code).isalnum()]] = True
    return codes


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _clean(text: str, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a normal text (i64 codes of its letters and digits, bool: does a border stand before each?)."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    places = np.flatnonzero(kept[codes])
    return codes[places].astype(np.int64), np.diff(places, prepend=-2) > 1


class Windows:
    """Hashes of all stretches of one text, of any length: sums of code · BASE^place modulo 2^64, shifted to place 0."""

    def __init__(self, most: int):
        with np.errstate(over="ignore"):
            inverse = np.uint64(pow(int(_BASE), -1, 1 << 64))
            self._powers = np.cumprod(np.full(most, _BASE))
            self._back = np.cumprod(np.full(most, inverse))

    def sums(self, codes: np.ndarray) -> np.ndarray:
        """u64 [codes + 1]."""
        terms = (codes.astype(np.uint64) + np.uint64(1)) * self._powers[: len(codes)]
        return np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])

    def hashes(self, sums: np.ndarray, length: int) -> np.ndarray:
        """u64 of the stretches of `length` codes, by their first place."""
        if len(sums) <= length:
            return np.zeros(0, np.uint64)
        return (sums[length:] - sums[:-length]) * self._back[: len(sums) - length]


@dataclasses.dataclass(frozen=True)
class Index:
    """N-grams of all texts that are looked for."""

    texts: list[
        list[tuple[str, str, str]]
    ]  # number → (benchmark, example, field) that have this text
    grams: np.ndarray  # i64 [texts]: N-grams of each; 0 for short ones
    hashes: np.ndarray  # u64, sorted: distinct N-grams
    first: np.ndarray  # i64 [hashes + 1]: where the texts of an N-gram begin in `owners`
    owners: np.ndarray  # i64: numbers of texts
    short: dict[int, tuple[np.ndarray, np.ndarray]]  # length → (u64 sorted, numbers of texts)
    lines: dict[str, int]  # still shorter texts, as they stand → number
    counts: dict[str, int]  # benchmark → examples


def index(sets: Mapping[str, Sequence[benchmark.Example]]) -> Index:
    """What is looked for. sets: name of a benchmark → its examples."""
    kept = _kept()
    numbers: dict[str | bytes, int] = {}
    texts: list[list[tuple[str, str, str]]] = []
    codes_of: list[np.ndarray] = []
    for name, examples in sets.items():
        for example in examples:
            for field in example.fields.keys() - NOT_LOOKED_AT:
                text = _normal(example.fields[field])
                codes, _ = _clean(text, kept)
                key = codes.tobytes() if len(codes) >= SHORTEST else text.strip()
                number = numbers.setdefault(key, len(texts))
                if number == len(texts):
                    texts.append([])
                    codes_of.append(codes)
                texts[number].append((name, example.id, field))
    windows = Windows(max(map(len, codes_of), default=0) + 1)
    hashes = [windows.hashes(windows.sums(codes), N) for codes in codes_of]
    owners = np.repeat(np.arange(len(texts)), [len(found) for found in hashes])
    flat = np.concatenate([*hashes, np.zeros(0, np.uint64)])
    order = np.argsort(flat, kind="stable")
    distinct, first = np.unique(flat[order], return_index=True)
    return Index(
        texts=texts,
        grams=np.array([len(found) for found in hashes], np.int64),
        hashes=distinct,
        first=np.append(first, len(flat)),
        owners=owners[order],
        short=_short(codes_of),
        lines={key: number for key, number in numbers.items() if isinstance(key, str) and key},
        counts={name: len(examples) for name, examples in sets.items()},
    )


def _short(codes_of: Sequence[np.ndarray]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Texts of SHORTEST to N - 1 characters, by length."""
    windows, found = Windows(N), {}
    for length in range(SHORTEST, N):
        own = np.array([n for n, codes in enumerate(codes_of) if len(codes) == length], np.int64)
        if len(own):
            sums = (windows.sums(codes_of[number]) for number in own)
            hashes = np.concatenate([windows.hashes(one, length) for one in sums])
            order = np.argsort(hashes)
            found[length] = (hashes[order], own[order])
    return found


def _known(sorted_hashes: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places in `asked` whose hash is known, numbers of these hashes)."""
    numbers = np.searchsorted(sorted_hashes, asked)
    numbers[numbers == len(sorted_hashes)] = 0
    hits = np.flatnonzero(sorted_hashes[numbers] == asked)
    return hits, numbers[hits]


def shares(found: Index, windows: Windows, sums: np.ndarray, documents: np.ndarray):
    """(document, text, share of the text's N-grams) wherever there is any. documents: i64 [codes]."""
    hits, numbers = _known(found.hashes, windows.hashes(sums, N)) if len(found.hashes) else ([], [])
    if not len(hits):
        return
    pairs = np.unique(np.stack([documents[hits], numbers]), axis=1)
    lengths = found.first[pairs[1] + 1] - found.first[pairs[1]]
    starts = np.repeat(found.first[pairs[1]] - np.cumsum(lengths) + lengths, lengths)
    texts = found.owners[starts + np.arange(lengths.sum())]
    owned = np.stack([np.repeat(pairs[0], lengths), texts])
    (documents, texts), counts = np.unique(owned, axis=1, return_counts=True)
    yield from zip(documents.tolist(), texts.tolist(), (counts / found.grams[texts]).tolist())


def bounded(found: Index, windows: Windows, sums: np.ndarray, documents, borders):
    """(document, text, 1.0) of short texts that stand between borders."""
    for length, (hashes, texts) in found.short.items():
        hits, numbers = _known(hashes, windows.hashes(sums, length))
        is_whole = borders[hits] & borders[hits + length]
        for place, number in zip(hits[is_whole].tolist(), numbers[is_whole].tolist()):
            yield int(documents[place]), int(texts[number]), 1.0


def _lines(found: Index, text: str, number: int) -> Iterator[tuple[int, int, float]]:
    """(document, text, 1.0) of texts that are a line of a normal text, or follow a colon in one."""
    for line in text.splitlines() if found.lines else ():
        for part in {line.strip(), line.rpartition(":")[2].strip()}:
            if part in found.lines:
                yield number, found.lines[part], 1.0


def blocks(found: Index, documents: Iterable[tuple[str, str]]) -> Iterator[tuple]:
    """(names, codes, borders, number of the document of each code, lines found) of many documents at a time."""
    kept, border = _kept(), np.array([_BORDER], np.int64)
    names, codes, borders, numbers, lines, size = [], [], [], [], [], 0
    for name, text in documents:
        text = _normal(text)
        own, before = _clean(text, kept)
        codes += [own, border]
        borders += [before, np.ones(1, bool)]
        numbers.append(np.full(len(own) + 1, len(names)))
        lines += _lines(found, text, len(names))
        names.append(name)
        size += len(own) + 1
        if size >= BLOCK:
            yield names, *map(np.concatenate, (codes, borders, numbers)), lines
            names, codes, borders, numbers, lines, size = [], [], [], [], [], 0
    if names:
        yield names, *map(np.concatenate, (codes, borders, numbers)), lines
