"""SentencePiece models as jinstr uses them: text to ids and back without loss, and no control token from user text.

Three traps are closed here, so that nobody above needs to know them:
  - models with `add_dummy_prefix` put a space before every text they encode; `encode_continuation` is what the text
    becomes in mid-document;
  - U+2581, the character SentencePiece writes for a space, comes back as a space unless it goes in as bytes;
  - control tokens that a model declares as user-defined symbols would be read out of what people type.
"""

from __future__ import annotations

import codecs
import json
import pathlib
import re

import numpy as np
import sentencepiece
import xxhash

from jinstr import errors
from jinstr.text import normalise as normalise_lib

_SPACE = "\u2581"
# User-defined pieces that look like markup are control tokens; "\n" or runs of spaces are ordinary text.
_MARKUP = re.compile(r"<[^<>\s]{1,64}>|\[[A-Z/]{2,16}\]")


class Tokenizer:
    """A SentencePiece model and its normalisation profile. See `load`."""

    def __init__(self, path: str, profile: normalise_lib.NormaliseConfig):
        data = pathlib.Path(path).read_bytes()
        self.path, self.profile = str(path), profile
        self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.vocab_size: int = self._model.vocab_size()
        self.unk_id: int = self._model.unk_id()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        self._pieces = [self._model.id_to_piece(id) for id in range(self.vocab_size)]
        self._ids = {piece: id for id, piece in enumerate(self._pieces)}
        self.pad_id: int = self._find_pad()
        self.fingerprint: str = xxhash.xxh3_64_hexdigest(data + repr(profile).encode())
        self._surfaces = [self._surface(id) for id in range(self.vocab_size)]
        typed = [p for id, p in enumerate(self._pieces) if self._is_markup(id)]
        typed.sort(key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, [_SPACE, *typed])))
        byte_ids = [self._ids.get(f"<0x{byte:02X}>", -1) for byte in _SPACE.encode()]
        self._space_bytes = byte_ids if min(byte_ids) >= 0 else self._model.encode(_SPACE)
        # With a dummy prefix a text begins with a space that nobody wrote.
        self._adds_prefix = self._model.encode("x", out_type=str)[0].startswith(_SPACE)
        self._anchor, self._anchor_ids = self._find_anchor() if self._adds_prefix else ("", [])

    def _find_pad(self) -> int:
        """The padding id: the model's own, or a control piece that says so, or the unknown token."""
        if self._model.pad_id() >= 0:
            return self._model.pad_id()
        for piece in ("<pad>", "<PAD>", "<PAD|LLM-jp>", "[PAD]", "<|pad|>"):
            if piece in self._ids:
                return self._ids[piece]
        return self.unk_id

    def _is_markup(self, id: int) -> bool:
        """A control token by its looks that is declared as text (Llama and llm-jp models have such)."""
        model, piece = self._model, self._pieces[id]
        plain = model.is_control(id) or model.is_byte(id) or model.is_unknown(id)
        return not plain and bool(_MARKUP.fullmatch(piece))

    def _surface(self, id: int) -> bytes:
        model, piece = self._model, self._pieces[id]
        if model.is_control(id) or self._is_markup(id):
            return b""
        if model.is_byte(id):
            return bytes([int(piece[3:5], 16)])
        if model.is_unknown(id):
            return " \u2047 ".encode()
        return piece.replace(_SPACE, " ").encode()

    def _find_anchor(self) -> tuple[str, list[int]]:
        """A character that no piece but its own holds, and its ids at the start of a text.

        Whatever follows it is encoded as in mid-document, so encoding anchor + text and dropping the anchor's ids is
        the encoding of the text alone.
        """
        for anchor in ("\n", "\x02", "\x05", "\x1f"):
            if any(anchor in piece and piece != anchor for piece in self._pieces):
                continue
            ids = self._model.encode(anchor)
            if self.unk_id not in ids:
                return anchor, ids
        raise errors.ConfigError(
            "JI-TOKENIZER-002",
            f"{self.path}: adds a space before every text and has no byte pieces; "
            "train a tokenizer with byte fallback (jinstr tokenizer)",
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text that begins a document. Errors: DataError for text that is not valid Unicode."""
        return self._encode(text, self._raw)

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode`, i32 [n]. Makes no Python integers and lets other threads run: for long texts."""
        return np.asarray(self._encode(text, self._raw_array), np.int32)

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of a text that stands in mid-document."""
        return self._encode(text, self._raw_continuation)

    def _encode(self, text: str, begin) -> list[int]:
        text = normalise_lib.normalise(text, self.profile)
        try:
            if not self._special.search(text):
                return begin(text)
            return self._encode_special(text, begin)
        except (UnicodeEncodeError, RuntimeError):
            start = next((n for n, c in enumerate(text) if 0xD800 <= ord(c) < 0xE000), -1)
            if start < 0:
                raise
            raise errors.DataError(
                "JI-TOKENIZER-001",
                f"text is not valid Unicode: a lone surrogate at character {start}; clean the source",
            ) from None

    def _encode_special(self, text: str, begin) -> list[int]:
        """`text` in stretches: typed control tokens are cut after their first character, U+2581 goes in as bytes."""
        ids: list[int] = []
        start = 0
        for found in self._special.finditer(text):
            cut = found.start() + (found[0] != _SPACE)
            if cut > start:
                ids += begin(text[start:cut])
                begin = self._raw_continuation
            start = cut
            if found[0] == _SPACE:
                ids += self._space_bytes
                begin = self._raw_continuation
                start += 1
        return ids + begin(text[start:])

    def _raw(self, text: str) -> list[int]:
        return self._model.encode(text)

    def _raw_array(self, text: str) -> np.ndarray:
        return self._model.encode(text, return_type="numpy")

    def _raw_continuation(self, text: str) -> list[int]:
        return self._model.encode(self._anchor + text)[len(self._anchor_ids) :] if text else []

    def decode(self, ids) -> str:
        """Text of ids that begin a document. Control tokens and broken characters give nothing."""
        text = self.decode_continuation(ids)
        return text[1:] if self._adds_prefix and text.startswith(" ") else text

    def decode_continuation(self, ids) -> str:
        """Text of ids from mid-document: what an answer is."""
        surfaces = self._surfaces
        return b"".join([surfaces[id] for id in ids]).decode("utf-8", "ignore")

    def stream(self) -> Stream:
        """A decoder that takes the ids of one answer one at a time."""
        return Stream(self._surfaces)

    def id_of(self, piece: str) -> int | None:
        """The id of a control piece such as "<|im_start|>"; None when the model has none of that name."""
        id = self._ids.get(piece)
        return id if id is not None and self.is_control(id) else None

    def piece(self, id: int) -> str:
        return self._pieces[id]

    def is_control(self, id: int) -> bool:
        """Whether an id stands for no text: pad, bos, eos, turn markers."""
        return self._model.is_control(id) or self._is_markup(id)

    def is_byte(self, id: int) -> bool:
        return self._model.is_byte(id)


class Stream:
    """Ids to text one by one; a character appears when its last byte does, and U+FFFD never."""

    def __init__(self, surfaces: list[bytes]):
        self._surfaces = surfaces
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def push(self, id: int) -> str:
        return self._decoder.decode(self._surfaces[id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def load(path: str | pathlib.Path) -> Tokenizer:
    """Read X.model, and the normalisation profile from X.json beside it (identity without one).

    Errors: ConfigError when the file is missing or no SentencePiece model, or pad and eos are the same.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.ConfigError(
            "JI-TOKENIZER-003", f"{path}: no such file; make one with `jinstr tokenizer`"
        )
    profile = normalise_lib.NormaliseConfig()
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            profile = normalise_lib.NormaliseConfig(
                **json.loads(beside.read_text("utf-8"))["normalise"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise errors.ConfigError(
                "JI-TOKENIZER-004", f"{beside}: no normalisation profile in it ({error})"
            ) from None
    try:
        tokenizer = Tokenizer(str(path), profile)
    except RuntimeError as error:
        raise errors.ConfigError(
            "JI-TOKENIZER-005", f"{path}: not a SentencePiece model ({error})"
        ) from None
    if tokenizer.pad_id == tokenizer.eos_id:
        raise errors.ConfigError(
            "JI-TOKENIZER-006", f"{path}: padding and end of text are both id {tokenizer.eos_id}"
        )
    return tokenizer
