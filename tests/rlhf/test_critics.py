"""A critic's arrays beside the policy's, and the settings of the text of PPO-ptx."""

import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.data import dataset
from jinstr.rlhf import critics


def text_loader(coefficient=1.0, multiple=1, **settings):
    text = dataset.DataConfig(**{"seq_len": 64, "batch_tokens": 192} | settings)
    return critics.text_loader(coefficient, text, None, "", None, 0, multiple=multiple)


@pytest.mark.parametrize("coefficient, data", [(0.0, "a.jsonl"), (1.0, "")])
def test_text_and_its_coefficient_come_together(coefficient, data):
    with pytest.raises(errors.ConfigError) as raised:
        text_loader(coefficient, data=data)
    assert raised.value.code == "JI-PPO-002"
    assert text_loader(0.0, data="") is None


def test_text_that_does_not_divide_over_the_parts_of_an_update_is_refused():
    with pytest.raises(errors.ConfigError, match="3 rows of text.*over 2 parts.*set 256") as raised:
        text_loader(data="a.jsonl", multiple=2)
    assert raised.value.code == "JI-PPO-004"
    assert text_loader(0.0, data="", multiple=2) is None


class Texts:
    """Where batches of text come from."""

    def read(self, step):
        return {"tokens": np.full((2, 3), step), "loss_weights": np.float32([[1, 2, 0], [0, 0, 5]])}


def test_weights_of_text_add_up_to_1():
    found = critics.text_batch(Texts(), 7)
    assert sorted(found) == ["text_loss_weights", "text_tokens"]
    assert (found["text_tokens"] == 7).all()
    np.testing.assert_allclose(found["text_loss_weights"], np.array([[1, 2, 0], [0, 0, 5]]) / 8)


def test_a_critic_is_kept_beside_the_policy_and_taken_apart_again():
    policy = {"params": 1, "rng": 2}
    critic = {"params": 3, "rng": 4}
    kept = policy | critics.prefixed(critic) | {"step": jnp.int32(6)}
    rest, own = critics.taken_apart(kept)
    assert rest == policy | {"step": 6}
    assert own == critic | {"step": 6}
    # Each is donated to its own step: they may not share a buffer.
    assert own["step"].unsafe_buffer_pointer() != rest["step"].unsafe_buffer_pointer()


def test_means_of_a_critics_updates():
    updates = [dict(loss=1.0, weight=1.0), dict(loss=3.0, weight=1.0)]
    assert critics.means("value", updates) == {"value/loss": 2.0}
    assert critics.means("value", []) == {}
