"""How process 0 tells the others of scores; that they hear it is in tests/parallel/test_processes.py."""

import numpy as np

from jinstr.rlhf import rewards_shared


def test_every_bit_of_a_score_comes_over():
    bits = np.array([0, 1, 0x7FC00001, 0x7F800000, 0xFF800000, 0x80000000, 0x3DCCCCCD], np.uint32)
    scores = bits.view(np.float32)  # smallest, NaN with a payload, infinities, -0, 0.1
    heard = rewards_shared._array(rewards_shared._text(scores))
    assert heard.dtype == np.float32 and (heard.view(np.uint32) == bits).all()
    assert heard.flags.writeable
    # Negative control: as text in decimals, one of them would not.
    assert (np.float32([f"{x:.6g}" for x in scores]).view(np.uint32) != bits).any()
