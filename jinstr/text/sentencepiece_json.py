"""A SentencePiece model as a `tokenizers.Tokenizer`, for the tokenizer.json that transformers and others read.

What has to be made equal, and how:
  - the space before a text: a Metaspace step that writes a real space at the very start, where SentencePiece writes it
    too when the text begins with a space, and a second step that turns it into U+2581;
  - pieces that no text may become (control tokens, bytes) have unigram scores that a path takes only in place of
    unknown characters, and "<0x41>" in a text is cut;
  - user-defined symbols get scores that win over any other pieces, the longer the more;
  - BPE merges are every way to cut a piece in two, in the order of the pieces' scores.
Unigram scores are f32 numbers added up in f64 here and in f32 by SentencePiece. Where two ways of cutting a text are
equally good up to rounding the two may choose differently: 2 and 1 of 10,000 lines with the two llm-jp tokenizers.
"""

from __future__ import annotations

import re
import unicodedata

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jinstr import errors
from jinstr.text import extend, surfaces
from jinstr.text import normalise as normalise_lib

_NEVER = -1e6  # below the worst score; hf_tokenizer.NEVER lies between
# "<0x41>" that people type is no byte piece: nothing is found across a cut.
_TYPED_BYTE = pre_tokenizers.Split(tokenizers.Regex("<(?=0x[0-9A-F]{2}>)"), "isolated")
# The first space of a run stays: whether a text begins the document is read off the place of its first character.
_COLLAPSE = normalizers.Replace(tokenizers.Regex("(?<= ) +"), "")
_TAKEN = "\U0010fffe\U0010ffff"  # two code points that are no characters
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)


def convert(tokenizer) -> tokenizers.Tokenizer:
    """The same ids as a `text.tokenizer.Tokenizer`, up to U+2581 and control tokens that people type.

    Errors: ConfigError for a model whose rules tokenizer.json cannot hold.
    """
    with open(tokenizer.path, "rb") as file:
        model = extend.read_proto(file.read())
    trainer, rules = model.trainer_spec, model.normalizer_spec
    if trainer.model_type not in (trainer.UNIGRAM, trainer.BPE):
        kind = trainer.ModelType.Name(trainer.model_type)
        raise _refused(tokenizer.path, f"{kind} models; only unigram and BPE")
    if trainer.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise _refused(tokenizer.path, "spaces at the ends of pieces, or unescaped ones")
    markup = {id for id in range(tokenizer.vocab_size) if tokenizer.is_control(id)}
    is_unigram = trainer.model_type == trainer.UNIGRAM
    build = _unigram if is_unigram else _bpe
    made = tokenizers.Tokenizer(build(model, markup, tokenizer.path))
    steps = [*_profile(tokenizer.profile), *_normalizers(rules, tokenizer)]
    made.normalizer = normalizers.Sequence(steps) if steps else None
    prefix = rules.add_dummy_prefix
    begin = [pre_tokenizers.Metaspace(" ", "first", split=False)] if prefix else []
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*begin, pre_tokenizers.Metaspace(surfaces.SPACE, "never", split=False), _TYPED_BYTE]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence(
        [decoders.Replace(surfaces.SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(made, model, markup, is_unigram)
    if tokenizer.bos_id >= 0:
        bos = tokenizer.piece(tokenizer.bos_id)
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_id)]
        )
    return made


def _refused(path: str, what: str) -> errors.ConfigError:
    return errors.ConfigError(
        "JI-TOKENIZER-016",
        f"{path}: tokenizer.json has no place for {what}; use the tokenizer.model with a program that reads it",
    )


def _unigram(model: proto.ModelProto, markup: set[int], path: str) -> models.Unigram:
    del path
    scores = [piece.score for piece in model.pieces if piece.type == _NORMAL]
    lowest = min(scores)
    vocabulary = []
    for id, piece in enumerate(model.pieces):
        score = lowest + _NEVER
        if piece.type == _NORMAL:
            score = piece.score
        elif piece.type == _USER and id not in markup:
            score = -_NEVER * len(piece.piece)  # always the best way to write what it stands for
        vocabulary.append((piece.piece, score))
    unk = next(id for id, piece in enumerate(model.pieces) if piece.type == _UNKNOWN)
    return models.Unigram(
        vocabulary, unk_id=unk, byte_fallback=bool(model.trainer_spec.byte_fallback)
    )


def _bpe(model: proto.ModelProto, markup: set[int], path: str) -> models.BPE:
    ids = {piece.piece: id for id, piece in enumerate(model.pieces)}
    normal = {p.piece: p.score for id, p in enumerate(model.pieces) if p.type == _NORMAL}
    lacking = {c for piece in normal if len(piece) > 1 for c in piece if c not in ids}
    if lacking:
        raise _refused(
            path,
            f"{len(lacking)} characters that only longer pieces hold, such as {min(lacking)!r}",
        )
    # Of one piece, SentencePiece takes the leftmost place; pairs of early pieces are the likelier.
    order = sorted(normal, key=lambda piece: (-normal[piece], ids[piece]))
    merges = []
    for piece in order:
        pairs = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        found = [pair for pair in pairs if pair[0] in normal and pair[1] in normal]
        merges += sorted(found, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    unk = next(piece.piece for piece in model.pieces if piece.type == _UNKNOWN)
    return models.BPE(
        ids,
        merges,
        unk_token=unk,
        fuse_unk=True,
        byte_fallback=bool(model.trainer_spec.byte_fallback),
    )


def _add_tokens(made, model: proto.ModelProto, markup: set[int], is_unigram: bool) -> None:
    """Control tokens are looked for in text, as everywhere in transformers; so are a BPE model's own symbols."""
    for id, piece in enumerate(model.pieces):
        if id in markup or piece.type == _UNKNOWN:
            made.add_special_tokens(
                [tokenizers.AddedToken(piece.piece, special=True, normalized=False)]
            )
        elif piece.type == _USER and not is_unigram and len(piece.piece) > 1:
            made.add_tokens([tokenizers.AddedToken(piece.piece, normalized=False)])


def _normalizers(rules, tokenizer) -> list:
    """SentencePiece's own normalisation."""
    found = []
    if rules.precompiled_charsmap:
        table = normalizers.Precompiled(rules.precompiled_charsmap)
        found += [*_voiced_kana(table, tokenizer), table]
    if rules.remove_extra_whitespaces:
        # A space that stands first is the one that the dummy prefix would be.
        found.append(normalizers.Strip(left=not rules.add_dummy_prefix, right=True))
        return [*found, _COLLAPSE]
    return [*found, normalizers.Replace(" ", surfaces.SPACE)]


def _voiced_kana(table, tokenizer) -> list:
    """Kana with their marks as letters of their own: six bytes, for which `Precompiled` does not ask the table.

    Hangul in the same form has it too and is left: eleven thousand rules. Source: tokenizers' precompiled.rs.
    """
    marks = "\u3099\u309a\uff9e\uff9f"
    letters = map(chr, [*range(0x3041, 0x30FF), *range(0xFF66, 0xFF9E)])
    found = []
    for pair in (letter + mark for letter in letters for mark in marks):
        wanted = tokenizer.normalised(pair)
        if wanted != table.normalize_str(pair):
            # The letter keeps its place, see _COLLAPSE; its mark is taken out afterwards.
            letter = tokenizers.Regex(f"{pair[0]}(?={pair[1]})")
            found.append(normalizers.Replace(letter, wanted + _TAKEN))
    return [*found, normalizers.Replace(tokenizers.Regex(f"{_TAKEN}."), "")]


def _profile(profile: normalise_lib.NormaliseConfig) -> list:
    """jinstr's normalisation profile, in the order of `normalise.normalise`."""
    found = []
    if profile.wave_dash:
        found.append(normalizers.Replace("\uff5e", "\u301c"))
    if profile.nfkc:
        found.append(normalizers.NFKC())
    if profile.full_width_ascii:
        codes = (code for code in range(0xFF01, 0xFF5F) if code != 0xFF5E)
        found += [normalizers.Replace(chr(code), chr(code - 0xFEE0)) for code in codes]
    if profile.half_width_kana:
        kana = [chr(code) for code in range(0xFF61, 0xFFA0)]
        pairs = [letter + mark for letter in kana for mark in "\uff9e\uff9f"]
        composed = [text for text in pairs if len(unicodedata.normalize("NFKC", text)) == 1]
        found += [
            normalizers.Replace(text, unicodedata.normalize("NFKC", text))
            for text in [*composed, *kana]
        ]
    if profile.spaces:
        every = (chr(code) for code in range(0x3100))
        spaces = "".join(c for c in every if re.fullmatch(r"[^\S\n]", c))
        listed = "".join(f"\\x{{{ord(c):x}}}" for c in spaces)
        found += [normalizers.Replace(tokenizers.Regex(f"[{listed}]"), " "), _COLLAPSE]
    return found
