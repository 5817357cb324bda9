"""Where each leaf of the parameter tree stands in a Hugging Face checkpoint.

L layers, D width, V vocabulary, N query heads, H head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jinstr.models import config as config_lib
from jinstr.models import decoder, hf_config


class Place(NamedTuple):
    """Where a leaf of the parameter tree stands in a checkpoint."""

    name: str  # of the tensor; {} = number of the layer
    transposed: bool = False  # kernels are [in, out] here and [out, in] there
    part: int = -1  # of GPT-NeoX's fused [N, 3, H, in]: 0 query, 1 key, 2 value


def places(config: config_lib.DecoderConfig) -> dict[tuple[str, ...], Place]:
    """Path in the parameter tree → where that leaf stands. Layers are stacked here and apart there."""
    family = hf_config.layout_for(config)
    rows = _neox_rows() if family == "gpt_neox" else _llama_rows(config)
    found = {}
    for path in paths(decoder.abstract_params(config)):
        *module, leaf = path
        name, part = rows[".".join(module)]
        if leaf == "embedding":
            found[path] = Place(name + ".weight")
        elif leaf == "kernel":
            found[path] = Place(name + ".weight", transposed=True, part=part)
        else:
            found[path] = Place(f"{name}.{'bias' if leaf == 'bias' else 'weight'}", part=part)
    return found


def _llama_rows(config: config_lib.DecoderConfig) -> dict[str, tuple[str, int]]:
    layer = "model.layers.{}."
    names = {
        "embed": "model.embed_tokens",
        "norm_final": "model.norm",
        "head": "lm_head",
        "score": "score",
        "blocks.norm_attention": layer + "input_layernorm",
        "blocks.norm_mlp": layer + "post_attention_layernorm",
    }
    if config.post_norms:
        names |= {
            "blocks.norm_attention_out": layer + "post_attention_layernorm",
            "blocks.norm_mlp": layer + "pre_feedforward_layernorm",
            "blocks.norm_mlp_out": layer + "post_feedforward_layernorm",
        }
    for own, other in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
        names[f"blocks.attention.{own}"] = f"{layer}self_attn.{other}_proj"
        names[f"blocks.attention.{own}_norm"] = f"{layer}self_attn.{other}_norm"
    for own in ("gate", "up", "down"):
        names[f"blocks.mlp.{own}"] = f"{layer}mlp.{own}_proj"
    return {own: (name, -1) for own, name in names.items()}


def _neox_rows() -> dict[str, tuple[str, int]]:
    layer = "gpt_neox.layers.{}."
    names = {
        "embed": ("gpt_neox.embed_in", -1),
        "norm_final": ("gpt_neox.final_layer_norm", -1),
        "head": ("embed_out", -1),
        "score": ("score", -1),
        "blocks.norm_attention": (layer + "input_layernorm", -1),
        "blocks.norm_mlp": (layer + "post_attention_layernorm", -1),
        "blocks.attention.out": (layer + "attention.dense", -1),
        "blocks.mlp.up": (layer + "mlp.dense_h_to_4h", -1),
        "blocks.mlp.down": (layer + "mlp.dense_4h_to_h", -1),
    }
    for part, own in enumerate(("query", "key", "value")):
        names[f"blocks.attention.{own}"] = (layer + "attention.query_key_value", part)
    return names


def paths(tree: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of the leaves of a nested dict."""
    found = []
    for name, value in tree.items():
        found += paths(value, (*above, name)) if isinstance(value, dict) else [(*above, name)]
    return found


def leaf_of(tree: dict, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def tree_of(leaves: Mapping[tuple[str, ...], Any]) -> dict:
    """Nested dict of {path: leaf}."""
    tree: dict = {}
    for (*module, name), value in leaves.items():
        place = tree
        for part in module:
            place = place.setdefault(part, {})
        place[name] = value
    return tree


def shapes_there(config: config_lib.DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that a checkpoint of this model has."""
    found = {}
    params = decoder.abstract_params(config)
    for path, place in places(config).items():
        shape = leaf_of(params, path).shape
        stacked = "{}" in place.name
        shape = shape[1:] if stacked else shape
        shape = shape[::-1] if place.transposed else shape
        if place.part >= 0:
            shape = (3 * shape[0], *shape[1:])
        for layer in range(config.num_layers if stacked else 1):
            found[place.name.format(layer)] = tuple(shape)
    return found
