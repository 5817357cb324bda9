"""The Triton kernel's own code, interpreted on the CPU, against attention with the whole score matrix; and on a GPU."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.models import attention, config, decoder, triton
from jinstr.parallel import mesh as mesh_lib

B, T, N, K, H = 2, 256, 4, 2, 32
LENGTHS = ([40, 100, 60], [128, 128])  # of segments; the first row ends with padding


def rows(places=T):
    segments, positions = np.zeros((B, places), np.int32), np.zeros((B, places), np.int32)
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for number, length in enumerate(lengths, 1):
            length = length * places // T
            segments[row, at : at + length] = number
            positions[row, at : at + length] = np.arange(length)
            at += length
        positions[row, at:] = np.arange(places - at)  # any order will do among padding
    return segments, positions


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(triton, "INTERPRET", True)


def value_and_gradients(implementation, segments, positions, arrays):
    """Of a weighted sum of what is not padding."""
    q, k, v, weight = arrays
    weight = weight * (segments > 0)[:, :, None, None]

    def value(q, k, v):
        found = attention.attend(
            q, k, v, positions, positions, segments, segments, scale=q.shape[-1] ** -0.5,
            implementation=implementation,
        )  # fmt: skip
        return (found.astype(jnp.float32) * weight).sum()

    return jax.jit(jax.value_and_grad(value, (0, 1, 2)))(q, k, v)


def arrays_of(places, head_dim, dtype):
    draw = np.random.default_rng(0)
    made = [draw.normal(size=(B, places, heads, head_dim)) for heads in (N, K, K, N)]
    return [jnp.asarray(x, dtype) for x in made[:3]] + [jnp.asarray(made[3], jnp.float32)]


def test_values_and_gradients_are_those_of_the_reference(interpreted):
    segments, positions = rows()
    arrays = arrays_of(T, H, jnp.float32)
    expected, wanted = value_and_gradients("xla", segments, positions, arrays)
    found, slopes = value_and_gradients("triton", segments, positions, arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for slope, other in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(slope, other, atol=1e-5 * float(jnp.abs(other).max()))
    # Negative control: segments that see each other are something else.
    leaking, _ = value_and_gradients("triton", np.minimum(segments, 1), positions, arrays)
    assert abs(float(leaking - expected)) > 1e-2 * abs(float(expected))


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("places", [512, 4096])
def test_values_and_gradients_on_a_gpu(head_dim, places):
    segments, positions = rows(places)
    arrays = arrays_of(places, head_dim, jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in arrays]
    with jax.default_matmul_precision("highest"):
        _, wanted = value_and_gradients("xla", segments, positions, exact)
    _, rounded = value_and_gradients("xla", segments, positions, arrays)
    _, slopes = value_and_gradients("triton", segments, positions, arrays)
    for slope, other, best in zip(slopes, rounded, wanted, strict=True):
        # bfloat16 rounds to 3 digits: as far from the exact gradients as the reference in that type, or nearly.
        far, usual = (np.abs(x.astype(jnp.float32) - best).max() for x in (slope, other))
        assert far < 2 * usual + 1e-3 * np.abs(best).max()


MODEL = config.DecoderConfig(
    vocab_size=64, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, mlp_size=64,
    max_positions=T, attention="triton",
)  # fmt: skip


def traced(remat):
    model = dataclasses.replace(MODEL, remat=remat, compute_dtype="bfloat16")
    segments, positions = rows()
    value = functools.partial(decoder.forward, model)
    arguments = decoder.abstract_params(model), jnp.zeros((B, T), jnp.int32), positions, segments
    return jax.jit(jax.grad(lambda *given: value(*given).sum())).trace(*arguments)


def kernels(jaxpr) -> int:
    """Calls of kernels in a program, those of a loop's body once."""
    inner = [each for eqn in jaxpr.eqns for each in jax.extend.core.jaxprs_in_params(eqn.params)]
    return sum(e.primitive.name == "pallas_call" for e in jaxpr.eqns) + sum(map(kernels, inner))


def test_a_step_becomes_a_program_for_cuda():
    text = traced("minimal").lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton_kernel_call") or text.count("gpu$xla.gpu.triton")


def test_remat_does_not_run_a_kernel_again_whose_output_it_keeps():
    plain = kernels(traced("none").jaxpr.jaxpr)
    assert plain == 3  # forward; gradients, and what they need first
    assert (
        kernels(traced("minimal").jaxpr.jaxpr) == kernels(traced("attention").jaxpr.jaxpr) == plain
    )
    assert kernels(traced("full").jaxpr.jaxpr) == plain + 1


@pytest.mark.slow
def test_rows_and_heads_on_a_mesh_are_those_of_one_device(interpreted):
    segments, positions = rows()
    model = dataclasses.replace(MODEL, num_layers=1)
    params = decoder.init_params(model, jax.random.key(0))
    tokens = np.random.default_rng(1).integers(0, 64, (B, T)).astype(np.int32)
    expected = decoder.forward(
        dataclasses.replace(model, attention="xla"), params, tokens, positions, segments
    )
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        found = jax.jit(functools.partial(decoder.forward, model))(
            params, tokens, positions, segments
        )
    real = segments > 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)


def test_what_the_kernel_cannot_do_is_told():
    ones, rules = jnp.ones((4, 256), jnp.int32), mesh_lib.AxisRules()
    q = jnp.zeros((4, 256, 2, 32))
    with pytest.raises(
        errors.ConfigError, match="JI-ATTENTION-003.*multiple of 128 places, not 100"
    ):
        triton.attend(*[q[:, :100]] * 3, ones[:, :100], scale=1.0, softcap=0.0, rules=rules)
    with pytest.raises(errors.ConfigError, match="JI-ATTENTION-003.*caps them"):
        triton.attend(q, q, q, ones, scale=1.0, softcap=30.0, rules=rules)
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=4, context=2))
    with (
        jax.set_mesh(mesh),
        pytest.raises(errors.ConfigError, match="JI-ATTENTION-003.*MESH_CONTEXT=1"),
    ):
        triton.attend(q, q, q, ones, scale=1.0, softcap=0.0, rules=rules)
    with pytest.raises(errors.ConfigError, match="JI-MODEL-009.*triton"):
        config.DecoderConfig(attention="triton", window=8, layer_pattern="local,global")
