"""Episodes in rows: where every token of an answer lies, what pack, spread and collect do to values of answers."""

import numpy as np
import pytest

from jinstr.rlhf import experience

PAD = 0
SEQ_LEN = 24


def episodes(seed=0, count=12):
    """Random ones, unequal, of 2 to 20 places; among them prompts and answers of one token."""
    chance = np.random.default_rng(seed)
    lengths = [(1, 1), (1, 7), (6, 1), *chance.integers(1, 11, (count - 3, 2)).tolist()]
    return [
        experience.Episode(
            *(chance.integers(1, 1000, length).astype(np.int32) for length in pair),
        )
        for pair in lengths
    ]


def by_hand(rows, episode_list):
    """{episode: [(row, place) of each token of its answer]}, read off segment numbers and positions alone."""
    found = {}
    for row, ids in enumerate(rows.batch["segment_ids"]):
        for segment in sorted(set(ids.tolist()) - {0}):
            places = np.flatnonzero(ids == segment)
            first = rows.batch["tokens"][row, places[0]]
            text = np.append(first, rows.batch["targets"][row, places])
            (number,) = [
                n
                for n, episode in enumerate(episode_list)
                if np.array_equal(np.concatenate([episode.prompt, episode.answer]), text)
                and n not in found
            ]
            size = len(episode_list[number].answer)
            found[number] = [(row, place) for place in places[-size:].tolist()]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_every_token_of_an_answer_lies_where_it_is_the_target(seed):
    every = episodes(seed)
    chosen = np.random.default_rng(seed).permutation(len(every)).tolist()
    rows = experience.pack(every, chosen, seq_len=SEQ_LEN, pad_id=PAD)
    assert sorted(rows.episodes.tolist()) == list(range(len(every)))
    # The case is of interest: some rows hold several episodes.
    assert len(rows.batch["tokens"]) < len(every)
    for number, row, start in zip(rows.episodes, rows.rows, rows.starts):
        prompt, answer = every[number]
        for n, token in enumerate(answer):
            assert rows.batch["targets"][row, start + n] == token
        # The token before it is the last one of the prompt, at its own position.
        assert rows.batch["tokens"][row, start] == prompt[-1]
        assert rows.batch["positions"][row, start] == len(prompt) - 1
        segment = rows.batch["segment_ids"][row, start - len(prompt) + 1 : start + len(answer)]
        assert len(segment) == every[number].places
        assert set(segment.tolist()) == {segment[0]} != {0}
    expected = by_hand(rows, every)
    starts = {n: (r, s) for n, r, s in zip(rows.episodes, rows.rows, rows.starts)}
    assert {number: places[0] for number, places in expected.items()} == starts


@pytest.mark.parametrize("seed", range(4))
def test_loss_weights_are_the_mask_of_answers(seed):
    every = episodes(seed)
    rows = experience.pack(every, range(len(every)), seq_len=SEQ_LEN, pad_id=PAD)
    expected = np.zeros_like(rows.batch["loss_weights"])
    for places in by_hand(rows, every).values():
        for row, place in places:
            expected[row, place] = 1
    np.testing.assert_array_equal(rows.batch["loss_weights"], expected)
    assert expected.sum() == sum(len(episode.answer) for episode in every)
    # Negative control: one place off is another mask.
    assert (np.roll(expected, 1, axis=1) != rows.batch["loss_weights"]).any()


@pytest.mark.parametrize("seed", range(4))
def test_what_is_spread_is_collected_again(seed):
    every = episodes(seed)
    chance = np.random.default_rng(seed)
    mask = experience.answer_mask(every, 13)
    values = chance.normal(size=mask.shape).astype(np.float32)
    rows = experience.pack(every, chance.permutation(len(every)), seq_len=SEQ_LEN, pad_id=PAD)
    spread = experience.spread(rows, mask, values)
    assert spread.dtype == np.float32
    for number, places in by_hand(rows, every).items():
        for n, place in enumerate(places):
            assert spread[place] == values[number, n]
    assert not spread[rows.batch["loss_weights"] == 0].any()
    again = np.full_like(values, -7)
    experience.collect(rows, mask, spread, again)
    np.testing.assert_array_equal(again, np.where(mask, values, -7))
    # Negative control: taken from one place later, it is not what was put in.
    experience.collect(rows, mask, np.roll(spread, -1, axis=1), again)
    assert (again != np.where(mask, values, -7)).any()


def test_only_the_chosen_episodes_are_spread_and_collected():
    every = episodes()
    mask = experience.answer_mask(every, 10)
    rows = experience.pack(every, [7, 2, 4], seq_len=SEQ_LEN, pad_id=PAD)
    assert sorted(rows.episodes.tolist()) == [2, 4, 7]
    numbers = np.broadcast_to(np.arange(len(every))[:, None] + 1, mask.shape)
    spread = experience.spread(rows, mask, numbers)
    assert set(spread.ravel().tolist()) == {0, 3, 5, 8}
    into = np.zeros(mask.shape)
    experience.collect(rows, mask, spread, into)
    assert np.flatnonzero(into.any(1)).tolist() == [2, 4, 7]


def test_answer_places_name_every_token_of_the_answers():
    every = episodes()
    rows = experience.pack(every, range(12), seq_len=SEQ_LEN, pad_id=PAD)
    places = rows.batch["answer_places"]
    for row, mask in zip(places, rows.batch["loss_weights"] > 0, strict=True):
        assert row[: mask.sum()].tolist() == np.flatnonzero(mask).tolist()
        assert set(row[mask.sum() :].tolist()) <= {SEQ_LEN}
    assert places.shape[1] % 8 == 0 or places.shape[1] == SEQ_LEN
    more = experience.pack(every, range(12), seq_len=SEQ_LEN, pad_id=PAD, answer_places=SEQ_LEN)
    assert more.batch["answer_places"].shape[1] == SEQ_LEN


def test_rows_of_padding_and_too_few_rows():
    every = episodes()
    least = len(experience.pack(every, range(12), seq_len=SEQ_LEN, pad_id=5).batch["tokens"])
    settings = dict(seq_len=SEQ_LEN, pad_id=5)
    rows = experience.pack(every, range(12), num_rows=least + 3, **settings)
    assert rows.batch["tokens"].shape == (least + 3, SEQ_LEN)
    for name, empty in {"tokens": 5, "targets": 5, "segment_ids": 0, "loss_weights": 0}.items():
        assert (rows.batch[name][least:] == empty).all()
        assert (rows.batch[name][:least] != empty).any(1).all()
    assert rows.rows.max() == least - 1
    rounded = experience.pack(every, range(12), multiple=4, **settings)
    assert len(rounded.batch["tokens"]) == -(-least // 4) * 4
    with pytest.raises(ValueError, match=f"take {least} rows of {SEQ_LEN}, not {least - 1}"):
        experience.pack(every, range(12), num_rows=least - 1, **settings)


def test_no_episode_is_rows_of_padding():
    every = episodes()
    rows = experience.pack(every, [], seq_len=SEQ_LEN, pad_id=PAD, num_rows=2)
    mask = experience.answer_mask(every, 10)
    assert not experience.spread(rows, mask, mask).any()
    assert not rows.batch["loss_weights"].any()


def test_an_answer_of_one_token_to_a_prompt_of_one():
    episode = experience.Episode(np.array([8], np.int32), np.array([9], np.int32))
    rows = experience.pack([episode], [0], seq_len=4, pad_id=PAD)
    assert rows.batch["tokens"].tolist() == [[8, 0, 0, 0]]
    assert rows.batch["targets"].tolist() == [[9, 0, 0, 0]]
    assert rows.batch["loss_weights"].tolist() == [[1, 0, 0, 0]]
    assert rows.starts.tolist() == [0]
    assert experience.answer_mask([episode], 3).tolist() == [[True, False, False]]
