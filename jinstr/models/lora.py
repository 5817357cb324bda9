"""Adapters beside the frozen kernels of a decoder (LoRA, arXiv 2106.09685): taken apart, put together, added in.

With `config.lora.rank` > 0 a parameter tree holds lora_a [L, in, r] and lora_b [L, r, out] beside the kernel
[L, in, out] of every target. The adapters alone are an ordinary tree of the same form, {"blocks":
{"attention": {"query": {"lora_a", "lora_b"}, …}, …}}, and so is the base, without them. L layers, r rank.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder

LEAVES = ("lora_a", "lora_b")
SCORE = "score"  # the head of a reward model: trained with the adapters, no base has it


def plain(config: config_lib.DecoderConfig) -> config_lib.DecoderConfig:
    """The model without adapters: that of its base, and of what `merge` gives."""
    return dataclasses.replace(config, lora=config_lib.LoraConfig())


def split(params: dict) -> tuple[dict, dict]:
    """(adapters, base) of a parameter tree, whatever its leaves are. A score head goes with the adapters."""
    adapters, base = {}, {}
    for name, value in params.items():
        if name == SCORE:
            adapters[name] = value
        elif isinstance(value, dict):
            own, rest = split(value)
            adapters |= {name: own} if own else {}
            base |= {name: rest} if rest else {}
        else:
            (adapters if name in LEAVES else base)[name] = value
    return adapters, base


def join(adapters: dict, base: dict) -> dict:
    """The parameter tree of adapters and their base. `join(params, {})` is `params`."""
    found = dict(base)
    for name, value in adapters.items():
        found[name] = join(value, base.get(name, {})) if isinstance(value, dict) else value
    return found


def trained(config: config_lib.DecoderConfig, params: dict) -> dict:
    """The part of a parameter tree that is trained: the adapters where there are any, else all.

    Errors: ConfigError when none of the targets is in this model.
    """
    if not config.lora.rank:
        return params
    adapters, _ = split(params)
    if not adapters.keys() - {SCORE}:
        raise errors.ConfigError(
            "JI-LORA-002",
            f"LORA_TARGETS={config.lora.targets!r}: this model has no such projection, so nothing would be trained",
        )
    return adapters


def count(config: config_lib.DecoderConfig) -> int:
    """Numbers in the adapters of a model; 0 without."""
    adapters, _ = split(decoder.abstract_params(config))
    return sum(leaf.size for leaf in jax.tree.leaves(adapters))


def reference(config: config_lib.DecoderConfig, params: dict) -> tuple:
    """(config, parameters) with the adapters off: the reference policy, which needs no second copy of the base."""
    return plain(config), split(params)[1]


def merge(config: config_lib.DecoderConfig, params: dict) -> dict:
    """Parameters of `plain(config)`: every kernel plus scale · lora_a @ lora_b, added in float32, in the kernel's type.

    A tree without adapters is returned as it is.
    """
    adapters, base = split(params)
    return merge_into(config, adapters, base) if adapters.keys() - {SCORE} else params


def merge_into(config: config_lib.DecoderConfig, adapters: dict, base: dict) -> dict:
    """The same, in `base` itself, placed as it is: each kernel goes as its sum comes, so no two models are held."""
    _add(adapters, base, config.lora.scale)
    return base


def unmerge(config: config_lib.DecoderConfig, merged: dict, adapters: dict) -> dict:
    """The tree that `merge` got, up to the rounding of its sums: its config, what it gave, and the adapters."""
    _, base = split(merged)  # its dicts are new
    _add(adapters, base, -config.lora.scale)
    return join(adapters, base)


def merged_layer(config: config_lib.DecoderConfig, block: dict, dtype) -> dict:
    """`merge` of the parameters of one layer, all in `dtype`: a sum is rounded once, to that."""
    adapters, base = split(block)
    sums = _with_sums(adapters, base, config.lora.scale) if adapters else base
    return jax.tree.map(lambda leaf: leaf.astype(dtype), sums)


def _with_sums(adapters: dict, base: dict, scale: float) -> dict:
    """One layer with its sums in float32."""
    found = dict(base)
    for name, value in adapters.items():
        if "lora_a" in value:
            kernel = _plus(base[name]["kernel"], value["lora_a"], value["lora_b"], scale)
            found[name] = base[name] | {"kernel": kernel}
        else:
            found[name] = _with_sums(value, base[name], scale)
    return found


def _add(adapters: dict, base: dict, scale: float) -> None:
    for name, value in adapters.items():
        if name == SCORE:
            base[name] = value
        elif "lora_a" in value:
            kernel = base[name]["kernel"]
            kernel_sum = _sum(kernel, value["lora_a"], value["lora_b"], scale)
            base[name]["kernel"] = jax.device_put(kernel_sum, kernel.sharding)
        else:
            _add(value, base[name], scale)


@functools.partial(jax.jit, static_argnums=3)
def _sum(kernel, lora_a, lora_b, scale: float):
    """kernel + scale · lora_a @ lora_b of every layer, one layer after the other: the float32 product is as large as a
    kernel."""

    def of_layer(layer):
        return _plus(*layer, scale).astype(kernel.dtype)

    return jax.lax.map(of_layer, (kernel, lora_a, lora_b))


def _plus(kernel, lora_a, lora_b, scale: float):
    """kernel + scale · lora_a @ lora_b of one layer, float32."""
    product = jnp.matmul(lora_a, lora_b, precision=jax.lax.Precision.HIGHEST)
    return kernel.astype(jnp.float32) + scale * product
