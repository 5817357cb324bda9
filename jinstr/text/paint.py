"""Tokens as people read them: decoded, with the trained parts marked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

TRAINED, PLAIN, CONTROL, END = "\033[1;32m", "\033[2m", "\033[1;35m", "\033[0m"


def has_colour(stream: TextIO) -> bool:
    """Does a stream go to people who see colours?"""
    return stream.isatty() and "NO_COLOR" not in os.environ


def painted(tokenizer, tokens: Sequence[int], weights: Sequence[float], colour: bool) -> str:
    """Text of the tokens; control tokens by name, stretches of trained text marked: by colour, or by ⟦ ⟧."""
    parts, at = [], 0
    while at < len(tokens):
        is_trained, is_control = weights[at] > 0, tokenizer.is_control(tokens[at])
        end = at + 1
        while end < len(tokens) and not is_control:
            if (weights[end] > 0) != is_trained or tokenizer.is_control(tokens[end]):
                break
            end += 1
        text = (
            tokenizer.piece(tokens[at])
            if is_control
            else tokenizer.decode_continuation(tokens[at:end])
        )
        if colour:
            paint = CONTROL if is_control and not is_trained else TRAINED if is_trained else PLAIN
            parts.append(f"{paint}{text}{END}")
        else:
            parts.append(f"⟦{text}⟧" if is_trained else text)
        at = end
    return "".join(parts)
