"""Do questions of benchmarks stand in training data? Overlap of character n-grams, told by question and by document.

Texts are compared after NFKC and in lower case, letters and digits only: Japanese has no words to count, and spaces,
punctuation and line breaks differ between copies of one text. Each text field of an example is looked for by itself
(a question without its choices, a passage without its question):

- of N characters and more: the share of its N-grams that one document has; all of them is "whole", THRESHOLD and more
  "part".
- of fewer, down to SHORTEST: "whole" where a document has it between two borders (punctuation, line or document ends),
  so that 都会の反対は？ is found as a question, but not inside another sentence.
- of still fewer: "whole" where it is a line of the document, signs and all, alone or after a colon (建物は？ stands in
  any novel, between other signs).

Why 8 and half: of 12,068 texts of seven benchmarks none is found in 2.4 million characters of other novels and none in
technical pages, 5 in 10.6 million (long documents, each half of a text in another place), while 76 % of questions with
one character changed and 82 % with a word put in are still found. With 13 characters and .7 it is 30 %; with 5, novels
"have" 51. What is "part" is there to be looked at, by the document that is named.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from jinstr import errors
from jinstr.data import bad_rows, prepared, readers, records
from jinstr.data.eval_tasks import benchmark

N = 8
SHORTEST = 6
THRESHOLD = 0.5
# A passage comes with its title in `context`; names alone say nothing.
NOT_LOOKED_AT = frozenset(("context", "title", "subject"))
FILE = "contamination.json"  # in a run directory: what `check` found for its model; the model card tells it
_BLOCK = 1 << 20  # characters that are looked at together
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


class _Windows:
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
    windows = _Windows(max(map(len, codes_of), default=0) + 1)
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
    windows, found = _Windows(N), {}
    for length in range(SHORTEST, N):
        own = np.array([n for n, codes in enumerate(codes_of) if len(codes) == length], np.int64)
        if len(own):
            sums = (windows.sums(codes_of[number]) for number in own)
            hashes = np.concatenate([windows.hashes(one, length) for one in sums])
            order = np.argsort(hashes)
            found[length] = (hashes[order], own[order])
    return found


def _places(sorted_hashes: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places in `asked` whose hash is known, numbers of these hashes)."""
    numbers = np.searchsorted(sorted_hashes, asked)
    numbers[numbers == len(sorted_hashes)] = 0
    hits = np.flatnonzero(sorted_hashes[numbers] == asked)
    return hits, numbers[hits]


def _shares(found: Index, windows: _Windows, sums: np.ndarray, documents: np.ndarray):
    """(document, text, share of the text's N-grams) wherever there is any. documents: i64 [codes]."""
    hits, numbers = (
        _places(found.hashes, windows.hashes(sums, N)) if len(found.hashes) else ([], [])
    )
    if not len(hits):
        return
    pairs = np.unique(np.stack([documents[hits], numbers]), axis=1)
    lengths = found.first[pairs[1] + 1] - found.first[pairs[1]]
    starts = np.repeat(found.first[pairs[1]] - np.cumsum(lengths) + lengths, lengths)
    texts = found.owners[starts + np.arange(lengths.sum())]
    owned = np.stack([np.repeat(pairs[0], lengths), texts])
    (documents, texts), counts = np.unique(owned, axis=1, return_counts=True)
    yield from zip(documents.tolist(), texts.tolist(), (counts / found.grams[texts]).tolist())


def _bounded(found: Index, windows: _Windows, sums: np.ndarray, documents, borders):
    """(document, text, 1.0) of short texts that stand between borders."""
    for length, (hashes, texts) in found.short.items():
        hits, numbers = _places(hashes, windows.hashes(sums, length))
        is_whole = borders[hits] & borders[hits + length]
        for place, number in zip(hits[is_whole].tolist(), numbers[is_whole].tolist()):
            yield int(documents[place]), int(texts[number]), 1.0


def _lines(found: Index, text: str, number: int) -> Iterator[tuple[int, int, float]]:
    """(document, text, 1.0) of texts that are a line of a normal text, or follow a colon in one."""
    for line in text.splitlines() if found.lines else ():
        for part in {line.strip(), line.rpartition(":")[2].strip()}:
            if part in found.lines:
                yield number, found.lines[part], 1.0


def _blocks(found: Index, documents: Iterable[tuple[str, str]]) -> Iterator[tuple]:
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
        if size >= _BLOCK:
            yield names, *map(np.concatenate, (codes, borders, numbers)), lines
            names, codes, borders, numbers, lines, size = [], [], [], [], [], 0
    if names:
        yield names, *map(np.concatenate, (codes, borders, numbers)), lines


def search(
    found: Index,
    sources: Mapping[str, Iterable[tuple[str, str]]],
    progress: Callable[[int], object] = lambda documents: None,
) -> dict:
    """What of the index stands in training data, as JSON values.

    sources: name → (name of a document, its text). progress is told how many more documents were read.
    Returns {"n", "shortest", "threshold", "sources": {name: {"documents", "characters"}}, "benchmarks": {name:
    {"examples", "found": {source: examples}, "questions": [{"id", "field", "overlap": "whole" | "part",
    "share", "source", "document" (the one with most of it), "documents"}]}}}, the questions in the order of files.
    """
    best: dict[tuple[int, str], tuple[float, str, int]] = {}
    facts: dict[str, dict[str, int]] = {}
    for source, documents in sources.items():
        facts[source] = {"documents": 0, "characters": 0}
        for names, codes, borders, numbers, lines in _blocks(found, documents):
            windows = _Windows(len(codes) + 1)
            sums = windows.sums(codes)
            shares = _shares(found, windows, sums, numbers)
            bounded = _bounded(found, windows, sums, numbers, borders)
            for number, text, share in {*shares, *bounded, *lines}:
                if share < THRESHOLD:
                    continue
                share_before, document, count = best.get((text, source), (0.0, "", 0))
                if share > share_before:
                    share_before, document = share, names[number]
                best[text, source] = (share_before, document, count + 1)
            facts[source]["documents"] += len(names)
            facts[source]["characters"] += len(codes) - len(names)
            progress(len(names))
    return _report(found, facts, best)


def _report(found: Index, facts: dict, best: Mapping) -> dict:
    questions: dict[str, list] = {name: [] for name in found.counts}
    for (text, source), (share, document, count) in sorted(best.items()):
        for name, example, field in found.texts[text]:
            questions[name].append(
                {
                    "id": example,
                    "field": field,
                    "overlap": "whole" if share == 1.0 else "part",
                    "share": round(share, 4),
                    "source": source,
                    "document": document,
                    "documents": count,
                }
            )
    result = {}
    for name, count in found.counts.items():
        by_source = collections.defaultdict(set)
        for question in questions[name]:
            by_source[question["source"]].add(question["id"])
        result[name] = {
            "examples": count,
            "found": {source: len(by_source[source]) for source in facts},
            "questions": questions[name],
        }
    return {
        "n": N,
        "shortest": SHORTEST,
        "threshold": THRESHOLD,
        "sources": facts,
        "benchmarks": result,
    }


def _strings(value) -> Iterator[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def of_files(path: str) -> Iterator[tuple[str, str]]:
    """(place, all texts of it) of the rows of files of any kind; rows that cannot be read are read as they stand."""
    for name, file in readers.named_files(path):
        for where, row in readers.rows(file):
            place = name + where.removeprefix(str(file))
            if isinstance(row, bad_rows.BadRow):
                yield place, row.raw
            else:
                yield place, "\n".join(_strings(row))


def of_prepared(path: str | pathlib.Path, decode: Callable[[Sequence[int]], str]) -> Iterator:
    """(source, id and part, text) of the records of a prepared set as (name, text). decode: ids → text."""
    opened = prepared.PreparedSet(path)
    for first in range(0, len(opened), 1024):
        for record in opened.read(range(first, min(first + 1024, len(opened)))):
            name = f"{record.src}:{record.id}" + (f"/{record.part}" if record.part else "")
            ids = record.answers if isinstance(record, records.Ranked) else (record.tokens,)
            yield name, "\n".join(decode(tokens.tolist()) for tokens in ids)


def check(
    sets: Mapping[str, Sequence[benchmark.Example]],
    paths: Mapping[str, str],
    tokenizer=None,
    progress: Callable[[int], object] = lambda documents: None,
) -> dict:
    """What `search` finds in training data. paths: name → files or a prepared set; tokenizer: of the prepared sets.

    Errors: ConfigError for a prepared set without its tokenizer; DataError and StorageError of what is read.
    """
    sources = {}
    for name, path in paths.items():
        if not prepared.is_prepared(path):
            sources[name] = of_files(path)
            continue
        made_with = prepared.PreparedSet(path).manifest["tokens"]["tokenizer"]
        if tokenizer is None or tokenizer.fingerprint != made_with:
            given = "no tokenizer" if tokenizer is None else tokenizer.fingerprint
            raise errors.ConfigError(
                "JI-CONTAM-001",
                f"{path} was prepared with the tokenizer {made_with}, and {given} was given; give the one that it was "
                "prepared with, or the files that it was made from",
            )
        sources[name] = of_prepared(path, tokenizer.decode)
    return search(index(sets), sources, progress)
