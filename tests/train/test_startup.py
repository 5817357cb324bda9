"""The state before the first step of a run that begins as a PEFT adapter."""

import dataclasses

import jax
import numpy as np
import pytest

from jinstr.models import config as config_lib
from jinstr.models import decoder, lora, peft_format
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import startup
from jinstr.train import state as state_lib

MODEL = config_lib.DecoderConfig(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=24
)  # fmt: skip


@pytest.mark.parametrize("heads", ["language", "score", "both"])
def test_an_adapter_of_peft_gets_the_score_head_that_it_lacks(heads, tmp_path):
    settings = config_lib.LoraConfig(rank=2)
    written, _ = lora.split(decoder.abstract_params(dataclasses.replace(MODEL, lora=settings)))
    chance = np.random.default_rng(0)
    written = jax.tree.map(lambda leaf: chance.normal(size=leaf.shape).astype(np.float32), written)
    peft_format.write_adapter(tmp_path, settings, written, MODEL, "org/base", "float32")
    begun = dataclasses.replace(settings, start=str(tmp_path))
    model = dataclasses.replace(MODEL, lora=begun, heads=heads)
    transform = optimizer_lib.make_optimizer(optimizer_lib.OptimizerConfig(), 4)
    devices, rules = mesh_lib.make_mesh(mesh_lib.MeshConfig()), mesh_lib.AxisRules()
    abstract = state_lib.abstract_state(model, transform, devices, rules, ema=True)
    state = startup.first_state(model, transform, abstract, 0, None)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    found = state["params"]
    assert (lora.SCORE in found) == (heads != "language")
    assert not np.any(found.pop(lora.SCORE, {"kernel": 0})["kernel"])
    jax.tree.map(np.testing.assert_array_equal, found, written)
