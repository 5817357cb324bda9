"""Adapters exchanged with PEFT on transformers' models, both ways: the same logits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from jinstr.models import config as config_lib  # noqa: E402
from jinstr.models import decoder, hf_read, lora, peft_format  # noqa: E402

SHAPE = dict(
    vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=64,
)  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# (configuration, modules with adapters, more of PEFT's settings)
FAMILIES = {
    "llama": (
        lambda: transformers.LlamaConfig(**SHAPE, num_key_value_heads=2),
        ALL,
        dict(rank_pattern={"q_proj": 2, "down_proj": 7}, alpha_pattern={"q_proj": 9}),
    ),
    "qwen3": (
        lambda: transformers.Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16),
        ["q_proj", "v_proj", "up_proj"],
        dict(use_rslora=True),
    ),
    "gpt_neox": (
        lambda: transformers.GPTNeoXConfig(**SHAPE, rotary_pct=0.5, use_parallel_residual=True),
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
        {},
    ),
}
TOKENS = np.random.default_rng(0).integers(0, 97, (2, 17)).astype(np.int32)
PLACES = np.tile(np.arange(17, dtype=np.int32), (2, 1))


def made(folder, family):
    """A model of transformers with weights that are not small, and the same here."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family][0]()).eval().float()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    model.save_pretrained(folder)
    checkpoint = hf_read.open_checkpoint(folder)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
        decoder.abstract_params(checkpoint.config),
    )
    return model, checkpoint.config, hf_read.load_params(checkpoint, abstract, progress=False)


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def ours(config, params):
    hidden = decoder.forward(config, params, TOKENS, PLACES, np.ones_like(TOKENS))
    return np.asarray(decoder.logits(config, params, hidden))


def largest(a, b):
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_peft_give_the_same_logits_here(family, tmp_path):
    model, config, base = made(tmp_path / "base", family)
    _, modules, more = FAMILIES[family]
    plain = theirs(model)
    torch.manual_seed(4)
    asked = dict(r=4, lora_alpha=6, target_modules=modules, init_lora_weights=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**asked, **more, task_type="CAUSAL_LM"))
    adapted.eval().save_pretrained(tmp_path / "adapter")
    want = theirs(adapted)
    settings, adapters = peft_format.read_adapter(tmp_path / "adapter", config)
    params = lora.join(jax.tree.map(jnp.asarray, adapters), base)
    tuned = dataclasses.replace(config, lora=settings)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, decoder.abstract_params(tuned)
    )
    found = ours(tuned, params)
    merged = ours(config, lora.merge(tuned, params))
    print(
        family,
        "in",
        largest(found, want),
        "merged",
        largest(merged, want),
        "effect",
        largest(want, plain),
    )
    assert largest(found, want) < 1e-5 and largest(merged, want) < 1e-5
    # Negative controls: the adapters do something, and another alpha does something else.
    assert largest(want, plain) > 1e-2
    other = dataclasses.replace(
        config, lora=dataclasses.replace(settings, alpha=settings.alpha + 1)
    )
    assert largest(ours(other, params), want) > 1e-3


@pytest.mark.parametrize("targets", ["query,key,value,out,gate,up,down", "query,up", "value"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_from_here_give_the_same_logits_in_peft(family, targets, tmp_path):
    model, config, base = made(tmp_path / "base", family)
    settings = config_lib.LoraConfig(rank=3, alpha=5, targets=targets)
    tuned = dataclasses.replace(config, lora=settings)
    adapters, _ = lora.split(decoder.init_params(tuned, jax.random.key(0)))
    adapters = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapters
    )
    want = ours(tuned, lora.join(adapters, base))
    folder = tmp_path / "adapter"
    peft_format.write_adapter(folder, settings, adapters, config, str(tmp_path / "base"))
    plain = theirs(model)
    adapted = peft.PeftModel.from_pretrained(model, folder).eval()
    found = theirs(adapted)
    again, read = peft_format.read_adapter(folder, config)
    back = ours(dataclasses.replace(config, lora=again), lora.join(read, base))
    print(family, targets, "out", largest(found, want), "and in again", largest(back, want))
    assert largest(found, want) < 1e-5 and largest(back, want) < 1e-5
    merged = theirs(adapted.merge_and_unload())
    assert largest(merged, want) < 1e-5
    # Negative controls.
    assert largest(plain, want) > 1e-2
    values = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    values["lora_alpha"] += 1
    values["alpha_pattern"] = {name: n + 1 for name, n in values["alpha_pattern"].items()}
    (folder / "adapter_config.json").write_text(json.dumps(values), "utf-8")
    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert largest(theirs(peft.PeftModel.from_pretrained(fresh, folder).eval()), want) > 1e-3
