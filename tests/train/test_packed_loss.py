"""Examples packed into rows have the losses that they have alone; a leak across segments would be seen."""

import jax
import numpy as np
import pytest

from jinstr.data import batching
from jinstr.losses import lm
from jinstr.models import decoder


@pytest.fixture(scope="module")
def losses_of(model):
    """A function: batch → nll of each place, nats [B, T]."""
    params = decoder.init_params(model, jax.random.key(0))
    # Larger weights, so that attention matters: at the start it is nearly uniform.
    params = jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)

    @jax.jit
    def losses(batch):
        hidden = decoder.forward(
            model, params, batch["tokens"], batch["positions"], batch["segment_ids"]
        )
        logp, _, _ = lm.token_logprobs(hidden, decoder.head_kernel(model, params), batch["targets"])
        return -logp * batch["loss_weights"]

    return losses


def segments(batch):
    for row, segment_ids in enumerate(batch["segment_ids"]):
        for segment in range(1, int(segment_ids.max()) + 1):
            yield row, np.flatnonzero(segment_ids == segment)


def alone(batch, row, places, seq_len, pad_id):
    """The batch of one segment by itself, in a row of its own."""
    ids = np.append(batch["tokens"][row, places], batch["targets"][row, places[-1]])
    mask = np.append(False, batch["loss_weights"][row, places] > 0)
    weight = float(batch["loss_weights"][row, places].max())
    return batching.assemble([[(ids, mask, weight)]], seq_len, pad_id)


def test_packed_and_unpacked_losses_are_equal(losses_of, open_loader):
    loader = open_loader(seq_len=256, batch_rows=4)
    batch = loader.read(0)
    packed = np.asarray(losses_of(batch))
    count = 0
    for row, places in segments(batch):
        single = np.asarray(losses_of(alone(batch, row, places, 256, loader.pad_id)))
        wanted, found = single[0, : len(places)], packed[row, places]
        assert np.abs(wanted - found).max() < 1e-5 * max(1.0, np.abs(wanted).max())
        count += 1
    assert count >= 8  # two segments a row or more on average: else nothing would be packed


def test_a_leak_would_be_seen(losses_of, open_loader):
    """Negative control: one segment id for the whole row lets examples read one another."""
    batch = open_loader(seq_len=256, batch_rows=4).read(0)
    packed = np.asarray(losses_of(batch))
    leaking = batch | {"segment_ids": (batch["segment_ids"] > 0).astype(np.int32)}
    leaked = np.asarray(losses_of(leaking))
    trained = batch["loss_weights"] > 0
    assert np.abs(leaked - packed)[trained].max() > 0.1
