"""Which examples of a source are given, and with what weight: repeats, EXCLUDE lists, several answers to one prompt."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import xxhash

from jinstr import errors
from jinstr.data import formats, readers, splits


def id_key(example: Mapping) -> int:
    """64 bits that stand for the id of an example."""
    return xxhash.xxh3_64_intdigest(example["id"].encode())


def distinct(examples: Iterable[dict], dropped: collections.Counter) -> Iterator[dict]:
    """Examples with ids of their own: a text whose id came before is left out, other repeats get a number."""
    seen: collections.Counter = collections.Counter()
    for example in examples:
        key = id_key(example)
        seen[key] += 1
        if seen[key] > 1:
            if "text" in example:
                dropped["same id"] += 1
                continue
            example = example | {"id": f"{example['id']}#{seen[key]}"}
        yield example


def list_line(name: str) -> str:
    """An id or prompt as one line of a list: JSON text where the bare one would not read back as itself."""
    bare = "\n" not in name and "\r" not in name and not name.startswith('"')
    return (name if bare else json.dumps(name, ensure_ascii=False)) + "\n"


def read_list(place: str) -> frozenset[str]:
    """The ids and prompts of a list, one a line, bare or as JSON text, in the form that groups have.

    Only "\\n" ends a line: prompts may hold the other characters that Python takes for line breaks.
    Errors: DataError when there is no such file.
    """
    if not place:
        return frozenset()
    path = pathlib.Path(place).expanduser()
    if not path.is_file():
        raise errors.DataError("JI-SOURCE-012", f"exclude: {path}: no such file")
    lines = readers.decode(path.read_bytes(), path).split("\n")
    return frozenset(formats.group_of(_listed(line)) for line in lines if line.strip())


def _listed(line: str) -> str:
    if line.startswith('"'):
        try:
            value = json.loads(line)
        except ValueError:
            return line  # a list written by hand: a prompt that begins with a quotation mark
        if isinstance(value, str):
            return value
    return line


def _prompt(example: Mapping) -> str:
    """The whole prompt of a conversation: all turns before its last answer (its group where it has none)."""
    answers = [n for n, role in enumerate(example["roles"]) if role == "assistant"]
    contents = example["contents"][: answers[-1]] if answers else example["contents"]
    return formats.group_of("\n\n".join(contents)) or example["group"]


def weigher(answers: str, again: Callable[[], Iterable[Mapping]]) -> Callable[[Mapping], float]:
    """A function of each conversation in order → its weight by the `answers` rule, 0 = leave out.

    Conversations count as answers to one prompt when all turns before the last answer agree.
    """
    given: collections.Counter = collections.Counter()
    counts: collections.Counter = collections.Counter()
    if answers != "first":
        for example in again():
            counts[xxhash.xxh3_64_intdigest(_prompt(example).encode())] += 1

    def weight(example: Mapping) -> float:
        prompt = _prompt(example)
        key = xxhash.xxh3_64_intdigest(prompt.encode())
        number = given[key]
        given[key] += 1
        if answers == "first":
            return float(number == 0)
        if answers == "all":
            return 1.0 / counts[key]
        return float(int(splits.order(prompt)[:16], 16) % counts[key] == number)

    return weight
