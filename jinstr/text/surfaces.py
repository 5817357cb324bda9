"""What tokens stand for: the bytes behind a piece, which pieces are control tokens by their looks, streams of text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

SPACE = "\u2581"  # how SentencePiece writes a space
_MARKUP = re.compile(r"<[^<>\s]{1,64}>|\[[A-Z/]{2,16}\]")
# Gemma and others have pieces for these; people write them, and models answer with them. <s> is not among them.
_HTML = re.compile(
    r"</?(a|b|i|u|p|em|br|hr|li|ul|ol|tr|td|th|dl|dt|dd|sub|sup|pre|div|img|span|code|table|tbody|thead|tfoot|caption"
    r"|strong|blockquote|h[1-6])/?>"
)
# A chat template could begin turns with these, so people must not be able to write them.
_ROLES = re.compile("assistant|bot|eot|inst|human|message|role|system|sys|turn|user", re.IGNORECASE)
_TAG = re.compile(r"<(/?)([A-Za-z][\w-]{1,62})>")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def is_markup(piece: str) -> bool:
    """A control token by its looks; "\\n", runs of spaces and HTML tags are ordinary text."""
    return bool(_MARKUP.fullmatch(piece)) and not _HTML.fullmatch(piece)


def text_tags(pieces: Iterable[str]) -> set[str]:
    """Those among pieces that are tags with a partner, as <think> and </think>, and not named after a role."""
    pieces = set(pieces)
    tags = {found[0]: found for piece in pieces if (found := _TAG.fullmatch(piece))}
    return {
        piece
        for piece, (slash, name) in ((p, found.groups()) for p, found in tags.items())
        if (f"<{name}>" if slash else f"</{name}>") in pieces and not _ROLES.search(name)
    }


def byte_of(piece: str) -> int:
    """The byte that a piece such as "<0x0A>" stands for; -1 for any other piece."""
    found = _BYTE.fullmatch(piece)
    return int(found[1], 16) if found else -1


class Stream:
    """Ids to text one by one; a character appears when its last byte does, and U+FFFD never."""

    def __init__(self, surfaces: Sequence[bytes]):
        self._surfaces = surfaces
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def push(self, id: int) -> str:
        return self._decoder.decode(self._surfaces[id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)
