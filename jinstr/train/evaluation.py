"""Held-out evaluation during training: loss and bits per byte of a prepared set."""

from __future__ import annotations

import math
from collections.abc import Callable

from jinstr.train import state as state_lib


def loss_on(
    evaluator: Callable, params: dict, loader, mesh, rules, max_batches: int = 0
) -> dict[str, float]:
    """Loss and bits per byte over every row of a prepared set, each row once.

    loss: nats per unit of weight (per token, for text). bits_per_byte: nll / ln 2 / UTF-8 bytes of the text; the
    numerator includes the end-of-document tokens, the denominator does not, so it errs on the high side. It does not
    depend on the tokenizer, so runs with different vocabularies compare. With `max_batches` > 0 only that many
    batches are read, and no bits per byte are given (the bytes are known for the whole set only).
    """
    nll = weight = 0.0
    whole = True
    for index, batch in enumerate(loader.evaluation_batches()):
        if max_batches and index >= max_batches:
            whole = False
            break
        batch_nll, batch_weight = evaluator(params, state_lib.place_batch(batch, mesh, rules))
        nll += float(batch_nll)
        weight += float(batch_weight)
    result = {"loss": nll / max(weight, 1e-8)}
    if whole and loader.bytes_total:
        result["bits_per_byte"] = nll / math.log(2) / loader.bytes_total
    return result
