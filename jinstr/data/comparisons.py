"""Rows of comparisons: all answers to a prompt stand side by side in one row, each a segment that begins with the
prompt.

So all pairs of a prompt are in one batch element: each answer is read once, and the pairs of a prompt do not count as
independent examples (Ouyang 2022, arXiv 2203.02155, section 3.5). B rows, T places, G prompts of a row, K answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jinstr.data import batching, records

KINDS = ("preference", "prompts")


def most_answers(manifest: dict) -> int:
    """The largest number of answers to one prompt in a prepared set."""
    return max(int(count) for count in manifest["answers"])


def assemble(
    rows: Sequence[Sequence[records.Ranked]], seq_len: int, pad_id: int, prompts: int, answers: int
) -> dict[str, np.ndarray]:
    """The fields of a batch (data/batching.py) and, for each row, prompt and answer of it:

    answers  i32 [B, G, K]: the segment that holds the answer, 0 = there is none
    ranks    i32 [B, G, K]: its rank, 1 = best, ties allowed; 0 = there is none

    Unlike in text rows the last token of an answer is read too (it has no target): there a reward model gives its
    score. prompts and answers: G and K, which no row exceeds.
    """
    segments: list[list] = []
    number_BGK = np.zeros((len(rows), prompts, answers), np.int32)
    rank_BGK = np.zeros_like(number_BGK)
    for row, ranked in enumerate(rows):
        segments.append([])
        for prompt, record in enumerate(ranked):
            for answer, (ids, mask) in enumerate(zip(record.answers, record.masks)):
                whole = np.append(ids, pad_id), np.append(mask, False)
                segments[-1].append((*whole, 1.0))
                number_BGK[row, prompt, answer] = len(segments[-1])
            rank_BGK[row, prompt, : len(record.ranks)] = record.ranks
    batch = batching.assemble(segments, seq_len, pad_id)
    return batch | {"answers": number_BGK, "ranks": rank_BGK}
