"""Share of decode slots that write a token of an answer: refilled rows against static batches of the same answers.

    python tests/benchmarks/rollout_share.py [PROMPTS] [ROWS]

4,096 prompts by 256 rows. Lengths of answers are lognormal (median 192 tokens, sigma 0.8), at most 1,024, as rollouts
have them; they are given to `rlhf.rollout` as `limits`, so that the model may be tiny: the share depends on lengths
alone. A static batch of 256 rows runs until its longest answer is written. An answer's first token comes from the
prefill and is not counted on either side. Prints shares, counts and seconds, compiling included (goal: at least 0.64).
"""

import os
import platform
import sys
import time

import jax
import numpy as np

from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.rlhf import rollout

LONGEST = 1024
MODEL = config_lib.DecoderConfig(
    vocab_size=64, hidden_size=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, mlp_size=32
)  # fmt: skip


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 256
    random = np.random.default_rng(0)
    lengths = np.clip(np.rint(random.lognormal(np.log(192), 0.8, count)), 1, LONGEST).astype(int)
    prompts = [random.integers(3, 64, n).tolist() for n in random.integers(8, 33, count)]
    config = rollout.RolloutConfig(max_new_tokens=LONGEST, rows=rows)
    params = decoder.init_params(MODEL, jax.random.key(0))
    before = time.perf_counter()
    found = rollout.rollout(
        MODEL,
        params,
        prompts,
        range(count),
        jax.random.key(1),
        rollout_config=config,
        stop_ids=(),
        pad_id=0,
        limits=lengths,
    )
    seconds = time.perf_counter() - before
    assert [len(answer.ids) for answer in found.answers] == lengths.tolist()
    batches = [lengths[at : at + rows] for at in range(0, count, rows)]
    static = sum(rows * (int(batch.max()) - 1) for batch in batches)
    print(f"{count:,} answers by {rows} rows: mean {lengths.mean():.0f}, longest {lengths.max():,}")
    print(f"refilled: {found.useful / found.slots:.3f} of {found.slots:,} slots")
    print(f"static:   {found.useful / static:.3f} of {static:,} slots")
    print(
        f"{found.steps:,} steps, {found.prefills} prefills, {found.moves} moves of the cache, "
        f"{found.compactions} compactions, {seconds:.0f} s on {jax.devices()[0].device_kind} "
        f"({platform.machine()}, {os.cpu_count()} cores)"
    )


if __name__ == "__main__":
    main()
