"""jinstr bench: what is measured is what it says, at sizes that take no time."""

import jax
import numpy as np
import pytest

from jinstr import run
from jinstr.commands import bench
from jinstr.models import config

MODEL = config.DecoderConfig(num_heads=4, num_kv_heads=2, head_dim=16)


def test_attention_is_measured_for_every_implementation(capsys):
    words = ["gin_configs/model/tiny.gin", "WHAT=attention", "STEPS=3"]
    assert run.main(["bench", *words, "ATTENTION_SHAPES=((1, 160, 4),)"]) == 0
    out = capsys.readouterr().out
    assert "1 rows of 160 places, 4 heads" in out
    for name in ("xla", "blocked"):
        assert f"{name}, forward: " in out and f"{name}, forward and backward: " in out
    assert "splash" not in out  # there is no TPU
    assert out.count("share of the ceiling") == out.count("times as fast as xla: ") == 4


def test_what_is_timed_is_the_same_attention_with_its_gradients():
    calls = bench.attention_calls(MODEL, 2, 160, 4, 2)
    assert list(calls) == ["xla", "blocked"]
    (plain, plain_both), (blocked, blocked_both) = calls.values()
    np.testing.assert_allclose(blocked(), plain(), atol=1e-5)
    for a, b in zip(jax.tree.leaves(blocked_both()), jax.tree.leaves(plain_both()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert [slope.shape for slope in plain_both()[1]] == [(2, 160, n, 16) for n in (4, 2, 2)]


@pytest.mark.parametrize(
    "words, code",
    [(["WHAT=loader"], "JI-BENCH-001"), (["WHAT=attention", "ATTENTION_SHAPES=((1, 8, 3),)"], "JI-BENCH-002")],
)  # fmt: skip
def test_what_is_refused(words, code, capsys):
    model = ["gin_configs/model/tiny.gin", "config.DecoderConfig.num_kv_heads=2"]
    assert run.main(["bench", *model, *words]) == 78
    assert code in capsys.readouterr().err
