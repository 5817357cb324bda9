"""Objectives of comparisons against slow twins: one answer at a time, alone in a row, pairs in Python loops."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.data import comparisons, records
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import comparing

SHAPE = dict(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=24
)  # fmt: skip
MODEL = config_lib.DecoderConfig(**SHAPE)
SCORING = config_lib.DecoderConfig(**SHAPE, heads="score")
RULES = mesh_lib.AxisRules()
RANKS = [(1, 2, 3), (2, 1, 2), (1, 1), (2, 1)]


def prompts(seed=0):
    """Two rows of two prompts each."""
    chance = np.random.default_rng(seed)
    found = []
    for number, ranks in enumerate(RANKS):
        prompt = chance.integers(2, 64, chance.integers(2, 5))
        texts = [
            np.append(prompt, chance.integers(2, 64, n)) for n in chance.integers(1, 9, len(ranks))
        ]
        found.append(
            records.Ranked(
                src="s", id=str(number), part=1, prompt_length=len(prompt), answers=tuple(texts),
                masks=tuple(np.arange(len(ids)) >= len(prompt) for ids in texts), ranks=ranks,
            )
        )  # fmt: skip
    return found


PROMPTS = prompts()
BATCH = comparisons.assemble([PROMPTS[:2], PROMPTS[2:]], 64, 0, prompts=2, answers=3)


@functools.cache
def parameters(config, seed=0):
    params = jax.jit(lambda: decoder.init_params(config, jax.random.key(seed)))()
    if config.heads != "language":
        chance = np.random.default_rng(seed)
        params["score"]["kernel"] = jnp.asarray(chance.normal(size=(16, 1)), jnp.float32)
    return params


@functools.partial(jax.jit, static_argnums=0)
def hidden_in_row(config, params, ids, count):
    places = jnp.arange(len(ids))
    row = (ids[None], places[None], (places < count).astype(jnp.int32)[None])
    return decoder.forward(config, params, *row)[0]


def hidden_alone(config, params, ids):
    """Hidden states [n, D] of a text that has a row to itself."""
    padded = np.zeros(16, np.int32)
    padded[: len(ids)] = ids
    return np.asarray(hidden_in_row(config, params, padded, len(ids)))[: len(ids)]


def score_alone(params, ids):
    return float(
        hidden_alone(SCORING, params, ids)[-1] @ np.asarray(params["score"]["kernel"])[:, 0]
    )


def logp_alone(params, record, answer):
    ids = record.answers[answer]
    logits = hidden_alone(MODEL, params, ids[:-1]) @ np.asarray(params["embed"]["embedding"]).T
    top = logits.max(-1, keepdims=True)
    logp = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return sum(float(logp[n, ids[n + 1]]) for n in range(record.prompt_length - 1, len(ids) - 1))


def sums(objective, params, frozen):
    return jax.jit(objective.sums)(params, BATCH, frozen)


def pairs(ranks):
    return [(i, j) for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]


def softplus(x):
    return math.log1p(math.exp(x))


def test_scores_are_those_of_the_last_token_of_each_answer():
    params = parameters(SCORING)
    found = np.asarray(
        jax.jit(lambda p: comparing.scores(SCORING, p, BATCH, RULES))(params)
    ).reshape(4, 3)
    for record, scores in zip(PROMPTS, found):
        expected = [score_alone(params, ids) for ids in record.answers]
        assert scores[: len(expected)] == pytest.approx(expected, abs=1e-5)
        assert not scores[len(expected) :].any()
    # Negative control: of the token before the last one it is another.
    assert score_alone(params, PROMPTS[0].answers[0][:-1]) != pytest.approx(found[0, 0], abs=1e-3)


@pytest.mark.parametrize("settings", [{}, {"margin": 0.5}, {"centering": 0.3}])
def test_ranking_loss_and_accuracy(settings):
    params = parameters(SCORING)
    config = comparing.RankingConfig(**settings)
    objective = comparing.ranking_objective(SCORING, config, RULES)
    total, found = sums(objective, params, {})
    losses, right = [], []
    for record in PROMPTS:
        score = [score_alone(params, ids) for ids in record.answers]
        of_prompt = [
            softplus(score[j] - score[i] + config.margin) + config.centering * (score[i] + score[j]) ** 2
            for i, j in pairs(record.ranks)
        ]  # fmt: skip
        if of_prompt:
            losses.append(np.mean(of_prompt))
            right.append(np.mean([score[i] > score[j] for i, j in pairs(record.ranks)]))
    assert len(losses) == 3 == float(objective.weight(BATCH))  # one prompt has ties only
    assert float(total) == pytest.approx(sum(losses), abs=1e-5)
    assert float(found["loss"]) == float(total)
    assert float(found["accuracy"]) == pytest.approx(sum(right), abs=1e-6)


def test_a_fresh_score_head_gives_ln_2():
    params = jax.jit(lambda: decoder.init_params(SCORING, jax.random.key(0)))()
    objective = comparing.ranking_objective(SCORING, comparing.RankingConfig(), RULES)
    loss = sums(objective, params, {})[0] / objective.weight(BATCH)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)


@functools.cache
def both_logps():
    """(log-probabilities [B, G, K] under a policy and a reference, tokens [B, G, K]), each answer alone."""
    logps = np.zeros((2, 4, 3), np.float32)
    tokens = np.zeros((4, 3), np.float32)
    for number, record in enumerate(PROMPTS):
        for k, mask in enumerate(record.masks):
            logps[:, number, k] = [
                logp_alone(parameters(MODEL, seed), record, k) for seed in (1, 2)
            ]
            tokens[number, k] = mask.sum()
    return logps.reshape(2, 2, 2, 3), tokens.reshape(2, 2, 3)


@pytest.mark.parametrize("settings", [{}, {"length_normalize": True}, {"loss": "simpo"}], ids=str)
def test_rewards_of_a_batch_are_those_of_each_answer_alone(settings):
    config = comparing.PreferenceConfig(**settings)
    frozen = {"base": {}, "reference": parameters(MODEL, 2)}
    found = jax.jit(lambda p, f: comparing.rewards(MODEL, config, p, BATCH, f, RULES))(
        parameters(MODEL, 1), frozen
    )
    logps, tokens = both_logps()
    np.testing.assert_allclose(found[1], logps[0], atol=2e-5)
    np.testing.assert_array_equal(found[2], tokens)
    reward = config.beta * (logps[0] - (logps[1] if config.needs_reference else 0))
    if settings:
        reward = reward / np.maximum(tokens, 1)
    np.testing.assert_allclose(found[0], reward, atol=2e-6)
    assert np.abs(logps[0] - logps[1]).max() > 0.1  # negative control: the two models differ


def expected_preference(config, policy, reference):
    """The loss by loops: [(loss, margin of rewards)] of each prompt's pairs."""
    found = []
    for number, record in enumerate(PROMPTS):
        of_prompt = []
        for i, j in pairs(record.ranks):
            tokens = [int(record.masks[k].sum()) for k in (i, j)]
            logp = [policy[number][k] for k in (i, j)]
            ratio = [policy[number][k] - reference[number][k] for k in (i, j)]
            mean = [value / count for value, count in zip(logp, tokens)]
            if config.loss == "simpo":
                loss = softplus(config.gamma - config.beta * (mean[0] - mean[1]))
            elif config.loss == "orpo":
                odds = [m - math.log(1 - math.exp(m)) for m in mean]
                loss = -mean[0] + config.beta * softplus(odds[1] - odds[0])
            else:
                if config.length_normalize:
                    ratio = [value / count for value, count in zip(ratio, tokens)]
                h, e = config.beta * (ratio[0] - ratio[1]), config.label_smoothing
                loss = {
                    "sigmoid": (1 - e) * softplus(-h) + e * softplus(h),
                    "robust": ((1 - e) * softplus(-h) - e * softplus(h)) / (1 - 2 * e),
                    "hinge": max(0.0, 1 - h),
                    "ipo": (ratio[0] - ratio[1] - 1 / (2 * config.beta)) ** 2,
                }[config.loss]
            of_prompt.append(loss - config.nll * mean[0])
        if of_prompt:
            found.append(np.mean(of_prompt))
    return sum(found)


@pytest.mark.parametrize(
    "settings",
    [
        dict(loss="sigmoid"),
        dict(loss="sigmoid", label_smoothing=0.2, nll=0.3),
        dict(loss="sigmoid", length_normalize=True),
        dict(loss="robust", label_smoothing=0.1),
        dict(loss="hinge", beta=0.4),
        dict(loss="ipo"),
        dict(loss="ipo", length_normalize=True),
        dict(loss="simpo", beta=2.0, gamma=1.0),
        dict(loss="orpo"),
    ],
    ids=str,
)
def test_preference_losses(settings):
    config = comparing.PreferenceConfig(**settings)
    logps, tokens = both_logps()
    reward = config.beta * (logps[0] - (logps[1] if config.needs_reference else 0))
    if config.length_normalize or not config.needs_reference:
        reward = reward / np.maximum(tokens, 1)
    total, found = comparing.preference_sums(config, reward, logps[0], tokens, BATCH["ranks"])
    logps = [logp.reshape(4, 3) for logp in logps]
    assert float(total) == pytest.approx(expected_preference(config, *logps), rel=2e-5)
    swapped = expected_preference(config, *logps[::-1])
    assert swapped != pytest.approx(float(total), rel=1e-3)  # negative control
    if config.needs_reference and not config.length_normalize:
        margins = [
            np.mean([
                config.beta * ((logps[0][n][i] - logps[1][n][i]) - (logps[0][n][j] - logps[1][n][j]))
                for i, j in pairs(record.ranks)
            ])
            for n, record in enumerate(PROMPTS) if pairs(record.ranks)
        ]  # fmt: skip
        assert float(found["margin"]) == pytest.approx(sum(margins), abs=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "hinge", "ipo"])
def test_the_first_loss_has_its_exact_value(loss):
    smoothing = 0.2 if loss in ("sigmoid", "robust") else 0.0
    config = comparing.PreferenceConfig(loss=loss, label_smoothing=smoothing)
    params = parameters(MODEL)
    objective = comparing.preference_objective(MODEL, config, RULES)
    total, found = sums(objective, params, {"base": {}, "reference": params})
    value = float(total) / float(objective.weight(BATCH))
    assert value == pytest.approx(comparing.first_loss(config), rel=1e-6)
    assert float(found["margin"]) == 0
    other = sums(objective, params, {"base": {}, "reference": parameters(MODEL, 1)})[0]
    assert float(other) != pytest.approx(float(total), rel=1e-3)


def test_under_lora_the_reference_is_the_base():
    adapted = config_lib.DecoderConfig(**SHAPE, lora=config_lib.LoraConfig(rank=2))
    adapters, base = lora.split(parameters(adapted))
    config = comparing.PreferenceConfig()
    objective = comparing.preference_objective(adapted, config, RULES)
    total, _ = sums(objective, adapters, {"base": base})
    assert float(total) == pytest.approx(3 * math.log(2), rel=1e-6)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    one = sums(objective, moved, {"base": base})[0]
    merged = lora.merge(adapted, lora.join(moved, base))
    plain = comparing.preference_objective(MODEL, config, RULES)
    two = sums(plain, merged, {"base": {}, "reference": base})[0]
    assert float(one) == pytest.approx(float(two), rel=1e-4)
    assert float(one) != pytest.approx(float(total), rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        dict(loss="dpo"),
        dict(loss="ipo", label_smoothing=0.1),
        dict(loss="simpo", length_normalize=True),
        dict(loss="sigmoid", gamma=1.0),
        dict(loss="sigmoid", desirable_weight=2.0),
        dict(loss="kto", nll=0.1),
    ],
    ids=str,
)
def test_settings_that_would_do_nothing_are_refused(settings):
    with pytest.raises(errors.ConfigError):
        comparing.PreferenceConfig(**settings)


SINGLE = [
    records.Ranked(
        src="s", id=r.id, part=1, prompt_length=r.prompt_length, answers=r.answers[:1],
        masks=r.masks[:1], ranks=(1 + number % 2,),
    )
    for number, r in enumerate(PROMPTS)
]  # fmt: skip


def mismatched(one, other):
    """The prompt of one record with the answer of the other."""
    ids = np.append(one.answers[0][: one.prompt_length], other.answers[0][other.prompt_length :])
    return records.Ranked(
        src="s", id="", part=1, prompt_length=one.prompt_length, answers=(ids,), masks=one.masks, ranks=(1,)
    )  # fmt: skip


def test_kto_against_one_answer_at_a_time():
    config = comparing.PreferenceConfig(
        loss="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5
    )
    policy, reference = parameters(MODEL), parameters(MODEL, 1)
    objective = comparing.labelled_objective(MODEL, config, RULES)
    # The second and third answers are interchanged, so that the mean of the mismatched pairs is not cut off at 0.
    rows = [SINGLE[:3], SINGLE[3:]]
    batch = comparisons.assemble(rows, 64, 0, prompts=3, answers=1)
    batch = comparisons.with_others(batch, 0)
    frozen = {"base": {}, "reference": reference}

    def gain(record, params, below):
        return logp_alone(params, record, 0) - logp_alone(below, record, 0)

    others = [mismatched(SINGLE[n], SINGLE[(n + 1) % 3]) for n in range(3)]
    for params, below in ((policy, reference), (reference, policy)):
        total, found = jax.jit(objective.sums)(params, batch, frozen | {"reference": below})
        kl = max(0.0, np.mean([gain(record, params, below) for record in others]))
        losses, right = [], 0
        for record in SINGLE:
            wanted = record.ranks[0] == 1
            by = config.beta * (gain(record, params, below) - kl)
            weight, sign = (1.5, 1) if wanted else (0.5, -1)
            losses.append(weight * (1 - 1 / (1 + math.exp(-sign * by))))
            right += (by > 0) == wanted
        assert float(objective.weight(batch)) == 4
        assert float(total) == pytest.approx(sum(losses), abs=1e-5)
        assert float(found["kl"]) / 4 == pytest.approx(kl, abs=1e-5)
        assert float(found["accuracy"]) == right
    # Negative control: the reference point was not 0 in both, and matters.
    away = {n: x for n, x in batch.items() if n != "others_answers"}
    away["others_answers"] = np.zeros_like(batch["others_answers"])
    values = [
        [float(jax.jit(objective.sums)(p, b, frozen | {"reference": r})[0]) for b in (batch, away)]
        for p, r in ((policy, reference), (reference, policy))
    ]
    assert any(one != pytest.approx(two, abs=1e-4) for one, two in values)


def test_kto_begins_at_a_half():
    config = comparing.PreferenceConfig(loss="kto")
    params = parameters(MODEL)
    batch = comparisons.with_others(comparisons.assemble([SINGLE], 64, 0, 4, 1), 0)
    objective = comparing.labelled_objective(MODEL, config, RULES)
    total, found = jax.jit(objective.sums)(params, batch, {"base": {}, "reference": params})
    assert float(total) / 4 == pytest.approx(comparing.first_loss(config)) == 0.5
    assert float(found["kl"]) == 0
    uneven = comparing.PreferenceConfig(loss="kto", desirable_weight=2.0)
    assert comparing.first_loss(uneven) is None
