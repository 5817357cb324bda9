"""Which tokens begin a text, end it and pad a batch, from the files that Hugging Face keeps beside a tokenizer.json."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Set
from typing import NamedTuple

from jinstr import errors
from jinstr.text import json_file, surfaces

NAMED = ("tokenizer_config.json", "special_tokens_map.json")  # hold names of tokens
NUMBERED = ("generation_config.json", "config.json")  # hold ids
# Files of older programs, and of programs that do not read tokenizer.json; copied along.
OTHERS = (
    *("special_tokens_map.json", "added_tokens.json", "tokenizer.model", "spiece.model"),
    *("vocab.json", "merges.txt"),
)
PADS = ("<pad>", "<PAD>", "<PAD|LLM-jp>", "[PAD]", "<|pad|>", "<|padding|>")

_SPARE = re.compile("pad|reserved|unused")
_ENDS = re.compile("end|eot|eos|</|sep", re.IGNORECASE)


class Special(NamedTuple):
    """What the files say. Names win over ids; a bos_token of null in tokenizer_config.json means: none."""

    names: tuple[tuple[str, str | None], ...]
    numbers: tuple[tuple[str, int], ...]

    def ids(
        self, vocabulary: Mapping[str, int], controls: Set[int], unk: int, path: str
    ) -> tuple[int, int, int]:
        """(bos or -1, eos, pad).

        pad is a token of text only where the end of text is the only other choice; see `HfTokenizer`.
        Errors: ConfigError when no end of text is named, or the name is not a token.
        """
        names, numbers = dict(self.names), dict(self.numbers)

        def find(name: str) -> int:
            piece = names.get(f"{name}_token")
            if piece is not None and piece not in vocabulary:
                raise errors.ConfigError(
                    "JI-TOKENIZER-013",
                    f"{path}: its configuration calls {piece!r} the {name}_token, which it lacks",
                )
            return vocabulary[piece] if piece is not None else numbers.get(f"{name}_token_id", -1)

        known = set(vocabulary.values())
        eos = find("eos")
        if eos not in known:
            raise errors.ConfigError(
                "JI-TOKENIZER-014",
                f"{path}: no file beside it names the end-of-text token; put its tokenizer_config.json there",
            )
        bos = -1 if "bos_token" in names and names["bos_token"] is None else find("bos")
        bos = bos if bos in known else -1
        others = sorted((id, piece) for piece, id in vocabulary.items() if id in controls)
        spare = [id for id, piece in others if _SPARE.search(piece.lower())]
        pieces = {id: piece for piece, id in vocabulary.items()}
        candidates = [find("pad"), *(vocabulary.get(piece, -1) for piece in PADS)]
        # A pad_token_id of 0 may be "!": tokens of text are passed over, even where a file names them.
        named = [
            id
            for id in candidates
            if id in controls or id == unk or surfaces.is_markup(pieces.get(id, ""))
        ]
        # Last those that a chat template may end a turn with: padding must differ from them too.
        rest = sorted(others, key=lambda token: (token[0] == bos, bool(_ENDS.search(token[1]))))
        order = [*named, *spare, unk, *(id for id, _ in rest), *sorted(known)[:2]]
        return bos, eos, next(id for id in order if id in known and id != eos)


def _read(path: pathlib.Path) -> dict:
    value = json_file.read(path, "JI-TOKENIZER-015") if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def read(folder: pathlib.Path) -> Special:
    """What the files in a folder say; earlier files win. Errors: ConfigError for a file that is no JSON."""
    names: dict[str, str | None] = {}
    for file in NAMED:
        for name, value in _read(folder / file).items():
            if name in ("bos_token", "eos_token", "pad_token"):
                piece = value.get("content") if isinstance(value, dict) else value
                names.setdefault(name, piece if isinstance(piece, str) else None)
    numbers: dict[str, int] = {}
    for file in NUMBERED:
        facts = _read(folder / file)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = facts.get(name)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int) and not isinstance(value, bool):
                numbers.setdefault(name, value)
    return Special(tuple(sorted(names.items())), tuple(sorted(numbers.items())))


def added(folder: pathlib.Path) -> list[tuple[int, str]]:
    """(id, text) of the tokens that added_tokens.json and tokenizer_config.json add to a SentencePiece model."""
    found: dict[int, str] = {}
    for piece, id in _read(folder / "added_tokens.json").items():
        if isinstance(id, int):
            found[id] = piece
    listed = _read(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for id, token in listed.items() if isinstance(listed, dict) else ():
        if id.isdecimal() and isinstance(token, dict):
            found[int(id)] = str(token.get("content"))
    return [(id, piece.replace(surfaces.SPACE, " ")) for id, piece in sorted(found.items())]


def completed(folder: pathlib.Path, tokenizer) -> dict:
    """The tokenizer_config.json of a folder with the special tokens of the tokenizer written into it.

    pad_token is null where padding is a token of text, see `HfTokenizer`.
    """
    return _named(_read(folder / "tokenizer_config.json"), tokenizer)


def completed_map(folder: pathlib.Path, tokenizer) -> dict:
    """The special_tokens_map.json of a folder, likewise; tokens that there are none of are left out."""
    facts = _named(_read(folder / "special_tokens_map.json"), tokenizer)
    return {name: value for name, value in facts.items() if value}


def _named(facts: dict, tokenizer) -> dict:
    for name, id in (
        ("bos_token", tokenizer.bos_id),
        ("eos_token", tokenizer.eos_id),
        ("pad_token", tokenizer.pad_id),
    ):
        is_text = id != tokenizer.unk_id and not tokenizer.is_control(id)
        facts[name] = None if id < 0 or is_text else tokenizer.piece(id)
    return facts
