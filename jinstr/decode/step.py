"""One decoding step: a copy of the parameters laid out for it, the key/value cache, and the arithmetic.

The same function as `models.decoder.forward` with a cache and one token a row (the tests hold the two equal for every
family), arranged for speed: layers unrolled, projections that read the same input fused into one matrix, keys and
values of each layer in arrays of their own, so that a step writes one slot in place and copies nothing.

B batch, P prompt places, S cache slots, D width, V vocabulary, N query heads, K key/value heads, G = N // K,
X = B·K, H head size. A cache array is [X, S, H]: batch and head are one axis because XLA would merge them for the
matrix product, and on CPU that reshape of a freshly written cache costs four copies of it in every step. Where heads
are split over devices it is [B, K, S, H], as one axis cannot be split both ways; `…` stands for X or for B, K.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jinstr.models import attention, decoder, layers, lora
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib

# Prompts are read in pieces of this many places, which bounds the [places, slots] scores of the reference attention.
PREFILL_PLACES = 256


def heads_are_split(config: config_lib.DecoderConfig, rules: mesh_lib.AxisRules) -> bool:
    """Has each device of the mesh in context whole heads of its own in the cache?"""
    count = mesh_lib.ambient_devices(rules.kv_heads)
    return count > 1 and config.num_kv_heads % count == 0


def cache_spec(rules: mesh_lib.AxisRules, ndim: int) -> jax.sharding.PartitionSpec:
    """Spec of a cache array of so many axes: by rows, and by heads where these have an axis of their own."""
    heads = ("kv_heads",) if ndim == 4 else ()
    return rules.spec("batch", *heads, *[None] * (ndim - 1 - len(heads)))


def _stay_apart(rules: mesh_lib.AxisRules) -> bool:
    """Are columns of kernels split over devices? A part of fused kernels would not be a part of each."""
    return any(
        mesh_lib.ambient_devices(axes) > 1 for axes in (rules.heads, rules.kv_heads, rules.mlp)
    )


def _fuse(parts: list[dict]) -> list[dict]:
    """Linear layers of one input as one: kernels [in, a], [in, b], … → [in, a + b + …], biases likewise."""
    names = [name for name in ("kernel", "bias") if name in parts[0]]
    return [{name: jnp.concatenate([part[name] for part in parts], axis=-1) for name in names}]


def serving_params(
    config: config_lib.DecoderConfig,
    params: dict,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
) -> dict:
    """Parameters for `step`, in the compute type: {"embedding", "head" [D, V], "norm_final", "layers": [L dicts]}.

    One layer after the other, so that neither float32 sums nor a whole merged model stand beside what is returned.
    What is outside of the layers is not copied where it is in that type already. On a mesh the copy is whole on every
    device that has rows of its own, as each step reads all of it; heads, mlp and vocabulary stay split.
    """
    outside = {name: value for name, value in params.items() if name != "blocks"}
    layers_L = [serving_layer(config, rules, params["blocks"], i) for i in range(config.num_layers)]
    # What jit returns is new, also where nothing was to be done.
    is_split = mesh_lib.ambient_devices(mesh_lib.MESH_AXES) > 1
    make = serving_outside if is_split else serving_outside.__wrapped__
    return make(config, rules, outside) | {"layers": layers_L}


def _specs(config, rules: mesh_lib.AxisRules) -> tuple[dict, dict]:
    """Specs of (what is outside of the layers, one layer), whole on every device that has rows of its own."""
    specs = decoder.param_specs(lora.plain(config), rules)

    def whole(tree, first):
        return jax.tree.map(
            lambda spec: mesh_lib.without(jax.sharding.PartitionSpec(*spec[first:]), rules.batch),
            tree,
            is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
        )

    outside = {name: specs[name] for name in ("embed", "norm_final", "head") if name in specs}
    return whole(outside, 0), whole(specs["blocks"], 1)


def serving_specs(config, rules: mesh_lib.AxisRules) -> dict:
    """How the copy lies on the mesh in context."""
    outside, block = _specs(config, rules)
    layer = _arranged(config, block, lambda parts: parts if _stay_apart(rules) else parts[:1])
    return {
        "embedding": outside["embed"]["embedding"],
        "head": rules.spec(None, "vocab"),
        "norm_final": outside["norm_final"],
        "layers": [layer] * config.num_layers,
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def serving_outside(config, rules: mesh_lib.AxisRules, outside: dict) -> dict:
    """What of the copy is outside of the layers."""
    specs, _ = _specs(config, rules)
    outside = {name: outside[name] for name in specs}
    outside = jax.tree.map(lambda leaf: leaf.astype(decoder.compute_dtype(config)), outside)
    outside = jax.tree.map(mesh_lib.constrain, outside, specs)
    return {
        "embedding": outside["embed"]["embedding"],
        "head": decoder.head_kernel(config, outside, rules),
        "norm_final": outside["norm_final"],
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def serving_layer(config, rules: mesh_lib.AxisRules, blocks: dict, i) -> dict:
    """Layer i of the copy, with its adapters added to its kernels."""
    block = jax.tree.map(lambda leaf: leaf[i], blocks)
    block = lora.merged_layer(config, block, decoder.compute_dtype(config))
    block = jax.tree.map(mesh_lib.constrain, block, _specs(config, rules)[1])
    return _arranged(config, block, (lambda parts: parts) if _stay_apart(rules) else _fuse)


def _arranged(config, block: dict, fuse) -> dict:
    """A layer's parameters (or whatever stands for them) as steps read them. fuse: a list of layers of one input →
    those that are kept."""
    projections, mlp = block["attention"], block["mlp"]
    inward = [mlp["gate"], mlp["up"]] if config.gated_mlp else [mlp["up"]]
    return (
        {name: value for name, value in block.items() if name.startswith("norm_")}
        | {name: value for name, value in projections.items() if name.endswith("_norm")}
        | {
            "qkv": fuse([projections[name] for name in ("query", "key", "value")]),
            "out": projections["out"],
            "inward": fuse(inward),
            "down": mlp["down"],
        }
    )


def _linear(layer: dict, x):
    y = x @ layer["kernel"]
    return y + layer["bias"] if "bias" in layer else y


def _parts(fused: list[dict], x, sizes: tuple[int, ...]) -> list:
    """What layers of one input make, [..., size] each, whether they are fused or not."""
    found = [_linear(layer, x) for layer in fused]
    if len(found) == len(sizes):
        return found
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
    return jnp.split(found[0], ends, axis=-1)


def _norm(config, layer: dict, x, kind: str = ""):
    """`layers.Norm` as a function of its parameters."""
    kind = kind or config.norm
    y = x.astype(jnp.float32)
    if kind == "layer":
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + config.norm_epsilon)
    y = y * (layer["scale"].astype(jnp.float32) + (1.0 if config.norm_plus_one else 0.0))
    if kind == "layer":
        y = y + layer["bias"].astype(jnp.float32)
    return y.astype(x.dtype)


def _attend(config, q_BNH, k_XSH, v_XSH, visible_BS):
    """Attention of one query a row over the cache: [B, N·H]."""
    B, N, H = q_BNH.shape
    K = config.num_kv_heads
    scale = config.query_scale or config.head_dim**-0.5
    lead = k_XSH.shape[:-2]  # X, or B and K
    q_XGH = (q_BNH * jnp.asarray(scale, q_BNH.dtype)).reshape(*lead, N // K, H)
    scores_XGS = jnp.einsum("...gh,...sh->...gs", q_XGH, k_XSH, preferred_element_type=jnp.float32)
    if config.attention_softcap:
        scores_XGS = config.attention_softcap * jnp.tanh(scores_XGS / config.attention_softcap)
    visible_XS = jnp.repeat(visible_BS, K, axis=0) if len(lead) == 1 else visible_BS[:, None]
    scores_XGS = jnp.where(visible_XS[..., None, :], scores_XGS, attention.MASKED)
    weights_XGS = jax.nn.softmax(scores_XGS, axis=-1).astype(v_XSH.dtype)
    return jnp.einsum("...gs,...sh->...gh", weights_XGS, v_XSH).reshape(B, N * H)


def _mlp(config, layer: dict, x_BD):
    activate = layers.ACTIVATIONS[config.activation]
    if config.gated_mlp:
        gate, up = _parts(layer["inward"], x_BD, (config.mlp_size,) * 2)
        return _linear(layer["down"], activate(gate) * up)
    (up,) = _parts(layer["inward"], x_BD, (config.mlp_size,))
    return _linear(layer["down"], activate(up))


def _layer(config, layer: dict, x_BD, rope, k_XSH, v_XSH, index, visible_BS):
    """One layer for one token a row; writes slot `index`. Returns (x, k, v)."""
    B, _ = x_BD.shape
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    qkv = _parts(layer["qkv"], _norm(config, layer["norm_attention"], x_BD), (N * H, K * H, K * H))
    q, k, v = (part.reshape(B, 1, -1, H) for part in qkv)
    if config.qk_norm:
        q = _norm(config, layer["query_norm"], q, "rms")
        k = _norm(config, layer["key_norm"], k, "rms")
    q, k = layers.rotate(q, *rope), layers.rotate(k, *rope)
    lead = k_XSH.shape[:-2]
    slot = (*(0 for _ in lead), index, 0)
    k_XSH = jax.lax.dynamic_update_slice(k_XSH, k.reshape(*lead, 1, H).astype(k_XSH.dtype), slot)
    v_XSH = jax.lax.dynamic_update_slice(v_XSH, v.reshape(*lead, 1, H).astype(v_XSH.dtype), slot)
    out_BD = _linear(layer["out"], _attend(config, q[:, 0], k_XSH, v_XSH, visible_BS))
    if config.post_norms:
        out_BD = _norm(config, layer["norm_attention_out"], out_BD)
    if config.parallel_residual:
        x_BD = x_BD + out_BD + _mlp(config, layer, _norm(config, layer["norm_mlp"], x_BD))
    else:
        x_BD = x_BD + out_BD
        mlp_BD = _mlp(config, layer, _norm(config, layer["norm_mlp"], x_BD))
        x_BD = x_BD + (
            _norm(config, layer["norm_mlp_out"], mlp_BD) if config.post_norms else mlp_BD
        )
    return x_BD, k_XSH, v_XSH


def _logits(config, serving: dict, hidden_BD):
    out_BV = jnp.matmul(hidden_BD, serving["head"], preferred_element_type=jnp.float32)
    cap = config.logit_softcap
    return cap * jnp.tanh(out_BV / cap) if cap else out_BV


def step(config, serving: dict, cache: dict, tokens_B, index, start_B) -> tuple[jax.Array, dict]:
    """Feed one token a row, at slot `index`; returns float32 logits [B, V] of the next token and the new cache.

    cache: {"k": [L arrays […, S, H]], "v": likewise}. Row b's text begins at slot start_B[b] (left padding before
    it), so slot s holds its position s − start.
    """
    slots = jnp.arange(cache["k"][0].shape[-2])[None, :]
    seen_BS = (slots >= start_B[:, None]) & (slots <= index)
    near_BS = seen_BS & (index - slots < config.window)
    positions_B1 = (index - start_B)[:, None]
    rope = local = layers.rope_tables(config, positions_B1)
    if config.rope_local_theta:
        local = layers.rope_tables(config, positions_B1, local=True)
    x_BD = serving["embedding"][tokens_B]
    if config.embed_scale:
        x_BD = x_BD * jnp.asarray(config.hidden_size**0.5, x_BD.dtype)
    keys, values = [], []
    for i, (layer, is_local) in enumerate(zip(serving["layers"], config.local_layers)):
        x_BD, k, v = _layer(
            config,
            layer,
            x_BD,
            local if is_local else rope,
            cache["k"][i],
            cache["v"][i],
            index,
            near_BS if is_local else seen_BS,
        )
        keys.append(k)
        values.append(v)
    hidden_BD = _norm(config, serving["norm_final"], x_BD)
    return _logits(config, serving, hidden_BD), {"k": keys, "v": values}


def prefill(
    config,
    params,
    serving: dict,
    prompts_BP,
    lengths_B,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, dict]:
    """Read left-padded prompts; returns logits [B, V] of the first new token and a cache of P slots.

    P is at most PREFILL_PLACES or a multiple of it. `params` are the model's own: prompts go through
    `decoder.forward`, whose matrix products are large enough to need no other layout.
    """
    B, P = prompts_BP.shape
    places = min(P, PREFILL_PLACES)
    positions_BP = jnp.arange(P)[None, :] - (P - lengths_B)[:, None]
    inputs = (
        prompts_BP,
        jnp.maximum(positions_BP, 0),
        (positions_BP >= 0).astype(jnp.int32),
    )
    pieces = jax.tree.map(lambda x: x.reshape(B, P // places, places).swapaxes(0, 1), inputs)

    def read(cache, piece):
        hidden_BTD, cache = decoder.forward(config, params, *piece, cache, rules)
        return cache, hidden_BTD[:, -1]

    is_split = heads_are_split(config, rules)
    empty = decoder.init_cache(config, B, P)
    stacked = rules.spec(None, "batch", None, "kv_heads" if is_split else None, None)
    empty |= {name: mesh_lib.constrain(empty[name], stacked) for name in ("k", "v")}
    if P == places:
        cache, last_BD = read(empty, inputs)
    else:
        cache, last_nBD = jax.lax.scan(read, empty, pieces)
        last_BD = last_nBD[-1]

    def split(stacked_LBSKH):
        layers_L = [layer.swapaxes(1, 2) for layer in stacked_LBSKH]
        if not is_split:
            layers_L = [layer.reshape(-1, P, config.head_dim) for layer in layers_L]
        return [mesh_lib.constrain(x, cache_spec(rules, x.ndim)) for x in layers_L]

    return _logits(config, serving, last_BD), {"k": split(cache["k"]), "v": split(cache["v"])}
