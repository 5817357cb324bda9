"""The decoder, used functionally: parameters are a plain nested dict, `forward` is a pure function of it.

B batch, T places, D width, V vocabulary, L layers, N query heads, K key/value heads, H head size, S cache slots.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jinstr import errors
from jinstr.models import attention, layers, projected, splash
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib


class Block(nnx.Module):
    """Parameters of one layer."""

    def __init__(self, config: config_lib.DecoderConfig, rules: mesh_lib.AxisRules, *, rngs):
        self.norm_attention = layers.Norm(config.hidden_size, config)
        self.attention = layers.AttentionParameters(config, rules, rngs=rngs)
        self.norm_mlp = layers.Norm(config.hidden_size, config)
        self.mlp = layers.MlpParameters(config, rules, rngs=rngs)
        if config.post_norms:
            self.norm_attention_out = layers.Norm(config.hidden_size, config)
            self.norm_mlp_out = layers.Norm(config.hidden_size, config)


class Decoder(nnx.Module):
    """All parameters: embedding, stacked blocks [L, …], last norm, the heads that the config names."""

    def __init__(self, config: config_lib.DecoderConfig, rules: mesh_lib.AxisRules, *, rngs):
        dtype = jnp.dtype(config.param_dtype)
        size = (config.vocab_size, config.hidden_size)
        table = jax.random.normal(rngs.params(), size, jnp.float32) * config.hidden_size**-0.5
        self.embed = nnx.Dict(
            embedding=nnx.Param(table.astype(dtype), out_sharding=rules.spec("vocab", "embed"))
        )

        @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
        def stack(rngs):
            return Block(config, rules, rngs=rngs)

        self.blocks = stack(rngs.split(config.num_layers))
        self.norm_final = layers.Norm(config.hidden_size, config)
        if config.heads != "language":
            # Zero: every score is 0 at first, so the first losses have values that are known.
            self.score = nnx.Dict(
                kernel=nnx.Param(
                    jnp.zeros((config.hidden_size, 1), dtype),
                    out_sharding=rules.spec("embed", None),
                )
            )
        if config.heads != "score" and not config.tie_embeddings:
            self.head = layers.Linear(
                config.hidden_size,
                config.vocab_size,
                rules.spec("embed", "vocab"),
                scale=config.hidden_size**-0.5,
                bias=False,
                dtype=dtype,
                rngs=rngs,
            )


@functools.lru_cache(maxsize=32)
def _structure(config: config_lib.DecoderConfig, rules: mesh_lib.AxisRules):
    """(graphdef, abstract state, partition specs) of a model; no array is made."""
    with nnx.use_eager_sharding(False):  # annotations only: shapes need no mesh
        model = nnx.eval_shape(
            lambda: Decoder(config, rules, rngs=nnx.Rngs(params=jax.random.key(0)))
        )
    graphdef, state = nnx.split(model)
    specs = nnx.to_pure_dict(nnx.get_partition_spec(state))
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), nnx.to_pure_dict(state)
    )
    return graphdef, shapes, specs


def abstract_params(config: config_lib.DecoderConfig) -> dict:
    """Parameter tree with ShapeDtypeStruct leaves."""
    return _structure(config, mesh_lib.AxisRules())[1]


def param_specs(config: config_lib.DecoderConfig, rules: mesh_lib.AxisRules) -> dict:
    """Parameter tree with PartitionSpec leaves."""
    return _structure(config, rules)[2]


def param_shardings(config: config_lib.DecoderConfig, mesh, rules: mesh_lib.AxisRules) -> dict:
    """Parameter tree with NamedSharding leaves. Errors: ConfigError for sizes that do not divide over the mesh."""
    _, shapes, specs = _structure(config, rules)

    def place(path, leaf, spec):
        sharding = jax.sharding.NamedSharding(mesh, spec)
        for size, axes in zip(leaf.shape, spec):
            count = mesh_lib.devices_along(mesh, axes)
            if size % count:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise errors.ConfigError(
                    "JI-MODEL-008",
                    f"{name} {list(leaf.shape)} does not divide over {count} devices ({axes}); choose another MESH_… "
                    "(or a vocabulary that is rounded up)",
                )
        return sharding

    return jax.tree_util.tree_map_with_path(place, shapes, specs)


def init_params(config: config_lib.DecoderConfig, key: jax.Array) -> dict:
    """Fresh parameters as a plain dict. Call it inside jit with `out_shardings=param_shardings(...)`.

    The same key gives the same values on every mesh.
    """
    with nnx.use_eager_sharding(False):
        model = Decoder(config, mesh_lib.AxisRules(), rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.split(model)[1])


def compute_dtype(config: config_lib.DecoderConfig) -> jnp.dtype:
    """float32 on CPU, bfloat16 on accelerators, unless the config names one."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def block(
    config,
    layer: Block,
    x_BTD,
    rope,
    is_local,
    positions_BT,
    segments_BT,
    cache,
    rules,
    branches_BT,
):
    """One layer. `cache` is None or (k_BSKH, v_BSKH, positions_BS, segments_BS, index); returns (x, (k, v))."""
    x_BTD = checkpoint_name(x_BTD, "input")
    h_BTD = layer.norm_attention(x_BTD)
    (cos, sin), (local_cos, local_sin) = rope
    if local_cos is not cos:
        cos, sin = jnp.where(is_local, local_cos, cos), jnp.where(is_local, local_sin, sin)
    window = jnp.where(is_local, config.window, 0) if any(config.local_layers) else 0
    own = attention.chosen(config.attention, x_BTD.shape[1], window, rules)
    kv = None
    # Smaller heads fill a part of a vector: made first, they take more of the chip's own memory than the kernel has.
    first = config.head_dim % splash.LANES == 0
    if own == "splash" and first and cache is None and branches_BT is None:
        out_BTD = projected.heads_first(
            config, layer.attention, h_BTD, (cos, sin), segments_BT, rules
        )
    else:
        rest = (window, positions_BT, segments_BT, cache, rules, branches_BT)
        out_BTD, kv = projected.places_first(config, layer.attention, h_BTD, (cos, sin), *rest)
    out_BTD = checkpoint_name(out_BTD, "attention")
    if config.post_norms:
        out_BTD = layer.norm_attention_out(out_BTD)
    if config.parallel_residual:
        x_BTD = x_BTD + out_BTD + layer.mlp(layer.norm_mlp(x_BTD))
    else:
        x_BTD = x_BTD + out_BTD
        mlp_BTD = layer.mlp(layer.norm_mlp(x_BTD))
        x_BTD = x_BTD + (layer.norm_mlp_out(mlp_BTD) if config.post_norms else mlp_BTD)
    return mesh_lib.constrain(x_BTD, rules.spec("batch", "sequence", None)), kv


def _but_gathered(primitive, *_, **__) -> bool:
    """Checkpoint policy: all that is computed may be kept, kernels that were gathered may not."""
    return primitive.name != "sharding_constraint"


def _products(primitive, *operands, **params) -> bool:
    """Checkpoint policy: what products of layers make may be kept; not what layers.rotate_by_product makes, which is
    told by its precision."""
    is_product = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    turns = params.get("precision") == (jax.lax.Precision.HIGHEST,) * 2
    return is_product(primitive, *operands, **params) and not turns


def _remat(function, config: config_lib.DecoderConfig, gathers: bool):
    """What of a layer is computed again in the backward pass; kernels that were gathered are gathered again."""
    policies = jax.checkpoint_policies
    saveable = {
        "none": _but_gathered,
        "minimal": policies.save_only_these_names("attention", "mlp"),
        "dots": _products,
        "attention": policies.save_only_these_names("attention"),
        "full": None,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["input", "attention"],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[config.remat]
    if config.remat == "none" and not gathers:
        return function
    # In a loop the two passes are apart anyway; side by side, the compiler would find the second one to be the first.
    return jax.checkpoint(function, policy=saveable, prevent_cse=not config.scan_layers)


def _gathered(layer: Block, specs: dict, rules: mesh_lib.AxisRules, dtype) -> Block:
    """The layer with kernels that are whole along `embed`: said here, so that each is sent once, in the compute type.

    Left to itself, the partitioner gathers one kernel once for every layout in which it is read.
    """
    graphdef, state = nnx.split(layer)

    def whole(leaf, spec):
        own = jax.sharding.PartitionSpec(*spec[1:])  # without the axis of layers
        spec = mesh_lib.without(own, rules.embed)
        if spec == own:
            return leaf
        return mesh_lib.gathered(leaf.astype(dtype), own, spec)

    return nnx.merge(graphdef, jax.tree.map(whole, nnx.to_pure_dict(state), specs))


def _look_up(table_VD, tokens_BT, rules: mesh_lib.AxisRules, dtype):
    """Rows of the embedding, [B, T, D], by way of the smaller of the two: the table, or what is looked up.

    Where a device holds fewer places than the table has rows, every device looks up its part of the width for all
    places, and the parts change hands.
    """
    places = tokens_BT.size // mesh_lib.ambient_devices(rules.batch)
    if mesh_lib.ambient_devices(rules.embed) > 1 and places < len(table_VD):
        rows = mesh_lib.without(rules.spec("batch"), rules.embed)[0]
        tokens_BT = mesh_lib.constrain(tokens_BT, jax.sharding.PartitionSpec(rows, None))
        x_BTD = table_VD[tokens_BT].astype(dtype)
        x_BTD = mesh_lib.constrain(x_BTD, jax.sharding.PartitionSpec(rows, None, rules.embed))
    else:
        # Gathered over `embed` before the lookup: otherwise the partitioner replicates the looked-up rows.
        table_VD = mesh_lib.constrain(table_VD, rules.spec("vocab", None))
        x_BTD = table_VD[tokens_BT].astype(dtype)
    return mesh_lib.constrain(x_BTD, rules.spec("batch", "sequence", None))


def _slots(cache: dict, positions_BT, segment_ids_BT) -> tuple:
    """(positions [B, S], segment ids [B, S], index) of a cache with T more slots filled."""
    index = cache["index"]
    return (
        jax.lax.dynamic_update_slice(cache["positions"], positions_BT, (0, index)),
        jax.lax.dynamic_update_slice(cache["segment_ids"], segment_ids_BT, (0, index)),
        index,
    )


def forward(
    config: config_lib.DecoderConfig,
    params: dict,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    cache: dict | None = None,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
    branches_BT: jax.Array | None = None,
):
    """Hidden states after the last norm, [B, T, D] in the compute type; with a cache also the new cache.

    branches_BT: where given (without a cache), several texts of a segment go on from one beginning, which is computed
    once: places of branch 0 are the beginning, those of branch b > 0 see it and their own branch. Positions of every
    branch go on from the end of the beginning, which stands before them in the row.

    The cache (see `init_cache`) is written at its `index`, T slots at a time; a slot is seen by queries of the same
    segment id at its position or later. Left padding carries segment id 0.
    """
    if cache is not None and branches_BT is not None:
        raise ValueError("a cache has no branches")
    graphdef, _, _ = _structure(config, mesh_lib.AxisRules())
    model = nnx.merge(graphdef, params)
    dtype = compute_dtype(config)
    x_BTD = _look_up(model.embed["embedding"][...], tokens_BT, rules, dtype)
    if config.embed_scale:
        x_BTD = x_BTD * jnp.asarray(config.hidden_size**0.5, dtype)
    rope = local = layers.rope_tables(config, positions_BT)
    if config.rope_local_theta:
        local = layers.rope_tables(config, positions_BT, local=True)
    slots = None if cache is None else _slots(cache, positions_BT, segment_ids_BT)
    gathers = mesh_lib.ambient_devices(rules.embed) > 1
    specs = _structure(config, rules)[2] if gathers else None

    def layer_step(x_BTD, inputs):
        layer, is_local, k_BSKH, v_BSKH = inputs
        if gathers:
            layer = _gathered(layer, specs["blocks"], rules, dtype)
        layer_cache = None if slots is None else (k_BSKH, v_BSKH, *slots)
        rest = (positions_BT, segment_ids_BT, layer_cache, rules, branches_BT)
        x_BTD, kv = block(config, layer, x_BTD, (rope, local), is_local, *rest)
        return x_BTD, kv if slots is not None else None

    layer_step = _remat(layer_step, config, gathers)
    is_local_L = jnp.array(config.local_layers)
    k_L, v_L = (None, None) if cache is None else (cache["k"], cache["v"])
    stacked = (model.blocks, is_local_L, k_L, v_L)
    if config.scan_layers:
        x_BTD, kv = jax.lax.scan(layer_step, x_BTD, stacked)
    else:
        collected = []
        for i in range(config.num_layers):
            x_BTD, kv_i = layer_step(x_BTD, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
            collected.append(kv_i)
        kv = None if slots is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected)
    hidden_BTD = model.norm_final(x_BTD)
    if cache is None:
        return hidden_BTD
    new_cache = {
        "k": kv[0],
        "v": kv[1],
        "positions": slots[0],
        "segment_ids": slots[1],
        "index": cache["index"] + tokens_BT.shape[1],
    }
    return hidden_BTD, new_cache


def init_cache(config: config_lib.DecoderConfig, batch: int, slots: int, dtype=None) -> dict:
    """An empty cache: k, v [L, B, S, K, H], positions and segment_ids i32 [B, S] (0 = empty), index i32 []."""
    shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
    dtype = dtype or compute_dtype(config)
    return {
        "k": jnp.zeros(shape, dtype),
        "v": jnp.zeros(shape, dtype),
        "positions": jnp.zeros((batch, slots), jnp.int32),
        "segment_ids": jnp.zeros((batch, slots), jnp.int32),
        "index": jnp.zeros((), jnp.int32),
    }


def head_kernel(
    config: config_lib.DecoderConfig,
    params: dict,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
) -> jax.Array:
    """Output head [D, V] in the parameter type (the transposed embedding when tied).

    Gathered over `embed`, once: otherwise the partitioner adds up logits over devices, chunk by chunk.
    """
    tied = config.tie_embeddings
    kernel_DV = params["embed"]["embedding"].T if tied else params["head"]["kernel"]
    return mesh_lib.gathered(kernel_DV, rules.spec("embed", "vocab"), rules.spec(None, "vocab"))


def logits(config: config_lib.DecoderConfig, params: dict, hidden: jax.Array) -> jax.Array:
    """[..., D] → float32 logits [..., V]. For short stretches only; training uses `losses.lm`."""
    kernel = head_kernel(config, params).astype(hidden.dtype)
    out = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return (
        config.logit_softcap * jnp.tanh(out / config.logit_softcap) if config.logit_softcap else out
    )


def scores(params: dict, hidden: jax.Array) -> jax.Array:
    """[..., D] → [...] in float32, by the score head: the reward of a text at its last token, the value of a state."""
    kernel_D = params["score"]["kernel"][:, 0].astype(jnp.float32)
    return hidden.astype(jnp.float32) @ kernel_D


def count_params(config: config_lib.DecoderConfig) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
