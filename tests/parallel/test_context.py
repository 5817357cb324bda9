"""Rows that are split over devices: the values of one device, and less memory on each."""

import jax
import numpy as np
import pytest

from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

PLACES = 8192
MODEL = config_lib.DecoderConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
    mlp_size=64, remat="full",
)  # fmt: skip
RULES = mesh_lib.AxisRules()


def batch_of(rng):
    """One row of three texts, the longest of 6,000 places."""
    lengths = [1500, 6000, PLACES - 7500]
    tokens = rng.integers(0, 64, (1, PLACES)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "loss_weights": np.ones((1, PLACES), np.float32),
        "positions": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])[None],
        "segment_ids": np.repeat(np.array([1, 2, 3], np.int32), lengths)[None],
    }


def step(context):
    """(loss, gradients, bytes that the compiled program works with on one device)."""
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=1, context=context), jax.devices()[:context])
    transform = optimizer_lib.make_optimizer(optimizer_lib.OptimizerConfig(), 10)
    abstract = state_lib.abstract_state(MODEL, transform, mesh, RULES, ema=False)
    params = state_lib.init_state(MODEL, transform, abstract, 0)["params"]
    objective = state_lib.language_objective(MODEL, RULES, 0.0)
    batch = state_lib.place_batch(batch_of(np.random.default_rng(0)), mesh, RULES)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.value_and_grad(lambda p, b: objective.sums(p, b, {})[0]))
        compiled = gradient.lower(params, batch).compile()
        loss, gradients = jax.device_get(compiled(params, batch))
    return loss, gradients, compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_a_long_row_on_several_devices():
    loss, gradients, memory = step(1)
    for context in (2, 4):
        other_loss, other_gradients, other_memory = step(context)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for a, b in zip(jax.tree.leaves(other_gradients), jax.tree.leaves(gradients), strict=True):
            assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()
        print(context, memory, other_memory)
        assert other_memory < 0.7 * memory
        memory = other_memory
