"""Rewards as a whole: what REWARD= may say, built-in checks, models, weights and sums, metrics."""

import pathlib

import jax
import numpy as np
import pytest

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.rlhf import outcomes, reward_model, reward_parts, rewards
from jinstr.samples import build
from jinstr.text import normalise, train_tokenizer
from jinstr.train import checkpoint, model_files
from tests.rlhf import asking

NAN = np.nan


def constant_reward(name, weight, values):
    values = np.asarray(values, np.float32)
    return rewards.Reward(
        name, weight, lambda asked: rewards.Scored(values, {}), lambda: None, False
    )


def test_what_reward_says(tmp_path):
    for name in ("a/rm", "b/rm", "c"):
        (tmp_path / name).mkdir(parents=True)
    words = f"{tmp_path}/a/rm@300*1.5, {tmp_path}/c ,number*-0.5,my.rewards:丁寧*2,:f"
    words += ",http://host:80/a/b/?key=x*1e-1"
    parts = reward_parts.read(words, "mine")
    assert [(part.name, part.kind, part.weight) for part in parts] == [
        ("rm@300", "model", 1.5),
        ("c", "model", 1.0),
        ("number", "function", -0.5),
        ("my.rewards:丁寧", "function", 2.0),
        ("mine:f", "function", 1.0),
        ("host:80/a/b", "http", 0.1),
    ]
    assert parts[0].text == f"{tmp_path}/a/rm@300"
    same = reward_parts.read(f"{tmp_path}/a/rm,{tmp_path}/b/rm")
    assert [part.name for part in same] == [f"{tmp_path}/a/rm", f"{tmp_path}/b/rm"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("number*", "011"), ("number*x", "011"), ("number*nan", "011"), ("number*inf", "011"), ("*2", "011"),
        ("number,", "011"), ("numbers", "012"), ("runs/nowhere", "012"), ("a b:c", "012"), (":f", "013"),
        ("number,number", "014"), ("http://h/a,http://h/a/", "014"),
    ],
)  # fmt: skip
def test_what_reward_may_not_say(words, code):
    if words == "http://h/a,http://h/a/":  # told apart by their whole text
        assert len(reward_parts.read(words)) == 2
        return
    with pytest.raises(errors.ConfigError, match=f"JI-REWARDS-{code}"):
        reward_parts.read(words)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reward": " "}, {"timeout": 0.0}, {"timeout": float("inf")}, {"retries": -1}, {"workers": -1},
        {"on_error": "zero"}, {"http_batch": 0}, {"http_connections": 0}, {"backoff": float("nan")},
    ],
)  # fmt: skip
def test_settings_are_checked(wrong):
    rewards.RewardConfig(reward="number")
    with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
        rewards.RewardConfig(**{"reward": "number"} | wrong)


def test_number(opened):
    found = opened("number")
    rows = [
        asking.asked("答えは２４０円です。", answer="240"),
        asking.asked("答えは二百四十です。", reference=240),
        asking.asked("答えは239です。", answer="240", reference="239"),  # the first field counts
        asking.asked("分かりません。", output="合計は240円です。"),
        asking.asked("二百四十", answer=None, output="240.0"),
    ]
    assert rewards.score(found, rows).total.tolist() == [1, 1, 0, 0, 1]


def test_constraints(opened):
    found = opened("constraints")
    both = [{"id": "characters_at_most", "n": 5}, {"id": "characters_at_most", "n": 100}]
    rows = [
        asking.asked("短いです。", constraints=both),
        asking.asked("五文字よりも長いです。", constraints=both),
        asking.asked("五文字よりも長いです。", constraints=both[:1]),
        asking.asked("", constraints=both),
    ]
    assert rewards.score(found, rows).total.tolist() == [1, 0.5, 0, 0]


def test_a_line_without_what_a_check_needs_is_wrong_data(opened):
    """Also where errors of functions count as NaN: no answer to such a line could ever be scored."""
    found = {reward.name: reward for reward in opened("number,constraints", on_error="nan")}
    limit = {"id": "characters_at_most", "n": 5}
    fine = asking.asked("240", answer="240", constraints=[limit])
    for reward, row, words in (
        ("number", {"text": "x"}, "answer, reference, output \\(it has id, text\\)"),
        ("number", {"answer": True}, "no number to compare with"),
        ("number", {"answer": ["240"]}, "no number to compare with"),
        ("number", {"answer": "なし"}, "holds no number"),
        ("constraints", {}, "no constraints"),
        ("constraints", {"constraints": []}, "no constraints"),
        ("constraints", {"constraints": [{**limit, "id": "character_at_most"}]}, "unknown const"),
    ):
        with pytest.raises(errors.DataError, match=f"reward {reward}, row q7: .*{words}"):
            rewards.score([found[reward]], [fine, asking.asked("240", id="q7", **row)])
        assert rewards.score([found[reward]], [fine]).total.tolist() == [1]


def test_sums_are_weighed_and_nan_stays_nan():
    first = constant_reward("a", 0.5, [1, 2, NAN, 4, 3e38, 0])
    second = constant_reward("b", -2.0, [0.25, NAN, 1, 1, -3e38, 0])
    scores = rewards.score([first, second], [asking.asked()] * 6)
    np.testing.assert_array_equal(scores.total, np.float32([0, NAN, NAN, 0, NAN, 0]))
    np.testing.assert_array_equal(scores.by_name["a"], np.float32([1, 2, NAN, 4, 3e38, 0]))
    assert list(scores.by_name) == ["a", "b"] and scores.total.dtype == np.float32
    other = rewards.score([first, second._replace(weight=-1.0)], [asking.asked()] * 6).total
    np.testing.assert_array_equal(other[:4], np.float32([0.25, NAN, NAN, 1]))
    # A weight of 0 does not make what cannot be scored scorable.
    unweighed = rewards.score([first, second._replace(weight=0.0)], [asking.asked()] * 6).total
    assert np.isnan(unweighed[[1, 2]]).all() and unweighed[0] == 0.5


def test_metrics():
    values = np.float32([1, 2, NAN, 4])
    scores = rewards.score(
        [constant_reward("a", 2.0, values), constant_reward("b", 1.0, [3, 3, 3, NAN])],
        [asking.asked()] * 4,
    )
    found = rewards.metrics(scores)
    assert found["reward/a/mean"] == pytest.approx(7 / 3)
    assert found["reward/a/std"] == pytest.approx(np.std([1, 2, 4]))
    assert found["reward/a/nan_rate"] == 0.25 and found["reward/nan_rate"] == 0.5
    assert found["reward/mean"] == 6 and found["reward/std"] == 1
    assert (found["reward/a/constant"], found["reward/b/constant"]) == (0, 1)
    assert all(type(value) is float for value in found.values())
    none = rewards.metrics(
        rewards.score([constant_reward("a", 1.0, [NAN, NAN])], [asking.asked()] * 2)
    )
    assert none["reward/nan_rate"] == 1 and none["reward/constant"] == 0
    # No mean at all rather than 0 or NaN.
    assert "reward/mean" not in none and "reward/a/std" not in none
    one = rewards.metrics(
        rewards.score([constant_reward("a", 1.0, [5, NAN])], [asking.asked()] * 2)
    )
    assert one["reward/constant"] == 0 and one["reward/mean"] == 5


def test_no_answers(opened, server, on_path):
    scores = rewards.score(opened(f"number,user_rewards:length,{server.url}"), [])
    assert scores.total.shape == (0,) and scores.total.dtype == np.float32
    assert rewards.metrics(scores)["reward/nan_rate"] == 0
    assert server.requests == []


def test_a_character_that_was_cut_is_not_scored(opened, on_path):
    found = opened("user_rewards:length")
    rows = [
        asking.asked("あい\ufffd", False),
        asking.asked("あい\ufffd\ufffd\ufffd", False),
        asking.asked("あい\ufffd", True),  # the model's own doing
        asking.asked("あい" + "\ufffd" * 4, False),  # more than one character leaves
        asking.asked("あ\ufffdい", False),
        asking.asked("\ufffd", False),
    ]
    scores = rewards.score(found, rows)
    assert scores.total.tolist() == [2, 2, 3, 6, 3, 0] and scores.cut == 3
    assert rewards.metrics(scores)["reward/cut_rate"] == 0.5
    assert rows[0].answer == "あい\ufffd"


def test_all_kinds_at_once(opened, server, on_path):
    found = opened(f"number*10,user_rewards:length*0.5,{server.url}*-1", module="user_rewards")
    rows = [asking.asked("二百四十", answer=240), asking.asked("9", answer=1)]
    server.script.append((200, {"scores": [3, None]}))
    scores = rewards.score(found, rows)
    np.testing.assert_array_equal(scores.total, [10 + 2 - 3, NAN])
    names = [reward.name for reward in found]
    assert list(scores.by_name) == names and names[:2] == ["number", "user_rewards:length"]


def test_outcomes():
    assert outcomes.of(-0.5) == outcomes.Outcome(-0.5)
    assert outcomes.of(np.float32(3.4028235e38)).fault == ""
    assert outcomes.of(3.4028236e38).fault == outcomes.of(-(10**999)).fault == "infinite"
    assert np.isnan(outcomes.of(None).score) and outcomes.of(None).fault == ""
    for wrong in ("1", b"1", [1], {}, 1j, np.ones(1), object()):
        with pytest.raises(TypeError):
            outcomes.of(wrong)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A reward model with random weights, as `jinstr reward` leaves it."""
    folder = tmp_path_factory.mktemp("model") / "rm"
    texts = [f"{row['text']}\n{row['output']}" for row in build.hand_written()]
    settings = train_tokenizer.TokenizerTrainingConfig(vocab_size=1800, threads=1)
    out = str(folder.parent / "tokenizer")
    train_tokenizer.train({"a": texts}, out, settings, normalise.NormaliseConfig())
    model = config_lib.DecoderConfig(
        vocab_size=1856, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_size=32,
        heads="score", max_positions=128,
    )  # fmt: skip
    params = jax.jit(decoder.init_params, static_argnums=0)(model, jax.random.key(0))
    kernel = params["score"]["kernel"]  # begins as zeros
    params["score"]["kernel"] = jax.random.normal(jax.random.key(1), kernel.shape, kernel.dtype)
    model_files.write(folder, model, f"{out}.model", "chatml")
    keeper = checkpoint.Checkpointer(folder, checkpoint.CheckpointConfig())
    keeper.save(1, {"params": params}, {})
    keeper.close()
    reward_model.write_shift(folder, np.float32([0.25, 0.75]), "test")
    return folder


def test_a_reward_model(opened, run_dir, on_path):
    found = opened(f"{run_dir}*2,user_rewards:length")
    answers = ["はい、そうです。", "いいえ。", "あ" * 500, "東京です。"]  # the third is too long
    scores = rewards.score(found, [asking.asked(answer) for answer in answers])
    conversations = [
        [*asking.asked().messages, {"role": "assistant", "content": answer}] for answer in answers
    ]
    wanted = reward_model.score(reward_model.load(str(run_dir)), conversations)
    np.testing.assert_array_equal(scores.by_name["rm"], wanted)
    assert np.isnan(wanted).tolist() == [False, False, True, False]
    assert len(set(wanted[[0, 1, 3]].tolist())) == 3 and scores.faults["rm"] == {}
    lengths = np.float32([len(answer) for answer in answers])
    # The sum is made in float64 and rounded once.
    np.testing.assert_array_equal(
        scores.total, (2.0 * wanted.astype(np.float64) + lengths).astype(np.float32)
    )


def children():
    """Ids of this process's own processes, ended ones that nobody waited for too."""
    tasks = pathlib.Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


def test_a_model_that_is_not_there_leaves_no_processes(opened, tmp_path, on_path):
    (tmp_path / "empty").mkdir()
    before = children()
    with pytest.raises(errors.StorageError):
        opened(f"user_rewards:length,{tmp_path}/empty")
    assert children() == before
    rewards.close(opened("user_rewards:length"))
    assert children() == before
    opened("user_rewards:length")  # negative control
    assert len(children() - before) == 1
