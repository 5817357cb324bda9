"""Answers that a policy wrote, as ordinary packed rows: what training sees of them.

Rows hold several episodes (prompt and answer), each a segment. Index j of a per-token array speaks about targets[j]:
the first token of an answer to a prompt of p tokens is target p − 1 of its segment. Per-token values of an answer live
on the host as [E, N] arrays, at [e, n] that of its n-th token; `spread` puts them into rows and `collect` takes them
out. E episodes, N longest answer, R rows, T places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jinstr.data import batching, packing


class Episode(NamedTuple):
    """A prompt and what the policy wrote."""

    prompt: np.ndarray  # int [p]
    answer: np.ndarray  # int [n], its end token included when it has one; n ≥ 1

    @property
    def places(self) -> int:
        return len(self.prompt) + len(self.answer) - 1


class Rows(NamedTuple):
    """Episodes in rows; `batch` has the fields of data/batching.py, loss_weights 1 on the tokens of answers."""

    batch: dict[str, np.ndarray]  # with answer_places, as in rlhf/objectives.py
    episodes: (
        np.ndarray
    )  # int [E'], numbers of the episodes in the rows, in order of where they stand
    rows: np.ndarray  # int [E'], the row of each
    starts: np.ndarray  # int [E'], the place of the first token of its answer, as a target


def answer_mask(episodes: Sequence[Episode], longest: int) -> np.ndarray:
    """bool [E, N]: places that hold a token of the answer."""
    lengths = np.array([len(episode.answer) for episode in episodes])
    return np.arange(longest)[None, :] < lengths[:, None]


def pack(
    episodes: Sequence[Episode],
    chosen: Sequence[int],
    *,
    seq_len: int,
    pad_id: int,
    num_rows: int = 0,
    multiple: int = 1,
    answer_places: int = 0,
) -> Rows:
    """The chosen episodes packed into rows of `seq_len` places; rows of padding fill up to `num_rows` or `multiple`.

    answer_places: places of answers in a row, at least; 0 = as many as there are.

    Errors: ValueError where they take more than num_rows rows.
    """
    lengths = np.array([episodes[number].places for number in chosen])
    bins = [sorted(row) for row in packing.fill_rows(lengths, seq_len)]
    wanted = num_rows or -(-len(bins) // multiple) * multiple
    if len(bins) > wanted:
        raise ValueError(f"{len(chosen)} episodes take {len(bins)} rows of {seq_len}, not {wanted}")
    segments, numbers, rows, starts = [], [], [], []
    for row, members in enumerate(bins):
        segments.append([])
        place = 0
        for member in members:
            episode = episodes[chosen[member]]
            ids = np.concatenate([episode.prompt, episode.answer])
            segments[-1].append((ids, np.arange(len(ids)) >= len(episode.prompt), 1.0))
            numbers.append(chosen[member])
            rows.append(row)
            starts.append(place + len(episode.prompt) - 1)
            place += episode.places
    segments += [[] for _ in range(wanted - len(bins))]
    batch = batching.assemble(segments, seq_len, pad_id)
    batch["answer_places"] = _answer_places(batch["loss_weights"] > 0, answer_places)
    return Rows(batch, *(np.array(found, np.int64) for found in (numbers, rows, starts)))


def _answer_places(mask_RT: np.ndarray, least: int) -> np.ndarray:
    """i32 [R, A]: where a row's mask is True, then T.

    A goes up by eighths of T, so that few shapes are compiled, and by 8, so that it divides over devices as T does.
    """
    R, T = mask_RT.shape
    unit = -(-T // 64) * 8
    A = min(T, -(-max(1, least, mask_RT.sum(1).max(initial=0)) // unit) * unit)
    return np.sort(np.where(mask_RT, np.arange(T), T), axis=1)[:, :A].astype(np.int32)


def _places(
    rows: Rows, mask_EN: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(row, place, episode, n) of every token of the answers in the rows."""
    which, n = np.nonzero(mask_EN[rows.episodes])
    return rows.rows[which], rows.starts[which] + n, rows.episodes[which], n


def spread(rows: Rows, mask_EN: np.ndarray, values_EN: np.ndarray) -> np.ndarray:
    """Values of answers at their places in the rows, [R, T]; 0 elsewhere. mask_EN: `answer_mask`."""
    found = np.zeros(rows.batch["tokens"].shape, np.asarray(values_EN).dtype)
    row, place, episode, n = _places(rows, mask_EN)
    found[row, place] = values_EN[episode, n]
    return found


def collect(rows: Rows, mask_EN: np.ndarray, values_RT: np.ndarray, into_EN: np.ndarray) -> None:
    """The inverse of `spread`: values of the answers in these rows, put into `into_EN`."""
    row, place, episode, n = _places(rows, mask_EN)
    into_EN[episode, n] = np.asarray(values_RT)[row, place]
