"""Log-likelihoods of candidates: the tokens of a prompt are computed once, and every candidate goes on from them.

A row holds several questions, each a segment of its own: the prompt (branch 0), then of each candidate all tokens but
the last, as a branch that sees the prompt and itself (`decoder.forward`). The first token of every candidate is read
off the prompt's last place, so candidates of one token add no places at all.

B rows, T places, D width, Q tokens of candidates that are read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from jinstr import errors
from jinstr.data import packing
from jinstr.losses import lm
from jinstr.models import decoder
from jinstr.train import state as state_lib

WIDTHS = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
FILL = 0.95  # the narrowest rows that are so full are taken: attention costs more in wide ones


class Question(NamedTuple):
    """Ids of a prompt and of what may follow it."""

    prompt: Sequence[int]
    candidates: Sequence[Sequence[int]]

    @property
    def places(self) -> int:
        """Places that it takes in a row."""
        return len(self.prompt) + sum(len(candidate) - 1 for candidate in self.candidates)

    @property
    def positions(self) -> int:
        """Positions that the model must know: those of the prompt with its longest candidate."""
        return len(self.prompt) + max(map(len, self.candidates)) - 1


class Scores(NamedTuple):
    """What the candidates of every question got."""

    logp: list[np.ndarray]  # f64 [candidates] of each question: sum over their tokens, nats
    useful: int  # places that held a token
    computed: int  # places in all

    @property
    def share(self) -> float:
        return self.useful / max(1, self.computed)


class Rows(NamedTuple):
    """Questions laid out in rows, and where their candidates' tokens are read."""

    arrays: dict[str, np.ndarray]  # tokens, positions, segment_ids, branches: i32 [B, T]
    places: np.ndarray  # i32 [Q]: place in the flattened rows whose hidden state tells of the token
    targets: np.ndarray  # i32 [Q]
    owners: np.ndarray  # i32 [Q, 2]: question and candidate


def row_width(lengths: np.ndarray) -> int:
    """The narrowest of WIDTHS whose rows are FILL full of questions of these lengths, or else the fullest."""
    longest = int(lengths.max())
    widths = [width for width in WIDTHS if width >= longest] or [-(-longest // 64) * 64]
    fills = []
    for width in widths:
        rows = len(packing.fill_rows(lengths, width))
        fills.append(float(lengths.sum()) / (rows * width))
        if fills[-1] >= FILL:
            return width
    return widths[int(np.argmax(fills))]


def lay_out(questions: Sequence[Question], bins: Sequence[Sequence[int]], shape) -> Rows:
    """The questions of each bin one after the other in a row of their own; shape: [B, T], B at least the bins."""
    names = ("tokens", "positions", "segment_ids", "branches")
    arrays = {name: np.zeros(shape, np.int32) for name in names}
    places, targets, owners = [], [], []
    for row, chosen in enumerate(bins):
        at = 0

        def put(tokens: Sequence[int], position: int, segment: int, branch: int, row=row) -> None:
            nonlocal at
            here = slice(at, at + len(tokens))
            arrays["tokens"][row, here] = tokens
            arrays["positions"][row, here] = np.arange(position, position + len(tokens))
            arrays["segment_ids"][row, here] = segment
            arrays["branches"][row, here] = branch
            at = here.stop

        for segment, number in enumerate(chosen, 1):
            prompt, candidates = questions[number]
            put(prompt, 0, segment, 0)
            last = row * shape[1] + at - 1
            for branch, candidate in enumerate(candidates):
                first = row * shape[1] + at
                put(candidate[:-1], len(prompt), segment, branch + 1)
                places += [last, *range(first, first + len(candidate) - 1)]
                targets += candidate
                owners += [(number, branch)] * len(candidate)
    return Rows(arrays, np.array(places, np.int32), np.array(targets, np.int32), np.array(owners))


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(config, params, arrays, places_Q, targets_Q):
    """log p(target) at each place, nats, f32 [Q]."""
    params = state_lib.cast_params(config, params)
    hidden_BTD = decoder.forward(
        config,
        params,
        arrays["tokens"],
        arrays["positions"],
        arrays["segment_ids"],
        branches_BT=arrays["branches"],
    )
    hidden_QD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[places_Q]
    kernel = decoder.head_kernel(config, params)
    return lm.token_logprobs(hidden_QD, kernel, targets_Q, config.logit_softcap)[0]


def score(config, params, questions: Sequence[Question], batch_tokens: int) -> Scores:
    """log p(candidate | prompt) of every candidate of every question.

    batch_tokens: places computed at a time, at least one row. Errors: DataError for a candidate or prompt of no tokens.
    """
    for number, question in enumerate(questions):
        if not question.prompt or not all(question.candidates):
            raise errors.DataError(
                "JI-CHOICE-001", f"question {number + 1}: a prompt or candidate has no tokens"
            )
    lengths = np.array([question.places for question in questions])
    width = row_width(lengths)
    bins = packing.fill_rows(lengths, width)
    rows = min(len(bins), max(1, batch_tokens // width))
    batches = [
        lay_out(questions, bins[at : at + rows], (rows, width)) for at in range(0, len(bins), rows)
    ]
    reads = -(-max(len(batch.targets) for batch in batches) // 128) * 128  # one compiled shape
    found = [np.zeros(len(question.candidates)) for question in questions]
    for batch in tqdm.tqdm(batches, desc="choices", leave=False, disable=None):
        count = len(batch.targets)
        extra = (0, reads - count)
        logp_Q = _logprobs(
            config,
            params,
            batch.arrays,
            np.pad(batch.places, extra),
            np.pad(batch.targets, extra),
        )
        for (number, branch), logp in zip(batch.owners, np.asarray(logp_Q, np.float64)[:count]):
            found[number][branch] += logp
    return Scores(found, int(lengths.sum()), len(batches) * rows * width)
