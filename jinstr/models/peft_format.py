"""Adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, both ways.

PEFT has lora_A [r, in] and lora_B [out, r] for every layer of every module; here both are transposed and stacked. In
GPT-NeoX query, key and value are rows of one module: what is read is that module's A three times, and B's rows apart;
what is written is the three A's below each other and B in blocks, of rank 3r. L layers, r rank, N heads, H head size.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder, hf_layout, hf_read, lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Fields of adapter_config.json that may hold anything: they say where adapters come from and how they were trained, or
# (the modules) what the names of the tensors say too.
_FREE = (
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version",
    "lora_dropout", "target_modules", "exclude_modules", "eva_config", "lora_ga_config", "runtime_config",
    "megatron_core", "qalora_group_size", "ensure_weight_tying", "layers_pattern",
)  # fmt: skip
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
# Starts that leave the base as it is; others (pissa, olora, corda, loftq) take part of it away.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Module:
    """A module of PEFT, and the projections here that it holds: one, or GPT-NeoX's three."""

    name: str  # {} = number of the layer
    parts: tuple[tuple[tuple[str, ...], int], ...]  # (path of the projection, part of the module)


def _modules(config: config_lib.DecoderConfig) -> list[_Module]:
    """Every module that can have adapters."""
    found: dict[str, list] = {}
    # Adapters stand in the blocks, whatever heads the model has; only a language model has a layout.
    plain = dataclasses.replace(lora.plain(config), heads="language")
    for path, place in hf_layout.places(plain).items():
        if path[0] == "blocks" and path[-1] == "kernel":
            name = place.name.removesuffix(".weight")
            found.setdefault(name, []).append((path[:-1], place.part))
    return [
        _Module(name=name, parts=tuple(sorted(parts, key=lambda part: part[1])))
        for name, parts in found.items()
    ]


def read_adapter(
    folder: str | pathlib.Path, config: config_lib.DecoderConfig
) -> tuple[config_lib.LoraConfig, dict]:
    """(settings, adapters) of a PEFT folder for a model of this shape; the adapters are float32 arrays of the host.

    Modules of several ranks or alphas come with the largest rank, filled up with zeros, and B scaled: their product is
    the same. Errors: StorageError for files that are missing, damaged, pickled or of other shapes; ConfigError for
    adapters that compute something else than x @ A @ B beside linear layers.
    """
    folder = pathlib.Path(folder)
    values = _checked(folder)
    file = folder / WEIGHTS
    header = hf_read.read_header(file)
    modules = [module for module in _modules(config) if _is_there(file, header, config, module)]
    known = {name for module in modules for name in _names(module, config.num_layers)}
    if not known or known < header.keys():
        name = next((name for name in sorted(header) if name not in known), "nothing in it")
        raise errors.StorageError(
            "JI-PEFT-005",
            f"{file}: {name} is no adapter of a linear layer of this model; merge it with PEFT (merge_and_unload) and "
            "take the whole model as INIT=hf:FOLDER",
        )
    tensors = safetensors.numpy.load_file(file)
    found: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray, float]] = {}
    for module in modules:
        names = _names(module, config.num_layers)
        a, b = (
            np.stack([tensors[name].astype(np.float32).T for name in names[i::2]]) for i in (0, 1)
        )
        scale = _scale(values, module, a.shape[2])
        for path, part in module.parts:
            found[path] = a, _rows(config, b, part), scale
    return _of_one_rank(found)


def _checked(folder: pathlib.Path) -> dict[str, Any]:
    """adapter_config.json. Errors: ConfigError for a field that changes what is computed, naming it."""
    path = folder / CONFIG
    if not path.is_file():
        raise errors.StorageError(
            "JI-PEFT-001", f"{folder}: no {CONFIG}; give the folder of a PEFT adapter"
        )
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        why = (
            f"; {pickled[0]} is a pickle, which can run code and is never opened" if pickled else ""
        )
        raise errors.StorageError(
            "JI-PEFT-001",
            f"{folder}: no {WEIGHTS}{why}; save it with PEFT's save_pretrained(…, safe_serialization=True)",
        )
    values = hf_read.read_json(path)

    def refuse(field: str, why: str):
        return errors.ConfigError("JI-PEFT-002", f"{path}: {field} = {values.get(field)!r}: {why}")

    if values.get("peft_type") != "LORA":
        raise refuse("peft_type", "only LORA is supported")
    for field, value in values.items():
        if field == "bias" and value == "none":
            continue
        if field == "init_lora_weights" and (isinstance(value, bool) or value in _STARTS):
            continue
        if field not in (*_FREE, *_READ) and value not in (None, False, [], {}):
            raise refuse(
                field, "it changes what is computed, and is not supported; merge it with PEFT"
            )
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise refuse("r", "a whole number of at least 1 is needed")
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise refuse("lora_alpha", "a number above 0 is needed")
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = values.get(field) or {}
        plain = isinstance(pattern, dict) and all(
            key.replace("_", "").isalnum() and type(n) in (int, float) and n > 0
            for key, n in pattern.items()
        )
        if not plain:
            raise refuse(field, "only names of modules with a number are supported, no patterns")
    return values


def _names(module: _Module, layers: int) -> list[str]:
    """The tensors of a module: A and B of layer 0, of layer 1, …"""
    return [
        f"{_PREFIX}{module.name.format(layer)}.{kind}.weight"
        for layer in range(layers)
        for kind in ("lora_A", "lora_B")
    ]


def _is_there(file: pathlib.Path, header: dict, config, module: _Module) -> bool:
    """Has a module adapters? Errors: StorageError when it has some only, or of other shapes or types."""
    names = _names(module, config.num_layers)
    present = [name for name in names if name in header]
    if not present:
        return False
    if missing := sorted(set(names) - set(present)):
        raise errors.StorageError(
            "JI-PEFT-004",
            f"{file}: no {missing[0]}; adapters on some of the layers only are not supported",
        )
    shapes = decoder.abstract_params(lora.plain(config))
    _, size_in, size_out = hf_layout.leaf_of(shapes, (*module.parts[0][0], "kernel")).shape
    size_out *= len(module.parts)
    rank = max(1, *header[names[0]][1][:1])
    for number, name in enumerate(names):
        kind, shape = header[name]
        wanted = [size_out, rank] if number % 2 else [rank, size_in]
        if shape != wanted or kind not in hf_read.TYPES:
            raise errors.StorageError(
                "JI-PEFT-003",
                f"{file}: {name} is {kind} {shape}, but this model makes it {wanted} ({', '.join(hf_read.TYPES)})",
            )
    return True


def _scale(values: dict, module: _Module, rank: int) -> float:
    """What PEFT multiplies the product of a module by."""
    own = module.name.rpartition(".")[2]
    alpha = (values.get("alpha_pattern") or {}).get(own, values["lora_alpha"])
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)


def _rows(config: config_lib.DecoderConfig, b_LRO: np.ndarray, part: int) -> np.ndarray:
    """The columns of B that belong to one part of a module: GPT-NeoX has [N, 3, H] of them."""
    if part < 0:
        return b_LRO
    L, r, _ = b_LRO.shape
    return b_LRO.reshape(L, r, config.num_heads, 3, config.head_dim)[:, :, :, part].reshape(
        L, r, -1
    )


def _of_one_rank(found: dict) -> tuple[config_lib.LoraConfig, dict]:
    """Settings that all the adapters share, and the adapters in them."""
    rank = max(a.shape[2] for a, _, _ in found.values())
    common = max(scale for _, _, scale in found.values())
    leaves = {}
    for path, (a, b, scale) in found.items():
        more = rank - a.shape[2]
        b = b if scale == common else b * np.float32(scale / common)
        leaves[(*path, "lora_a")] = np.pad(a, ((0, 0), (0, 0), (0, more)))
        leaves[(*path, "lora_b")] = np.pad(b, ((0, 0), (0, more), (0, 0)))
    targets = [name for name in config_lib.PROJECTIONS if name in {path[-1] for path in found}]
    settings = config_lib.LoraConfig(rank=rank, alpha=common * rank, targets=",".join(targets))
    return settings, hf_layout.tree_of(leaves)


def write_adapter(
    folder: str | pathlib.Path,
    settings: config_lib.LoraConfig,
    adapters: dict,
    config: config_lib.DecoderConfig,
    base_name: str,
    dtype: str = "float32",
    revision: str = "",
) -> None:
    """Write adapters for PEFT's `PeftModel.from_pretrained`, vLLM and others.

    base_name: the base as they are to find it, a folder or a name on the hub. dtype: bfloat16 | float16 | float32.
    revision: of the base on the hub; "" = its newest.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    tensors, names, ranks = {}, [], {}
    for module in _modules(config):
        parts = [(path, part) for path, part in module.parts if path[-1] in settings.names]
        if not parts:
            continue
        own = module.name.rpartition(".")[2]
        names.append(own)
        if len(parts) > 1:
            ranks[own] = len(parts) * settings.rank
        pairs = [(jax.device_get(hf_layout.leaf_of(adapters, path)), part) for path, part in parts]
        for layer in range(config.num_layers):
            a, b = _joined(config, pairs, layer)
            name = f"{_PREFIX}{module.name.format(layer)}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.astype(kind))
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.astype(kind))
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    def alpha(rank: int) -> float | int:  # so that alpha / rank is the scale
        value = settings.scale * rank
        return int(value) if value == int(value) else value

    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision or None,
        "r": settings.rank,
        "lora_alpha": alpha(settings.rank),
        "lora_dropout": 0.0,
        "target_modules": sorted(names),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": ranks,
        "alpha_pattern": {name: alpha(rank) for name, rank in ranks.items()},
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def _joined(config: config_lib.DecoderConfig, pairs: list, layer: int) -> tuple:
    """lora_A [R, in] and lora_B [out, R] of one layer of a module; R is r, or r times the parts that are adapted."""
    a = np.concatenate([pair["lora_a"][layer].T for pair, _ in pairs])
    if pairs[0][1] < 0:
        return a, pairs[0][0]["lora_b"][layer].T
    N, H = config.num_heads, config.head_dim
    b = np.zeros((N, 3, H, len(a)), np.float32)
    start = 0
    for pair, part in pairs:
        rows = pair["lora_b"][layer].T
        b[:, part, :, start : start + rows.shape[1]] = rows.reshape(N, H, -1)
        start += rows.shape[1]
    return a, b.reshape(3 * N * H, -1)
