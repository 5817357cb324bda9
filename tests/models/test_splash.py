"""The splash kernel's own code, interpreted on the CPU, against attention with the whole score matrix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.models import attention, config, decoder, splash
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import optimizer, state

B, T, N, K, H = 2, 256, 4, 2, 128
LENGTHS = ([40, 100, 60], [128, 128])  # of segments; the first row ends with padding


def rows():
    segments, positions = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for number, length in enumerate(lengths, 1):
            segments[row, at : at + length] = number
            positions[row, at : at + length] = np.arange(length)
            at += length
        positions[row, at:] = np.arange(T - at)  # any order will do among padding
    return segments, positions


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)


@pytest.mark.parametrize("softcap", [0.0, 20.0])
def test_values_and_gradients_are_those_of_the_reference(interpreted, softcap):
    draw = np.random.default_rng(0)
    q, k, v, weight = (
        jnp.asarray(draw.normal(size=(B, T, heads, H)), jnp.float32) for heads in (N, K, K, N)
    )
    segments, positions = rows()
    weight = weight * (segments > 0)[:, :, None, None]

    def out(implementation, segments, q, k, v):
        found = attention.attend(
            q, k, v, positions, positions, segments, segments, scale=H**-0.5, softcap=softcap,
            implementation=implementation,
        )  # fmt: skip
        return (found * weight).sum()

    def both(implementation, segments):
        function = jax.value_and_grad(
            lambda q, k, v: out(implementation, segments, q, k, v), (0, 1, 2)
        )
        return jax.jit(function)(q, k, v)

    expected, wanted = both("xla", segments)
    found, slopes = both("splash", segments)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for slope, other in zip(slopes, wanted):
        np.testing.assert_allclose(slope, other, atol=1e-5 * float(jnp.abs(other).max()))
    # Negative control: segments that see each other are something else.
    leaking, _ = both("splash", np.minimum(segments, 1))
    assert abs(float(leaking - expected)) > 1e-2 * abs(float(expected))


@pytest.mark.slow
def test_a_step_on_a_mesh_is_that_of_one_device(interpreted):
    """Rows over data and fsdp, heads over tensor: each device runs the kernel on its own."""
    base = config.DecoderConfig(
        vocab_size=64, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=128, mlp_size=64,
        max_positions=T,
    )  # fmt: skip
    model = dataclasses.replace(base, attention="splash")
    setting = optimizer.OptimizerConfig(learning_rate=1e-3, warmup_steps=1)
    transform = optimizer.make_optimizer(setting, 10)
    segments, positions = (np.tile(x, (2, 1)) for x in rows())
    draw = np.random.default_rng(1)
    batch = {
        "tokens": draw.integers(0, 64, (2 * B, T)).astype(np.int32),
        "targets": draw.integers(0, 64, (2 * B, T)).astype(np.int32),
        "loss_weights": (segments > 0).astype(np.float32),
        "positions": positions,
        "segment_ids": segments,
    }

    def first_step(model, shape, devices):
        mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(**shape), jax.devices()[:devices])
        rules = mesh_lib.AxisRules()
        abstract = state.abstract_state(model, transform, mesh, rules, ema=False)
        step = state.make_step(model, setting, transform, mesh, rules, abstract)
        started = state.init_state(model, transform, abstract, seed=0)
        _, values = step(started, state.place_batch(batch, mesh, rules))
        return float(values["loss"]), float(values["grad_norm"])

    expected = first_step(base, {}, 1)
    np.testing.assert_allclose(first_step(model, {}, 1), expected, rtol=1e-5)
    shape = {"data": 2, "fsdp": 2, "tensor": 2}
    np.testing.assert_allclose(first_step(model, shape, 8), expected, rtol=1e-5)


def test_what_the_kernel_cannot_do_is_told():
    q = jnp.zeros((1, 100, 2, 128))
    with pytest.raises(errors.ConfigError, match="JI-ATTENTION-001.*multiple of 128.*100"):
        splash.attend(
            q, q, q, jnp.ones((1, 100)), scale=1.0, softcap=0.0, rules=mesh_lib.AxisRules()
        )
    with pytest.raises(errors.ConfigError, match="JI-MODEL-009"):
        config.DecoderConfig(attention="splash", window=8, layer_pattern="local,global")
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=4, context=2))
    q = jnp.zeros((4, 256, 2, 128))
    with jax.set_mesh(mesh), pytest.raises(errors.ConfigError, match="JI-ATTENTION-002"):
        splash.attend(
            q, q, q, jnp.ones((4, 256)), scale=1.0, softcap=0.0, rules=mesh_lib.AxisRules()
        )


def test_branches_are_computed_as_blocked(interpreted):
    model = config.DecoderConfig(
        vocab_size=64, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=128, mlp_size=32,
        max_positions=T, attention="splash",
    )  # fmt: skip
    params = decoder.init_params(model, jax.random.key(0))
    segments, positions = rows()
    branches = np.zeros_like(segments)
    tokens = np.random.default_rng(2).integers(0, 64, (B, T))
    found = decoder.forward(model, params, tokens, positions, segments, branches_BT=branches)
    plain = dataclasses.replace(model, attention="xla")
    expected = decoder.forward(plain, params, tokens, positions, segments, branches_BT=branches)
    real = segments > 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)
