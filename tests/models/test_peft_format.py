"""PEFT's files without PEFT: what is written is read back, and what cannot be computed is refused."""

import dataclasses
import json
import pickle

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora, peft_format

LLAMA = config_lib.DecoderConfig(
    vocab_size=61, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=40
)  # fmt: skip
NEOX = dataclasses.replace(
    LLAMA, num_kv_heads=4, norm="layer", parallel_residual=True, qkv_bias=True, out_bias=True, mlp_bias=True,
    gated_mlp=False, activation="gelu", tie_embeddings=False, head_dim=6,
)  # fmt: skip
SETTINGS = config_lib.LoraConfig(rank=3, alpha=5)


def adapters_of(config, settings=SETTINGS, seed=0):
    adapters, _ = lora.split(decoder.abstract_params(dataclasses.replace(config, lora=settings)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), adapters)


def products(settings, adapters):
    """scale · A @ B of every projection."""
    flat = jax.tree.leaves(
        adapters, is_leaf=lambda node: isinstance(node, dict) and "lora_a" in node
    )
    return [settings.scale * pair["lora_a"] @ pair["lora_b"] for pair in flat]


@pytest.mark.parametrize("config", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read_back(config, dtype, tmp_path):
    adapters = adapters_of(config)
    if dtype == "bfloat16":
        adapters = jax.tree.map(
            lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), adapters
        )
    peft_format.write_adapter(tmp_path, SETTINGS, adapters, config, "org/base", dtype)
    settings, found = peft_format.read_adapter(tmp_path, config)
    for got, want in zip(products(settings, found), products(SETTINGS, adapters), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    values = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert values["base_model_name_or_path"] == "org/base" and values["lora_alpha"] == 5
    if config is LLAMA:  # the same numbers, not only the same products
        assert settings.rank == 3 and settings.scale == SETTINGS.scale
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, adapters)))
        name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
        tensor = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")[name]
        np.testing.assert_array_equal(
            tensor.astype(np.float32), adapters["blocks"]["mlp"]["down"]["lora_a"][1].T
        )
    else:
        assert values["rank_pattern"] == {"query_key_value": 9} and settings.rank == 9
        assert values["alpha_pattern"] == {"query_key_value": 15}
    # Negative control: another scale is another product.
    wrong = dataclasses.replace(settings, alpha=settings.alpha + 1)
    assert np.abs(products(wrong, found)[0] - products(SETTINGS, adapters)[0]).max() > 1e-2


def test_rows_of_a_fused_module_are_interleaved_by_head(tmp_path):
    """One row of B that is not zero: part 1 (key) of head 2, its fourth number."""
    peft_format.write_adapter(tmp_path, SETTINGS, adapters_of(NEOX), NEOX, "base")
    file = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = "base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_B.weight"
    tensors = {key: np.zeros_like(value) for key, value in tensors.items()}
    tensors[name][2 * 3 * 6 + 1 * 6 + 4] = 1.0
    safetensors.numpy.save_file(tensors, file)
    _, found = peft_format.read_adapter(tmp_path, NEOX)
    projections = found["blocks"]["attention"]
    places = {n: np.argwhere(projections[n]["lora_b"][:, 0]).tolist() for n in projections}
    assert places == {"query": [], "key": [[0, 2 * 6 + 4]], "value": [], "out": []}


@pytest.mark.parametrize(
    "change, code",
    [
        (dict(peft_type="IA3"), "JI-PEFT-002.*peft_type"),
        (dict(bias="all"), "JI-PEFT-002.*bias"),
        (dict(use_dora=True), "JI-PEFT-002.*use_dora"),
        (dict(modules_to_save=["lm_head"]), "JI-PEFT-002.*modules_to_save"),
        (dict(layers_to_transform=[1]), "JI-PEFT-002.*layers_to_transform"),
        (dict(init_lora_weights="pissa"), "JI-PEFT-002.*init_lora_weights"),
        (dict(rank_pattern={".*q_proj": 3}), "JI-PEFT-002.*rank_pattern"),
        (dict(something_new=1), "JI-PEFT-002.*something_new"),
        (dict(lora_alpha=None), "JI-PEFT-002.*lora_alpha"),
        (dict(r="4"), "JI-PEFT-002.* r = '4'"),
        (dict(lora_dropout=0.1, eva_config=None, peft_version="9"), None),  # negative control
    ],
)  # fmt: skip
def test_settings_that_compute_something_else_are_refused(change, code, tmp_path):
    peft_format.write_adapter(tmp_path, SETTINGS, adapters_of(LLAMA), LLAMA, "base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    if code is None:
        peft_format.read_adapter(tmp_path, LLAMA)
        return
    with pytest.raises(errors.ConfigError, match=code):
        peft_format.read_adapter(tmp_path, LLAMA)


def test_files_that_do_not_fit_are_refused(tmp_path):
    peft_format.write_adapter(tmp_path, SETTINGS, adapters_of(LLAMA), LLAMA, "base")
    file = tmp_path / "adapter_model.safetensors"
    good = safetensors.numpy.load_file(file)
    name = "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"

    def refused(code, config=LLAMA, tensors=None):
        if tensors is not None:
            safetensors.numpy.save_file(tensors, file)
        with pytest.raises(errors.StorageError, match=code):
            peft_format.read_adapter(tmp_path, config)

    refused("JI-PEFT-003.*k_proj", tensors=good | {name: np.zeros((17, 3), np.float32)})
    refused("JI-PEFT-003.*k_proj", tensors=good | {name: np.zeros((16, 3), np.float64)})
    refused("JI-PEFT-003", tensors=good | {name: np.zeros((), np.float32)})
    refused(f"JI-PEFT-004.*{name}", tensors={k: v for k, v in good.items() if k != name})
    extra = {"base_model.model.lm_head.lora_A.weight": np.zeros((3, 24), np.float32)}
    refused("JI-PEFT-005.*lm_head", tensors=good | extra)
    refused("JI-PEFT-005", tensors={"a": np.zeros(1, np.float32)})
    refused("JI-PEFT-005", config=NEOX, tensors=good)
    refused("JI-PEFT-003", config=dataclasses.replace(LLAMA, mlp_size=48), tensors=good)
    file.write_bytes(file.read_bytes()[:-100])
    refused("JI-HF-016")
    file.unlink()
    refused("JI-PEFT-001")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({}))
    refused("JI-PEFT-001.*pickle")
    (tmp_path / "adapter_config.json").unlink()
    refused("JI-PEFT-001.*adapter_config")
