"""The same run on 1, 2, 4 and 8 devices: the same batches, losses within rounding."""

import jax
import numpy as np
import pytest

from jinstr.data import batching
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

MESHES = {1: {}, 2: {"fsdp": 2}, 4: {"fsdp": 2, "tensor": 2}, 8: {"fsdp": 2, "tensor": 2}}


def run(model, open_loader, devices, seed=0, **axes):
    """Digests and losses of the first ten steps."""
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(**axes), jax.devices()[:devices])
    rules = mesh_lib.AxisRules()
    optimizer = optimizer_lib.OptimizerConfig(learning_rate=3e-3)
    transform = optimizer_lib.make_optimizer(optimizer, 10)
    abstract = state_lib.abstract_state(model, transform, mesh, rules, ema=False)
    state = state_lib.init_state(model, transform, abstract, seed)
    step = state_lib.make_step(model, optimizer, transform, mesh, rules, abstract)
    digests, losses = [], []
    loader = open_loader()
    for number in range(10):
        batch = state_lib.place_batch(loader.read(number), mesh, rules)
        digests.append(batching.batch_digest(jax.device_get(batch)))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return digests, losses


@pytest.fixture(scope="module")
def single(model, open_loader):
    return run(model, open_loader, 1)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_same_run_on_several_devices(single, model, open_loader, devices):
    digests, losses = run(model, open_loader, devices, **MESHES[devices])
    assert digests == single[0] and len(set(digests)) == 10
    relative = np.abs(np.array(losses) / single[1] - 1)
    assert relative.max() < 1e-5, relative
    assert losses[-1] < losses[0] - 0.1


def test_another_seed_is_another_run(single, model, open_loader):
    """Negative control."""
    _, losses = run(model, open_loader, 1, seed=1)
    assert np.abs(np.array(losses) / single[1] - 1).max() > 1e-3
