"""A training step with real batches against the same step on one repeated batch, in alternating blocks of 20 steps.

    python tests/benchmarks/step_with_data.py SET_FOLDER [BLOCKS]

SET_FOLDER: a prepared set (`jinstr prepare` prints it). Prints medians and quartiles of both and their ratio (goal:
at most 1.03). The loader reads ahead in a thread, as in training; the step is that of `jinstr pretrain`.
"""

import sys
import time

import jax
import numpy as np

from jinstr.data import loader as loader_lib
from jinstr.data import prepared
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib


def main() -> None:
    folder, blocks = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    config = loader_lib.LoaderConfig(seq_len=512, batch_rows=4)
    loader = loader_lib.Loader((prepared.PreparedSource(path=folder, name="bench"),), config)
    vocab = prepared.PreparedSet(folder).manifest["tokens"]["vocab_size"]
    model = config_lib.DecoderConfig(
        vocab_size=vocab, hidden_size=256, num_layers=4, mlp_size=688, scan_layers=False
    )
    optimizer = optimizer_lib.OptimizerConfig()
    transform = optimizer_lib.make_optimizer(optimizer, 10_000)
    mesh, rules = mesh_lib.make_mesh(mesh_lib.MeshConfig()), mesh_lib.AxisRules()
    abstract = state_lib.abstract_state(model, transform, mesh, rules, ema=False)
    state = state_lib.init_state(model, transform, abstract, 0)
    step = state_lib.make_step(model, optimizer, transform, mesh, rules, abstract)
    batches = loader.iterate(0)
    repeated = state_lib.place_batch(next(batches)[1], mesh, rules)
    state, metrics = step(state, repeated)
    jax.block_until_ready(metrics)
    seconds = {"repeated": [], "real": []}
    for block in range(2 * blocks):
        kind = ("repeated", "real")[block % 2]
        for _ in range(20):
            before = time.perf_counter()
            if kind == "real":
                batch = state_lib.place_batch(next(batches)[1], mesh, rules)
            else:
                batch = repeated
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            seconds[kind].append(time.perf_counter() - before)
    for kind, values in seconds.items():
        low, middle, high = 1000 * np.percentile(values, (25, 50, 75))
        print(
            f"{kind:>8}: {middle:.1f} ms (quartiles {low:.1f} to {high:.1f}), {len(values)} steps"
        )
    print(f"ratio of medians: {np.median(seconds['real']) / np.median(seconds['repeated']):.4f}")


if __name__ == "__main__":
    main()
