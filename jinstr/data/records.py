"""What a prepared set stores: one msgpack map per record, arrays as raw little-endian bytes.

The `length` of a record is its number of targets: n + 1 token ids give n places to predict; ranked answers, which stand
side by side and are read to their last token, take n + 1 places each. A document longer than
`MAX_TARGETS` becomes consecutive chunks that share one token id (the last of chunk k is the first of chunk k + 1), so
every token of a document is predicted exactly once. Token ids are u2 or u4 by vocabulary size (`token_dtype`), loss
masks one bit per id; bit i says whether id i is trained as a target.
"""

from __future__ import annotations

import dataclasses

import msgpack
import numpy as np
import xxhash

MAX_TARGETS = (
    16_384  # targets in one record: a power of two, so that windows of any usual T fill it exactly
)
KINDS = ("lm", "chat", "preference", "prompts", "labels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lm:
    """A stretch of plain text; every token but the first is a target."""

    src: str
    id: str
    part: int  # number of the chunk in its document
    tokens: np.ndarray  # int [n + 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation; only the ids marked in `mask` are trained as targets, each with `weight`."""

    src: str
    id: str
    part: int  # number of the last turn
    tokens: np.ndarray  # int [n + 1]
    mask: np.ndarray  # bool [n + 1]
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked:
    """Answers to one prompt with ranks, 1 = best, ties allowed. A preference pair has ranks [1, 2].

    An answer with a label stands alone: its rank is 1 = desired or 2 = undesired.
    """

    src: str
    id: str
    part: int  # number of the turn that is answered
    prompt_length: int  # the first so many ids of every answer are the prompt
    answers: tuple[np.ndarray, ...]  # int [n_k + 1] each: prompt and answer together
    masks: tuple[np.ndarray, ...]  # bool [n_k + 1] each
    ranks: tuple[int, ...]
    annotator: str = ""  # who ranked them, where it is known


Record = Lm | Chat | Ranked


def token_dtype(vocab_size: int) -> str:
    """The narrowest unsigned little-endian type that holds every id."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def length(record: Record) -> int:
    """Places that the record takes in a row: its targets, or all tokens of all ranked answers."""
    if isinstance(record, Ranked):
        return sum(len(answer) for answer in record.answers)
    return len(record.tokens) - 1


def pack(record: Record, dtype: str) -> bytes:
    """The record as bytes."""
    fields = {"src": record.src, "id": record.id, "part": record.part}
    if isinstance(record, Ranked):
        fields |= {
            "prompt_length": record.prompt_length,
            "answers": [answer.astype(dtype).tobytes() for answer in record.answers],
            "loss": [np.packbits(mask).tobytes() for mask in record.masks],
            "ranks": list(record.ranks),
            "annotator": record.annotator,
        }
    else:
        fields["tokens"] = record.tokens.astype(dtype).tobytes()
        if isinstance(record, Chat):
            fields["loss"] = np.packbits(record.mask).tobytes()
            fields["weight"] = record.weight
    return msgpack.packb(fields)


def _bits(data: bytes, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).view(bool)


def unpack(kind: str, data: bytes, dtype: str) -> Record:
    """The inverse of `pack`. Arrays are read-only views of `data`."""
    fields = msgpack.unpackb(data)
    if kind == "lm":
        fields["tokens"] = np.frombuffer(fields["tokens"], dtype)
        return Lm(**fields)
    if kind == "chat":
        fields["tokens"] = np.frombuffer(fields["tokens"], dtype)
        fields["mask"] = _bits(fields.pop("loss"), len(fields["tokens"]))
        return Chat(**fields)
    answers = tuple(np.frombuffer(answer, dtype) for answer in fields.pop("answers"))
    masks = tuple(_bits(mask, len(ids)) for mask, ids in zip(fields.pop("loss"), answers))
    fields["ranks"] = tuple(fields["ranks"])
    return Ranked(answers=answers, masks=masks, **fields)


def order_key(seed: int, src: str, id: str, part: int) -> int:
    """64-bit place of a record in its set: the whole set is sorted by it, and shards cut that order."""
    return xxhash.xxh3_64_intdigest(f"{seed}\0{src}\0{id}\0{part}".encode())


def chunks(tokens: np.ndarray, max_targets: int = MAX_TARGETS) -> list[np.ndarray]:
    """Cut int [n + 1] into stretches of at most `max_targets` + 1 ids that overlap by one id."""
    return [
        tokens[start : start + max_targets + 1] for start in range(0, len(tokens) - 1, max_targets)
    ]
