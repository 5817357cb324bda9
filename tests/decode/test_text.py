"""Text from a real tokenizer: streams against batches, stop strings, control tokens."""

import types

import jax
import numpy as np
import pytest

from jinstr.decode import sampler, text
from jinstr.text import templates


def text_sampler(model, tokenizer, stop_ids=(), stop_strings=(), **settings):
    template = types.SimpleNamespace(stop_ids=stop_ids, stop_strings=(), answer_tokens=())
    settings = {"temperature": 1.0, "max_new_tokens": 48} | settings
    sampling = sampler.SamplingConfig(stop_strings=tuple(stop_strings), **settings)
    return text.TextSampler(*model, tokenizer, template, sampling)


PROMPTS = [[2, 300], [2] + [310] * 9, [2, 305, 306]]


def test_streamed_text_equals_batch_text(model, tokenizer):
    stop_ids = (3, *range(200, 215))
    settings = dict(stop_ids=stop_ids, stop_strings=["山", "あ"])
    s = text_sampler(model, tokenizer, **settings)
    answers = s.answer_batch(PROMPTS, [1, 2, 3], pad_rows=4)
    for prompt, row, answer in zip(PROMPTS, [1, 2, 3], answers):
        pieces = list(s.stream(prompt, row))
        assert "".join(pieces) == answer.text and all(pieces)
        assert not any(0xD800 <= ord(c) < 0xE000 for c in answer.text)
    # The other way round, and in batches of two: order and neighbours do not matter.
    again = dict(s.answer_all(PROMPTS[::-1], [3, 2, 1], batch_rows=2))
    assert [again[i].text for i in (2, 1, 0)] == [a.text for a in answers]
    other = s.answer_batch(PROMPTS, [4, 5, 6])
    assert [a.text for a in other] != [a.text for a in answers]


def test_ends_and_stop_strings(model, tokenizer):
    free = text_sampler(model, tokenizer).answer_batch(PROMPTS, [1, 2, 3])
    assert all(a.finish == "length" and len(a.ids) == 48 for a in free)
    long = max(range(3), key=lambda i: len(free[i].text))
    middle = free[long].text[len(free[long].text) // 2 :][:3]
    cut = text_sampler(model, tokenizer, stop_strings=[middle]).answer_batch(PROMPTS, [1, 2, 3])
    assert cut[long].finish == "stop"
    assert cut[long].text == free[long].text[: free[long].text.index(middle)]
    assert free[long].ids[: len(cut[long].ids)] == cut[long].ids
    assert len(cut[long].ids) < 48 and cut[long].logp > free[long].logp
    stop = free[0].ids[5]
    ended = text_sampler(model, tokenizer, stop_ids=(stop,)).answer_batch(PROMPTS[:1], [1])[0]
    assert ended.finish == "end" and stop not in ended.ids
    assert ended.ids == free[0].ids[: free[0].ids.index(stop)]


def test_control_tokens_and_spare_rows_are_never_written(model, tokenizer):
    s = text_sampler(model, tokenizer, stop_ids=(3,), temperature=50.0, max_new_tokens=200)
    control = {i for i in range(tokenizer.vocab_size) if tokenizer.is_control(i)}
    spare = range(tokenizer.vocab_size, tokenizer.vocab_size + 6)
    assert {0, 2, 3, tokenizer.id_of("<|turn|>")} <= control
    ids = {i for a in s.answer_batch([[2]] * 16, range(16)) for i in a.ids}
    assert ids.isdisjoint({*control, tokenizer.unk_id, *spare}) and len(ids) > 200
    # Negative control: without the mask they come.
    raw = sampler.Sampler(model[0], s.sampling, (), tokenizer.pad_id)
    rollout = raw(model[1], np.full((16, 1), 2), np.ones(16, int), np.arange(16), jax.random.key(0))
    assert not {int(i) for i in np.asarray(rollout.ids).ravel()}.isdisjoint({*control, *spare})


def test_a_line_break_token_is_written_and_read_as_a_line_break(chat_model, chat_tokenizer):
    new_line, turn = map(chat_tokenizer.id_of, ("<NL>", "<|im_start|>"))
    setting = sampler.SamplingConfig(temperature=20.0, max_new_tokens=100)
    rows = range(16)

    def texts_and_ids(name):
        template = templates.load(name, chat_tokenizer)
        s = text.TextSampler(*chat_model, chat_tokenizer, template, setting)
        answers = s.answer_batch([[2, 300]] * len(rows), rows)
        # One with a line break, where there is one.
        row = max(rows, key=lambda row: new_line in answers[row].ids)
        assert "".join(s.stream([2, 300], row)) == answers[row].text
        return answers, {id for a in answers for id in a.ids}

    answers, ids = texts_and_ids("rinna")
    assert new_line in ids
    for answer in answers:
        lines = [[]]
        for id in answer.ids:
            lines.append([]) if id == new_line else lines[-1].append(id)
        assert answer.text == "\n".join(map(chat_tokenizer.decode_continuation, lines))
    # Negative controls: other control tokens stay forbidden, and <NL> where the template has no use for it.
    assert turn not in ids
    _, ids = texts_and_ids("rinna-bilingual")
    assert new_line not in ids and turn not in ids


def test_a_next_question_after_a_line_break_token_ends_the_answer(chat_tokenizer):
    template = templates.load("rinna", chat_tokenizer)
    new_line = chat_tokenizer.id_of("<NL>")
    half = chat_tokenizer.encode("\u3402")[:-1]  # a character without its last byte
    ids = [*half, new_line, *chat_tokenizer.encode_continuation("ユーザー: 次は")]

    def read(stops):
        assembler = text.Assembler(chat_tokenizer.stream(), stops, dict(template.answer_tokens))
        pieces = [assembler.push(id) for id in chat_tokenizer.encode("はい。") + ids]
        return "".join([*pieces, assembler.flush()])

    assert read(template.stop_strings) == "はい。"
    # Negative control: without the stop string the text goes on.
    assert read(()) == "はい。\nユーザー: 次は"


class Letters:
    """A stream of single characters, whose ids are code points: what an Assembler needs of a tokenizer."""

    push = staticmethod(chr)

    @staticmethod
    def flush():
        return ""


@pytest.mark.parametrize("stops", [["###"], ["終わり", "終点"], ["aab", "ab"], []])
def test_assembler_equals_a_search_in_the_whole_text(stops):
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(200):
        whole = "".join(rng.choice(list("a#b終わり点"), 20))
        assembler = text.Assembler(Letters, stops)
        pieces = [assembler.push(ord(c)) for c in whole] + [assembler.flush()]
        found = [at for at in map(whole.find, stops) if at >= 0]
        if assembler.stopped:
            # The first stop string to be complete ends the answer; nothing of it was emitted before.
            done = min(at + len(s) for s in stops if (at := whole.find(s)) >= 0)
            want = min(at for s in stops if (at := whole[:done].find(s)) >= 0)
            assert "".join(pieces) == assembler.text == whole[:want]
        else:
            assert not found and "".join(pieces) == whole
        stopped += assembler.stopped
    assert (stopped > 0) == bool(stops)


def test_a_model_without_a_template_goes_on_from_question_and_input(model, tokenizer):
    s = text.TextSampler(*model, tokenizer, None, sampler.SamplingConfig(max_new_tokens=4))
    turns = [{"role": "user", "content": "山"}, {"role": "input", "content": "川"}]
    assert s.prompt_ids(turns) == [2, *tokenizer.encode("山\n\n川")]
    assert s.prompt_ids(turns[:1]) == [2, *tokenizer.encode("山")]
