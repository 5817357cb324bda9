"""Fill of packed rows at T = 2048, beside Grain's first-fit packing and seqio's own packer on the same records.

    python tests/benchmarks/packing_fill.py SET_FOLDER…

Fill: places that hold a target over all places. Over-long records are cut (text) or left out (conversations) before, so
that all packers see the same lengths.
"""

import sys
import time

import numpy as np

from jinstr.data import packing, prepared

SEQ_LEN = 2048


def grain_fill(lengths: np.ndarray, bins: int) -> float:
    import grain
    from grain.experimental import FirstFitPackIterDataset

    source = grain.MapDataset.source([{"x": np.ones(n, np.int32)} for n in lengths])
    packed = FirstFitPackIterDataset(
        source.to_iter_dataset(), length_struct={"x": SEQ_LEN}, num_packing_bins=bins
    )
    rows = filled = 0
    for element in packed:
        values = element["x"] if not isinstance(element, tuple) else element[0]["x"]
        rows += 1
        filled += int((np.asarray(values) > 0).sum())
    return filled / (rows * SEQ_LEN)


def seqio_fill(lengths: np.ndarray) -> float:
    import tensorflow as tf
    from seqio import trim_and_pack_dataset

    data = tf.data.Dataset.from_generator(
        lambda: ({"targets": np.ones(n, np.int32)} for n in lengths),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )
    rows = filled = 0
    for row in trim_and_pack_dataset(data, {"targets": SEQ_LEN}).as_numpy_iterator():
        rows += 1
        filled += int((row["targets"] > 0).sum())
    return filled / (rows * SEQ_LEN)


def main() -> None:
    for folder in sys.argv[1:]:
        opened = prepared.PreparedSet(folder)
        before = time.perf_counter()
        index = packing.build(np.asarray(opened.lengths), seq_len=SEQ_LEN, cut=opened.kind == "lm")
        seconds = time.perf_counter() - before
        pieces = []
        for length in opened.lengths:
            if opened.kind == "lm":
                pieces += [SEQ_LEN] * (length // SEQ_LEN) + (
                    [length % SEQ_LEN] * bool(length % SEQ_LEN)
                )
            elif length <= SEQ_LEN:
                pieces.append(length)
        pieces = np.array(pieces)
        print(f"{opened.path.name}: {len(pieces):,} pieces, {pieces.sum():,} targets")
        print(f"    jinstr           {index.fill:.4f}  ({seconds:.2f} s)")
        for bins in (16, 64):
            print(f"    Grain, {bins:3} bins  {grain_fill(pieces, bins):.4f}")
        print(f"    seqio            {seqio_fill(pieces):.4f}")


if __name__ == "__main__":
    main()
