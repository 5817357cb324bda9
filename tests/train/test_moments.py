"""Moments of the optimizer that wait in the host's memory: the same run, elsewhere."""

import dataclasses

import jax
import numpy as np
import pytest

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import checkpoint, costs
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

MODEL = config_lib.DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=64,
)
SETTING = optimizer_lib.OptimizerConfig(learning_rate=1e-2, warmup_steps=1)
RULES = mesh_lib.AxisRules()


class Run:
    def __init__(self, moments):
        self.mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2))
        setting = dataclasses.replace(SETTING, moments=moments)
        transform = optimizer_lib.make_optimizer(setting, 10)
        self.abstract = state_lib.abstract_state(MODEL, transform, self.mesh, RULES, False, moments)
        self.state = state_lib.init_state(MODEL, transform, self.abstract, 0)
        self.step = state_lib.make_step(MODEL, setting, transform, self.mesh, RULES, self.abstract)

    def train(self, first, last):
        for number in range(first, last):
            draw = np.random.default_rng(number)
            batch = {
                "tokens": draw.integers(0, 64, (8, 16)).astype(np.int32),
                "targets": draw.integers(0, 64, (8, 16)).astype(np.int32),
                "loss_weights": np.ones((8, 16), np.float32),
                "positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
                "segment_ids": np.ones((8, 16), np.int32),
            }
            self.state, _ = self.step(self.state, state_lib.place_batch(batch, self.mesh, RULES))
        return checkpoint.tree_digest(jax.device_get(self.state))

    def kinds(self):
        """Where arrays of the size of parameters lie, and the small ones."""
        leaves = jax.tree.leaves(self.state["opt_state"])
        return [{x.sharding.memory_kind for x in leaves if (x.ndim > 0) == big} for big in (1, 0)]


def test_moments_on_the_host_make_the_same_run_and_checkpoints(tmp_path):
    device, host = Run("device"), Run("host")
    assert host.kinds() == [{"pinned_host"}, {"device"}] and device.kinds() == [{"device"}] * 2
    halfway = host.train(0, 2)
    keeper = checkpoint.Checkpointer(tmp_path, checkpoint.CheckpointConfig())
    keeper.save(2, host.state, {})
    end = host.train(2, 4)
    assert host.kinds() == [{"pinned_host"}, {"device"}]
    assert device.train(0, 2) == halfway and device.train(2, 4) == end != halfway
    # Either kind of run goes on from the checkpoint, with the same bits.
    for run in (device, host):
        run.state = keeper.restore(2, run.abstract)
        assert run.train(2, 4) == end
    assert host.kinds() == [{"pinned_host"}, {"device"}]
    keeper.close()


def test_what_waits_on_the_host_is_not_counted_on_the_device():
    mesh = mesh_lib.abstract({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    counted = {}
    for moments in ("device", "host"):
        setting = dataclasses.replace(SETTING, moments=moments)
        state, _, _ = costs.abstract_state(MODEL, setting, mesh, RULES, False)
        counted[moments] = [costs.tree_bytes(state["opt_state"], host) for host in (False, True)]
        parameters = costs.tree_bytes(state["params"])
    assert counted["device"][1] == 0
    assert counted["host"][1] == 2 * parameters  # all of mu and nu, in parts
    assert sum(counted["host"]) == counted["device"][0]


def test_another_place_is_refused():
    with pytest.raises(errors.ConfigError, match="moments = 'disk'"):
        optimizer_lib.OptimizerConfig(moments="disk")
