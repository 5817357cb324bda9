"""Tokenizers as jinstr uses them: text to ids and back without loss, and no control token from user text.

`load` opens SentencePiece models, which are read here, and Hugging Face files, which `hf_tokenizer.py` reads.

Three traps are closed here, so that nobody above needs to know them:
  - models with `add_dummy_prefix` put a space before every text they encode; `encode_continuation` is what the text
    becomes in mid-document;
  - U+2581, the character SentencePiece writes for a space, comes back as a space unless it goes in as bytes;
  - control tokens that a model declares as user-defined symbols would be read out of what people type.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil

import numpy as np
import sentencepiece
import xxhash

from jinstr import errors
from jinstr.text import hf_special, hf_tokenizer, json_file, surfaces
from jinstr.text import normalise as normalise_lib

_SPACE = surfaces.SPACE
MODELS = ("tokenizer.model", "spiece.model")  # the second with T5's tokenizer class, as rinna has
PROFILE = ".normalise.json"  # beside X.model: the normalisation profile


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
        self.adds_prefix = self._model.encode("x", out_type=str)[0].startswith(_SPACE)
        self._anchor, self._anchor_ids = self._find_anchor() if self.adds_prefix else ("", [])

    def _find_pad(self) -> int:
        """The padding id: the model's own, or a control piece that says so, or the unknown token."""
        if self._model.pad_id() >= 0:
            return self._model.pad_id()
        for piece in hf_special.PADS:
            if piece in self._ids:
                return self._ids[piece]
        return self.unk_id

    def _is_markup(self, id: int) -> bool:
        """A control token by its looks that is declared as text (Llama and llm-jp models have such)."""
        model, piece = self._model, self._pieces[id]
        plain = model.is_control(id) or model.is_byte(id) or model.is_unknown(id)
        return not plain and surfaces.is_markup(piece)

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
        # SentencePiece's default rules turn line ends into spaces and drop control characters; U+E000 they leave.
        for anchor in ("\n", "\x02", "\x05", "\x1f", "\ue000"):
            if any(anchor in piece and piece != anchor for piece in self._pieces):
                continue
            ids = self._model.encode(anchor)
            longer = self._model.encode(anchor + "x")
            stays = len(ids) > 1 or self._pieces[ids[0]] == anchor if ids else False
            if stays and self.unk_id not in ids and longer[: len(ids)] == ids:
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

    def begins_after(self, control: int) -> bool:
        """Whether text after this control token is encoded as at the start of a document."""
        return control == self.bos_id

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

    def normalised(self, text: str) -> str:
        """What the model itself makes of a text before it cuts it, spaces around it left out."""
        return self._model.normalize(text).replace(_SPACE, " ").strip(" ")

    def decode(self, ids) -> str:
        """Text of ids that begin a document. Control tokens and broken characters give nothing."""
        text = self.decode_continuation(ids)
        return text[1:] if self.adds_prefix and text.startswith(" ") else text

    def decode_continuation(self, ids) -> str:
        """Text of ids from mid-document: what an answer is."""
        surfaces = self._surfaces
        return b"".join([surfaces[id] for id in ids]).decode("utf-8", "ignore")

    def stream(self) -> surfaces.Stream:
        """A decoder that takes the ids of one answer one at a time."""
        return surfaces.Stream(self._surfaces)

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


def profile_of(model: pathlib.Path) -> pathlib.Path | None:
    """The file of the normalisation profile beside X.model: X.normalise.json, or X.json as older versions wrote it."""
    named, older = model.with_suffix(PROFILE), model.with_suffix(".json")
    if named.is_file():
        return named
    return older if _is_profile(older) else None


def _is_profile(path: pathlib.Path) -> bool:
    """Whether X.json beside X.model is a profile; one that is broken counts, to be refused by name."""
    if not path.is_file():
        return False
    try:
        facts = json.loads(
            json_file.read_bytes(path, "JI-TOKENIZER-004", json_file.TOKENIZER_LIMIT)
        )
    except (ValueError, RecursionError):
        return True
    return isinstance(facts, dict) and "normalise" in facts and "model" not in facts


def find(path: str | pathlib.Path) -> pathlib.Path | None:
    """The tokenizer file at a path: itself, or in a folder its tokenizer.json, tokenizer.model or spiece.model.

    The first of them is taken: tokens that were added to a model stand only in tokenizer.json.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return path
    whole, *models = (path / name for name in ("tokenizer.json", *MODELS))
    found = next((model for model in models if model.is_file()), None)
    return whole if whole.is_file() and not (found and _is_profile(whole)) else found


def beside(file: pathlib.Path) -> str:
    """What the files beside a tokenizer file say of its ids: the profile, or the special tokens."""
    if file.suffix == ".json":
        return repr(hf_special.read(file.parent))
    profile = profile_of(file)
    return profile.read_text("utf-8") if profile else ""


def copy(path: str | pathlib.Path, folder: pathlib.Path) -> None:
    """Put the tokenizer at a path into a folder as tokenizer.model or tokenizer.json, with what belongs to it.

    A tokenizer.json gets a tokenizer_config.json that names its special tokens, wherever they were named before, and
    the files for older programs, so that what is exported later has them again.
    """
    file = find(path)
    if file is None:
        raise errors.ConfigError("JI-TOKENIZER-003", f"{path}: no tokenizer there")
    targets = {file: folder / f"tokenizer{file.suffix}"}
    profile = profile_of(file) if file.suffix != ".json" else None
    if profile:
        targets[profile] = folder / f"tokenizer{PROFILE}"
    for source, target in targets.items():
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
    if file.suffix == ".json" and file.parent.resolve() != folder.resolve():
        facts = hf_special.completed(file.parent, load(file))
        text = json.dumps(facts, ensure_ascii=False, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, "utf-8")
        copy_beside(file, folder)


def copy_beside(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Put the files that older programs read in place of a tokenizer.json into a folder.

    `find` still takes the tokenizer.json there. A tokenizer.json under another name has no such files.
    """
    beside = [file.parent / name for name in hf_special.OTHERS if file.name == "tokenizer.json"]
    for source in beside:
        if source.is_file() and source.resolve() != (folder / source.name).resolve():
            shutil.copyfile(source, folder / source.name)


def load(path: str | pathlib.Path) -> Tokenizer | hf_tokenizer.HfTokenizer:
    """Open X.model with its profile X.normalise.json (identity without one), a tokenizer.json, or a folder with either.

    Errors: ConfigError when the file is missing or no tokenizer, when pad and eos are the same, or when the files
    beside a tokenizer.model name tokens that it lacks.
    """
    found = find(path)
    if found is None:
        raise errors.ConfigError(
            "JI-TOKENIZER-003",
            f"{path}: no such file, or a folder without tokenizer.json, tokenizer.model and spiece.model; make one "
            "with `jinstr tokenizer`",
        )
    if found.suffix == ".json":
        return hf_tokenizer.load(found)
    profile = _read_profile(profile_of(found))
    try:
        tokenizer = Tokenizer(str(found), profile)
    except RuntimeError as error:
        raise errors.ConfigError(
            "JI-TOKENIZER-005", f"{found}: not a SentencePiece model ({error})"
        ) from None
    if found.name in MODELS and profile_of(found) is None:  # else jinstr's own, which has them all
        _check_beside(found, tokenizer)
    if tokenizer.pad_id == tokenizer.eos_id:
        raise errors.ConfigError(
            "JI-TOKENIZER-006", f"{found}: padding and end of text are both id {tokenizer.eos_id}"
        )
    return tokenizer


def _check_beside(file: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Refuse a model whose folder names tokens that are not in it, to which transformers gives ids of their own."""
    names = dict(hf_special.read(file.parent).names)
    known = {tokenizer.piece(id) for id in range(tokenizer.vocab_size)}
    lacking = [
        f"{piece!r} (id {id})"
        for id, piece in hf_special.added(file.parent)
        if id >= tokenizer.vocab_size or tokenizer.piece(id).replace(_SPACE, " ") != piece
    ]
    lacking += [
        f"{names[name]!r} ({name})"
        for name in ("bos_token", "eos_token", "pad_token")
        if names.get(name) is not None and names[name] not in known
    ]
    eos, own = names.get("eos_token"), tokenizer.piece(tokenizer.eos_id)
    if eos in known and eos != own:
        lacking.append(f"{eos!r} (eos_token, which is {own!r} in it)")
    if not lacking:
        return
    shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
    raise errors.ConfigError(
        "JI-TOKENIZER-022",
        f"{file}: files beside it name tokens that it lacks: {shown}; take the model's tokenizer.json, or make one: "
        f"python -c \"import transformers; transformers.AutoTokenizer.from_pretrained('{file.parent}')"
        f".save_pretrained('{file.parent}')\"; to do without these tokens, copy {file.name} alone to another folder",
    )


def _read_profile(path: pathlib.Path | None) -> normalise_lib.NormaliseConfig:
    if path is None:
        return normalise_lib.NormaliseConfig()
    try:
        return normalise_lib.NormaliseConfig(
            **json_file.read(path, "JI-TOKENIZER-004")["normalise"]
        )
    except (KeyError, TypeError) as error:
        raise errors.ConfigError(
            "JI-TOKENIZER-004", f"{path}: no normalisation profile in it ({error})"
        ) from None
