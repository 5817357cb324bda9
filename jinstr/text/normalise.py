"""Named changes to text before it is tokenised. Identity by default: what goes in comes out again.

A profile travels with the tokenizer (X.normalise.json beside X.model), so training, evaluation and chat apply the same.
Newlines are always kept.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_HALF_KANA = re.compile("[\uff61-\uff9f]+")
_SPACES = re.compile("[^\\S\n]+")
_LINES = re.compile("[^\n]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormaliseConfig:
    """Which changes are made, in this order."""

    nfkc: bool = (
        False  # Unicode NFKC, which includes both width rules below and more (①→1, ㈱→(株))
    )
    full_width_ascii: bool = False  # ＡＢＣ１２３！ → ABC123!
    half_width_kana: bool = False  # ｶﾞｷﾞ → ガギ, ｡ → 。
    wave_dash: bool = False  # ～ (U+FF5E, what Windows writes) → 〜 (U+301C)
    spaces: bool = False  # every run of spaces and tabs, full-width ones too → one space

    @property
    def is_identity(self) -> bool:
        return not any(dataclasses.astuple(self))


def normalise(text: str, config: NormaliseConfig) -> str:
    """`text` after the changes that `config` names."""
    if config.is_identity:
        return text
    if config.wave_dash:
        text = text.replace("\uff5e", "\u301c")
    if config.nfkc:
        # NFKC maps U+0085 and U+2028 to themselves; line by line, so that no newline can take part.
        text = _LINES.sub(lambda line: unicodedata.normalize("NFKC", line[0]), text)
    if config.full_width_ascii:
        keep = {0xFF5E: 0xFF5E}  # ～ is punctuation of Japanese, see wave_dash
        text = text.translate(_FULL_WIDTH | keep)
    if config.half_width_kana:
        text = _HALF_KANA.sub(lambda kana: unicodedata.normalize("NFKC", kana[0]), text)
    if config.spaces:
        text = _SPACES.sub(" ", text)
    return text
