"""More pieces for a SentencePiece model that exists: Japanese ones, appended, so that every old id stays.

A new piece consists of Japanese letters and punctuation only, and its score lies between the lowest and the highest of
the base. So text without Japanese characters is cut as before, piece by piece, and what the base has learnt of its own
language stays.

Scores. Unigram: the log-probabilities of a model trained on the new text, shifted by the median difference of the
pieces that both have; so a new piece wins over the old ones it is made of about as often as it would have if both
models had been trained together. BPE: below every old one, in the order in which they were learnt; so the base's own
merges come first, and the new ones join what these leave.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from sentencepiece import sentencepiece_model_pb2 as proto

from jinstr import errors
from jinstr.text import hf_tokenizer
from jinstr.text import tokenizer as tokenizer_lib

# 、。「」 and the like, kana, ideographs with their extensions, full- and half-width forms. No space of any kind.
_JAPANESE = re.compile(
    "[\u3001-\u303f\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uffee\U00020000-\U0003ffff]+"
)
_NORMAL, _CONTROL = proto.ModelProto.SentencePiece.NORMAL, proto.ModelProto.SentencePiece.CONTROL
_SHARED = 20  # pieces that two models must share before their scores are compared


def open_base(path: str) -> tokenizer_lib.Tokenizer:
    """A tokenizer that can be extended. Errors: ConfigError for a tokenizer.json."""
    base = tokenizer_lib.load(path)
    if isinstance(base, hf_tokenizer.HfTokenizer):
        raise errors.ConfigError(
            "JI-TOKENIZER-017",
            f"BASE={path}: only SentencePiece models can be extended, not a tokenizer.json; give the tokenizer.model "
            "if the model was published with one",
        )
    return base


def read_proto(data: bytes) -> proto.ModelProto:
    model = proto.ModelProto()
    model.ParseFromString(data)
    return model


def model_type(base: proto.ModelProto) -> str:
    """unigram or bpe. Errors: ConfigError for the other kinds of SentencePiece."""
    name = base.trainer_spec.ModelType.Name(base.trainer_spec.model_type).lower()
    if name not in ("unigram", "bpe"):
        raise errors.ConfigError("JI-TOKENIZER-018", f"BASE is a {name} model; unigram or bpe")
    return name


def merge(
    base: proto.ModelProto, other: proto.ModelProto, controls: Sequence[str], size: int
) -> proto.ModelProto:
    """`base` with the control tokens it lacks and the best Japanese pieces of `other`, up to `size` pieces in all.

    Single characters come first, then the others by score, each only if all its characters have pieces. Both models
    are of one type. The result is smaller than `size` when `other` has no more.
    """
    merged = proto.ModelProto()
    merged.CopyFrom(base)
    known = {piece.piece for piece in base.pieces}
    for name in controls:
        if name not in known and len(merged.pieces) < size:
            merged.pieces.add(piece=name, score=0.0, type=_CONTROL)
    room = size - len(merged.pieces)
    candidates = [
        piece
        for piece in other.pieces
        if piece.type == _NORMAL and piece.piece not in known and _JAPANESE.fullmatch(piece.piece)
    ]
    candidates.sort(key=lambda piece: -piece.score)
    letters = [piece for piece in candidates if len(piece.piece) == 1][:room]
    known |= {piece.piece for piece in letters}
    longer = (p for p in candidates if len(p.piece) > 1 and all(c in known for c in p.piece))
    chosen = [*letters, *longer][:room]
    for piece, score in zip(chosen, _scores(base, other, chosen)):
        merged.pieces.add(piece=piece.piece, score=score, type=_NORMAL)
    merged.trainer_spec.vocab_size = len(merged.pieces)
    merged.DiscardUnknownFields()  # among them a test of itself, whose answers are of the old pieces
    return merged


def _scores(base: proto.ModelProto, other: proto.ModelProto, chosen: Sequence) -> list[float]:
    old = {piece.piece: piece.score for piece in base.pieces if piece.type == _NORMAL}
    lowest, highest = min(old.values()), max(old.values())
    if model_type(base) == "bpe":
        order = sorted(range(len(chosen)), key=lambda n: -chosen[n].score)
        rank = {n: at for at, n in enumerate(order)}
        return [lowest - 1 - rank[n] for n in range(len(chosen))]
    shared = [
        old[piece.piece] - piece.score
        for piece in other.pieces
        if piece.piece in old and _JAPANESE.fullmatch(piece.piece)
    ]
    shift = statistics.median(shared) if len(shared) >= _SHARED else 0.0
    return [min(max(piece.score + shift, lowest), highest) for piece in chosen]


def old_pieces(base, extended) -> dict[int, list[int]]:
    """For every new id the base's ids of its text; of a control token, of its name.

    Both are from `tokenizer.load`. Errors: ConfigError when the first pieces of `extended` are not those of `base`.
    """
    for id in range(base.vocab_size):
        if id >= extended.vocab_size or base.piece(id) != extended.piece(id):
            raise errors.ConfigError(
                "JI-TOKENIZER-019",
                f"{extended.path} is no extension of {base.path}: id {id} is not {base.piece(id)!r} there; extend it "
                "with jinstr tokenizer BASE=…",
            )
    found = {}
    for id in range(base.vocab_size, extended.vocab_size):
        text = extended.piece(id) if extended.is_control(id) else extended.decode_continuation([id])
        found[id] = base.encode_continuation(text)
    return found
