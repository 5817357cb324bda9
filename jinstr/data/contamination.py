"""Do questions of benchmarks stand in training data? Overlap of character n-grams, told by question and by document.

Texts are compared after NFKC and in lower case, letters and digits only: Japanese has no words to count, and spaces,
punctuation and line breaks differ between copies of one text. Each text field of an example is looked for by itself
(a question without its choices, a passage without its question):

- of N = 8 characters and more: the share of its N-grams that one document has; all of them is "whole", half and more
  "part".
- of fewer, down to SHORTEST = 6: "whole" where a document has it between two borders (punctuation, ends of lines),
  so that 都会の反対は？ is found as a question, but not inside another sentence.
- of still fewer: "whole" where it is a line of the document, signs and all, alone or after a colon (建物は？ stands in
  any novel, between other signs).

Why 8 and half: of 12,068 texts of seven benchmarks none is found in 2.4 million characters of novels and none in
technical pages, 5 in 10.6 million of other novels (long documents, each half of a text in another place), while 76 %
of questions with one character changed and 82 % with a word put in are still found. With 13 characters and .7 it is
30 %; with 5, novels "have" 51. What is "part" is there to be looked at, by the document that is named.
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from jinstr import errors
from jinstr.data import bad_rows, ngram_index, prepared, readers, records
from jinstr.data.eval_tasks import benchmark

THRESHOLD = 0.5
FILE = "contamination.json"  # in a run directory: what `check` found for its model; the model card tells it


def search(
    found: ngram_index.Index,
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
        for names, codes, borders, numbers, lines in ngram_index.blocks(found, documents):
            windows = ngram_index.Windows(len(codes) + 1)
            sums = windows.sums(codes)
            shares = ngram_index.shares(found, windows, sums, numbers)
            bounded = ngram_index.bounded(found, windows, sums, numbers, borders)
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


def _report(found: ngram_index.Index, facts: dict, best: Mapping) -> dict:
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
        "n": ngram_index.N,
        "shortest": ngram_index.SHORTEST,
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
    return search(ngram_index.index(sets), sources, progress)
