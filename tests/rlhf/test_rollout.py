"""Rollouts whose rows are refilled against batches that are not, against the whole forward pass, and over meshes."""

import dataclasses

import jax
import numpy as np
import pytest

from jinstr import errors
from jinstr.decode import sampler
from jinstr.losses import lm
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import rollout

MODEL = config_lib.DecoderConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=48,
    max_positions=70, tie_embeddings=False,
)  # fmt: skip
PAD, STOPS, FORBIDDEN = 0, (2, 5, 6), (1, 9)  # 3 of 62 tokens end an answer: lengths are spread
LONGEST = 40
# Little slack and few rows: the cache is moved, the batch made smaller, rows are refilled many times.
CONFIG = rollout.RolloutConfig(
    temperature=1.3, max_new_tokens=LONGEST, rows=16, chunk=5, slack=3
)  # fmt: skip
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(3, 64, n).tolist() for n in RANDOM.integers(1, 31, 44)]
IDS = [7 * n + 3 for n in range(len(PROMPTS))]
# A tie within rounding: two choices whose border in the cumulated distribution is this near to the noise.
TIE = 1e-4


def random_params():
    """All of them random: scales at their start would hide a missing term."""
    leaves, tree = jax.tree.flatten(decoder.init_params(MODEL, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return jax.tree.unflatten(tree, noisy)


PARAMS = random_params()


def run(prompts=PROMPTS, row_ids=IDS, seed=7, config=CONFIG, params=PARAMS, **settings):
    settings = dict(stop_ids=STOPS, pad_id=PAD, forbidden_ids=FORBIDDEN) | settings
    key = jax.random.key(seed)
    return rollout.rollout(MODEL, params, prompts, row_ids, key, rollout_config=config, **settings)


@pytest.fixture(scope="module")
def made():
    return run()


@pytest.fixture(scope="module")
def forced(made):
    return teacher_forced(made.answers)


def ids_of(rollouts):
    return [answer.ids.tolist() for answer in rollouts.answers]


def teacher_forced(answers):
    """(logits [N, LONGEST, V] over the temperature, log p [N, LONGEST]) of answers, by one whole forward pass."""
    places = max(map(len, PROMPTS)) + LONGEST
    tokens = np.zeros((len(PROMPTS), places + 1), np.int32)
    for row, prompt, answer in zip(tokens, PROMPTS, answers):
        row[: len(prompt) + len(answer.ids)] = prompt + answer.ids.tolist()
    positions = np.broadcast_to(np.arange(places, dtype=np.int32), (len(PROMPTS), places))

    @jax.jit
    def forward(tokens, targets):
        hidden = decoder.forward(MODEL, PARAMS, tokens, positions, np.ones_like(positions))
        head = decoder.head_kernel(MODEL, PARAMS) / CONFIG.temperature
        return hidden @ head, lm.token_logprobs(hidden, head, targets)[0]

    logits, logp = map(np.asarray, forward(tokens[:, :-1], tokens[:, 1:]))
    # Place n of the answer to a prompt of p tokens is predicted at p - 1 + n.
    first = np.array([len(prompt) - 1 for prompt in PROMPTS])
    at = np.minimum(first[:, None] + np.arange(LONGEST), places - 1)
    rows = np.arange(len(PROMPTS))[:, None]
    return logits[rows, at], logp[rows, at]


def chosen_within_rounding(logits_V, uniform, token):
    """Slow twin: is `token` the inverse CDF of the allowed tokens at `uniform`, ties within rounding aside?"""
    weights = np.exp(logits_V.astype(np.float64) - logits_V.max())
    weights[list(FORBIDDEN)] = 0
    upper = np.cumsum(weights / weights.sum())
    lower = upper[token - 1] if token else 0.0
    return lower - TIE <= uniform <= upper[token] + TIE


@jax.jit
def noise(row_id, place):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), row_id), place)
    return jax.random.uniform(key)


def test_equals_the_sampler(made):
    sampling = sampler.SamplingConfig(temperature=1.3, max_new_tokens=LONGEST)
    plain = sampler.Sampler(MODEL, sampling, STOPS, PAD, FORBIDDEN)
    prompts_BP, lengths_B = sampler.left_pad(PROMPTS, PAD)
    want = jax.device_get(plain(PARAMS, prompts_BP, lengths_B, np.array(IDS), jax.random.key(7)))
    for n, answer in enumerate(made.answers):
        assert answer.ids.tolist() == want.ids[n, : want.length[n]].tolist()
        assert answer.ended == want.ended[n]
        assert answer.ids.dtype == np.int32 and answer.logp.dtype == np.float32
        np.testing.assert_allclose(answer.logp, want.logp[n, : want.length[n]], atol=1e-5)
    # All of the machinery was at work, and answers hold the pad id as any other.
    assert made.prefills >= 4 and made.moves >= 2 and made.compactions == 1
    assert any(PAD in answer.ids for answer in made.answers)
    assert 5 < sum(not answer.ended for answer in made.answers) < 30
    assert not any(set(answer.ids.tolist()) & set(FORBIDDEN) for answer in made.answers)


def test_equals_the_whole_forward_pass(made, forced):
    logits, logp = forced
    other_temperature = 0.0
    for n, answer in enumerate(made.answers):
        length = len(answer.ids)
        np.testing.assert_allclose(answer.logp, logp[n, :length], atol=1e-4)
        raw = 1.3 * logits[n, np.arange(length), answer.ids]
        at_1 = raw - np.logaddexp.reduce(1.3 * logits[n, :length], axis=-1)
        other_temperature = max(other_temperature, np.abs(at_1 - answer.logp).max())
        if n % 6 == 0:
            for place, token in enumerate(answer.ids):
                assert chosen_within_rounding(logits[n, place], noise(IDS[n], place), token)
    assert other_temperature > 0.1
    # Negative controls of the twin: noise of the place before, of another row.
    shifted = [
        chosen_within_rounding(logits[n, p], noise(IDS[n], p - 1), t)
        for n in range(4)
        for p, t in enumerate(made.answers[n].ids[:10])
        if p
    ]
    assert np.mean(shifted) < 0.3


def test_an_end_token_ends_an_answer_and_nothing_else_does(made):
    for answer in made.answers:
        assert len(answer.ids) == len(answer.logp) >= 1 and (answer.logp < 0).all()
        assert not np.isin(answer.ids[:-1], STOPS).any()
        assert answer.ended == (answer.ids[-1] in STOPS)
        assert answer.ended or len(answer.ids) == LONGEST


def test_depends_on_neither_rows_nor_chunk_nor_order(made):
    order = np.random.default_rng(1).permutation(len(PROMPTS))
    shuffled = run([PROMPTS[n] for n in order], [IDS[n] for n in order])
    assert [ids_of(made)[n] for n in order] == ids_of(shuffled)
    assert shuffled.prefills != made.prefills or shuffled.steps != made.steps
    config = dataclasses.replace(CONFIG, rows=8, chunk=7)
    fewer = run(PROMPTS[:20], IDS[:20], config=config)
    assert ids_of(fewer) == ids_of(made)[:20] and fewer.compactions == 0 and fewer.moves >= 1
    for one, other in zip(fewer.answers, made.answers):
        np.testing.assert_allclose(one.logp, other.logp, atol=1e-5)


def test_negative_controls_key_and_row_id(made):
    other = run(PROMPTS, IDS, seed=8)
    assert np.mean([a != b for a, b in zip(ids_of(other), ids_of(made))]) > 0.8
    wrong = [*IDS[:3], 9999, *IDS[4:]]
    moved = run(PROMPTS, wrong)
    assert [n for n, (a, b) in enumerate(zip(ids_of(moved), ids_of(made))) if a != b] == [3]
    # The same id twice with the same prompt is the same sample twice.
    twice = run([PROMPTS[0]] * 2, [5, 5])
    assert ids_of(twice)[0] == ids_of(twice)[1]


def costs(lengths, config=CONFIG):
    """Slow twin of the scheduler, from known lengths: (slots, steps, prefills, moves, compactions)."""
    places = 32  # of prompts of up to 30 tokens
    size, clock, full = config.rows, places, places + LONGEST + config.slack
    waiting = list(range(len(lengths)))
    rows = []  # [tokens still to write, start slot]
    slots = steps = prefills = moves = compactions = 0
    while waiting or rows:
        by = min([clock - places, *(start for _, start in rows)])
        if full - clock < config.chunk and by > 0:
            clock -= by
            rows = [[left, start - by] for left, start in rows]
            moves += 1
        new = [waiting.pop(0) for _ in range(min(len(waiting), size - len(rows)))]
        rows += [[lengths[n] - 1, clock - len(PROMPTS[n])] for n in new]
        prefills += bool(new)
        while not waiting and len(rows) <= size // 2 and size > 8:
            size //= 2
            compactions += 1
        done = min(config.chunk, full - clock, max(left for left, _ in rows))
        rows = [[left - done, start] for left, start in rows if left > done]
        clock, steps, slots = clock + done, steps + done, slots + done * size
    return slots, steps, prefills, moves, compactions


def test_limits_cut_answers_and_slots_are_counted(made):
    limits = np.random.default_rng(2).integers(1, LONGEST + 20, len(PROMPTS))
    cut = run(limits=limits)
    for answer, whole, limit in zip(cut.answers, made.answers, limits):
        assert answer.ids.tolist() == whole.ids[:limit].tolist()
        assert answer.ended == (whole.ended and len(whole.ids) <= limit)
    assert sum(len(a.ids) < len(b.ids) for a, b in zip(cut.answers, made.answers)) > 5
    for found in (made, cut):
        lengths = [len(answer.ids) for answer in found.answers]
        counted = (found.slots, found.steps, found.prefills, found.moves, found.compactions)
        assert counted == costs(lengths) != costs(lengths[::-1])
        assert found.useful == sum(lengths) - len(lengths) <= found.slots


def test_an_answer_is_never_empty():
    only = [i for i in range(64) if i != STOPS[0]]
    ended = run(PROMPTS[:20], IDS[:20], forbidden_ids=[i for i in only if i not in STOPS])
    assert all(len(answer.ids) >= 1 and answer.ids[-1] in STOPS for answer in ended.answers)
    assert ended.slots == ended.useful == ended.steps == 0 and ended.prefills == 2
    nothing = run([], [])
    assert nothing.answers == [] and nothing.slots == 0


def test_a_second_rollout_compiles_nothing(made):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    trained = jax.tree.map(lambda leaf: leaf * 1.01, PARAMS)
    compiled.clear()
    again = run(seed=9, params=trained, config=dataclasses.replace(CONFIG))
    assert compiled == [] and again.moves and again.compactions
    jax.jit(lambda x: x * 3)(np.ones(5))  # negative control
    assert compiled


MESHES = {
    "1": dict(data=1),
    "2": dict(data=1, fsdp=2),
    "4": dict(data=2, tensor=2),
    "8": dict(data=2, fsdp=4),
}


@pytest.mark.parametrize("devices", MESHES)
def test_same_noise_and_tokens_on_every_mesh(devices, made, forced):
    sizes = mesh_lib.MeshConfig(**MESHES[devices])
    mesh, rules = mesh_lib.make_mesh(sizes, jax.devices()[: int(devices)]), mesh_lib.AxisRules()
    rows = jax.sharding.NamedSharding(mesh, rules.spec("batch"))
    row_ids, places = np.arange(16) * 5, np.arange(16) % 3
    split = jax.device_put((row_ids, places), rows)
    plain = sampler.uniforms(jax.random.key(7), row_ids, places)
    got = jax.jit(sampler.uniforms)(jax.random.key(7), *split)
    assert (np.asarray(got).view(np.int32) == np.asarray(plain).view(np.int32)).all()
    assert len(np.unique(plain)) == 16 and plain[4] == np.float32(noise(20, 1))

    params = jax.device_put(PARAMS, decoder.param_shardings(MODEL, mesh, rules))
    count = 40 if devices == "8" else 24
    config = dataclasses.replace(CONFIG, rows=16 if devices == "8" else 8)
    found = run(PROMPTS[:count], IDS[:count], config=config, params=params, mesh=mesh, rules=rules)
    assert found.moves >= 1 and found.compactions == (devices == "8")
    logits, _ = forced
    differing = 0
    for n, (answer, want) in enumerate(zip(found.answers, made.answers)):
        common = min(len(answer.ids), len(want.ids))
        apart = np.flatnonzero(answer.ids[:common] != want.ids[:common])
        if not len(apart):
            assert len(answer.ids) == len(want.ids) and answer.ended == want.ended
            np.testing.assert_allclose(answer.logp, want.logp, atol=2e-5)
            continue
        place = apart[0]
        differing += 1
        print(f"mesh {devices}, row {n}: {answer.ids[place]} for {want.ids[place]} at {place}")
        uniform = noise(IDS[n], place)
        assert chosen_within_rounding(logits[n, place], uniform, answer.ids[place])
    assert differing <= 1


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(errors.ConfigError, match="temperature = 0.0.*above 0"):
        dataclasses.replace(CONFIG, temperature=0.0)
    for wrong in (dict(rows=0), dict(chunk=0), dict(max_new_tokens=0), dict(slack=-1)):
        with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
            dataclasses.replace(CONFIG, **wrong)
    assert max(map(len, PROMPTS)) == 30  # which the other tests show to fit
    with pytest.raises(errors.DataError, match=r"prompt 1 has 31 tokens.* 70.*room for 30.*fewer"):
        run([PROMPTS[0], [3] * 31], [0, 1])
    with pytest.raises(errors.DataError, match="prompt 2 has no tokens"):
        run([[3], [4], []], [0, 1, 2])
    with pytest.raises(errors.ConfigError, match="the pad id 5 is a stop id"):
        run(pad_id=5)
    with pytest.raises(errors.DataError, match="44 prompts, but 43 row ids"):
        run(row_ids=IDS[1:])
    with pytest.raises(errors.DataError, match="44 row ids, 1 limits"):
        run(limits=[3])
    with pytest.raises(errors.DataError, match="limit 0"):
        run(limits=[0] * 44)
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=8))
    with pytest.raises(errors.ConfigError, match="rows = 12 does not divide over 8.*set 16"):
        run(config=dataclasses.replace(CONFIG, rows=12), mesh=mesh)
