"""Segments to a batch, and the digest by which two batches are compared.

Shape letters: B rows of the batch, T places in a row. Index j of every array speaks about targets[j].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

FIELDS = ("tokens", "targets", "loss_weights", "positions", "segment_ids")


def assemble(
    rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray | None, float]]],
    seq_len: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Put segments side by side into rows of `seq_len` places, padding last.

    A segment is (ids int [n + 1], mask bool [n + 1] or None for all trained, weight). Returns i32 [B, T] arrays, and
    f32 for loss_weights. Padding: tokens = targets = pad_id, everything else 0.
    """
    shape = (len(rows), seq_len)
    segments = [segment for row in rows for segment in row]
    lengths_P = np.array([len(ids) - 1 for ids, _, _ in segments], np.int64)
    numbers_P = np.array([n + 1 for row in rows for n in range(len(row))], np.int64)
    starts_P = np.cumsum(lengths_P) - lengths_P
    filled_B = np.array([sum(len(ids) - 1 for ids, _, _ in row) for row in rows], np.int64)
    # Within a row segments are contiguous and padding is last, so the filled places in reading order are exactly the
    # concatenated segments: one assignment per array instead of one per segment.
    filled_BT = np.arange(seq_len) < filled_B[:, None]
    batch = {
        "tokens": np.full(shape, pad_id, np.int32),
        "targets": np.full(shape, pad_id, np.int32),
        "loss_weights": np.zeros(shape, np.float32),
        "positions": np.zeros(shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
    }
    if not segments:
        return batch
    batch["tokens"][filled_BT] = np.concatenate([ids[:-1] for ids, _, _ in segments])
    batch["targets"][filled_BT] = np.concatenate([ids[1:] for ids, _, _ in segments])
    batch["loss_weights"][filled_BT] = np.concatenate(
        [
            np.full(len(ids) - 1, weight, np.float32)
            if mask is None
            else mask[1:] * np.float32(weight)
            for ids, mask, weight in segments
        ]
    )
    batch["positions"][filled_BT] = np.arange(lengths_P.sum()) - np.repeat(starts_P, lengths_P)
    batch["segment_ids"][filled_BT] = np.repeat(numbers_P, lengths_P)
    return batch


def batch_digest(batch: dict[str, np.ndarray]) -> str:
    """Hex digest over the five arrays in fixed order, with shapes and dtypes."""
    digest = xxhash.xxh3_64()
    for name in FIELDS:
        array = np.ascontiguousarray(batch[name])
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
