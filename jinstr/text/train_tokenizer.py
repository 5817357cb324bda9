"""Training a SentencePiece model on a sample of streamed text, in bounded memory, with everything dropped counted.

SentencePiece drops sentences above a length limit without a word: nearly all of a corpus given as one document a line.
So documents are cut at line ends, and lines that are still too long after a full stop; each source gives a sample of
its pieces within a byte budget, those with the smallest hashes, which does not depend on the order of reading.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import io
import json
import os
import pathlib
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

import sentencepiece
import xxhash

from jinstr import errors
from jinstr.text import extend
from jinstr.text import normalise as normalise_lib
from jinstr.text import tokenizer as tokenizer_lib

PIECE_BYTES = 4000  # longest stretch of text that is handed over
CHECK_BYTES = 400_000  # text of each source that the report is measured on
# SentencePiece leaves out sentences with the character it marks unknown ones with.
_SKIPPED = "\u2585"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerTrainingConfig:
    """What is trained, and on how much."""

    vocab_size: int = 8000
    model_type: str = "unigram"  # unigram | bpe
    source_bytes: int = 32_000_000  # byte budget of each source
    character_coverage: float = (
        0.9995  # share of the characters that get pieces; the rest are written as bytes
    )
    max_piece_length: int = 8  # characters
    split_digits: bool = True  # every digit is a piece of its own
    byte_fallback: bool = True  # unknown characters are written as bytes: nothing is lost
    add_dummy_prefix: bool = False  # a space before every text; Japanese needs none
    control_tokens: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")  # beside pad, unk, bos, eos
    threads: int = 0  # 0 = all cores
    seed: int = 0

    def __post_init__(self):
        if self.model_type not in ("unigram", "bpe"):
            raise errors.ConfigError(
                "JI-TOKENIZER-010", f"MODEL_TYPE={self.model_type!r}; allowed: unigram, bpe"
            )


class Sample:
    """The pieces of one source with the smallest hashes, as many as fit a byte budget."""

    def __init__(self, budget: int, seed: int, salt: str):
        self._budget, self._salt = budget, f"{seed}\0{salt}\0".encode()
        self._heap: list[tuple[int, int, str]] = []  # largest hash first
        self.bytes = 0
        self._number = 0

    def add(self, piece: str, data: bytes) -> None:
        key = xxhash.xxh3_64_intdigest(self._salt + data)
        if self.bytes >= self._budget and key >= -self._heap[0][0]:
            return
        self._number += 1
        heapq.heappush(self._heap, (-key, self._number, piece))
        self.bytes += len(data)
        while self.bytes - len(self._heap[0][2].encode()) >= self._budget:
            self.bytes -= len(heapq.heappop(self._heap)[2].encode())

    def pieces(self) -> list[str]:
        """In order of their hashes."""
        return [piece for _, _, piece in sorted(self._heap, reverse=True)]

    def __len__(self) -> int:
        return len(self._heap)


def cut(text: str, counts: collections.Counter) -> Iterator[str]:
    """A document in pieces of at most PIECE_BYTES, line ends kept; together they are the document again.

    Only U+2585, which SentencePiece skips whole sentences for, is left out, and counted.
    """
    for line in text.splitlines(keepends=True):
        if _SKIPPED in line:
            counts["characters U+2585 left out"] += line.count(_SKIPPED)
            line = line.replace(_SKIPPED, "")
        if len(line) * 4 <= PIECE_BYTES or len(line.encode()) <= PIECE_BYTES:
            if line:
                yield line
            continue
        counts["lines cut"] += 1
        start, size, stop = 0, 0, 0
        for at, character in enumerate(line):
            size += len(character.encode())
            if size > PIECE_BYTES:
                end = stop if stop > start else at
                yield line[start:end]
                start, size = end, len(line[end : at + 1].encode())
            if character in "。．！？」":
                stop = at + 1
        yield line[start:]


def sample_sources(
    texts: Mapping[str, Iterable[str]], config: TokenizerTrainingConfig
) -> tuple[list[str], dict[str, list[str]], dict[str, dict]]:
    """(pieces to train on, pieces to measure on by source, facts by source). Reads every text once."""
    train, check, facts = [], {}, {}
    for source, documents in texts.items():
        counts: collections.Counter = collections.Counter()
        sample = Sample(config.source_bytes, config.seed, "train")
        small = Sample(min(CHECK_BYTES, config.source_bytes), config.seed, "check")
        for document in documents:
            counts["documents"] += 1
            for piece in cut(document, counts):
                data = piece.encode("utf-8", "surrogatepass")
                try:
                    data.decode("utf-8")
                except UnicodeDecodeError:
                    counts["pieces left out: not valid Unicode"] += 1
                    continue
                counts["pieces read"] += 1
                counts["bytes read"] += len(data)
                if piece.strip():
                    sample.add(piece, data)
                    small.add(piece, data)
                else:
                    counts["empty lines left out"] += 1
                    counts["bytes of empty lines"] += len(data)
        train += sample.pieces()
        check[source] = small.pieces()
        facts[source] = dict(counts) | {
            "bytes of empty lines": counts["bytes of empty lines"],
            "pieces sampled": len(sample),
            "bytes sampled": sample.bytes,
            "bytes beyond the budget": counts["bytes read"]
            - sample.bytes
            - counts["bytes of empty lines"],
        }
    if not train:
        raise errors.DataError("JI-TOKENIZER-011", f"no text in {', '.join(texts) or 'INPUT'}")
    return train, check, facts


def train(
    texts: Mapping[str, Iterable[str]],
    out: str,
    config: TokenizerTrainingConfig,
    profile: normalise_lib.NormaliseConfig,
    compare: Sequence[str] = (),
    base: str = "",
) -> dict:
    """Write OUT.model, OUT.normalise.json (the normalisation profile) and OUT.report.json; return the report.

    texts: documents by source, read once. compare: other tokenizers measured on the same text. base: a .model that is
    extended to vocab_size pieces; its type and profile are kept.
    Errors: ConfigError when the vocabulary does not fit the text, or the base cannot be extended; DataError when there
    is no text.
    """
    old = _checked_base(base, config, profile) if base else None
    profile = old.profile if old else profile
    pieces, check, facts = sample_sources(texts, config)
    normalised = [normalise_lib.normalise(piece, profile) for piece in pieces]
    data = _extended(old, normalised, config) if old else sentencepiece_model(normalised, config)
    path = pathlib.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    model_path = path.with_name(path.name + ".model")
    model_path.write_bytes(data)
    _write_json(
        path.with_name(path.name + tokenizer_lib.PROFILE),
        {"normalise": dataclasses.asdict(profile)},
    )
    names = dict.fromkeys([model_path, *([base] if base else []), *compare])
    report = {
        "config": dataclasses.asdict(config),
        "normalise": dataclasses.asdict(profile),
        "base": base,
        "sources": facts,
        "tokenizers": {str(name): measure(tokenizer_lib.load(name), check) for name in names},
    }
    _write_json(path.with_name(path.name + ".report.json"), report)
    return report


def sentencepiece_model(
    pieces: Sequence[str], config: TokenizerTrainingConfig, **others: object
) -> bytes:
    """A SentencePiece model of normalised text. others: settings of SentencePiece that win over those made here."""
    model = io.BytesIO()
    settings = dict(
        vocab_size=config.vocab_size,
        model_type=config.model_type,
        character_coverage=config.character_coverage,
        max_sentencepiece_length=config.max_piece_length,
        split_digits=config.split_digits,
        # The space too: as bytes of SentencePiece's own sign for it, it would not come back.
        required_chars="\u25810123456789" if config.split_digits else "\u2581",
        byte_fallback=config.byte_fallback,
        add_dummy_prefix=config.add_dummy_prefix,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        max_sentence_length=2 * PIECE_BYTES,  # normalisation may lengthen a piece
        input_sentence_size=0,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="<pad>",
        control_symbols=list(config.control_tokens),
        user_defined_symbols=["\n"],
        num_threads=config.threads or os.cpu_count() or 1,
        minloglevel=2,
    )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(pieces), model_writer=model, **settings | others
        )
    except RuntimeError as error:
        raise errors.ConfigError(
            "JI-TOKENIZER-012",
            f"SentencePiece refuses VOCAB_SIZE={config.vocab_size} on {sum(map(len, pieces)):,} characters: "
            f"{str(error).splitlines()[-1].strip()}; take a smaller vocabulary or more text",
        ) from None
    return model.getvalue()


def _checked_base(base: str, config, profile) -> tokenizer_lib.Tokenizer:
    """The base, before any text is read. Errors: ConfigError when it cannot be extended so."""
    old = extend.open_base(base)
    if config.vocab_size <= old.vocab_size:
        raise errors.ConfigError(
            "JI-TOKENIZER-020",
            f"VOCAB_SIZE={config.vocab_size} is the size that BASE={base} is extended to, and it has "
            f"{old.vocab_size:,} pieces already; give a larger one",
        )
    if not profile.is_identity and profile != old.profile:
        raise errors.ConfigError(
            "JI-TOKENIZER-021",
            f"BASE={base} keeps its own normalisation; leave out NFKC, FULL_WIDTH_ASCII and the like",
        )
    return old


def _extended(old: tokenizer_lib.Tokenizer, pieces: Sequence[str], config) -> bytes:
    """The base with new pieces: those that a model of its type, trained on the text, has and the base lacks."""
    base = extend.read_proto(pathlib.Path(old.path).read_bytes())
    kind = extend.model_type(base)
    # Many of its pieces will be in the base already, or not be Japanese.
    wanted = 2 * (config.vocab_size - old.vocab_size) + 2000
    other = dataclasses.replace(config, vocab_size=wanted, model_type=kind, control_tokens=())
    soft = {"hard_vocab_limit": False} if kind == "unigram" else {}
    while True:
        try:
            model = extend.read_proto(sentencepiece_model(pieces, other, **soft))
            break
        except errors.ConfigError:
            # BPE ends with an error where the text gives no more merges.
            if other.vocab_size < 1000:
                raise
            other = dataclasses.replace(other, vocab_size=other.vocab_size * 2 // 3)
    merged = extend.merge(base, model, config.control_tokens, config.vocab_size)
    return merged.SerializeToString()


def _write_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", "utf-8")


def measure(tokenizer: tokenizer_lib.Tokenizer, check: Mapping[str, Sequence[str]]) -> dict:
    """Characters per token, share of byte tokens and of unknown ones, by source and in all; failed round trips.

    Round trips are counted up to the tokenizer's normalisation profile, over the text and over random Unicode.
    """
    found: dict = {"vocab_size": tokenizer.vocab_size, "sources": {}}
    total: collections.Counter = collections.Counter()
    for source, pieces in check.items():
        counts: collections.Counter = collections.Counter()
        for piece in pieces:
            ids = tokenizer.encode(piece)
            counts["characters"] += len(piece)
            counts["tokens"] += len(ids)
            counts["bytes"] += sum(map(tokenizer.is_byte, ids))
            counts["unknown"] += ids.count(tokenizer.unk_id)
            counts["failures"] += _fails(tokenizer, piece)
        total += counts
        found["sources"][source] = _shares(counts)
    found |= _shares(total)
    strings = list(random_unicode(500, seed=0))
    found["round_trip_failures_random_unicode"] = sum(_fails(tokenizer, s) for s in strings)
    return found


def _shares(counts: collections.Counter) -> dict:
    tokens = max(1, counts["tokens"])
    return {
        "characters_per_token": counts["characters"] / tokens,
        "byte_share": counts["bytes"] / tokens,
        "unknown_share": counts["unknown"] / tokens,
        "round_trip_failures": counts["failures"],
    }


def _fails(tokenizer: tokenizer_lib.Tokenizer, text: str) -> bool:
    return tokenizer.decode(tokenizer.encode(text)) != normalise_lib.normalise(
        text, tokenizer.profile
    )


def random_unicode(count: int, seed: int) -> Iterator[str]:
    """Strings of up to 40 characters from all of Unicode, surrogates apart, and from what trips tokenizers."""
    draw = random.Random(seed)
    hard = "\u2581\u2585 \t\n\u3000ｶﾞ①㈱〜～𠮷👨\u200d👩\u200d👧\ufeff\x00<s></s><|im_end|>"
    for _ in range(count):
        size = draw.randint(1, 40)
        points = (draw.randrange(sys.maxunicode + 1) for _ in range(size))
        yield "".join(
            draw.choice(hard) if draw.random() < 0.3 or 0xD800 <= point < 0xE000 else chr(point)
            for point in points
        )
