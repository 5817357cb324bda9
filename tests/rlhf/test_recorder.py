"""The flight recorder: what numbers are called in words, when a run is ended, what is written."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.rlhf import experience, practice, prompts, recorder, rewards
from jinstr.train import metrics

HEALTHY = {
    "gen/ended": 0.95,
    "reward/nan_rate": 0.02,
    "reward/constant": 0.0,
    "adv/frac_zero_std": 0.3,
    "objective/score_length_correlation": 0.2,
    "objective/entropy": 2.0,
    "policy/mismatch_mean": 1e-5,
}
KL = np.linspace(-0.5, 1.5, 32)


def kinds(numbers=(), kl=KL, first_entropy=2.5):
    line = HEALTHY | dict(numbers)
    return [kind for kind, _ in recorder.diagnoses(line, kl, first_entropy, 3e-3)]


def test_healthy_numbers_are_no_trouble():
    assert kinds() == []
    assert kinds(kl=np.zeros(32)) == []  # a policy that has not moved
    assert kinds({"objective/score_length_correlation": math.nan}) == []
    line = {name: value for name, value in HEALTHY.items() if name != "adv/frac_zero_std"}
    assert recorder.diagnoses(line, KL, 2.5, 3e-3) == []  # PPO has no groups


@pytest.mark.parametrize(
    "kind, name, bad, good",
    [
        ("ends", "gen/ended", 0.49, 0.51),
        ("unscored", "reward/nan_rate", 0.11, 0.09),
        ("constant", "reward/constant", 1.0, 0.0),
        ("flat", "adv/frac_zero_std", 0.95, 0.85),
        ("length", "objective/score_length_correlation", 0.75, 0.65),
        ("entropy", "objective/entropy", 0.24, 0.26),
        ("mismatch", "policy/mismatch_mean", 4e-3, 2e-3),
    ],
)
def test_each_kind_of_trouble_is_told_from_its_number_alone(kind, name, bad, good):
    assert kinds({name: bad}) == [kind]
    assert kinds({name: good}) == []


def test_a_negative_kl_is_told_when_it_is_more_than_noise():
    assert kinds(kl=KL - 2) == ["negative KL"]
    assert kinds(kl=KL - 0.6) == []  # -0.1 ± 0.1
    assert kinds(kl=(KL - 2)[:4]) == []  # too few to say
    assert kinds(kl=np.zeros(0)) == []


# A whole recorder, with a run directory.


def written(count=12, ended=True):
    chance = np.random.default_rng(0)
    lengths = chance.integers(1, 6, count)
    episodes = [
        experience.Episode(np.array([1, 2], np.int32), np.arange(n, dtype=np.int32) + 3)
        for n in lengths
    ]
    mask = experience.answer_mask(episodes, 6)
    question = prompts.Prompt("q", ({"role": "user", "content": "山"},), np.array([1, 2]), {})
    return practice.Written(
        [question] * count,
        episodes,
        [f"答え{n}" for n in range(count)],
        np.where(mask, -1.0, 0.0).astype(np.float32),
        np.full(count, ended),
        mask,
        0.5,
    )


def scores_of(values):
    values = np.asarray(values, np.float32)
    return rewards.Scores(values, {"r": values}, {"r": {}}, {}, 0, ())


GOOD_UPDATE = dict(loss=0.1, grad_norm=1.0, ratio_change=1e-6, weight=1.0, tokens=9.0, square=9.0)


class Run:
    """A recorder with files of its own, and iterations of which only what matters is given."""

    def __init__(self, folder, done=0, before=(), **limits):
        self.folder = folder
        self.flight = recorder.Recorder(
            folder, 10, done, recorder.LimitConfig(**limits), "float32",
            before=dict(before), tensorboard=False, wandb="",
        )  # fmt: skip

    def iteration(self, number, kl=0.5, ended=True, updates=(GOOD_UPDATE,), scores=None, **extra):
        found = written(ended=ended)
        count = len(found.episodes)
        scores = np.linspace(0, 1, count) if scores is None else np.asarray(scores)
        kls = np.where(np.isfinite(scores), kl, 0.0).astype(np.float32)
        entropy = np.where(found.mask & np.isfinite(scores)[:, None], 2.0, 0.0)
        old = np.where(np.isfinite(scores)[:, None], found.rollout_logp, 0.0)
        self.flight.start("rollout")
        self.flight.iteration(
            number, found, scores_of(scores), scores, kls, entropy, old, list(updates), extra
        )

    def lines(self, name="metrics.jsonl"):
        return metrics.read_lines(self.folder / name)

    def told(self):
        return [line["message"] for line in self.lines("incidents.jsonl")]


@pytest.fixture
def run(tmp_path):
    made = []

    def make(**limits):
        made.append(Run(tmp_path, **limits))
        return made[-1]

    yield make
    for each in made:
        each.flight.close()


def test_an_iteration_is_a_line_of_finite_numbers(run):
    one = run()
    one.iteration(1, extra=0.25)
    (line,) = one.lines()
    mask = written().mask
    assert line["step"] == 1
    assert line["rl/objective/kl_seq"] == pytest.approx(0.5)
    assert line["rl/objective/kl_token"] == pytest.approx(0.5 * 12 / mask.sum())
    assert line["rl/objective/score"] == pytest.approx(0.5)
    assert line["rl/objective/entropy"] == pytest.approx(2.0)
    assert line["rl/policy/ratio_change_first"] == pytest.approx(1e-6)
    assert line["rl/policy/mismatch_max"] == 0
    assert line["rl/extra"] == 0.25
    assert "rl/policy/weight" not in line
    assert one.told() == []


def test_what_is_left_out_counts_nowhere(run):
    one = run()
    scores = np.linspace(0, 1, 12)
    one.iteration(1)
    scores[3:6] = np.nan
    one.iteration(2, scores=scores)
    whole, part = one.lines()
    for name in ("kl_seq", "entropy"):
        assert part[f"rl/objective/{name}"] == pytest.approx(whole[f"rl/objective/{name}"])
    assert part["rl/policy/mismatch_mean"] == 0
    assert part["rl/objective/score"] != whole["rl/objective/score"]
    assert part["rl/reward/nan_rate"] == 0.25


def test_an_iteration_without_any_score_says_nothing_of_the_policy(run):
    one = run(max_kl=0.1)
    one.iteration(1, kl=0.0)
    one.iteration(2, scores=np.full(12, np.nan), updates=())
    line = one.lines()[1]
    for name in ("kl_seq", "kl_token", "entropy", "rlhf_reward", "score"):
        assert f"rl/objective/{name}" not in line
    assert "rl/policy/mismatch_mean" not in line
    assert len(one.told()) == 1 and "no score" in one.told()[0]


def test_the_first_entropy_is_that_of_the_first_iteration_with_scores(run):
    one = run()
    one.iteration(1, scores=np.full(12, np.nan), updates=())
    one.iteration(2)
    assert one.flight._first_entropy == pytest.approx(2.0)


def test_limits_end_a_run_after_so_many_iterations_in_a_row(run):
    one = run(max_kl=1.0, patience=3)
    for number, kl in enumerate([2.0, 2.0, 0.5, 2.0, 2.0], 1):
        one.iteration(number, kl=kl)
    with pytest.raises(errors.NonFiniteError, match="iteration 6: KL 2.00 .*MAX_KL=1") as raised:
        one.iteration(6, kl=2.0)
    assert raised.value.code == "JI-RL-003"
    assert len(one.lines()) == 6  # the line that says why is written


def test_answers_that_do_not_end_end_a_run(run):
    one = run(min_ended=0.5, patience=1)
    one.iteration(1)
    with pytest.raises(errors.NonFiniteError, match="0% of answers end, MIN_ENDED=0.5"):
        one.iteration(2, ended=False)


def test_without_limits_nothing_ends_a_run(run):
    one = run()
    for number in range(1, 6):
        one.iteration(number, kl=1e6, ended=False)
    assert len(one.lines()) == 5
    assert len(one.told()) == 1  # "only 0 % of answers end", once


def test_a_first_update_whose_ratio_is_not_1_ends_a_run(run):
    one = run()
    moved = GOOD_UPDATE | {"ratio_change": 0.3}
    one.iteration(1, updates=[GOOD_UPDATE, moved])  # later ones may move
    with pytest.raises(errors.ConfigError, match="off 1 by 0.3 ") as raised:
        one.iteration(2, updates=[moved, GOOD_UPDATE])
    assert raised.value.code == "JI-RL-002"


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_updates_that_are_not_finite_are_told_and_end_a_run(run, name):
    one = run()
    bad = GOOD_UPDATE | {name: math.nan}
    one.iteration(1, updates=[GOOD_UPDATE, bad, bad])
    assert len(one.told()) == 2 and f"{name}=nan" in one.told()[0]
    line = one.lines()[0]
    assert line["rl/policy/refused"] == 2
    assert line[f"rl/policy/{name}"] == GOOD_UPDATE[name]  # the mean of those that were made
    one.iteration(2, updates=[GOOD_UPDATE, bad])  # a good one between them: not in a row
    with pytest.raises(errors.NonFiniteError, match="iteration 3: .*last of 3 such") as raised:
        one.iteration(3, updates=[bad, bad, GOOD_UPDATE])
    assert raised.value.code == "JI-RL-004"
    assert len(one.lines()) == 3


def test_a_policy_that_stands_still_is_told_of(run):
    one = run()
    still = GOOD_UPDATE | {"ratio_change": 0.0}
    one.iteration(1, updates=[still])
    assert one.told() == []
    one.iteration(2, updates=[still, still])
    assert len(one.told()) == 1 and "LEARNING_RATE" in one.told()[0]


def test_an_evaluation_and_its_samples(run):
    one = run(samples=2)
    scores = np.array([1.0, np.nan, 0.0, 1.0] * 3)
    one.flight.evaluated(4, written(), scores)
    (line,) = one.lines()
    kept = scores[np.isfinite(scores)]
    assert line["step"] == 4 and line["eval/score"] == pytest.approx(kept.mean())
    assert line["eval/score_standard_error"] == pytest.approx(kept.std(ddof=1) / 3)
    first, second = one.lines("samples.jsonl")
    assert first["answer"] == "答え0" and first["score"] == 1
    assert second["score"] is None


def test_an_evaluation_that_a_kill_came_before_is_owed(run):
    one = run()
    config = practice.PracticeConfig(iterations=7, eval_every=3)
    assert [n for n in range(8) if recorder.evaluates(config, n)] == [0, 3, 6, 7]
    rare = practice.PracticeConfig(iterations=7, eval_every=0)
    assert [n for n in range(8) if recorder.evaluates(rare, n)] == [0, 7]
    one.flight.evaluated(0, written(), np.ones(12))
    one.flight.evaluated(3, written(), np.full(12, np.nan))  # made, though nothing could be scored
    one.iteration(6)
    owed = [n for n in range(8) if recorder.owes_evaluation(one.folder, config, n)]
    assert owed == [6, 7]


def test_only_finite_numbers_are_written():
    given = {"a": 1, "b": math.nan, "c": math.inf, "d": -math.inf, "e": np.float32(0.5)}
    assert practice.finite_only(given) == {"a": 1.0, "e": 0.5}
    json.dumps(practice.finite_only(given), allow_nan=False)
    with pytest.raises(ValueError):
        json.dumps({name: float(value) for name, value in given.items()}, allow_nan=False)


def test_patience_goes_on_where_a_run_was_cut(run):
    one = run(max_kl=1.0, patience=3)
    one.iteration(1, kl=2.0)
    one.iteration(2, kl=2.0)
    before = json.loads(json.dumps(one.flight.state()))
    assert before["beyond"] == 2 and before["first_entropy"] == 2.0
    with pytest.raises(errors.NonFiniteError, match="JI-RL-003"):
        run(done=2, before=before, max_kl=1.0, patience=3).iteration(3, kl=2.0)
    # Negative control: a recorder that knows nothing of the two waits anew.
    run(done=2, max_kl=1.0, patience=3).iteration(3, kl=2.0)


def test_what_was_told_is_not_told_again_by_a_run_that_goes_on(run):
    one = run()
    one.iteration(1, ended=False)
    told = one.told()
    run(done=1, before=one.flight.state()).iteration(2, ended=False)
    assert told and one.told() == told
    run(done=1).iteration(2, ended=False)
    assert len(one.told()) > len(told)


def test_a_reference_in_the_memory_of_the_policy_is_refused():
    policy = {"a": jnp.arange(4.0), "b": {"c": jnp.ones(3)}}
    copy = jax.tree.map(jnp.copy, policy)
    recorder.check_separate(copy, policy, {})
    recorder.check_separate({}, policy)
    for shared in ({"x": policy["a"]}, {"y": {"z": policy["b"]["c"]}}):
        with pytest.raises(errors.ConfigError) as raised:
            recorder.check_separate(copy | shared, {}, policy)
        assert raised.value.code == "JI-RL-001"
