"""Parameters of a decoder block and the small functions around them.

B batch, T places of the input, D model width, N query heads, K key/value heads, H head size, F feed-forward width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


@jax.custom_vjp
def matmul(x, kernel):
    """x [..., in] @ kernel [in, out]. The gradient of the kernel contracts in the order that moves fewer bytes.
    A kernel that is not differentiated (under LoRA) gets none, and its x is not kept.

    A product that contracts the places of both operands needs one of them transposed in memory (XLA on CPU does that in
    a loop as slow as the product itself). JAX's own rule always transposes the gradient of y; transposing x instead is
    shared by all kernels that read the same x, and smaller where the kernel widens.
    """
    return x @ kernel


def _matmul_forward(x, kernel):
    x, is_trained, kernel = x.value, kernel.perturbed, kernel.value
    return x @ kernel, (x if is_trained else None, kernel)


def _matmul_backward(residuals, grad_y):
    x, kernel = residuals
    if x is None:
        return grad_y @ kernel.T, None
    size_in, size_out = kernel.shape
    if mesh_lib.sequence_devices() == 1:
        # One axis of all places spares the CPU a few transpositions; where places are split it would be gathered.
        x, grad = x.reshape(-1, size_in), grad_y.reshape(-1, size_out)
    else:
        grad = grad_y
    axes = tuple(range(x.ndim - 1))
    over_places = ((axes, axes), ((), ()))
    if size_in <= size_out:
        grad_kernel = jax.lax.dot_general(x, grad, over_places)
    else:
        grad_kernel = jax.lax.dot_general(grad, x, over_places).T
    return grad_y @ kernel.T, grad_kernel


matmul.defvjp(_matmul_forward, _matmul_backward, symbolic_zeros=True)


class Linear(nnx.Module):
    """y = x @ kernel (+ scale · (x @ lora_a) @ lora_b) (+ bias), all cast to the type of x.

    kernel [in, out]; with adapters of rank r: lora_a [in, r], lora_b [r, out], in float32 as they are trained.
    """

    def __init__(self, size_in, size_out, spec, *, scale, bias, dtype, rngs, lora=None):
        key = rngs.params()
        normal = jax.random.truncated_normal(key, -2, 2, (size_in, size_out), jnp.float32)
        self.kernel = nnx.Param((normal * scale).astype(dtype), out_sharding=spec)
        if bias:
            self.bias = nnx.Param(
                jnp.zeros((size_out,), dtype), out_sharding=jax.sharding.PartitionSpec(spec[1])
            )
        if lora is not None:
            self._add_adapters(size_in, size_out, spec, key, lora)

    def _add_adapters(self, size_in, size_out, spec, key, lora: config_lib.LoraConfig):
        """A uniform within ± in**-0.5 (what PEFT draws), B zero: at the start y is that of the kernel."""
        shape, bound = (size_in, lora.rank), size_in**-0.5
        # A key of its own, made of the kernel's: the kernels are the same with and without adapters.
        uniform = jax.random.uniform(jax.random.fold_in(key, 1), shape, jnp.float32, -bound, bound)
        into = jax.sharding.PartitionSpec(spec[0], None)
        out = jax.sharding.PartitionSpec(None, spec[1])
        self.lora_a = nnx.Param(uniform, out_sharding=into)
        self.lora_b = nnx.Param(jnp.zeros((lora.rank, size_out), jnp.float32), out_sharding=out)
        self.lora_scale = lora.scale

    def __call__(self, x):
        y = matmul(x, self.kernel[...].astype(x.dtype))
        if hasattr(self, "lora_a"):
            low = matmul(x, self.lora_a[...].astype(x.dtype))
            y = y + matmul(low, self.lora_b[...].astype(x.dtype)) * self.lora_scale
        return y + self.bias[...].astype(x.dtype) if hasattr(self, "bias") else y

    def to_heads(self, x_BTD, heads: int):
        """The same, [B, heads, T, size_out // heads], as the product makes it: nothing is moved for it afterwards."""

        def product(x, kernel):
            kernel_DNH = kernel.astype(x.dtype).reshape(len(kernel), heads, -1)
            return jnp.einsum("btd,dnh->bnth", x, kernel_DNH)

        y = product(x_BTD, self.kernel[...])
        if hasattr(self, "lora_a"):
            low = matmul(x_BTD, self.lora_a[...].astype(x_BTD.dtype))
            y = y + product(low, self.lora_b[...]) * self.lora_scale
        if hasattr(self, "bias"):
            y = y + self.bias[...].astype(y.dtype).reshape(heads, 1, -1)
        return y

    def from_heads(self, x_BNTH):
        """The same of [B, N, T, H] → [B, T, D]; size_in = N · H."""

        def product(x, kernel):
            kernel_NHD = kernel.astype(x.dtype).reshape(x.shape[1], x.shape[3], -1)
            return jnp.einsum("bnth,nhd->btd", x, kernel_NHD)

        y = product(x_BNTH, self.kernel[...])
        if hasattr(self, "lora_a"):
            low = product(x_BNTH, self.lora_a[...])
            y = y + matmul(low, self.lora_b[...].astype(low.dtype)) * self.lora_scale
        return y + self.bias[...].astype(y.dtype) if hasattr(self, "bias") else y


class Norm(nnx.Module):
    """RMSNorm (arXiv 1910.07467) or LayerNorm over the last axis, computed in float32."""

    def __init__(self, size, config: config_lib.DecoderConfig, *, kind=None):
        self.kind = kind or config.norm
        self.epsilon = config.norm_epsilon
        self.plus_one = config.norm_plus_one
        start = 0.0 if config.norm_plus_one else 1.0
        dtype = jnp.dtype(config.param_dtype)
        whole = jax.sharding.PartitionSpec(None)
        self.scale = nnx.Param(jnp.full((size,), start, dtype), out_sharding=whole)
        if self.kind == "layer":
            self.bias = nnx.Param(jnp.zeros((size,), dtype), out_sharding=whole)

    def __call__(self, x):
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon)
        scale = self.scale[...].astype(jnp.float32) + (1.0 if self.plus_one else 0.0)
        y = y * jnp.broadcast_to(scale, y.shape)
        if self.kind == "layer":
            y = y + jnp.broadcast_to(self.bias[...].astype(jnp.float32), y.shape)
        return y.astype(x.dtype)


class AttentionParameters(nnx.Module):
    """Projections of one attention layer; the arithmetic is in `decoder.block`."""

    def __init__(self, config: config_lib.DecoderConfig, rules: mesh_lib.AxisRules, *, rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        width, scale = c.hidden_size, c.hidden_size**-0.5
        kwargs = dict(dtype=dtype, rngs=rngs)
        heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        into, out = rules.spec("embed", "heads"), rules.spec("heads", "embed")
        into_kv = rules.spec("embed", "kv_heads")
        self.query = Linear(
            width, heads, into, scale=scale, bias=c.qkv_bias, lora=c.lora.on("query"), **kwargs
        )
        self.key = Linear(
            width, kv, into_kv, scale=scale, bias=c.qkv_bias, lora=c.lora.on("key"), **kwargs
        )
        self.value = Linear(
            width, kv, into_kv, scale=scale, bias=c.qkv_bias, lora=c.lora.on("value"), **kwargs
        )
        # The residual stream adds 2L terms: outputs start smaller by sqrt(2L) (GPT-2, section 2.3).
        out_scale = heads**-0.5 * (2 * c.num_layers) ** -0.5
        self.out = Linear(
            heads, width, out, scale=out_scale, bias=c.out_bias, lora=c.lora.on("out"), **kwargs
        )
        if c.qk_norm:
            self.query_norm = Norm(c.head_dim, c, kind="rms")
            self.key_norm = Norm(c.head_dim, c, kind="rms")


class MlpParameters(nnx.Module):
    """Feed-forward part: down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, config: config_lib.DecoderConfig, rules: mesh_lib.AxisRules, *, rngs):
        c = config
        kwargs = dict(bias=c.mlp_bias, dtype=jnp.dtype(c.param_dtype), rngs=rngs)
        into, out = rules.spec("embed", "mlp"), rules.spec("mlp", "embed")
        scale = c.hidden_size**-0.5
        if c.gated_mlp:
            self.gate = Linear(
                c.hidden_size, c.mlp_size, into, scale=scale, lora=c.lora.on("gate"), **kwargs
            )
        self.up = Linear(
            c.hidden_size, c.mlp_size, into, scale=scale, lora=c.lora.on("up"), **kwargs
        )
        down_scale = c.mlp_size**-0.5 * (2 * c.num_layers) ** -0.5
        self.down = Linear(
            c.mlp_size, c.hidden_size, out, scale=down_scale, lora=c.lora.on("down"), **kwargs
        )
        self.activation = c.activation

    def __call__(self, x):
        activate = ACTIVATIONS[self.activation]
        up = checkpoint_name(self.up(x), "mlp")
        if hasattr(self, "gate"):
            return self.down(activate(checkpoint_name(self.gate(x), "mlp")) * up)
        return self.down(activate(up))


def rope_frequencies(config: config_lib.DecoderConfig, local: bool = False) -> jax.Array:
    """Angular frequencies [rotated // 2], f32 (arXiv 2104.09864; llama3 scaling as in Llama 3.1).

    local: of layers with a theta of their own, which see no distance that scaling would be for (Gemma 3).
    """
    rotated = int(config.head_dim * config.rotary_share) // 2 * 2
    theta = config.rope_local_theta if local else config.rope_theta
    frequency = theta ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    if local:
        return frequency
    if config.rope_scaling == "linear":
        return frequency / config.rope_factor
    if config.rope_scaling == "llama3":
        turns = config.rope_original_positions * frequency / (2 * jnp.pi)
        low, high = config.rope_low_frequency, config.rope_high_frequency
        smooth = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        return frequency * (smooth + (1 - smooth) / config.rope_factor)
    return frequency


def rope_tables(config, positions_BT, local: bool = False) -> tuple[jax.Array, jax.Array]:
    """cos and sin, each [B, T, 1, rotated // 2], f32, to be used by every layer of one kind."""
    angle = (
        positions_BT[:, :, None, None].astype(jnp.float32)
        * rope_frequencies(config, local)[None, None, None, :]
    )
    # Without the barrier XLA computes cos and sin anew inside every rotation of every layer.
    return jax.lax.optimization_barrier((jnp.cos(angle), jnp.sin(angle)))


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary position encoding in the half-split layout of Llama weights."""
    half = cos.shape[-1]
    first, second = x_BTNH[..., :half], x_BTNH[..., half : 2 * half]
    cos, sin = cos.astype(x_BTNH.dtype), sin.astype(x_BTNH.dtype)
    parts = [first * cos - second * sin, second * cos + first * sin, x_BTNH[..., 2 * half :]]
    return jnp.concatenate(parts, axis=-1)


def rotate_by_product(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """The same bits for accelerators whose vectors do not halve well: halves change places by a matrix product.

    Each of its sums has one term that is not 0, ± a number of x, so it is exact.
    """
    size, half = x.shape[-1], cos.shape[-1]
    place = np.arange(half)
    turned = np.zeros((size, size), np.float32)
    turned[place + half, place], turned[place, place + half] = -1, 1
    rest = [(0, 0)] * (cos.ndim - 1) + [(0, size - 2 * half)]
    cos = jnp.pad(jnp.concatenate([cos, cos], axis=-1), rest, constant_values=1)
    sin = jnp.pad(jnp.concatenate([sin, sin], axis=-1), rest)
    other = jnp.matmul(x, turned.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)
    return x * cos.astype(x.dtype) + other * sin.astype(x.dtype)
