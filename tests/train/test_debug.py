"""JINSTR_DEBUG=1: the same losses without jit, numbers at a breakpoint, and NaN reported where it arises."""

import math
import re
import traceback

import jax
import numpy as np
import pytest

from jinstr import errors
from jinstr.models import layers
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import debug, watchdog
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib


def losses(model, open_loader, devices=1, spoil=None, steps=2):
    """Losses of the first steps; spoil(params) may change the first parameters."""
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(), jax.devices()[:devices])
    rules = mesh_lib.AxisRules()
    optimizer = optimizer_lib.OptimizerConfig()
    transform = optimizer_lib.make_optimizer(optimizer, 10)
    abstract = state_lib.abstract_state(model, transform, mesh, rules, ema=True)
    state = state_lib.init_state(model, transform, abstract, 0)
    if spoil is not None:
        params = jax.tree.map(np.array, state["params"])
        spoil(params)
        state["params"] = jax.device_put(params, jax.devices()[0])
    step = state_lib.make_step(model, optimizer, transform, mesh, rules, abstract)
    found = []
    for number in range(steps):
        batch = state_lib.place_batch(open_loader().read(number), mesh, rules)
        state, values = step(state, batch)
        found.append(float(values["loss"]))
    return found


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setenv(debug.VARIABLE, "1")


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_losses_are_those_of_the_compiled_step(asked, devices, model, open_loader):
    compiled = losses(model, open_loader, devices)
    with debug.mode():
        eager = losses(model, open_loader, devices)
    assert eager == pytest.approx(compiled, rel=1e-5)
    # Negative control: the second step has another loss.
    assert eager != pytest.approx(compiled[::-1], rel=1e-5)


def test_a_breakpoint_sees_numbers(asked, monkeypatch, model, open_loader):
    seen, printed = [], []

    def silu(x):
        printed.append(str(x))
        if not isinstance(x, jax.core.Tracer):
            seen.append(float(abs(x).max()))
        return jax.nn.silu(x)

    monkeypatch.setitem(layers.ACTIVATIONS, "silu", silu)
    with debug.mode():
        losses(model, open_loader, steps=1)
        # Two layers, without gradients and with them.
        assert len(seen) == 2 and seen[0] != seen[1] and min(seen) > 0
        assert len(printed) == 4 and all(re.search(r"-?\d\.\d\d", text) for text in printed)
        seen.clear(), printed.clear()
        with debug.compiled():  # negative control: compiled, there are none
            losses(model, open_loader, steps=1)
        assert not seen and printed and not re.search(r"-?\d\.\d\d", "".join(printed))


def _nan_weight(params):
    params["blocks"]["mlp"]["up"]["kernel"][1, 0, 0] = np.nan


def _too_large(params):  # finite, but what is computed with it is not
    params["blocks"]["norm_mlp"]["scale"][1] = 3e38


@pytest.mark.parametrize("spoil", [_nan_weight, _too_large])
def test_nan_is_reported_with_its_line_in_the_model(asked, spoil, model, open_loader):
    # Negative control: compiled, the step says that the loss is not finite, and not where.
    assert not math.isfinite(losses(model, open_loader, spoil=spoil, steps=1)[0])
    with debug.mode(), pytest.raises(FloatingPointError, match="nan") as caught:
        losses(model, open_loader, spoil=spoil, steps=1)
    frames = traceback.extract_tb(caught.tb)
    told = "".join(traceback.format_list(frames))
    assert re.search(r'jinstr/models/decoder.py", line \d+', told)
    if spoil is _too_large:
        assert re.search(r'jinstr/models/layers.py", line \d+', told)
        assert "layer.mlp(layer.norm_mlp(x_BTD))" in told


def test_the_watchdog_waits_for_people(asked, monkeypatch):
    assert watchdog.Watchdog(3.0).allowed() == math.inf
    monkeypatch.setenv(debug.VARIABLE, "0")
    assert watchdog.Watchdog(3.0).allowed() == 3.0
    monkeypatch.setenv(debug.VARIABLE, "yes")
    with pytest.raises(errors.ConfigError, match="JI-DEBUG-001"), debug.mode():
        pass


def test_without_the_variable_nothing_changes(monkeypatch):
    monkeypatch.delenv(debug.VARIABLE, raising=False)
    with debug.mode():
        assert not jax.config.jax_disable_jit and not jax.config.jax_debug_nans
