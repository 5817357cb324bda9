"""Which groups (prompts, authors, …) are held out: decided by their names alone, the same in every run and file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

LARGEST = 0.01  # greedy rule: a group above this share of all bytes is never held out


def order(group: str) -> str:
    return hashlib.sha256(group.encode("utf-8")).hexdigest()


def by_hash(group: str, share: float) -> bool:
    """Is the group held out? A closed form: no list, so every file and every stage agrees."""
    return int(order(group)[:16], 16) / 2**64 < share


def greedy(sizes: Mapping[str, int], share: float) -> frozenset[str]:
    """Groups in order of the sha256 of their names, without those above LARGEST, until `share` of the bytes is reached.

    For few and unequal groups, where a hash alone would hold out far too little or too much.
    """
    total, held, chosen = sum(sizes.values()), 0, set()
    for group in sorted(sizes, key=order):
        if held >= share * total:
            break
        if sizes[group] <= LARGEST * total:
            chosen.add(group)
            held += sizes[group]
    return frozenset(chosen)
