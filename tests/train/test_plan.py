"""The memory plan of PPO and GRPO, against sums by hand."""

import types

import jax
import pytest

from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import rollout
from jinstr.train import plan

MODEL = config_lib.DecoderConfig(
    vocab_size=100,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=48,
)


@pytest.mark.parametrize("rows", [8, 16])
@pytest.mark.parametrize("data", [1, 4])
def test_what_writing_answers_takes(rows, data):
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=data), devices=jax.devices()[:data])
    settings = {
        "rules": mesh_lib.AxisRules(),
        "rollout": rollout.RolloutConfig(max_new_tokens=20, rows=rows, slack=4),
        "questions": types.SimpleNamespace(longest=10),
    }
    found = plan._writing(MODEL, settings, decoder.abstract_params(MODEL), mesh)
    places = 10 + 20 + 4
    assert found == {
        "copy that writes": decoder.count_params(MODEL) * 4,
        f"cache of {rows // data} × {places} places": 2 * 3 * (rows // data) * places * 2 * 8 * 4,
    }
