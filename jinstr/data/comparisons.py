"""Rows of comparisons: all answers to a prompt stand side by side in one row, each a segment that begins with the
prompt.

So all pairs of a prompt are in one batch element: each answer is read once, and the pairs of a prompt do not count as
independent examples (Ouyang 2022, arXiv 2203.02155, section 3.5). B rows, T places, G prompts of a row, K answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jinstr.data import batching, records

KINDS = ("preference", "prompts")  # several answers to a prompt, compared
LABELLED = ("labels",)  # one answer, desired or not
ALL_KINDS = KINDS + LABELLED
OTHERS = "others_"  # before the names of the fields that `with_others` adds


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


def with_others(batch: dict[str, np.ndarray], pad_id: int) -> dict[str, np.ndarray]:
    """The batch of single answers, and beside it each prompt with an answer to ANOTHER prompt of its row.

    KTO measures how far the policy has moved by such mismatched pairs (arXiv 2402.01306). Each prompt takes the
    answer of the next one in its row, the last one that of the first, so the new rows are as long as the old ones.
    A prompt that is alone in its row has none.
    """
    rows: list[list] = []
    B, G, K = batch["answers"].shape
    number_BGK = np.zeros((B, G, K), np.int32)
    for row in range(B):
        parts = []
        for segment in range(1, int(batch["segment_ids"][row].max()) + 1):
            here = batch["segment_ids"][row] == segment
            ids = batch["tokens"][row, here]
            # loss_weights[j] speaks about the next token: the first one set is at the last token of the prompt.
            begin = int(np.argmax(batch["loss_weights"][row, here] > 0)) + 1
            parts.append(
                (ids[:begin], ids[begin:], batch["loss_weights"][row, here][begin - 1 :] > 0)
            )
        rows.append([])
        if len(parts) < 2:
            continue
        for place, (prompt, _, _) in enumerate(parts):
            _, answer, trained = parts[(place + 1) % len(parts)]
            mask = np.concatenate([np.zeros(len(prompt), bool), trained])
            rows[-1].append((np.concatenate([prompt, answer, [pad_id]]), mask, 1.0))
            number_BGK[row, place, 0] = place + 1
    found = batching.assemble(rows, batch["tokens"].shape[1], pad_id) | {"answers": number_BGK}
    return batch | {OTHERS + name: array for name, array in found.items()}
