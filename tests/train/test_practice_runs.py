"""`jinstr grpo` and `ppo` from end to end on a model of a few thousand parameters: learning, stopping and going on,
critics, text beside it, bad rewards, refusals."""

import json

import jax
import pytest

from jinstr import run
from jinstr.testing import faults
from jinstr.train import serving

MODEL = """
from __gin__ import dynamic_registration
from jinstr.models import config
config.DecoderConfig.hidden_size = 32
config.DecoderConfig.num_layers = 1
config.DecoderConfig.num_heads = 2
config.DecoderConfig.num_kv_heads = 1
config.DecoderConfig.head_dim = 16
config.DecoderConfig.mlp_size = 64
config.DecoderConfig.tie_embeddings = False
"""
REWARDS = """
def short(prompt, answer, row):
    return -float(len(answer))


def by_line(prompt, answer, row):
    if row["id"].endswith("0"):
        return None
    if row["id"].endswith("1"):
        raise ValueError("no score for this one")
    return -float(len(answer))


def nothing(prompt, answer, row):
    return None


def alike(prompt, answer, row):
    return 1.0
"""
PRACTICE = dict(
    ITERATIONS=3, PROMPTS_PER_ITERATION=8, MAX_NEW_TOKENS=12, PROMPT_LENGTH=64, ROLLOUT_ROWS=32,
    LEARNING_RATE=1e-2, WARMUP_STEPS=1, EVAL_EVERY=0, EVAL_PROMPTS=4, SAVE_EVERY=1, TENSORBOARD=False,
    SCAN_LAYERS=False, REWARD_WORKERS=1, REWARD="many_rewards:short",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(world, tokenizer_path, tmp_path_factory):
    """base: an untrained model; questions.jsonl; a module of rewards."""
    place = tmp_path_factory.mktemp("practice")
    (place / "model.gin").write_text(MODEL, "utf-8")
    (place / "many_rewards.py").write_text(REWARDS, "utf-8")
    rows = [
        {"id": str(n), "prompt": f"{n}の次の数は何ですか。", "answer": n + 1} for n in range(40)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (place / "questions.jsonl").write_text(text, "utf-8")
    words = ["pretrain", str(place / "model.gin"), f"DATA={world}/corpus.jsonl", "NUM_STEPS=1"]
    words += [
        f"TOKENIZER={tokenizer_path}",
        f"CACHE_DIR={place}/cache",
        "SAMPLES=0",
        "EVAL_EVERY=0",
    ]
    words += ["SEQ_LEN=128", "BATCH_TOKENS=1024", "WORKERS=1", "TENSORBOARD=False"]
    assert run.main([*words, f"RUN_DIR={place}/base"]) == 0
    return place


def start(place, monkeypatch, command, name, options=(), **settings):
    """Exit status of a run, with the module of rewards where the user stands."""
    monkeypatch.chdir(place)
    fixed = dict(
        INIT=place / "base",
        PROMPTS=place / "questions.jsonl",
        RUN_DIR=place / name,
        TEMPLATE="chatml",
    )
    own = {"ANSWERS": 4} if command == "grpo" else {"EPOCHS": 2, "MINIBATCHES": 2}
    words = [f"{key}={value}" for key, value in (PRACTICE | own | fixed | settings).items()]
    return run.main([command, *words, *options])


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def iterations(folder):
    return [line for line in lines(folder) if "rl/objective/score" in line]


def same(one, two):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, two)))


def params(folder, step=None):
    return serving.load_run(folder, step).params


@pytest.fixture(scope="module")
def whole(place):
    """Both algorithms, from beginning to end."""
    with pytest.MonkeyPatch.context() as patch:
        assert start(place, patch, "grpo", "grpo", KL_REWARD=0.01, ITERATIONS=4) == 0
        assert start(place, patch, "ppo", "ppo", KL_TARGET=1.0) == 0
    return place


def test_what_a_run_writes_down(whole):
    for name, count in (("grpo", 4), ("ppo", 3)):
        kept = iterations(whole / name)
        assert [line["step"] for line in kept] == list(range(1, count + 1))
        first = kept[0]
        assert abs(first["rl/objective/kl_seq"]) < 1e-4  # the policy is the reference at first
        assert first["rl/policy/ratio_change_first"] < 1e-5
        assert all(line["rl/policy/mismatch_max"] < 1e-3 for line in kept)
        assert kept[-1]["rl/objective/kl_seq"] != 0
        assert {"rl/gen/ended", "rl/gen/distinct_2", "rl/time/rollout", "rl/reward/nan_rate"} <= {
            *first
        }
        assert len([line for line in lines(whole / name) if "eval/score" in line]) == 2
        assert len(lines(whole / name, "samples.jsonl")) == 2 * 4
        page = (whole / name / "report.html").read_text("utf-8")
        for title in ("KL に対する報酬", "取り置いた質問での報酬"):
            assert title in page
    assert {line["rl/policy/clip_low"] for line in iterations(whole / "grpo")} == {0}  # one update
    assert kept[-1]["rl/kl_weight"] != kept[0]["rl/kl_weight"]
    assert kept[-1]["rl/policy/ratio_change"] > 0


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("grpo", "rollout@3"),
        pytest.param("grpo", "score@2", marks=pytest.mark.slow),
        pytest.param("grpo", "save_manifest@2", marks=pytest.mark.slow),
        ("ppo", "update_2@2"),
        pytest.param("ppo", "update_3@3", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_breaks_off_goes_on_to_the_same_bits(whole, monkeypatch, command, fault):
    settings = dict(KL_REWARD=0.01, ITERATIONS=4) if command == "grpo" else dict(KL_TARGET=1.0)
    name = f"{command}-{fault}".replace("@", "-at-")
    monkeypatch.setenv(faults.VARIABLE, f"{fault}=error")
    assert start(whole, monkeypatch, command, name, ["--allow_faults"], **settings) == 74
    monkeypatch.delenv(faults.VARIABLE)
    faults.enable("")
    assert start(whole, monkeypatch, command, name, **settings) == 0
    assert same(params(whole / name), params(whole / command))
    before = params(whole / name, 3 if command == "grpo" else 2)  # negative control
    assert not same(params(whole / name), before)
    for one, two in zip(iterations(whole / name), iterations(whole / command), strict=True):
        kept = {key for key in two if "time/" not in key and "per_second" not in key}
        assert {key: one[key] for key in kept} == {key: two[key] for key in kept}


@pytest.mark.slow
def test_a_critic_of_its_own_text_and_adapters(whole, world, monkeypatch):
    settings = dict(
        CRITIC="policy", CRITIC_WARMUP=1, CRITIC_LEARNING_RATE=1e-2, LORA_RANK=2, TEXT=world / "corpus.jsonl",
        TEXT_COEFFICIENT=1.0, TEXT_SEQ_LEN=128, TEXT_BATCH_TOKENS=1024, CACHE_DIR=whole / "cache", WORKERS=1,
    )  # fmt: skip
    assert start(whole, monkeypatch, "ppo", "own", ITERATIONS=2, **settings) == 0
    assert start(whole, monkeypatch, "ppo", "own", **settings) == 0  # on to the third
    kept = iterations(whole / "own")
    assert "rl/policy/loss" not in kept[0] and "rl/policy/text_nll" in kept[1]
    assert abs(kept[1]["rl/objective/kl_seq"]) < 1e-4  # the critic was trained alone
    assert kept[0]["rl/value/loss"] > 0 and len(kept) == 3
    assert start(whole, monkeypatch, "ppo", "own-whole", **settings) == 0
    assert same(params(whole / "own"), params(whole / "own-whole"))
    names = json.loads((whole / "own/checkpoints/3/manifest.json").read_text("utf-8"))["arrays"]
    assert {"params", "opt_state", "rng", "critic_params", "critic_opt_state"} <= {*names}


def test_answers_without_a_score_are_left_out_and_not_zero(whole, monkeypatch):
    assert start(whole, monkeypatch, "grpo", "gaps", REWARD="many_rewards:by_line") == 0
    kept = iterations(whole / "gaps")
    rates = [line["rl/reward/nan_rate"] for line in kept]
    assert 0 < sum(rates) and all(line["rl/objective/score"] < 0 for line in kept)
    told = (whole / "gaps/incidents.jsonl").read_text("utf-8")
    assert "no score for this one" in told


def test_a_constant_reward_teaches_nothing(whole, monkeypatch):
    assert (
        start(whole, monkeypatch, "grpo", "alike", REWARD="many_rewards:alike", ITERATIONS=2) == 0
    )
    kept = iterations(whole / "alike")
    assert all(line["rl/adv/frac_zero_std"] == 1 for line in kept)
    assert all(line["rl/reward/constant"] == 1 for line in kept)
    assert same(params(whole / "alike"), params(whole / "base"))
    assert "all scores are equal" in (whole / "alike/incidents.jsonl").read_text("utf-8")
    assert not same(params(whole / "grpo"), params(whole / "base"))


def test_a_reward_that_never_answers_ends_the_run(whole, monkeypatch, capsys):
    settings = dict(REWARD="many_rewards:nothing", ITERATIONS=9, PATIENCE=2)
    assert start(whole, monkeypatch, "grpo", "nothing", **settings) == 70
    assert "no answer has a score" in capsys.readouterr().err


def test_what_is_refused(whole, monkeypatch, capsys):
    def status(command, **settings):
        return start(whole, monkeypatch, command, "refused", **settings), capsys.readouterr().err

    assert status("grpo", ANSWERS=1)[0] == 78
    assert status("ppo", CRITIC_WARMUP=2)[0] == 78
    found, told = status("ppo", TEXT_COEFFICIENT=1.0)
    assert found == 78 and "JI-PPO-002" in told
    found, told = status("grpo", PROMPT_LENGTH=4)
    assert found == 78 and "JI-PROMPTS-002" in told
    found, told = status("grpo", REWARD="many_rewards:nobody")
    assert found == 78 and "nobody" in told
    assert not (whole / "refused" / "model.json").exists()
    found = start(whole, monkeypatch, "grpo", "grpo", KL_REWARD=0.01, ITERATIONS=5, ANSWERS=8)
    assert found == 78 and "answers was 4, now 8" in capsys.readouterr().err


def test_limits_end_a_run(whole, monkeypatch, capsys):
    settings = dict(MIN_ENDED=1.0, PATIENCE=2)
    assert start(whole, monkeypatch, "grpo", "limited", **settings) == 70
    told = capsys.readouterr().err
    assert "MIN_ENDED=1" in told and "INIT=" in told
    assert len(iterations(whole / "limited")) == 2


def test_a_record_that_names_a_function_is_not_followed_unasked(whole, monkeypatch, capsys):
    """config.json may come from a stranger: code in it runs only when the user names its module again."""
    monkeypatch.chdir(whole)
    assert run.main(["resume", str(whole / "grpo")]) == 78
    assert "JI-RECORD-006" in capsys.readouterr().err
    assert run.main(["resume", str(whole / "grpo"), "MODULE=many_rewards"]) == 0
