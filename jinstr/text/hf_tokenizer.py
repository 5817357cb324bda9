"""Hugging Face `tokenizer.json` files, with the promises and the interface of `tokenizer.Tokenizer`.

Byte-level BPE (Llama 3, Qwen, GPT-NeoX) and converted SentencePiece models (Llama 2, Mistral, Gemma, llm-jp) are read.
The file is changed in memory before it is used:
  - every control token counts as special, and special tokens are not looked for in text; where the vocabulary itself
    gives one, the text is cut inside it;
  - post-processors, truncation, padding and BPE dropout are left out: `encode` adds nothing and loses nothing;
  - a second copy without the space before a text encodes what stands in mid-document.
"""

from __future__ import annotations

import copy
import json
import pathlib
import re

import numpy as np
import tokenizers
import xxhash

from jinstr import errors
from jinstr.text import hf_special, json_file, surfaces
from jinstr.text import normalise as normalise_lib

NEVER = -1e5  # log-probability; pieces below are there for their ids only
_DECODERS = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip", "Sequence"}


def _byte_alphabet() -> dict[str, int]:
    """How byte-level BPE writes bytes as characters (Radford et al. 2019, GPT-2)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTE_OF_LETTER = _byte_alphabet()


def _nodes(value):
    """Every dict in a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)


def _types(value) -> set[str]:
    return {node["type"] for node in _nodes(value) if isinstance(node.get("type"), str)}


def _without_prefix(value):
    """A normalizer or pre-tokenizer that puts no space before a text. Source: the three steps that can put one."""
    if not isinstance(value, dict) or value.get("type") == "Prepend":
        return None
    value = dict(value)
    if value.get("type") == "Metaspace":
        value.pop("add_prefix_space", None)
        value["prepend_scheme"] = "never"
    if value.get("type") == "ByteLevel":
        value["add_prefix_space"] = False
    for name in ("normalizers", "pretokenizers"):
        if name in value:
            value[name] = [new for item in value[name] if (new := _without_prefix(item))]
    return value


def _prefix_rule(steps) -> str:
    """Where a space is put before text: "first" in a document only, "always" (after every control token too), or "bos"
    (first, and after the begin-of-text token: files that jinstr wrote, whose chat templates write that space).
    """
    rules = set()
    for node in _nodes(list(steps)):
        if node.get("type") == "Prepend":
            rules.add("always")
        elif node.get("type") == "ByteLevel" and node.get("add_prefix_space"):
            rules.add("always")
        elif node.get("type") == "Metaspace":
            scheme = node.get("prepend_scheme", "always")
            rules.add("bos" if scheme == "first" and node.get("replacement") == " " else scheme)
    return next((rule for rule in ("always", "bos", "first") if rule in rules), "first")


def _is_plain(token: dict) -> bool:
    """Whether an added token is text for transformers, and takes no spaces around it away."""
    return not any(token.get(flag) for flag in ("special", "lstrip", "rstrip", "single_word"))


class HfTokenizer:
    """A tokenizer.json and the special tokens named in the files beside it. See `load`.

    pad_id: the token that the files name; else one called <pad> or the like, else one that is kept in reserve, else the
    unknown token, else any control token; always another than the end of text. Padding has segment id 0 and is masked
    by that, so the token itself means nothing; many Llama, Qwen and NeoX checkpoints name none, or the end of text.
    Where there is no token but text and its end (GPT-2), it is the first token of the vocabulary, which stays text: it
    is encoded and decoded as before, and files are published with no pad_token.
    unk_id, bos_id: -1 when there is none.

    Added tokens with `special: false` are text for transformers: what people type becomes the token. Here that holds
    for pairs of tags such as <think> and </think>, <tool_call> and </tool_call> (Qwen 3): questions and answers may
    hold them, each becomes its one id, and it is decoded to its name. Every other added token that looks like markup
    (<|im_start|>, <|fim_prefix|>, <start_of_turn>), and any pair named after a role, is a control token even when the
    file calls it not special: published models have turn markers among them, and a text must not be able to end a turn.
    """

    def __init__(self, path: str, facts: dict, special: hf_special.Special, fingerprint: str):
        self.path, self.fingerprint = path, fingerprint
        self.profile = normalise_lib.NormaliseConfig()  # normalisation is part of the file
        model = facts["model"]
        self._is_unigram = model.get("type") == "Unigram" or isinstance(model.get("vocab"), list)
        steps = facts.get("decoder"), facts.get("pre_tokenizer"), facts.get("normalizer")
        self._is_byte_level = "ByteLevel" in set().union(*map(_types, steps))
        added = {token["id"]: token for token in facts.get("added_tokens") or ()}
        self._prefix = _prefix_rule(steps[1:])
        self._controls = self._find_controls(model, added)
        self._begin, self._middle = self._compiled(facts)
        vocabulary = self._begin.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=0) + 1
        if self.vocab_size > 2 * len(vocabulary) + 10_000:
            raise ValueError(f"{len(vocabulary):,} tokens with ids up to {self.vocab_size - 1:,}")
        self._pieces = [""] * self.vocab_size
        for piece, id in vocabulary.items():
            self._pieces[id] = piece
        self.unk_id: int = self._find_unk(model, vocabulary)
        self._controls.discard(self.unk_id)
        self.bos_id, self.eos_id, self.pad_id = special.ids(
            vocabulary, self._controls, self.unk_id, path
        )
        is_pad = surfaces.is_markup(self._pieces[self.pad_id])  # else it is in already, or text
        named = {self.eos_id, self.bos_id} | ({self.pad_id} if is_pad else set())
        self._controls |= named - {self.unk_id, -1}
        self._ids = {self._pieces[id]: id for id in self._controls}
        plain = {id for id in added if id not in self._controls}
        self._surfaces = [self._surface(id, id in plain) for id in range(self.vocab_size)]
        spaces = [vocabulary.get(f"<0x{byte:02X}>", -1) for byte in surfaces.SPACE.encode()]
        self._space_bytes = [] if self._is_byte_level or min(spaces) < 0 else spaces
        self._cuts = self._find_cuts(model)
        begins = [self._surfaces[id] for id in self._ids_of(self._begin, "x")]
        self.adds_prefix = b"".join(begins) == b" x"

    def _find_controls(self, model: dict, added: dict[int, dict]) -> set[int]:
        """Special tokens, added ones that look like markup, and in SentencePiece vocabularies every piece that does.

        Not so the tags that stand inside answers, see `HfTokenizer`.
        """
        whole = (token["content"] for token in added.values() if _is_plain(token))
        tags = surfaces.text_tags(whole)
        is_control = {
            id: token.get("special", False)
            or surfaces.is_markup(token["content"])
            and token["content"] not in tags
            for id, token in added.items()
        }
        found = {id for id, value in is_control.items() if value}
        if self._is_byte_level:
            return found  # "</p>" may be an ordinary merge there
        names = model["vocab"]
        pairs = (
            names.items() if isinstance(names, dict) else ((p[0], n) for n, p in enumerate(names))
        )
        return found | {
            id
            for piece, id in pairs
            if surfaces.is_markup(piece) and surfaces.byte_of(piece) < 0 and piece not in tags
        }

    def _compiled(self, facts: dict) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """(for texts that begin a document, for texts in mid-document); one object when they are the same."""
        facts = dict(facts) | {"truncation": None, "padding": None, "post_processor": None}
        facts["model"] = dict(facts["model"])
        if "dropout" in facts["model"]:
            facts["model"]["dropout"] = None
        facts["added_tokens"] = [
            dict(token) | {"special": token["id"] in self._controls}
            for token in facts.get("added_tokens") or ()
        ]
        middle = dict(facts)
        for name in ("normalizer", "pre_tokenizer"):
            middle[name] = _without_prefix(copy.deepcopy(facts.get(name)))
        found = []
        for each in (facts, middle):
            if found and each == facts:
                return found[0], found[0]
            compiled = tokenizers.Tokenizer.from_str(json.dumps(each))
            compiled.encode_special_tokens = True
            found.append(compiled)
        return tuple(found)

    def _find_unk(self, model: dict, vocabulary: dict[str, int]) -> int:
        if self._is_unigram:
            return -1 if model.get("unk_id") is None else model["unk_id"]
        return vocabulary.get(model.get("unk_token"), -1)

    def _surface(self, id: int, is_literal: bool) -> bytes:
        piece = self._pieces[id]
        if id in self._controls:
            return b""
        if id == self.unk_id:
            return " \u2047 ".encode()
        if is_literal:
            return piece.encode()
        if self._is_byte_level:
            if all(letter in _BYTE_OF_LETTER for letter in piece):
                return bytes(_BYTE_OF_LETTER[letter] for letter in piece)
            return piece.encode()
        byte = surfaces.byte_of(piece)
        return bytes([byte]) if byte >= 0 else piece.replace(surfaces.SPACE, " ").encode()

    def _find_cuts(self, model: dict) -> re.Pattern | None:
        """What is never handed over in one stretch: U+2581, and pieces of a unigram vocabulary that are not text.

        Pieces with scores below NEVER need no cut: no text is ever split into them.
        """
        words = [surfaces.SPACE] if self._space_bytes else []
        if self._is_unigram:
            words += [
                piece
                for id, (piece, score) in enumerate(model["vocab"])
                if score > NEVER and (id in self._controls or surfaces.byte_of(piece) >= 0)
            ]
        words.sort(key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words))) if words else None

    def encode(self, text: str) -> list[int]:
        """Ids of a text that begins a document. Errors: DataError for text that is not valid Unicode."""
        return self._encode(text, self._begin)

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode`, i32 [n]."""
        return np.asarray(self._encode(text, self._begin), np.int32)

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of a text that stands in mid-document."""
        return self._encode(text, self._middle)

    def begins_after(self, control: int) -> bool:
        """Whether text after this control token is encoded as at the start of a document.

        The file's own rule, so that conversations get the ids that transformers gives them.
        """
        if self._prefix == "bos":
            return control == self.bos_id
        return self._prefix == "always"

    def _encode(self, text: str, by: tokenizers.Tokenizer) -> list[int]:
        start = next((n for n, c in enumerate(text) if 0xD800 <= ord(c) < 0xE000), -1)
        if start >= 0:
            raise errors.DataError(
                "JI-TOKENIZER-001",
                f"text is not valid Unicode: a lone surrogate at character {start}; clean the source",
            )
        if self._cuts is None or not self._cuts.search(text):
            return self._ids_of(by, text)
        ids: list[int] = []
        start = 0
        for found in self._cuts.finditer(text):
            is_space = found[0] == surfaces.SPACE
            cut = found.start() + (not is_space)
            if cut > start:
                ids += self._ids_of(by, text[start:cut])
                by = self._middle
            start = cut
            if is_space:
                ids += self._space_bytes
                by, start = self._middle, start + 1
        return ids + self._ids_of(by, text[start:])

    def _ids_of(self, by: tokenizers.Tokenizer, text: str) -> list[int]:
        """Ids of a stretch; cut inside whatever gives a control token."""
        if not text:
            return []
        encoded = by.encode(text, add_special_tokens=False)
        if self._controls.isdisjoint(encoded.ids):
            return encoded.ids
        bad = next(n for n, id in enumerate(encoded.ids) if id in self._controls)
        cut = encoded.offsets[bad][0] + 1
        if cut >= len(text):
            raise errors.DataError(
                "JI-TOKENIZER-007",
                f"{self.path}: the text {text[-20:]!r} becomes the control token {encoded.tokens[bad]!r}, and it "
                "cannot be cut; take another tokenizer, or leave this text out",
            )
        return self._ids_of(by, text[:cut]) + self._ids_of(self._middle, text[cut:])

    def decode(self, ids) -> str:
        """Text of ids that begin a document. Control tokens and broken characters give nothing."""
        text = self.decode_continuation(ids)
        return text[1:] if self.adds_prefix and text.startswith(" ") else text

    def decode_continuation(self, ids) -> str:
        """Text of ids from mid-document: what an answer is."""
        table = self._surfaces
        return b"".join([table[id] for id in ids]).decode("utf-8", "ignore")

    def stream(self) -> surfaces.Stream:
        """A decoder that takes the ids of one answer one at a time."""
        return surfaces.Stream(self._surfaces)

    def id_of(self, piece: str) -> int | None:
        """The id of a control token such as "<|im_start|>"; None when there is none of that name."""
        return self._ids.get(piece)

    def piece(self, id: int) -> str:
        return self._pieces[id]

    def is_control(self, id: int) -> bool:
        """Whether an id stands for no text: pad, bos, eos, turn markers."""
        return id in self._controls

    def is_byte(self, id: int) -> bool:
        """Whether an id stands for a byte, or a part of a character."""
        if not self._is_byte_level:
            return surfaces.byte_of(self._pieces[id]) >= 0
        try:
            self._surfaces[id].decode("utf-8")
        except UnicodeDecodeError:
            return True
        return False


def load(path: str | pathlib.Path) -> HfTokenizer:
    """Read a tokenizer.json; bos, eos and pad come from tokenizer_config.json and its like beside it.

    Errors: ConfigError when it is no tokenizer, of a kind that is not read, or names no end of text.
    """
    path = pathlib.Path(path)
    data = json_file.read_bytes(path, "JI-TOKENIZER-008", json_file.TOKENIZER_LIMIT)
    try:
        facts = json.loads(data)
        model = facts["model"]
        kind = model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else "BPE")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise errors.ConfigError(
            "JI-TOKENIZER-008", f"{path}: not a tokenizer.json ({type(error).__name__}: {error})"
        ) from None
    strange = _types(facts.get("decoder")) - _DECODERS
    if kind not in ("BPE", "Unigram") or strange or not facts.get("decoder"):
        raise errors.ConfigError(
            "JI-TOKENIZER-009",
            f"{path}: a {kind} model with the decoder {', '.join(sorted(strange)) or facts.get('decoder')}; read are "
            "byte-level BPE and converted SentencePiece models (BPE or Unigram)",
        )
    special = hf_special.read(path.parent)
    digest = xxhash.xxh3_64_hexdigest(data + repr(special).encode())
    try:
        return HfTokenizer(str(path), facts, special, digest)
    except errors.JinstrError:
        raise
    except BaseException as error:  # the tokenizers library raises Exception, and panics beside it
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise errors.ConfigError(
            "JI-TOKENIZER-008", f"{path}: not a tokenizer.json ({error})"
        ) from None
