"""Which records share a row: near-exact fill of rows over windows of consecutive records, once per (set, T).

Records lie in a random order already (prepare sorts by a hash), so a window of consecutive ones is a random sample and
rows mix freely. Segments never see each other, hence epochs need no repacking: they only reorder rows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import shutil

import numpy as np
import xxhash

from jinstr import errors
from jinstr.data import prepared
from jinstr.testing import faults

WINDOW = 4096  # records packed together: near-optimal fill in bounded memory, at 2 to 70 µs a record at T = 2048
PIECE = np.dtype([("record", "<i4"), ("start", "<i4"), ("length", "<i4")])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackIndex:
    """Row r holds the pieces offsets[r] to offsets[r + 1]; a piece is targets start to start + length of a record."""

    seq_len: int
    offsets: np.ndarray  # i64 [rows + 1]
    pieces: np.ndarray  # PIECE [pieces]
    dropped: int  # records longer than seq_len that may not be cut
    digest: str  # of offsets and pieces: what a row holds is part of a run's data state

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def fill(self) -> float:
        """Share of the places of all rows that hold a target."""
        return float(self.pieces["length"].sum()) / max(1, self.num_rows * self.seq_len)


def fill_rows(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of at most `capacity`: each takes the longest item left, then the items that fill its room best.

    Which sums the items left can reach is a bit set, extended from long to short and only until the room can be filled
    exactly, so short items are kept for bins that need them (minimum bin slack: Gupta and Ho 1999). Best-fit-decreasing
    leaves 0.6 % of the places empty where most items are a third to a half of the capacity, this one next to nothing.
    Args: lengths, int [n], each from 1 to capacity. Returns lists of indices into `lengths`.
    """
    left: dict[int, list[int]] = {}  # length → indices, longest first
    for index in np.argsort(-lengths, kind="stable").tolist():
        left.setdefault(int(lengths[index]), []).append(index)
    bins: list[list[int]] = []
    while left:
        longest = next(iter(left))
        chosen = [longest, *_best_sum(left, longest, capacity - longest)]
        bins.append([left[n].pop() for n in chosen])
        for n in set(chosen):
            if not left[n]:
                del left[n]
    return bins


def _best_sum(left: dict[int, list[int]], taken: int, room: int) -> list[int]:
    """Lengths from `left`, without one of `taken`, whose sum is the largest one within `room`."""
    reach, steps = (
        1,
        [],
    )  # bit r of `reach`: some items add up to r; steps: (length, reach before it)
    within = (1 << (room + 1)) - 1
    for n, indices in left.items():
        if n > room:
            continue
        for _ in range(min(len(indices) - (n == taken), room // n)):
            steps.append((n, reach))
            reach |= (reach << n) & within
        if reach >> room:
            break
    chosen, total = [], reach.bit_length() - 1
    for n, before in reversed(steps):
        if not before >> total & 1:
            chosen.append(n)
            total -= n
    return chosen


def _cut(first: int, lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """PIECE [p]: records first, first + 1, … cut into consecutive stretches of at most `seq_len` targets."""
    counts = -(-lengths // seq_len)
    record = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces = np.empty(len(record), PIECE)
    pieces["record"] = first + record
    pieces["start"] = number * seq_len
    pieces["length"] = np.minimum(seq_len, lengths[record] - pieces["start"])
    return pieces


def build(lengths: np.ndarray, *, seq_len: int, cut: bool, window: int = WINDOW) -> PackIndex:
    """Pack records of the given lengths (int [records], targets each) into rows of `seq_len`.

    With `cut`, longer records become consecutive stretches (plain text); without, they are dropped and counted.
    """
    rows, dropped = [], 0
    for first in range(0, len(lengths), window):
        part = np.asarray(lengths[first : first + window], np.int64)
        pieces = _cut(first, part, seq_len)
        if not cut:
            whole = part[pieces["record"] - first] <= seq_len
            dropped += int((part > seq_len).sum())
            pieces = pieces[whole]
        rows += [pieces[sorted(row)] for row in fill_rows(pieces["length"], seq_len)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype("<i8")
    pieces = np.concatenate(rows) if rows else np.empty(0, PIECE)
    return PackIndex(
        seq_len=seq_len,
        offsets=offsets,
        pieces=pieces,
        dropped=dropped,
        digest=_digest(offsets, pieces),
    )


def _folder(set_path: pathlib.Path, seq_len: int) -> pathlib.Path:
    return set_path / f"pack-{seq_len}"


def _digest(offsets: np.ndarray, pieces: np.ndarray) -> str:
    """xxh3 of the bytes of both, hex."""
    digest = xxhash.xxh3_64()
    for array in (offsets, pieces):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def load(set_path: pathlib.Path, seq_len: int) -> PackIndex | None:
    """The stored index as memory maps, or None where this (set, T) has not been packed; a damaged one is removed."""
    folder = _folder(set_path, seq_len)
    if not folder.exists():
        return None
    try:
        facts = json.loads((folder / "pack.json").read_text())
        offsets = prepared.load_array(folder / "offsets.npy")
        pieces = prepared.load_array(folder / "pieces.npy")
        if _digest(offsets, pieces) == facts["digest"]:
            return PackIndex(
                seq_len=seq_len,
                offsets=offsets,
                pieces=pieces,
                dropped=facts["dropped"],
                digest=facts["digest"],
            )
    except (errors.StorageError, OSError, ValueError, KeyError):
        pass  # an earlier version's rows too: they have no digest
    print(f"jinstr: {folder} is damaged; its rows are packed again")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _remove_left_over(folder: pathlib.Path) -> None:
    """Remove what processes of this machine that were killed left of the same index."""
    for path in folder.parent.glob(f".{folder.name}.{platform.node()}.*"):
        try:
            os.kill(int(path.name.rpartition(".")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (PermissionError, ValueError):
            pass  # it lives


def save(index: PackIndex, set_path: pathlib.Path) -> None:
    """Write the index beside the set, aside and renamed; of two processes that pack at once either may win."""
    folder = _folder(set_path, index.seq_len)
    _remove_left_over(folder)
    aside = folder.with_name(f".{folder.name}.{platform.node()}.{os.getpid()}")
    aside.mkdir(parents=True, exist_ok=True)
    np.save(aside / "offsets.npy", index.offsets)
    np.save(aside / "pieces.npy", index.pieces)
    faults.point("pack")
    facts = {
        "rows": index.num_rows,
        "fill": round(index.fill, 6),
        "dropped": index.dropped,
        "digest": index.digest,
    }
    (aside / "pack.json").write_text(json.dumps(facts) + "\n")
    try:
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside)
        if not (folder / "pack.json").exists():
            raise
