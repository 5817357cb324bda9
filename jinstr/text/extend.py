"""Tokenizers that extend another: all old ids stay, new pieces stand behind them."""

from __future__ import annotations


def old_pieces(base, extended) -> dict[int, list[int]]:
    """For every new id, the ids of its text in the base."""
    found = {}
    for id in range(base.vocab_size, extended.vocab_size):
        found[id] = base.encode_continuation(extended.piece(id).replace("\u2581", " "))
    return found
