"""Conversations to token ids and loss mask: the one place where this happens, for training, scoring and chat alike.

Text between two control tokens is one stretch. A stretch is cut where the model takes over from the prompt, because
that is where generation cuts it: the prompt is encoded first, and what follows as text in mid-document, without the
space that SentencePiece puts before every text it is given (facts of llm-jp's training code). Where one piece would
have reached across the cut, it is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jinstr import errors
from jinstr.text import templates


class Rendered(NamedTuple):
    """A conversation as ids; `loss_mask[i]` says whether id i is trained as a target."""

    tokens: list[int]
    loss_mask: list[bool]
    straddles: int  # cuts at which the joint encoding would have had one piece across


def render(
    messages: Sequence[Mapping[str, str]], template: templates.Template, tokenizer
) -> Rendered:
    """Ids and mask of a conversation that ends with an answer. Every answer and its end token are trained.

    `render(m).tokens` begins with `render_prompt(m[:-1])`. Errors: DataError for roles in no usable order.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise errors.DataError("JI-RENDER-001", "the conversation does not end with an answer")
    return _encode(template.parts(messages), tokenizer)


def render_prompt(
    messages: Sequence[Mapping[str, str]], template: templates.Template, tokenizer
) -> list[int]:
    """Ids of a conversation up to where the answer begins: what generation is fed."""
    if not messages or messages[-1]["role"] == "assistant":
        raise errors.DataError("JI-RENDER-002", "the conversation does not end with a question")
    return _encode(template.parts(messages), tokenizer).tokens


def merged(parts: Sequence[templates.Part]) -> list[templates.Part]:
    """The parts with neighbouring texts of one kind joined and empty texts left out."""
    found: list[templates.Part] = []
    for part in parts:
        if part.control >= 0:
            found.append(part)
        elif part.text:
            last = found[-1] if found else None
            if last and last.control < 0 and last.trained == part.trained:
                found[-1] = last._replace(text=last.text + part.text)
            else:
                found.append(part)
    return found


def _encode(parts: Sequence[templates.Part], tokenizer) -> Rendered:
    tokens: list[int] = []
    mask: list[bool] = []
    straddles = 0
    begins = True  # as at the start of a document, where some models put a space first
    before = None  # (text, encoder, ids) of the part before, when it is text
    for part in merged(parts):
        if part.control >= 0:
            ids, before = [part.control], None
            begins = tokenizer.begins_after(part.control)
        else:
            encode = tokenizer.encode if begins else tokenizer.encode_continuation
            ids = encode(part.text)
            if before is not None:
                text, encode, head = before
                straddles += encode(text + part.text) != head + ids
            before, begins = (part.text, encode, ids), False
        tokens += ids
        mask += [part.trained] * len(ids)
    return Rendered(tokens, mask, straddles)
