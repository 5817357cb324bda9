"""`jinstr inspect`: a batch as people read it, trained tokens in colour."""

from __future__ import annotations

import os
import sys

import numpy as np

from jinstr.data import batching
from jinstr.data import dataset as dataset_lib
from jinstr.data import prepare as prepare_lib
from jinstr.text import paint
from jinstr.text import tokenizer as tokenizer_lib


def inspect(
    *,
    data: dataset_lib.DataConfig,
    tokenizer: str,
    template: str,
    prepare_config: prepare_lib.PrepareConfig,
    step: int,
    rows: int,
    ids: bool,
    seed: int,
) -> dict:
    """Print the first `rows` rows of the batch of a step: text, what is trained, segment borders, where it came from.

    ids: print token ids under the text too. Returns {"digest", "rows", "trained_share"}.
    """
    text_tokenizer = tokenizer_lib.load(tokenizer)
    loaded = dataset_lib.load(
        data,
        tokenizer_path=tokenizer,
        template=template,
        prepare_config=prepare_config,
        seed=seed,
    )
    batch = loaded.train.read(step)
    names = iter(loaded.train.example_ids(step))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    real = batch["segment_ids"] > 0
    share = float((batch["loss_weights"] > 0).sum() / max(1, real.sum()))
    digest = batching.batch_digest(batch)
    print(f"step {step}: {batch['tokens'].shape[0]} rows of {batch['tokens'].shape[1]} places")
    print(f"filled {real.mean():.4f}, of that trained {share:.4f}, digest {digest}")
    legend = (
        f"{paint.TRAINED}trained{paint.END} {paint.PLAIN}not trained{paint.END}"
        if colour
        else "trained text stands in ⟦ ⟧"
    )
    print(legend)
    for row in range(batch["tokens"].shape[0]):
        segments = batch["segment_ids"][row]
        for segment in range(1, int(segments.max()) + 1):
            places = np.flatnonzero(segments == segment)
            source, id, part = next(names)
            if row >= rows:
                continue
            weights = batch["loss_weights"][row, places]
            print(
                f"\n── row {row}, segment {segment}: {source}, {id}, {part}, {len(places)} places"
            )
            first = int(batch["tokens"][row, places[0]])
            targets = batch["targets"][row, places].tolist()
            print(
                paint.painted(text_tokenizer, [first, *targets], [0.0, *weights.tolist()], colour)
            )
            if ids:
                print([first, *targets])
    for row in dataset_lib.table(loaded):
        drops = ", ".join(f"{reason} {count:,}" for reason, count in row["drops"].items())
        print(f"\n{row['name']}: fill {row['fill']:.4f}; left out: {drops or 'nothing'}")
    return {"digest": digest, "rows": batch["tokens"].shape[0], "trained_share": share}
