"""The training step: the same on every mesh, the same however the batch is cut, and right about its denominator."""

import dataclasses
import functools
import gc

import jax
import numpy as np
import optax
import pytest

from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.testing import faults
from jinstr.train import base as base_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import startup
from jinstr.train import state as state_lib

MODEL = config_lib.DecoderConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_size=24,
)
RULES = mesh_lib.AxisRules()


def batch_of(seed=0, B=8, T=24):
    rng = np.random.default_rng(seed)
    # Very uneven rows: a mean of row means would be visibly another loss.
    trained = rng.random((B, T)) < np.linspace(0.05, 0.95, B)[:, None]
    return {
        "tokens": rng.integers(0, 64, (B, T)).astype(np.int32),
        "targets": rng.integers(0, 64, (B, T)).astype(np.int32),
        "loss_weights": trained.astype(np.float32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "segment_ids": np.ones((B, T), np.int32),
    }


@functools.cache
def train(mesh_config, microbatches=1, name="adamw", steps=5, ema=0.0):
    """Losses and last parameters of a few steps; the batches are the same for every mesh."""
    devices = (
        8 if mesh_config.data == -1 else mesh_config.data * mesh_config.fsdp * mesh_config.tensor
    )
    mesh = mesh_lib.make_mesh(mesh_config, jax.devices()[:devices])
    config = optimizer_lib.OptimizerConfig(
        name=name, learning_rate=1e-3, warmup_steps=2, ema_decay=ema, muon_learning_rate=1e-3
    )
    transform = optimizer_lib.make_optimizer(config, 20)
    with jax.set_mesh(mesh):
        abstract = state_lib.abstract_state(MODEL, transform, mesh, RULES, ema > 0)
        state = state_lib.init_state(MODEL, transform, abstract, 0)
        step = state_lib.make_step(MODEL, config, transform, mesh, RULES, abstract, microbatches)
        losses = []
        for i in range(steps):
            state, metrics = step(state, state_lib.place_batch(batch_of(i), mesh, RULES))
            losses.append(float(metrics["loss"]))
        for leaf, want in zip(jax.tree.leaves(state), jax.tree.leaves(abstract)):
            assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
    return np.array(losses), jax.device_get(state["params"]), metrics


ONE = mesh_lib.MeshConfig(data=1)


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_meshes_agree(name):
    losses, params, _ = train(ONE, name=name)
    for mesh_config in (mesh_lib.MeshConfig(data=8), mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2)):
        other_losses, other_params, _ = train(mesh_config, name=name)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other_params)):
            np.testing.assert_allclose(a, b, atol=1e-4)
    # Negative control: another optimizer gives another curve.
    control, _, _ = train(ONE, name="muon" if name == "adamw" else "adamw")
    assert np.abs(control / losses - 1)[1:].max() > 1e-5


def test_accumulation_equals_one_batch_with_uneven_weights():
    losses, params, metrics = train(ONE)
    accumulated, other_params, other_metrics = train(ONE, microbatches=4)
    np.testing.assert_allclose(accumulated, losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other_params)):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(other_metrics["grad_norm"]), rel=1e-4)


def test_loss_is_the_token_weighted_mean_not_a_mean_of_rows():
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    transform = optimizer_lib.make_optimizer(optimizer_lib.OptimizerConfig(), 10)
    with jax.set_mesh(mesh):
        abstract = state_lib.abstract_state(MODEL, transform, mesh, RULES, False)
        params = state_lib.init_state(MODEL, transform, abstract, 0)["params"]
        evaluate = state_lib.make_evaluator(MODEL, mesh, RULES)
        batch = batch_of()
        nll, weight = map(float, evaluate(params, batch))
        rows = [evaluate(params, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(8)]
        assert nll == pytest.approx(sum(float(r[0]) for r in rows), rel=1e-5)
        assert weight == batch["loss_weights"].sum() == sum(float(r[1]) for r in rows)
        row_mean = np.mean([float(r[0]) / max(float(r[1]), 1) for r in rows])
        assert abs(row_mean - nll / weight) > 1e-4
        first = train(ONE)[0][0]
        assert first == pytest.approx(nll / weight, rel=1e-5)


def test_metrics_count_tokens_and_squares():
    _, _, metrics = train(ONE)
    assert float(metrics["tokens"]) == 8 * 24
    assert float(metrics["square"]) == 8 * 24**2


def test_ema_is_the_running_average():
    _, params, _ = train(ONE, steps=1)
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    config = optimizer_lib.OptimizerConfig(learning_rate=1e-3, warmup_steps=2, ema_decay=0.75)
    transform = optimizer_lib.make_optimizer(config, 20)
    with jax.set_mesh(mesh):
        abstract = state_lib.abstract_state(MODEL, transform, mesh, RULES, True)
        state = state_lib.init_state(MODEL, transform, abstract, 0)
        start = jax.device_get(state["params"])
        step = state_lib.make_step(MODEL, config, transform, mesh, RULES, abstract)
        state, _ = step(state, batch_of(0))
    leaves = map(
        jax.tree.leaves, (start, jax.device_get(state["params"]), jax.device_get(state["ema"]))
    )
    for before, now, ema in zip(*leaves):
        np.testing.assert_allclose(ema, 0.75 * before + 0.25 * now, rtol=1e-5, atol=1e-7)
        assert not np.array_equal(before, now)


def test_a_step_that_is_not_finite_changes_nothing_but_its_number():
    """On one device and with parameters and moments split over eight."""
    for mesh_config in (ONE, mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2)):
        mesh = mesh_lib.make_mesh(mesh_config, jax.devices()[: 1 if mesh_config == ONE else 8])
        config = optimizer_lib.OptimizerConfig(learning_rate=1e-3, ema_decay=0.9)
        transform = optimizer_lib.make_optimizer(config, 20)
        with jax.set_mesh(mesh):
            abstract = state_lib.abstract_state(MODEL, transform, mesh, RULES, True)
            state = state_lib.init_state(MODEL, transform, abstract, 0)
            faults.enable("nan_gradient@2=here")
            try:
                step = state_lib.make_step(MODEL, config, transform, mesh, RULES, abstract)
                states = []
                for number in range(3):
                    placed = state_lib.place_batch(batch_of(number), mesh, RULES)
                    state, metrics = step(state, placed)
                    states.append(jax.device_get(state))
                    assert np.isfinite(metrics["grad_norm"]) == (number != 1)
            finally:
                faults.enable("")
        first, second, third = ({k: v for k, v in s.items() if k != "step"} for s in states)
        assert [int(s["step"]) for s in states] == [1, 2, 3]
        for a, b in zip(*map(jax.tree.leaves, (first, second))):
            np.testing.assert_array_equal(a, b)
        moved = [not np.array_equal(b, c) for b, c in zip(*map(jax.tree.leaves, (second, third)))]
        assert sum(moved) > len(moved) / 2  # negative control: the next step moves them


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_gradients_in_bfloat16_are_those_in_float32_but_for_rounding(tied):
    """Tied, the embedding's gradient is a sum of two, which must be of one type."""
    config = dataclasses.replace(MODEL, tie_embeddings=tied)
    params = state_lib.decoder.init_params(config, jax.random.key(0))

    def gradients(dtype, batch):
        model = dataclasses.replace(config, compute_dtype=dtype)
        return jax.grad(lambda p: state_lib.nll_sum(model, p, batch, RULES)[0])(params)

    batch = batch_of()
    want, got = gradients("float32", batch), gradients("bfloat16", batch)
    other = gradients("float32", batch_of(1))
    norm, far = optax.tree.norm(want), optax.tree.norm(optax.tree.sub(other, want))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
    # bfloat16 keeps 8 bits, and some ten roundings follow each other.
    assert optax.tree.norm(optax.tree.sub(got, want)) < 0.02 * norm
    assert far > 0.2 * norm  # negative control: another batch


def live_bytes():
    """Bytes of all arrays on devices, each buffer once."""
    gc.collect()
    found = {}
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            found[shard.device, shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return sum(found.values())


def test_a_warm_start_is_a_fresh_one_with_other_parameters_and_holds_nothing_twice():
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2))
    transform = optimizer_lib.make_optimizer(optimizer_lib.OptimizerConfig(), 20)
    abstract = state_lib.abstract_state(MODEL, transform, mesh, RULES, True)
    others = live_bytes()
    fresh = state_lib.init_state(MODEL, transform, abstract, 3)
    size = live_bytes() - others
    given = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, fresh["params"])
    before = live_bytes()

    def load(params):
        assert live_bytes() == before  # no state is there yet
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), given, params)

    base = base_lib.Base(
        init="", folder=None, config=MODEL, tokenizer_path="", template="", load=load
    )
    state = startup.first_state(MODEL, transform, abstract, 3, base)
    assert live_bytes() - before == size  # as much as a fresh state, and each buffer its own
    want = fresh | {"params": given, "ema": given}
    for a, b, like in zip(*map(jax.tree.leaves, (state, want, abstract)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding.is_equivalent_to(like.sharding, a.ndim) and a.dtype == like.dtype
    # Negative control: another seed gives another key.
    other = state_lib.state_with(given, transform, abstract, 4)
    assert not np.array_equal(other["rng"], fresh["rng"])
