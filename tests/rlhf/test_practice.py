"""Parts of an iteration: noise, minibatches, scores that pay for missing ends; going on from a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.decode import text
from jinstr.rlhf import boundary, experience, objectives, practice, prompts, rollout
from jinstr.train import checkpoint

CONFIG = practice.PracticeConfig(iterations=4, prompts=4, answers=2, minibatches=3, epochs=2)
ROLLOUT = rollout.RolloutConfig(max_new_tokens=6)


def question(name):
    return prompts.Prompt(name, ({"role": "user", "content": name},), np.array([1, 2]), {})


def written(count=8):
    lengths = np.random.default_rng(0).integers(1, 7, count)
    episodes = [
        experience.Episode(np.array([1, 2], np.int32), np.arange(3, 3 + n, dtype=np.int32))
        for n in lengths
    ]
    mask = experience.answer_mask(episodes, 6)
    asked = [question(str(n)) for n in range(count)]
    ended = np.arange(count) % 2 == 0
    return practice.Written(asked, episodes, ["a"] * count, 0.0 * mask, ended, mask, 1.0)


def test_a_question_that_comes_twice_is_answered_by_other_noise():
    asked = [question(name) for name in ("a", "a", "b", "b", "a", "a")]
    found = practice.noise_ids(asked)
    assert len(set(found)) == 6
    # By the question and the number of its answer, wherever it stands among others.
    assert practice.noise_ids([question("b"), *asked])[1:3] == found[:2]
    assert found[:4] == [text.row_id(name, n) for name in "ab" for n in range(2)]


def minibatches(kept, seed=(0, 0, 0), config=CONFIG):
    return practice.minibatches(
        written(), kept, config, seed, longest_prompt=4, pad_id=0, devices=2
    )


def test_minibatches_hold_every_kept_answer_once_and_have_one_shape():
    kept = [0, 1, 2, 4, 5, 6, 7]
    found = minibatches(kept)
    assert sorted(np.concatenate([rows.episodes for rows in found]).tolist()) == kept
    assert [len(rows.episodes) for rows in found] == [3, 2, 2]
    (shape,) = {rows.batch["tokens"].shape for rows in found}
    assert shape[0] % 2 == 0
    again, other = minibatches(kept), minibatches(kept, seed=(0, 0, 1))
    order = [rows.episodes.tolist() for rows in found]
    assert [rows.episodes.tolist() for rows in again] == order
    assert [rows.episodes.tolist() for rows in other] != order


def test_fewer_kept_answers_than_minibatches_leave_empty_ones():
    found = minibatches([3])
    assert [len(rows.episodes) for rows in found] == [1, 0, 0]
    mask = written().mask
    for rows in found[1:]:
        weights = practice.weights(rows, mask, "grpo")
        assert not any(value.any() for value in weights.values())
        assert not practice.batch_of(rows, mask, weights)["weights"].any()


@pytest.mark.parametrize("reduction", objectives.REDUCTIONS)
def test_weights_are_of_the_answers_of_one_update_only(reduction):
    mask = written().mask
    first, *_ = minibatches(range(8))
    found = practice.weights(first, mask, reduction)
    mine = np.isin(np.arange(8), first.episodes)
    assert not found["weights"][~mine].any() and found["weights"][mine][mask[mine]].all()
    assert found["token_weights"].sum() == pytest.approx(1)
    if reduction != "dr_grpo":
        assert found["weights"].sum() == pytest.approx(1)


def test_what_forward_says_of_every_answer_comes_back_by_answer():
    parts = minibatches(range(8))
    found, twice = practice.forward(
        lambda batch: (batch["targets"], 2.0 * batch["targets"]), parts, written().mask, dict, 2
    )
    for episode, row in zip(written().episodes, found):
        assert row.tolist() == [*episode.answer.tolist(), *[0] * (6 - len(episode.answer))]
    np.testing.assert_array_equal(twice, 2 * found)


def test_scores_pay_for_missing_ends_and_nan_stays():
    scores = np.array([1, 1, np.nan, np.nan, 9, 9, -9, -9], np.float32)

    def assembled(**settings):
        config = practice.PracticeConfig(iterations=1, **settings)
        return practice.assembled(config, scores, written()).tolist()

    nan = pytest.approx(np.nan, nan_ok=True)
    assert assembled() == [1, 1, nan, nan, 9, 9, -9, -9]
    assert assembled(missing_end_value=2.0) == [1, -1, nan, nan, 9, 7, -9, -11]
    override = dict(missing_end="override", missing_end_value=-1.0)
    assert assembled(**override) == [1, -1, nan, nan, 9, -1, -9, -1]
    assert assembled(**override, score_limit=5.0) == [1, -1, nan, nan, 5, -1, -5, -1]


# Going on from a checkpoint.

STATE = {"params": {"w": jnp.arange(4.0)}, "rng": jnp.uint32(3), "step": jnp.int32(6)}
QUESTIONS = {"ids": "1f", "count": 9, "files": {"q.jsonl": "0"}}


def own(config=CONFIG, sampled=ROLLOUT, **questions):
    return {"prompts": QUESTIONS | questions, "config": boundary.identity(config, sampled)}


def restored(folder, identity):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), STATE)
    keeper = checkpoint.Checkpointer(folder, checkpoint.CheckpointConfig())
    try:
        return boundary.restore(keeper, shapes, identity)
    finally:
        keeper.close()


def saved(folder, about):
    keeper = checkpoint.Checkpointer(folder, checkpoint.CheckpointConfig())
    kept = {name: value for name, value in STATE.items() if name != "step"}
    keeper.save(2, kept, about)
    keeper.close()


def test_a_run_goes_on_with_its_state_and_what_it_said(tmp_path):
    assert restored(tmp_path, own()) == (None, 0, {})
    saved(tmp_path, {"rl": own() | {"kl_weight": 0.25}, "data": {}, "meter": {}})
    state, done, said = restored(tmp_path, own())
    assert done == 2 and said["kl_weight"] == 0.25
    assert state["params"]["w"].tolist() == [0, 1, 2, 3] and state["rng"] == 3
    assert state["step"] == 2 * CONFIG.updates


@pytest.mark.parametrize(
    "identity, code",
    [
        (own(ids="2f"), "JI-PRACTICE-004"),
        (own(practice.PracticeConfig(iterations=4, prompts=4, answers=2)), "JI-PRACTICE-003"),
        (own(sampled=rollout.RolloutConfig(max_new_tokens=6, temperature=0.5)), "JI-PRACTICE-003"),
    ],
)
def test_a_run_does_not_go_on_as_another(tmp_path, identity, code):
    saved(tmp_path, {"rl": own(), "data": {}, "meter": {}})
    with pytest.raises(errors.JinstrError) as raised:
        restored(tmp_path, identity)
    assert raised.value.code == code


def test_the_directory_of_another_command_is_refused(tmp_path):
    saved(tmp_path, {"data": {}, "meter": {}})
    with pytest.raises(errors.ConfigError, match="of another command") as raised:
        restored(tmp_path, own())
    assert raised.value.code == "JI-PRACTICE-005"


@pytest.mark.parametrize("ends", [errors.NonFiniteError, ValueError])
def test_an_error_that_ends_a_run_lets_the_save_before_it_finish(tmp_path, ends):
    keeper = checkpoint.Checkpointer(tmp_path, checkpoint.CheckpointConfig(async_save=True))
    kept = {name: value for name, value in STATE.items() if name != "step"}
    with pytest.raises(ends, match="X"), boundary.saved_before_the_end(keeper):
        keeper.save(2, kept, {"rl": own(), "data": {}, "meter": {}})
        assert not (keeper.folder / "2").exists()  # still under way
        raise ends("X", "no good") if issubclass(ends, errors.JinstrError) else ends("X")
    assert (keeper.folder / "2").exists() and keeper.latest_verified() == 2
    keeper.close()
