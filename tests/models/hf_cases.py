"""Small random checkpoints of every family in the layout of Hugging Face, made with numpy alone."""

import json
import zlib

import numpy as np
import safetensors.numpy

from jinstr.models import hf_config, hf_layout

_SMALL = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    hidden_act="silu", rms_norm_eps=1e-6,
)  # fmt: skip
_NEOX = _SMALL | dict(num_key_value_heads=4, hidden_act="gelu", layer_norm_eps=1e-5)
_GEMMA = _SMALL | dict(
    head_dim=16, hidden_activation="gelu_pytorch_tanh", sliding_window=8, query_pre_attn_scalar=24,
    num_hidden_layers=7, tie_word_embeddings=True,
)  # fmt: skip
_LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
_CASES = {
    "llama": ("Llama", _SMALL),
    "llama-biases-tied": (
        "Llama",
        _SMALL | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, num_key_value_heads=4,
                      head_dim=24, vocab_size=61),
    ),
    "llama-3.1": ("Llama", _SMALL | dict(rope_theta=5e5, rope_scaling=_LLAMA3)),
    "llama-linear": ("Llama", _SMALL | dict(rope_scaling={"type": "linear", "factor": 4.0}, num_key_value_heads=1)),
    "llama-new-layout": ("Llama", _SMALL | dict(rope_parameters=_LLAMA3 | {"rope_theta": 3e5})),
    "gpt-neox": ("GPTNeoX", _NEOX | dict(rotary_pct=0.25)),
    "gpt-neox-one-after-the-other": ("GPTNeoX", _NEOX | dict(rotary_pct=1.0, use_parallel_residual=False)),
    "gpt-neox-tied": ("GPTNeoX", _NEOX | dict(rotary_pct=0.5, tie_word_embeddings=True, hidden_act="gelu_new",
                                             rotary_emb_base=3e4, vocab_size=71)),
    "qwen2": ("Qwen2", _SMALL | dict(rope_theta=1e6)),
    "qwen2-tied": ("Qwen2", _SMALL | dict(tie_word_embeddings=True, num_key_value_heads=4, vocab_size=131)),
    "qwen2-windows": ("Qwen2", _SMALL | dict(use_sliding_window=True, sliding_window=7, max_window_layers=1)),
    "qwen3": ("Qwen3", _SMALL | dict(head_dim=32)),
    "qwen3-tied": ("Qwen3", _SMALL | dict(head_dim=16, tie_word_embeddings=True, num_key_value_heads=1)),
    "qwen3-biases": ("Qwen3", _SMALL | dict(head_dim=16, attention_bias=True, vocab_size=89)),
    "gemma-2": ("Gemma2", _GEMMA | dict(attn_logit_softcapping=5.0, final_logit_softcapping=3.0)),
    "gemma-2-no-caps": ("Gemma2", _GEMMA | dict(attn_logit_softcapping=None, final_logit_softcapping=None,
                                               num_key_value_heads=4, vocab_size=101)),
    "gemma-2-wide-heads": ("Gemma2", _GEMMA | dict(head_dim=32, num_hidden_layers=4, query_pre_attn_scalar=32)),
    "mistral": ("Mistral", _SMALL | dict(sliding_window=9)),
    "mistral-no-window": ("Mistral", _SMALL | dict(sliding_window=None, head_dim=24)),
    "mistral-tied": ("Mistral", _SMALL | dict(sliding_window=5, tie_word_embeddings=True, num_key_value_heads=1)),
    "gemma-3": ("Gemma3", _GEMMA),
    "gemma-3-scaled": (
        "Gemma3", _GEMMA | dict(rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_theta=1e6)
    ),
    "gemma-3-pattern": (
        "Gemma3", _GEMMA | dict(sliding_window_pattern=3, num_key_value_heads=1, rope_local_base_freq=2e4)
    ),
}  # fmt: skip
NAMES = list(_CASES)


def config_json(name: str) -> dict:
    architecture, values = _CASES[name]
    values = {"tie_word_embeddings": False} | values
    model_type = hf_config.FAMILIES[f"{architecture}ForCausalLM"]
    return {"architectures": [f"{architecture}ForCausalLM"], "model_type": model_type} | values


def tensors(values: dict) -> dict[str, np.ndarray]:
    """Random float32 weights under their names; each depends on its name alone."""
    found = {}
    for name, shape in hf_layout.shapes_there(hf_config.from_hf(values)).items():
        normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        found[name] = (normal * (0.1 if len(shape) == 2 else 0.2)).astype(np.float32)
        if "norm" in name and name.endswith("weight") and "gemma" not in values["model_type"]:
            found[name] += np.float32(1)
    return found


def write(folder, name: str, **changes) -> dict:
    """A checkpoint of case `name` in one file; returns its config.json."""
    values = config_json(name) | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values), "utf-8")
    safetensors.numpy.save_file(tensors(values), folder / "model.safetensors", {"format": "pt"})
    return values


def token_ids(values: dict, rows: int, places: int) -> np.ndarray:
    return (
        np.random.default_rng(7).integers(3, values["vocab_size"], (rows, places)).astype(np.int32)
    )
