"""config.json of Hugging Face checkpoints to DecoderConfig and back, for the families that the decoder covers.

Both layouts of rotary settings are read: `rope_theta` with `rope_scaling`, and `rope_parameters` (transformers 5). The
older one is written, which every version and every other program reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jinstr import errors, settings
from jinstr.models import config as config_lib

# architectures[0] → the name under which config.json and the weights are laid out
FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "GPTNeoXForCausalLM": "gpt_neox",
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_WRITTEN = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_MOST = 2**31  # no size of a model comes near


class _Fields:
    """config.json, read field by field: every value has its type, or the error names file, field and value."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def refuse(self, field: str, why: str) -> errors.ConfigError:
        value = self.values.get(field)
        return errors.ConfigError("JI-HF-002", f"{self.where}: {field} = {value!r}: {why}")

    def size(self, field: str, default: int | None = None) -> int:
        value = self.values.get(field)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < _MOST:
            raise self.refuse(field, "a positive whole number is needed")
        return value

    def number(self, field: str, default: float = 0.0, above: float = -1e-300) -> float:
        value = self.values.get(field)
        value = default if value is None else value
        if type(value) not in (int, float) or not above < value < float("inf"):
            raise self.refuse(
                field, f"a number {'above' if above >= 0 else 'of at least'} 0 is needed"
            )
        return float(value)

    def part(self, field: str) -> _Fields:
        """An object within the object; empty where there is none."""
        value = self.values.get(field)
        if not isinstance(value, dict | None):
            raise self.refuse(field, "an object is needed")
        return _Fields(value or {}, f"{self.where}: {field}")

    def flag(self, field: str, default: bool) -> bool:
        value = self.values.get(field)
        value = default if value is None else value
        if type(value) is not bool:
            raise self.refuse(field, "true or false is needed")
        return value

    def activation(self, field: str) -> str:
        value = self.values.get(field)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise self.refuse(field, f"this activation is not supported, only {known}")
        return _ACTIVATIONS[value]


def family_of(values: Mapping[str, Any], where: str) -> str:
    """The layout that config.json names. Errors: ConfigError for any other, and for models with code of their own."""
    named = values.get("architectures")
    named = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if values.get("auto_map") or values.get("trust_remote_code"):
        raise errors.ConfigError(
            "JI-HF-003",
            f"{where}: the model ({named}) brings its own Python code (auto_map), which jinstr never runs; take a copy "
            f"that is saved as one of {', '.join(FAMILIES)}",
        )
    if values.get("quantization_config"):
        raise errors.ConfigError(
            "JI-HF-004",
            f"{where}: the weights are quantised; take the checkpoint in bfloat16, float16 or float32",
        )
    if named not in FAMILIES:
        near = settings.did_you_mean(named, FAMILIES) if named else ""
        raise errors.ConfigError(
            "JI-HF-001",
            f"{where}: architecture {named!r} is not supported{near}; supported: {', '.join(FAMILIES)}",
        )
    family = FAMILIES[named]
    if values.get("model_type") not in (family, None):
        raise errors.ConfigError(
            "JI-HF-001",
            f"{where}: architecture {named} and model_type {values['model_type']!r} do not fit together",
        )
    return family


def from_hf(values: Mapping[str, Any], where: str = "config.json") -> config_lib.DecoderConfig:
    """The decoder that a config.json describes.

    Errors: ConfigError for an architecture or a setting that jinstr cannot compute exactly; nothing is approximated.
    """
    family = family_of(values, where)
    fields = _Fields(values, where)
    heads = fields.size("num_attention_heads")
    width = fields.size("hidden_size")
    read = {
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": width,
        "num_layers": fields.size("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.size("num_key_value_heads", heads),
        "head_dim": fields.size("head_dim", max(1, width // heads)),
        "mlp_size": fields.size("intermediate_size"),
        "max_positions": fields.size("max_position_embeddings"),
        "tie_embeddings": fields.flag("tie_word_embeddings", family.startswith("gemma")),
        "norm_epsilon": fields.number("rms_norm_eps", 1e-6, above=0),
    }
    if "num_key_value_heads" in values and heads % read["num_kv_heads"]:
        raise fields.refuse("num_key_value_heads", f"{heads} heads are no multiple of it")
    if family == "gpt_neox":
        read |= _neox(fields)
    else:
        gemma = family.startswith("gemma")
        read["activation"] = fields.activation("hidden_activation" if gemma else "hidden_act")
        bias = fields.flag("attention_bias", False)
        read |= {"qkv_bias": bias or family == "qwen2", "out_bias": bias and family != "qwen2"}
        read["mlp_bias"] = fields.flag("mlp_bias", False) if family == "llama" else False
        read["qk_norm"] = family in ("qwen3", "gemma3_text")
        if gemma:
            read |= _gemma(fields, (50.0, 30.0) if family == "gemma2" else (0.0, 0.0))
    read |= _windows(fields, family, read["num_layers"])
    read |= _rope(fields, family)
    return config_lib.DecoderConfig(**read)


def _neox(fields: _Fields) -> dict:
    bias = fields.flag("attention_bias", True)
    heads = fields.size("num_attention_heads")
    return {
        "num_kv_heads": heads,
        "head_dim": max(1, fields.size("hidden_size") // heads),
        "norm": "layer",
        "norm_epsilon": fields.number("layer_norm_eps", 1e-5, above=0),
        "parallel_residual": fields.flag("use_parallel_residual", True),
        "activation": fields.activation("hidden_act"),
        "gated_mlp": False,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": True,
    }


def _gemma(fields: _Fields, caps: tuple[float, float]) -> dict:
    given = fields.values
    if fields.flag("use_bidirectional_attention", False):
        raise fields.refuse("use_bidirectional_attention", "only causal attention is supported")
    return {
        "embed_scale": True,
        "norm_plus_one": True,
        "post_norms": True,
        "query_scale": fields.size("query_pre_attn_scalar", 256) ** -0.5,
        # null switches a cap off; a field that is not there has the family's value.
        "attention_softcap": fields.number(
            "attn_logit_softcapping", 0.0 if "attn_logit_softcapping" in given else caps[0]
        ),
        "logit_softcap": fields.number(
            "final_logit_softcapping", 0.0 if "final_logit_softcapping" in given else caps[1]
        ),
    }


def _windows(fields: _Fields, family: str, layers: int) -> dict:
    """Which layers look back over a window only."""
    values = fields.values
    if family in ("llama", "gpt_neox"):
        return {}
    if family.startswith("qwen") and not fields.flag("use_sliding_window", False):
        return {}
    if "sliding_window" in values and values["sliding_window"] is None:
        return {}
    window = fields.size("sliding_window", 4096)
    kinds = values.get("layer_types")
    if kinds is None:
        every = fields.size("sliding_window_pattern", {"gemma2": 2}.get(family, 6))
        first = fields.number("max_window_layers", 28)
        local = {
            "mistral": lambda i: True,
            "qwen2": lambda i: i >= first,
            "qwen3": lambda i: i >= first,
            "gemma2": lambda i: i % 2 == 0,
            "gemma3_text": lambda i: (i + 1) % every != 0,
        }[family]
        pattern = ["local" if local(i) else "global" for i in range(layers)]
    else:
        names = {"sliding_attention": "local", "full_attention": "global"}
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or any(k not in list(names) for k in kinds)
        ):
            raise fields.refuse("layer_types", f"{layers} of {', '.join(names)} are needed")
        pattern = [names[kind] for kind in kinds]
    if "local" not in pattern:
        return {}
    return {"window": window, "layer_pattern": ",".join(_shortest(pattern))}


def _shortest(pattern: Sequence[str]) -> Sequence[str]:
    """The shortest beginning that, repeated, gives the pattern."""
    for size in range(1, len(pattern) + 1):
        if all(kind == pattern[i % size] for i, kind in enumerate(pattern)):
            return pattern[:size]
    return pattern


def _rope(fields: _Fields, family: str) -> dict:
    """Rotary settings, from either layout."""
    scaling = fields.part("rope_scaling")
    default = 1_000_000.0 if family == "gemma3_text" else 10_000.0
    theta, share, local = (
        "rope_theta",
        1.0,
        fields.number("rope_local_base_freq", 10_000.0, above=0),
    )
    if family == "gpt_neox":
        theta, share = "rotary_emb_base", fields.number("rotary_pct", 0.25)
    theta = fields.number(theta, default, above=0)
    if fields.values.get("rope_parameters"):
        scaling = fields.part("rope_parameters")
        if family == "gemma3_text" and "full_attention" in scaling.values:
            sliding = scaling.part("sliding_attention")
            local = sliding.number("rope_theta", local, above=0)
            if sliding.values.get("rope_type", "default") != "default":
                raise scaling.refuse("sliding_attention", "scaled local layers are not supported")
            scaling = scaling.part("full_attention")
        theta = scaling.number("rope_theta", theta, above=0)
        share = scaling.number("partial_rotary_factor", share)
    if share != 1.0 and family != "gpt_neox":
        raise scaling.refuse("partial_rotary_factor", "supported for GPT-NeoX only")
    found = {"rope_theta": theta, "rotary_share": share}
    if family == "gemma3_text":
        found["rope_local_theta"] = local
    name = "rope_type" if "rope_type" in scaling.values else "type"
    kind = scaling.values.get(name, "default")
    if kind == "default":
        return found
    if kind not in ("linear", "llama3"):
        raise scaling.refuse(
            name, f"scaling of positions by {kind!r} is not supported, only linear and llama3"
        )
    found |= {"rope_scaling": kind, "rope_factor": scaling.number("factor", 1.0, above=0)}
    if kind == "llama3":
        found |= {
            "rope_low_frequency": scaling.number("low_freq_factor", 1.0, above=0),
            "rope_high_frequency": scaling.number("high_freq_factor", 4.0, above=0),
            "rope_original_positions": scaling.size("original_max_position_embeddings"),
        }
    return found


def to_hf(config: config_lib.DecoderConfig, **more: Any) -> dict[str, Any]:
    """config.json for a decoder; `more`: fields that a model does not know, such as bos_token_id and torch_dtype.

    Errors: ConfigError naming the settings that no supported architecture expresses.
    """
    family = layout_for(config)
    architecture = next(name for name, layout in FAMILIES.items() if layout == family)
    values: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
    }
    activation = _WRITTEN[config.activation]
    if family == "gpt_neox":
        values |= {
            "layer_norm_eps": config.norm_epsilon,
            "use_parallel_residual": config.parallel_residual,
            "hidden_act": activation,
            "attention_bias": config.qkv_bias,
            "rotary_pct": config.rotary_share,
            "rotary_emb_base": config.rope_theta,
        }
    else:
        values |= {
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "rms_norm_eps": config.norm_epsilon,
            "rope_theta": config.rope_theta,
        }
        gemma = family.startswith("gemma")
        values["hidden_activation" if gemma else "hidden_act"] = activation
        if family not in ("qwen2", "mistral"):
            values["attention_bias"] = config.qkv_bias
        if family == "llama":
            values["mlp_bias"] = config.mlp_bias
        if gemma:
            scale = config.query_scale or config.head_dim**-0.5
            values |= {
                "hidden_act": activation,
                "query_pre_attn_scalar": round(scale**-2),
                "attn_logit_softcapping": config.attention_softcap or None,
                "final_logit_softcapping": config.logit_softcap or None,
            }
        values |= _windows_written(config, family)
    if config.rope_scaling:
        values["rope_scaling"] = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
        if config.rope_scaling == "llama3":
            values["rope_scaling"] |= {
                "low_freq_factor": config.rope_low_frequency,
                "high_freq_factor": config.rope_high_frequency,
                "original_max_position_embeddings": config.rope_original_positions,
            }
    _check(config, values, architecture)
    return values | more


def layout_for(config: config_lib.DecoderConfig) -> str:
    """The layout that comes nearest; whether it fits is checked afterwards."""
    if config.norm == "layer":
        return "gpt_neox"
    if config.post_norms:
        return "gemma3_text" if config.qk_norm else "gemma2"
    if config.qk_norm:
        return "qwen3"
    if config.qkv_bias and not config.out_bias:
        return "qwen2"
    return "mistral" if all(config.local_layers) else "llama"


def _windows_written(config: config_lib.DecoderConfig, family: str) -> dict:
    local = config.local_layers
    if family == "llama":
        return {}
    found: dict[str, Any] = {"sliding_window": config.window if any(local) else None}
    if family.startswith("qwen"):
        found["use_sliding_window"] = any(local)
        full = [i for i, is_local in enumerate(local) if not is_local]
        found["max_window_layers"] = max(full, default=-1) + 1
    if family != "mistral":
        found["layer_types"] = ["sliding_attention" if x else "full_attention" for x in local]
    if family == "gemma3_text":
        found["rope_local_base_freq"] = config.rope_local_theta or config.rope_theta
    return found


def _meaning(config: config_lib.DecoderConfig) -> dict[str, Any]:
    """The settings that change what a model computes, each in one form."""
    values = dataclasses.asdict(config)
    for name in (*config_lib.EXECUTION, "param_dtype"):
        del values[name]
    values["layer_pattern"] = config.local_layers
    if not any(config.local_layers):
        values["window"] = values["rope_local_theta"] = 0
    elif not config.rope_local_theta:
        values["rope_local_theta"] = config.rope_theta
    values["query_scale"] = round(config.query_scale or config.head_dim**-0.5, 9)
    if not config.rope_scaling:
        values["rope_factor"] = 1.0
    if config.rope_scaling != "llama3":
        for name in ("rope_low_frequency", "rope_high_frequency", "rope_original_positions"):
            del values[name]
    return values


def _check(config: config_lib.DecoderConfig, values: dict, architecture: str) -> None:
    """Reading back what is written must give the same model."""
    wanted, got = _meaning(config), _meaning(from_hf(values))
    other = [f"{name} = {wanted[name]!r}" for name in wanted if got.get(name) != wanted[name]]
    if other:
        raise errors.ConfigError(
            "JI-HF-005",
            f"no Hugging Face architecture has this model's {', '.join(other)}; the nearest is {architecture}",
        )
