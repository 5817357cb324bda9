"""What safety costs: a step with every check against one with none, and how long a save holds the loop up.

    python tests/benchmarks/safety_cost.py [BLOCKS]

Step: that of `jinstr pretrain` with the non-finite gate, the metrics read and judged, the watchdog fed, signals looked
at, against the same step whose update is unconditional and of whose metrics only the loss is read; alternating blocks
of 20 steps in one process. Save: the shape of gin_configs/model/10m.gin, time from the call to the next step, against a
step of it. Prints medians, quartiles and ratios (goals: at most 1.03; at most one step).
"""

import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

from jinstr.commands import bench
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import checkpoint, loop, stopping, watchdog
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

SMALL = config_lib.DecoderConfig(
    vocab_size=4000, hidden_size=128, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=32,
    mlp_size=352, scan_layers=False,
)  # fmt: skip
TEN_MILLION = config_lib.DecoderConfig(  # gin_configs/model/10m.gin
    vocab_size=8000, hidden_size=320, num_layers=6, num_heads=5, num_kv_heads=5, head_dim=64,
    mlp_size=864, tie_embeddings=True, scan_layers=False,
)  # fmt: skip


class Training:
    """A state and its step on one device."""

    def __init__(self, model: config_lib.DecoderConfig):
        mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=1), jax.devices()[:1])
        rules = mesh_lib.AxisRules()
        optimizer = optimizer_lib.OptimizerConfig(learning_rate=1e-4)
        transform = optimizer_lib.make_optimizer(optimizer, 1000)
        abstract = state_lib.abstract_state(model, transform, mesh, rules, ema=False)
        self.state = state_lib.init_state(model, transform, abstract, 0)
        self.step = state_lib.make_step(model, optimizer, transform, mesh, rules, abstract)
        self.batch = state_lib.place_batch(
            bench.random_batch(model.vocab_size, 8, 256), mesh, rules
        )

    def run(self) -> dict:
        self.state, values = self.step(self.state, self.batch)
        return values


class Silent:
    """Where metrics go in this measurement."""

    tokens_seen = 0.0

    def add(self, values): ...
    def start(self): ...
    def read(self):
        return {"tokens_per_second": 0.0, "mfu": 0.0}

    def write(self, step, values): ...
    def update(self, step, **values): ...


def steps(blocks: int) -> None:
    checked = Training(SMALL)
    gate = state_lib.advance_if_finite
    state_lib.advance_if_finite = lambda advance, loss, grad_norm, state, grads: advance(
        state, grads
    )
    bare = Training(SMALL)
    bare.run()  # traced while the gate is out
    state_lib.advance_if_finite = gate
    checked.run()
    seconds: dict[str, list[float]] = {"checked": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        config = loop.LoopConfig(num_steps=1)
        silent = Silent()
        pending = loop._Pending(config, folder, 0, 1 << 30, silent, silent, silent)
        keeper = checkpoint.Checkpointer(folder, checkpoint.CheckpointConfig())
        with watchdog.Watchdog() as watch, stopping.Signals() as signals, signals.during("step"):
            count = 1
            for block in range(2 * blocks):
                kind = ("checked", "bare")[block % 2]
                for _ in range(20):
                    count += 1
                    before = time.perf_counter()
                    if kind == "checked":
                        watch.beat("step")
                        values = checked.run()
                        pending.add(count, values, dict, list)
                        pending.drain()
                        keeper.check()
                        assert not signals.name
                    else:
                        float(bare.run()["loss"])
                    seconds[kind].append(time.perf_counter() - before)
        keeper.close()
    for kind, values in seconds.items():
        low, middle, high = 1000 * np.percentile(values, (25, 50, 75))
        print(f"{kind:>8}: {middle:.1f} ms ({low:.1f} to {high:.1f}), {len(values)} steps")
    print(f"ratio of medians: {np.median(seconds['checked']) / np.median(seconds['bare']):.4f}")


def saves() -> None:
    training = Training(TEN_MILLION)
    training.run()
    step_seconds, save_seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        keeper = checkpoint.Checkpointer(folder, checkpoint.CheckpointConfig())
        for number in range(1, 31):
            before = time.perf_counter()
            jax.block_until_ready(training.run())
            step_seconds.append(time.perf_counter() - before)
            if number % 6 == 0:
                before = time.perf_counter()
                keeper.save(number, {n: v for n, v in training.state.items() if n != "step"}, {})
                save_seconds.append(time.perf_counter() - before)
        keeper.close()
        size = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file())
    step, save = np.median(step_seconds), np.median(save_seconds)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(training.state["params"]))
    print(f"{parameters:,} parameters, {size / 2e6:.0f} MB a checkpoint")
    print(
        f"step {1000 * step:.0f} ms, save holds the loop for {1000 * save:.0f} ms: {save / step:.2f} steps"
    )


def main() -> None:
    saves()
    steps(int(sys.argv[1]) if len(sys.argv) > 1 else 10)


if __name__ == "__main__":
    main()
