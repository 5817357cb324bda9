"""Schedules at their corners, and the decay mask."""

import jax
import numpy as np
import pytest

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.train import optimizer as optimizer_lib


def rates(**kwargs):
    config = optimizer_lib.OptimizerConfig(**kwargs)
    return np.array([float(optimizer_lib.make_schedule(config, 100, 1.0)(s)) for s in range(100)])


def test_schedules_have_their_shape():
    cosine = rates(schedule="cosine", warmup_steps=10, final_share=0.1)
    assert 0 < cosine[0] < 0.2 and cosine[10] == pytest.approx(1.0)
    assert (np.diff(cosine[10:]) < 0).all() and cosine[-1] == pytest.approx(0.1, abs=0.01)
    middle = 0.1 + 0.9 * 0.5
    assert cosine[55] == pytest.approx(middle, abs=0.02)
    wsd = rates(schedule="wsd", warmup_steps=10, decay_share=0.2, final_share=0.0)
    assert (wsd[10:80] == 1.0).all() and wsd[90] == pytest.approx(0.5) and wsd[-1] < 0.06
    assert (rates(schedule="constant", warmup_steps=10)[10:] == 1.0).all()


def test_warm_up_is_cut_for_short_runs():
    assert rates(schedule="constant", warmup_steps=1000)[10] == 1.0


def test_decay_leaves_norms_and_biases_alone():
    params = decoder.abstract_params(config_lib.DecoderConfig(qkv_bias=True))
    mask = optimizer_lib.decay_mask(params)
    assert mask["blocks"]["attention"]["query"] == {"kernel": True, "bias": False}
    assert mask["embed"]["embedding"] and not mask["norm_final"]["scale"]
    assert jax.tree.structure(mask) == jax.tree.structure(params)


def test_unknown_names_are_refused():
    with pytest.raises(errors.ConfigError, match="adamm"):
        optimizer_lib.OptimizerConfig(name="adamm")
